// The class of each pixel: a coloured map over the picture, and how much of it each class covers.

import { el, list, percent, row, slider, spotlight } from "./dom.js";
import { decode, layer, pixelAt } from "./picture.js";

export const parameters = () => ({ map: 1 });

export const classesOf = () => [];

export const asAsked = (answer) => answer;

export function summary({ classes }) {
  return Object.entries(classes).slice(0, 3).map(([name, share]) => `${name} ${percent(share)}`).join(", ");
}

export async function show({ result, sheet, panel, settings }) {
  const { classes, colours, width, height } = result;
  const names = Object.keys(classes);
  const rows = names.map((name) => row(name, percent(classes[name]), classes[name], colours[name]));
  const map = layer(sheet, width, height);
  const says = el("p", { className: "tag best", hidden: true });
  const fade = (opacity) => { settings.opacity = opacity; map.pen.canvas.style.opacity = opacity; };

  sheet.append(says);
  panel.append(
    el("h2", {}, "Classes"), slider("Opacity", settings.opacity, (value) => `${Math.round(100 * value)} %`, fade),
    list(rows, "Classes"));
  fade(settings.opacity);

  const image = await decode(result.map);
  map.pen.imageSmoothingEnabled = false;
  map.pen.drawImage(image, 0, 0, width / map.step, height / map.step);
  const whole = map.pen.getImageData(0, 0, map.pen.canvas.width, map.pen.canvas.height);
  const byColour = new Map(names.map((name, index) => [colours[name], index]));
  const classAt = (x, y) => byColour.get(colourAt(whole, Math.floor(x / map.step), Math.floor(y / map.step))) ?? null;

  const light = spotlight(rows, (index) => {
    map.pen.putImageData(index === null ? whole : only(whole, colours[names[index]]), 0, 0);
  });
  sheet.addEventListener("pointermove", (event) => {
    const index = classAt(...pixelAt(event, sheet, width, height));
    says.hidden = index === null;
    says.textContent = names[index];
    light.light(index);
  });
  sheet.addEventListener("pointerleave", () => { says.hidden = true; light.light(null); });
  sheet.addEventListener("click", (event) => {
    const index = classAt(...pixelAt(event, sheet, width, height));
    if (index !== null) light.hold(index);
  });
}

function colourAt({ data, width, height }, x, y) {
  if (x < 0 || y < 0 || x >= width || y >= height) return null;
  const at = 4 * (y * width + x);
  return `#${[...data.subarray(at, at + 3)].map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

// The map with all colours but one nearly gone.
function only(whole, colour) {
  const kept = parseInt(colour.slice(1), 16), pixels = new ImageData(whole.data.slice(), whole.width);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const found = (pixels.data[at] << 16) | (pixels.data[at + 1] << 8) | pixels.data[at + 2];
    if (found !== kept) pixels.data[at + 3] = 40;
  }
  return pixels;
}
