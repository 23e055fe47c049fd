// Objects: a box, a name and where there is one a mask for each, on the picture and in a list.

import { el, list, plural, row, slider, spotlight } from "./dom.js";
import { layer, pixelAt } from "./picture.js";
import { covers, readMask } from "./rle.js";

const MOST_NAMED = 12; // more names at once hide the picture; then only the lit object's is shown

// All objects are asked for, so that the threshold moves without another question.
export const parameters = (settings, curl) => ({ threshold: curl ? settings.threshold : 0 });

export const classesOf = (result) => result.objects;

export function asAsked(answer, { threshold }) {
  const above = (result) => ({ ...result, objects: result.objects.filter(({ score }) => score >= threshold) });
  return { ...answer, results: answer.results.map(above) };
}

export function summary({ objects }, { threshold }) {
  const counts = new Map();
  for (const { label, score } of objects) if (score >= threshold) counts.set(label, (counts.get(label) ?? 0) + 1);
  const names = [...counts].slice(0, 4).map(([label, count]) => (count > 1 ? `${count} x ${label}` : label));
  return counts.size ? names.join(", ") + (counts.size > 4 ? ", and others" : "") : "no object over the threshold";
}

export function show({ result, sheet, panel, settings, changed }) {
  const { objects, width, height, colours } = result;
  const masks = new Masks(layer(sheet, width, height), objects, colours);
  const boxes = objects.map((object) => boxOf(object, width, height, colours[object.label]));
  const rows = objects.map(({ label, score }) => row(label, score.toFixed(2), score, colours[label]));
  const holder = el("div", { className: "boxes" }, ...boxes.toReversed()); // the best on top
  const count = el("p", { className: "quiet" });
  const entries = list(rows, "Objects");
  let visible = [], lit = null;

  const draw = () => {
    const index = visible[lit] ? lit : null;
    holder.classList.toggle("dim", index !== null);
    boxes.forEach((box, i) => box.classList.toggle("lit", i === index));
    masks.draw(visible, index);
  };
  const light = spotlight(rows, (index) => { lit = index; draw(); });
  const apply = (threshold) => {
    visible = objects.map(({ score }) => score >= threshold);
    const left = visible.filter(Boolean).length;
    for (const [index, shown] of visible.entries()) boxes[index].hidden = rows[index].parentNode.hidden = !shown;
    holder.classList.toggle("many", left > MOST_NAMED);
    count.textContent = `${left} of ${plural(objects.length, "object")}`;
    draw();
  };
  const under = (event) => smallestAt(...pixelAt(event, sheet, width, height), objects, visible, masks);

  sheet.append(holder);
  sheet.addEventListener("pointermove", (event) => {
    const index = under(event);
    light.light(index);
    if (index !== null) entries.scrollTo({ top: rows[index].offsetTop - entries.clientHeight / 2 });
  });
  sheet.addEventListener("pointerleave", () => light.light(null));
  sheet.addEventListener("click", (event) => light.hold(under(event)));
  const moved = (threshold) => { settings.threshold = threshold; apply(threshold); changed(); };
  panel.append(
    el("h2", {}, "Objects"), slider("Score at least", settings.threshold, (value) => value.toFixed(2), moved), count, entries);
  apply(settings.threshold);
}

function boxOf({ label, score, box: [left, top, right, bottom] }, width, height, colour) {
  const box = el("div", { className: "box" }, el("span", { className: "tag" }, `${label} ${score.toFixed(2)}`));
  const share = (value, whole) => `${(100 * value) / whole}%`;
  Object.assign(box.style, {
    left: share(left, width), top: share(top, height),
    width: share(right - left, width), height: share(bottom - top, height),
  });
  box.style.setProperty("--colour", colour);
  box.style.setProperty("--on-colour", inkOn(colour));
  return box;
}

// The object under a place; of several the smallest, which would be hidden behind the others.
function smallestAt(x, y, objects, visible, masks) {
  let best = null, least = Infinity;
  objects.forEach(({ box: [left, top, right, bottom] }, index) => {
    const area = (right - left) * (bottom - top);
    const within = x >= left && x < right && y >= top && y < bottom;
    if (visible[index] && within && area < least && masks.covers(index, x, y)) [best, least] = [index, area];
  });
  return best;
}

// Black or white, whichever is easier to read on a colour (WCAG's relative luminance).
function inkOn(colour) {
  const linear = [1, 3, 5].map((at) => {
    const value = parseInt(colour.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

class Masks {
  #pen;
  #step;
  #masks;
  #stamps;

  constructor({ pen, step }, objects, colours) {
    this.#pen = pen;
    this.#step = step;
    this.#masks = objects.map(({ mask }) => (mask ? readMask(mask, step) : null));
    this.#stamps = this.#masks.map((mask, index) => mask && stamp(mask, colours[objects[index].label]));
  }

  // A box without a mask covers all of itself.
  covers(index, x, y) {
    const mask = this.#masks[index];
    return !mask || covers(mask, Math.floor(x / this.#step), Math.floor(y / this.#step));
  }

  draw(visible, lit) {
    const { canvas } = this.#pen;
    this.#pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let index = visible.length - 1; index >= 0; index--) {
      if (!visible[index] || !this.#stamps[index]) continue;
      this.#pen.globalAlpha = lit === null || lit === index ? 1 : 0.2;
      this.#pen.drawImage(this.#stamps[index], this.#masks[index].left, this.#masks[index].top);
    }
    this.#pen.globalAlpha = 1;
  }
}

// A mask in its colour, with a strong edge.
function stamp({ width, height, inside }, colour) {
  const pixels = new ImageData(width, height);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside[y * width + x]) continue;
      const edge = !(at(x - 1, y) && at(x + 1, y) && at(x, y - 1) && at(x, y + 1));
      pixels.data.set([red, green, blue, edge ? 255 : 110], 4 * (y * width + x));
    }
  }
  const board = el("canvas", { width, height });
  board.getContext("2d").putImageData(pixels, 0, 0);
  return board;
}
