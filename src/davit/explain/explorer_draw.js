// Drawing of explained pictures (payload.py): each function draws one canvas from sprites that are decoded already.
// A point is {y, x} in pixels of the picture; `size` is about how long the longer side of a canvas becomes.

const SIZE = 448;
const DIMMED = 0.55; // light of the picture under heat
const LAST = 32; // pixels of a position of the last map

// The canvas that stands in a view, put there in place of the still picture on first use.
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
export function pictureCanvas(view, sample, image, label, size, light) {
  const scale = Math.max(1, Math.round(size / Math.max(sample.width, sample.height)));
  const pen = canvas(view, sample.width * scale, sample.height * scale, label);
  pen.imageSmoothingEnabled = Math.max(sample.width, sample.height) > 64;
  pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  pen.globalAlpha = light;
  pen.drawImage(image, 0, 0, pen.canvas.width, pen.canvas.height);
  pen.globalAlpha = 1;
  pen.imageSmoothingEnabled = false;
  return [pen, scale];
}

export function outline(pen, x, y, width, height, strong) {
  const thick = Math.max(2, Math.round(pen.canvas.width / 150));
  for (const [colour, line] of strong ? [["#000", 2 * thick], ["#fff", thick]] : [["#ffffff88", thick / 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = line;
    pen.strokeRect(x, y, Math.min(width, pen.canvas.width - x), Math.min(height, pen.canvas.height - y));
  }
}

// The stored query nearest to a point: its index in the lattice, its position, its window; for rows and for columns.
export function query(stage, at) {
  const along = (pixel, side, stored) => {
    const index = Math.min(stored.length - 1, Math.floor(pixel / stage.stride / stage.step));
    const token = stored[index], start = token - (token % stage.window);
    return { index, token, start, length: Math.min(stage.window, side - start) };
  };
  return [along(at.y, stage.side[0], stage.rows), along(at.x, stage.side[1], stage.columns)];
}

function pasteWindow(pen, sprite, stage, head, row, column, unit, left, top) {
  const P = stage.window;
  pen.drawImage(
    sprite, column.index * P, (head * stage.rows.length + row.index) * P, column.length, row.length,
    left, top, column.length * unit, row.length * unit);
}

// What the position under the point attends to, and its window; head 0 is the mean.
export function drawWindow(view, stage, sample, at, image, sprite, head, size = SIZE) {
  const [row, column] = query(stage, at);
  const label = `Attention of row ${row.token + 1}, column ${column.token + 1} at stage ${stage.stage + 1}`;
  const [pen, scale] = pictureCanvas(view, sample, image, label, size, DIMMED);
  const unit = stage.stride * scale;
  pasteWindow(pen, sprite, stage, head, row, column, unit, column.start * unit, row.start * unit);
  outline(pen, column.start * unit, row.start * unit, column.length * unit, row.length * unit, false);
  outline(pen, column.token * unit, row.token * unit, unit, unit, true);
}

// The same attention by itself, small, for the button that chooses a head.
export function drawHead(view, stage, at, sprite, head) {
  const [row, column] = query(stage, at);
  const pen = canvas(view, stage.window * 8, stage.window * 8, "");
  pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
  pasteWindow(pen, sprite, stage, head, row, column, 8, 0, 0);
}

export function windowWords(stage, at, head) {
  if (head) return `head ${head} of ${stage.heads}`;
  const [row, column] = query(stage, at);
  const peak = stage.peak[row.index][column.index];
  const lost = stage.padding ? stage.padding[row.index][column.index] : 0;
  return `brightest square: ${peak.toFixed(0)} %` + (lost >= 0.5 ? `, ${lost.toFixed(0)} % to padding` : "");
}

// A map of the whole picture, each of its positions `stride` pixels wide.
export function drawMap(view, sample, image, map, side, stride, label, smooth, size = SIZE) {
  const [pen, scale] = pictureCanvas(view, sample, image, label, size, DIMMED);
  const unit = stride * scale;
  pen.imageSmoothingEnabled = smooth;
  pen.drawImage(map, 0, 0, side[1] * unit, side[0] * unit);
  return [pen, scale];
}

// Grad-CAM at the map of a stage; the box is that of a detector's object.
export function drawCam(view, sample, image, cam, stage, heat, size = SIZE) {
  const { side, stride } = cam.maps[stage], label = `Grad-CAM of ${cam.label} at stage ${stage + 1}`;
  const [pen, scale] = drawMap(view, sample, image, heat, side, stride, label, true, size);
  if (!cam.box) return;
  const [left, top, right, bottom] = cam.box.map((edge) => edge * scale);
  outline(pen, left, top, right - left, bottom - top, true);
}

// The rollout of the position of the last map under a point: a tile of the sprite.
export function drawRollout(view, rollout, sample, at, image, tiles, size = SIZE) {
  const [row, column] = rolloutQuery(rollout, at), [h, w] = rollout.tile;
  const label = `Rollout of row ${row.token + 1}, column ${column.token + 1} of the last map`;
  const [pen, scale] = pictureCanvas(view, sample, image, label, size, DIMMED);
  const unit = rollout.stride * scale, last = LAST * scale;
  pen.drawImage(tiles, column.index * w, row.index * h, w, h, 0, 0, rollout.cells[1] * unit, rollout.cells[0] * unit);
  outline(pen, column.token * last, row.token * last, last, last, true);
  return rollout.ranges[row.index][column.index];
}

export function rolloutQuery(rollout, at) {
  const along = (pixel, stored) => {
    const index = Math.min(stored.length - 1, Math.floor(pixel / LAST / rollout.step));
    return { index, token: stored[index] };
  };
  return [along(at.y, rollout.rows), along(at.x, rollout.columns)];
}

export function rangeWords([low, high]) {
  return `dark ${low.toFixed(2)}, bright ${high.toFixed(2)} times an even share`;
}

// The affinity of a group, and the row of the chosen channel in it.
export function drawAffinity(view, stage, group, affinity, token, label) {
  const D = stage.channels;
  const pen = canvas(view, D * 8, D * 8, label);
  pen.drawImage(affinity, group * D, 0, D, D, 0, 0, D * 8, D * 8);
  if (token !== undefined) outline(pen, 0, token * 8, D * 8, 8, true);
}

// What the place-th of a group's chosen channels takes from the others.
export function sourceWords(stage, group, place) {
  return `Channel ${stage.chosen[group][place]} takes ` +
    stage.top[group][place].map(([from, share]) => `${share.toFixed(0)} % from ${from}`).join(", ");
}

// The map of a channel by itself (0), or of what the attention makes of it (1).
export function pasteChannel(pen, stage, group, place, after, maps, left, top, width, height) {
  const [h, w] = stage.side;
  pen.drawImage(maps, place * w, (group * 2 + after) * h, w, h, left, top, width, height);
}

// One channel: its own map above what the attention makes of it.
export function drawToken(view, stage, group, place, maps) {
  const [h, w] = stage.side, k = Math.max(1, Math.ceil(72 / Math.max(h, w))), gap = 3;
  const pen = canvas(view, w * k, 2 * h * k + gap, "");
  for (let after = 0; after < 2; after++) {
    pasteChannel(pen, stage, group, place, after, maps, 0, after * (h * k + gap), w * k, h * k);
  }
}

// The point of the picture under the pointer.
export function pointAt(event, view, sample) {
  const box = view.getBoundingClientRect();
  return inside(sample, {
    y: (event.clientY - box.top) / box.height * sample.height,
    x: (event.clientX - box.left) / box.width * sample.width,
  });
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// The middle of the next stored position in the direction of an arrow key; null for other keys. Without window attention
// (no `stage`) it goes by the last map.
export function pointAfter(event, stage, sample, at) {
  const step = STEPS[event.key], size = stage ? stage.stride * stage.step : LAST;
  if (!step || event.metaKey || event.ctrlKey || event.altKey) return null;
  const centre = (value, by, limit) => {
    const cell = Math.floor(value / size) + by;
    return Math.min(Math.ceil(limit / size) - 1, Math.max(0, cell)) * size + size / 2;
  };
  return inside(sample, { y: centre(at.y, step[0], sample.height), x: centre(at.x, step[1], sample.width) });
}

export function inside(sample, { y, x }) {
  return { y: Math.min(sample.height - 1, Math.max(0, y)), x: Math.min(sample.width - 1, Math.max(0, x)) };
}
