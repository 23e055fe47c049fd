// Drawing of explained pictures: each function draws one canvas from sprites that are decoded already.

// The canvas that stands in a view, put there in place of the still picture on first use.
function canvas(view, width, height, label) {
  let board = $("canvas", view);
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
function pictureCanvas(view, sample, image, label, side, light) {
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

// The stored query nearest to a pixel: its index in the lattice, its position, its window.
function query(stage, at) {
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

function drawWindow(figure, stage, sample, at, image, sprite, head) {
  const [row, column] = query(stage, at);
  const label = `Attention of row ${row.token + 1}, column ${column.token + 1} at stage ${stage.stage + 1}`;
  const [pen, scale] = pictureCanvas($(".view", figure), sample, image, label, 448, 0.55);
  const unit = stage.stride * scale;
  pasteWindow(pen, sprite, stage, head, row, column, unit, column.start * unit, row.start * unit);
  outline(pen, column.start * unit, row.start * unit, column.length * unit, row.length * unit, false);
  outline(pen, column.token * unit, row.token * unit, unit, unit, true);
  const peak = stage.peak[row.index][column.index];
  const lost = stage.padding ? stage.padding[row.index][column.index] : 0;
  const says = `brightest square: ${peak.toFixed(0)} %` + (lost >= 0.5 ? `, ${lost.toFixed(0)} % to padding` : "");
  $(".says", figure).textContent = head ? `head ${head} of ${stage.heads}` : says;
  all(".heads button", figure).forEach((button, index) => {
    const pen = canvas($("span", button), stage.window * 8, stage.window * 8, "");
    pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
    pasteWindow(pen, sprite, stage, index, row, column, 8, 0, 0);
  });
  return says;
}

// A map of the whole picture, each of its positions `stride` pixels wide.
function drawMap(view, sample, image, map, side, stride, label, smooth) {
  const [pen, scale] = pictureCanvas(view, sample, image, label, 448, 0.55);
  const unit = stride * scale;
  pen.imageSmoothingEnabled = smooth;
  pen.drawImage(map, 0, 0, side[1] * unit, side[0] * unit);
  return [pen, scale];
}

// The rollout of the position of the last map under a pixel: a tile of the sprite.
function drawRollout(view, rollout, sample, at, image, tiles) {
  const along = (pixel, stored) => {
    const index = Math.min(stored.length - 1, Math.floor(pixel / 32 / rollout.step));
    return [index, stored[index]];
  };
  const [i, row] = along(at.y, rollout.rows), [j, column] = along(at.x, rollout.columns);
  const label = `Rollout of row ${row + 1}, column ${column + 1} of the last map`;
  const [pen, scale] = pictureCanvas(view, sample, image, label, 448, 0.55);
  const [h, w] = rollout.tile, unit = rollout.stride * scale;
  pen.drawImage(tiles, j * w, i * h, w, h, 0, 0, rollout.cells[1] * unit, rollout.cells[0] * unit);
  outline(pen, column * 32 * scale, row * 32 * scale, 32 * scale, 32 * scale, true);
  return rollout.ranges[i][j];
}

// The affinity of a group, and the row of the chosen channel in it.
function drawAffinity(view, stage, group, affinity, token, label) {
  const D = stage.channels;
  const pen = canvas(view, D * 8, D * 8, label);
  pen.drawImage(affinity, group * D, 0, D, D, 0, 0, D * 8, D * 8);
  if (token !== undefined) outline(pen, 0, token * 8, D * 8, 8, true);
}

// One channel: its own map above what the attention makes of it.
function drawToken(view, stage, group, place, maps) {
  const [h, w] = stage.side, k = Math.max(1, Math.ceil(72 / Math.max(h, w))), gap = 3;
  const pen = canvas(view, w * k, 2 * h * k + gap, "");
  for (let line = 0; line < 2; line++) {
    pen.drawImage(maps, place * w, (group * 2 + line) * h, w, h, 0, line * (h * k + gap), w * k, h * k);
  }
}
