// Pictures as the page shows them: upright, over white, no larger than a screen needs. The server gets the file itself.

import { el } from "./dom.js";

const MOST_SHOWN = 1600;
const THUMBNAIL = 112;

// {board, width, height}: a canvas, and the picture's own size. Throws where the browser cannot decode it.
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const board = shrink(bitmap, width, height, MOST_SHOWN);
  bitmap.close();
  return { board, width, height };
}

// The picture of a data URI.
export async function decode(source) {
  const image = Object.assign(new Image(), { src: source });
  await image.decode();
  return image;
}

export function thumbnail({ board }) {
  return shrink(board, board.width, board.height, THUMBNAIL);
}

function shrink(source, width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  const board = el("canvas", { width: Math.max(1, width * scale), height: Math.max(1, height * scale) });
  const pen = board.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, board.width, board.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(source, 0, 0, board.width, board.height);
  return board;
}

// What results are drawn on: the picture, and room for layers above it. `board` may be null.
export function makeSheet(board, width, height, label) {
  const sheet = fitSheet(el("div", { className: "sheet" }), width, height);
  if (board) {
    board.setAttribute("role", "img");
    board.setAttribute("aria-label", label);
    sheet.append(board);
  } else {
    sheet.append(el("p", { className: "unseen" }, "This browser cannot show the picture."));
  }
  return sheet;
}

export function fitSheet(sheet, width, height) {
  sheet.style.setProperty("--width", width);
  sheet.style.setProperty("--height", height);
  sheet.classList.toggle("coarse", Math.max(width, height) <= 64);
  return sheet;
}

// A canvas over the sheet with one pixel per `step` pixels of the picture.
export function layer(sheet, width, height) {
  const step = Math.ceil(Math.max(width, height) / MOST_SHOWN);
  const board = el("canvas", { width: Math.ceil(width / step), height: Math.ceil(height / step), ariaHidden: "true" });
  board.style.width = `${(100 * board.width * step) / width}%`;
  board.style.height = `${(100 * board.height * step) / height}%`;
  sheet.append(board);
  return { pen: board.getContext("2d", { willReadFrequently: true }), step };
}

// Where the pointer is, in pixels of the picture.
export function pixelAt(event, sheet, width, height) {
  const box = sheet.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
}
