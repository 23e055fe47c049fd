// Draws the data of payload.py (`sample_data`). A point is {y, x} in pixels of the sample's picture.

const DIMMED = 0.55; // light of the picture under heat
const LAST_STRIDE = 32; // pixels of a position of the last map

export function picture(source) {
  const image = new Image();
  image.src = source;
  return image.decode().then(() => image);
}

// Every picture of a sample, decoded: its own, [tiles, received] of each stage, [affinity, maps] of each stage.
export function pictures(sample) {
  const pairs = (stages, ...names) =>
    Promise.all(stages.map((stage) => Promise.all(names.map((name) => picture(stage[name])))));
  return Promise.all([
    picture(sample.image),
    pairs(sample.windows, "sprite", "received"),
    pairs(sample.channels, "affinity", "maps"),
  ]);
}

// The pen of the canvas that stands in a view, put there in place of what the view showed before its first use.
export function canvas(view, width, height, label) {
  let board = view.querySelector("canvas");
  if (!board) {
    board = document.createElement("canvas");
    board.setAttribute("role", "img");
    view.replaceChildren(board);
  }
  board.width = width;
  board.height = height;
  board.setAttribute("aria-label", label);
  const pen = board.getContext("2d");
  pen.imageSmoothingEnabled = false;
  return pen;
}

// A canvas of whole canvas pixels per picture pixel, so that every position has sharp, equal edges.
export function pictureCanvas(view, sample, image, label, side, light) {
  const scale = Math.max(1, Math.round(side / Math.max(sample.width, sample.height)));
  const pen = canvas(view, sample.width * scale, sample.height * scale, label);
  pen.imageSmoothingEnabled = Math.max(sample.width, sample.height) > 64;
  pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  pen.globalAlpha = light;
  pen.drawImage(image, 0, 0, pen.canvas.width, pen.canvas.height);
  pen.globalAlpha = 1;
  pen.imageSmoothingEnabled = false;
  return [pen, scale];
}

