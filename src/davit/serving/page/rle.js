// COCO's compressed masks: lengths of runs outside and inside in turn, down the columns, in groups of five bits.

export function runLengths(counts) {
  const lengths = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0, shift = 0, group;
    do {
      group = counts.charCodeAt(at++) - 48;
      value |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2]; // from the third on, only the change is stored
    lengths.push(value);
  }
  return lengths;
}

// Every `step`-th pixel of a mask, cropped to what it covers: {left, top, width, height, inside}, or null if nothing is.
export function readMask({ size: [height], counts }, step = 1) {
  const spans = [];
  let at = 0, inside = false;
  for (const length of runLengths(counts)) {
    if (inside) addSpans(spans, at, at + length, height, step);
    at += length;
    inside = !inside;
  }
  if (!spans.length) return null;
  const left = spans[0].column, top = spans.reduce((least, span) => Math.min(least, span.top), Infinity);
  const width = spans[spans.length - 1].column - left + 1;
  const mask = { left, top, width, height: spans.reduce((most, span) => Math.max(most, span.bottom), 0) - top };
  mask.inside = new Uint8Array(mask.width * mask.height);
  for (const { column, top: first, bottom } of spans) {
    for (let y = first - top; y < bottom - top; y++) mask.inside[y * width + column - left] = 1;
  }
  return mask;
}

function addSpans(spans, start, end, height, step) {
  for (let column = Math.floor(start / height); column * height < end; column++) {
    if (column % step) continue;
    const top = Math.ceil(Math.max(0, start - column * height) / step);
    const bottom = Math.ceil(Math.min(height, end - column * height) / step);
    if (top < bottom) spans.push({ column: column / step, top, bottom });
  }
}

export function covers(mask, x, y) {
  const column = x - mask.left, line = y - mask.top;
  const within = column >= 0 && line >= 0 && column < mask.width && line < mask.height;
  return within && mask.inside[line * mask.width + column] === 1;
}