function outline(pen, x, y, width, height, strong) {
  const thick = Math.max(2, Math.round(pen.canvas.width / 150));
  for (const [colour, line] of strong ? [["#000", 2 * thick], ["#fff", thick]] : [["#ffffff88", thick / 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = line;
    pen.strokeRect(x, y, Math.min(width, pen.canvas.width - x), Math.min(height, pen.canvas.height - y));
  }
}

// The stored query nearest to a point: its index in the lattice, its position, its window; for rows and for columns.
export function query(stage, point) {
  const along = (pixel, side, stored) => {
    const index = Math.min(stored.length - 1, Math.floor(pixel / stage.stride / stage.step));
    const token = stored[index], start = token - (token % stage.window);
    return { index, token, start, length: Math.min(stage.window, side - start) };
  };
  return [along(point.y, stage.side[0], stage.rows), along(point.x, stage.side[1], stage.columns)];
}

function paste(pen, sprite, stage, head, row, column, unit, left, top) {
  const P = stage.window;
  pen.drawImage(
    sprite, column.index * P, (head * stage.rows.length + row.index) * P, column.length, row.length,
    left, top, column.length * unit, row.length * unit);
}

// What the position under the point attends to, and its window, over the picture; head 0 is the mean.
export function drawWindow(view, stage, sample, image, sprite, head, point, side = 448) {
  const [row, column] = query(stage, point);
  const label = `Attention of row ${row.token + 1}, column ${column.token + 1} at stage ${stage.stage + 1}`;
  const [pen, scale] = pictureCanvas(view, sample, image, label, side, DIMMED);
  const unit = stage.stride * scale;
  paste(pen, sprite, stage, head, row, column, unit, column.start * unit, row.start * unit);
  outline(pen, column.start * unit, row.start * unit, column.length * unit, row.length * unit, false);
  outline(pen, column.token * unit, row.token * unit, unit, unit, true);
}

// The same attention by itself, small, for the button that chooses a head.
export function drawHead(view, stage, sprite, head, point) {
  const [row, column] = query(stage, point);
  const pen = canvas(view, stage.window * 8, stage.window * 8, "");
  pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  paste(pen, sprite, stage, head, row, column, 8, 0, 0);
}

export function windowWords(stage, point) {
  const [row, column] = query(stage, point);
  const peak = stage.peak[row.index][column.index];
  const lost = stage.padding ? stage.padding[row.index][column.index] : 0;
  return `brightest square: ${peak.toFixed(0)} %` + (lost >= 0.5 ? `, ${lost.toFixed(0)} % to padding` : "");
}

// A map of heat over the picture; each of its positions covers a square of `stride` pixels.
function drawHeat(view, sample, image, map, { side: [h, w], stride }, label, side, smooth) {
  const [pen, scale] = pictureCanvas(view, sample, image, label, side, DIMMED);
  pen.imageSmoothingEnabled = smooth;
  pen.drawImage(map, 0, 0, w * stride * scale, h * stride * scale);
  return [pen, scale];
}

export function drawReceived(view, stage, sample, image, map, side = 448) {
  drawHeat(view, sample, image, map, stage, `Attention received at stage ${stage.stage + 1}`, side, false);
}

// Grad-CAM at one of its maps; the box is that of a detector's object.
export function drawCam(view, cam, stage, sample, image, map, side = 448) {
  const label = `Grad-CAM of ${cam.label} at stage ${stage + 1}`;
  const [pen, scale] = drawHeat(view, sample, image, map, cam.maps[stage], label, side, true);
  if (!cam.box) return;
  const [left, top, right, bottom] = cam.box.map((edge) => edge * scale);
  outline(pen, left, top, right - left, bottom - top, true);
}

export function drawRolloutMean(view, rollout, sample, image, map, side = 448) {
  const cells = { side: rollout.cells, stride: rollout.stride };
  drawHeat(view, sample, image, map, cells, "Rollout, the mean over all positions", side, false);
}

// The position of the last map under the point, and where in the picture it comes from.
export function drawRollout(view, rollout, sample, image, tiles, point, side = 448) {
  const [row, column] = rolloutQuery(rollout, point), [h, w] = rollout.tile;
  const label = `Rollout of row ${row.token + 1}, column ${column.token + 1}`;
  const [pen, scale] = pictureCanvas(view, sample, image, label, side, DIMMED);
  const unit = rollout.stride * scale, size = LAST_STRIDE * scale;
  pen.drawImage(tiles, column.index * w, row.index * h, w, h, 0, 0, rollout.cells[1] * unit, rollout.cells[0] * unit);
  outline(pen, column.token * size, row.token * size, size, size, true);
}

export function rolloutQuery(rollout, point) {
  const along = (pixel, stored) => {
    const wanted = Math.floor(pixel / LAST_STRIDE), far = (token) => Math.abs(token - wanted);
    const index = stored.reduce((best, token, i) => (far(token) < far(stored[best]) ? i : best), 0);
    return { index, token: stored[index] };
  };
  return [along(point.y, rollout.rows), along(point.x, rollout.columns)];
}

// The picture with the position under the point outlined.
export function drawPoint(view, stage, sample, image, point, side = 448) {
  const [pen, scale] = pictureCanvas(view, sample, image, sample.name, side, 1);
  const [row, column] = query(stage, point), unit = stage.stride * scale;
  outline(pen, column.token * unit, row.token * unit, unit, unit, true);
}

export function drawAffinity(view, stage, sample, affinity, group) {
  const D = stage.channels, label = `Affinity of group ${group + 1} at stage ${stage.stage + 1} of ${sample.name}`;
  canvas(view, D * 8, D * 8, label).drawImage(affinity, group * D, 0, D, D, 0, 0, D * 8, D * 8);
}

// The map of the group's chosen channel `index`: before (0) or after (1) the attention mixed in the others.
export function pasteChannel(pen, stage, maps, group, after, index, left, top, width, height) {
  const [h, w] = stage.side;
  pen.drawImage(maps, index * w, (group * 2 + after) * h, w, h, left, top, width, height);
}

export function drawChannels(view, stage, maps, group) {
  const [h, w] = stage.side, chosen = stage.chosen[group], count = chosen.length;
  const k = Math.max(1, Math.ceil(96 / Math.max(h, w))), gap = 4;
  const pen = canvas(view, count * (w * k + gap) - gap, 2 * (h * k + gap) - gap,
    `Maps of channels ${chosen.join(", ")}, before and after the attention`);
  for (let after = 0; after < 2; after++) {
    for (let i = 0; i < count; i++) {
      pasteChannel(pen, stage, maps, group, after, i, i * (w * k + gap), after * (h * k + gap), w * k, h * k);
    }
  }
}

// The point of the sample's picture under the pointer.
export function pointAt(event, view, sample) {
  const box = view.getBoundingClientRect();
  return within(sample, {
    y: ((event.clientY - box.top) / box.height) * sample.height,
    x: ((event.clientX - box.left) / box.width) * sample.width,
  });
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// The middle of the next stored position in the direction of a pressed arrow key; null for other keys.
export function pointAfter(event, stage, sample, point) {
  const step = STEPS[event.key];
  if (!step || event.metaKey || event.ctrlKey || event.altKey) return null;
  const size = stage.stride * stage.step;
  const centre = (value, by, limit) => {
    const cell = Math.floor(value / size) + by;
    return Math.min(Math.ceil(limit / size) - 1, Math.max(0, cell)) * size + size / 2;
  };
  return within(sample, { y: centre(point.y, step[0], sample.height), x: centre(point.x, step[1], sample.width) });
}

function within(sample, { y, x }) {
  return { y: Math.min(sample.height - 1, Math.max(0, y)), x: Math.min(sample.width - 1, Math.max(0, x)) };
}
