"use strict";
(() => {
  document.documentElement.classList.add("js");
  const $ = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Confusion matrix: say at once what the browser's own tooltip says after a second.
  const readout = $("#confusion-readout");
  if (readout) {
    const table = $(".confusion");
    table.addEventListener("pointerover", (event) => { readout.textContent = event.target.title || "\u00a0"; });
    table.addEventListener("pointerleave", () => { readout.textContent = "\u00a0"; });
  }

  // Tables: a click on a heading sorts by it, another one the other way round; cells carry what they sort by.
  for (const table of all("table.sortable")) {
    const heads = all("thead button", table), body = $("tbody", table);
    heads.forEach((button, column) => button.addEventListener("click", () => {
      const head = button.closest("th"), was = head.getAttribute("aria-sort");
      const sign = was === "ascending" || (was !== "descending" && head.dataset.first === "descending") ? -1 : 1;
      heads.forEach((other) => other.closest("th").removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const by = (a, b) => (a === "" || b === "" ? (a === "") - (b === "")  // what has no value stays last
        : sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b));
      body.append(...[...body.rows].sort((a, b) => by(key(a), key(b))));
    }));
  }

  const samples = JSON.parse($("#attention-data").textContent);
  if (!samples.length) return;

  const loaded = samples.map(() => null);
  const state = {
    sample: 0, y: 0, x: 0, pinned: null,
    head: samples[0].windows.map(() => 0), group: samples[0].channels.map(() => 0),
  };

  function picture(source) {
    const image = new Image();
    image.src = source;
    return image.decode().then(() => image);
  }

  function load(index) {
    const sample = samples[index];
    loaded[index] ??= Promise.all([
      picture(sample.image),
      Promise.all(sample.windows.map((s) => Promise.all([picture(s.sprite), picture(s.received)]))),
      Promise.all(sample.channels.map((s) => Promise.all([picture(s.affinity), picture(s.maps)]))),
    ]);
    return loaded[index];
  }

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

  // The stored query nearest to the state's pixel: its index in the lattice, its position, its window.
  function query(stage) {
    const along = (pixel, side, stored) => {
      const index = Math.min(stored.length - 1, Math.floor(pixel / stage.stride / stage.step));
      const token = stored[index], start = token - (token % stage.window);
      return { index, token, start, length: Math.min(stage.window, side - start) };
    };
    return [along(state.y, stage.side[0], stage.rows), along(state.x, stage.side[1], stage.columns)];
  }

  function paste(pen, sprite, stage, head, row, column, unit, left, top) {
    const P = stage.window;
    pen.drawImage(
      sprite, column.index * P, (head * stage.rows.length + row.index) * P, column.length, row.length,
      left, top, column.length * unit, row.length * unit);
  }

  function drawWindow(figure, stage, sample, image, sprite, head) {
    const [row, column] = query(stage);
    const label = `Attention of row ${row.token + 1}, column ${column.token + 1} at stage ${stage.stage + 1}`;
    const [pen, scale] = pictureCanvas($(".view", figure), sample, image, label, 448, 0.55);
    const unit = stage.stride * scale;
    paste(pen, sprite, stage, head, row, column, unit, column.start * unit, row.start * unit);
    outline(pen, column.start * unit, row.start * unit, column.length * unit, row.length * unit, false);
    outline(pen, column.token * unit, row.token * unit, unit, unit, true);
    const peak = stage.peak[row.index][column.index];
    const lost = stage.padding ? stage.padding[row.index][column.index] : 0;
    const says = `brightest square: ${peak.toFixed(0)} %` + (lost >= 0.5 ? `, ${lost.toFixed(0)} % to padding` : "");
    $(".says", figure).textContent = head ? `head ${head} of ${stage.heads}` : says;
    all(".heads button", figure).forEach((button, index) => {
      const pen = canvas($("span", button), stage.window * 8, stage.window * 8, "");
      pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
      paste(pen, sprite, stage, index, row, column, 8, 0, 0);
    });
    return says;
  }

  function drawReceived(figure, stage, sample, image, map) {
    const [pen, scale] = pictureCanvas(
      $(".view", figure), sample, image, `Attention received at stage ${stage.stage + 1}`, 448, 0.55);
    const unit = stage.stride * scale;
    pen.drawImage(map, 0, 0, stage.side[1] * unit, stage.side[0] * unit);
  }

  function drawPad(sample, image) {
    const [pen, scale] = pictureCanvas($("#pad"), sample, image, sample.name, 448, 1);
    const [row, column] = query(sample.windows[0]), unit = sample.windows[0].stride * scale;
    outline(pen, column.token * unit, row.token * unit, unit, unit, true);
  }

  function drawChannels(block, stage, sample, affinity, maps, group) {
    const D = stage.channels, [h, w] = stage.side, chosen = stage.chosen[group], count = chosen.length;
    const label = `Affinity of group ${group + 1} at stage ${stage.stage + 1} of ${sample.name}`;
    canvas($(".matrix .view", block), D * 8, D * 8, label).drawImage(affinity, group * D, 0, D, D, 0, 0, D * 8, D * 8);
    if (!$(".pictures", block)) return;
    const k = Math.max(1, Math.ceil(96 / Math.max(h, w))), gap = 4;
    const pen = canvas($(".pictures .view", block), count * (w * k + gap) - gap, 2 * (h * k + gap) - gap,
      `Maps of channels ${chosen.join(", ")}, before and after the attention`);
    for (let line = 0; line < 2; line++) {
      for (let i = 0; i < count; i++) {
        pen.drawImage(maps, i * w, (group * 2 + line) * h, w, h, i * (w * k + gap), line * (h * k + gap), w * k, h * k);
      }
    }
    all(".ids span", block).forEach((span, i) => { span.textContent = chosen[i]; });
  }

  function press(buttons, chosen) {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", index === chosen));
  }

  async function drawPosition(say = false) {
    const index = state.sample, sample = samples[index];
    const [image, windows] = await load(index);
    if (index !== state.sample) return;
    const told = all("[data-window]").map((figure, i) => {
      press(all(".heads button", figure), state.head[i]);
      const says = drawWindow(figure, sample.windows[i], sample, image, windows[i][0], state.head[i]);
      return `stage ${sample.windows[i].stage + 1} ${says}`;
    });
    if (sample.windows.length) drawPad(sample, image);
    if (say) $("#pad-says").textContent = told.join("; ");
  }

  async function drawSample() {
    const index = state.sample, sample = samples[index];
    const [image, windows, channels] = await load(index);
    if (index !== state.sample) return;
    all("[data-received]").forEach((figure, i) => drawReceived(figure, sample.windows[i], sample, image, windows[i][1]));
    all("[data-channel]").forEach((block, i) => {
      press(all(".groups button", block), state.group[i]);
      drawChannels(block, sample.channels[i], sample, ...channels[i], state.group[i]);
    });
  }

  function choose(index) {
    const old = samples[state.sample], sample = samples[index];
    state.y *= sample.height / old.height;
    state.x *= sample.width / old.width;
    state.sample = index;
    all(".samples").forEach((strip) => press(all("button", strip), index));
    state.pinned = [state.y, state.x];
    drawPosition();
    drawSample();
  }

  function move(y, x, say) {
    const sample = samples[state.sample];
    state.y = Math.min(sample.height - 1, Math.max(0, y));
    state.x = Math.min(sample.width - 1, Math.max(0, x));
    drawPosition(say);
  }

  function listen(view) {
    const at = (event) => {
      const box = view.getBoundingClientRect(), sample = samples[state.sample];
      return [(event.clientY - box.top) / box.height * sample.height, (event.clientX - box.left) / box.width * sample.width];
    };
    view.addEventListener("pointermove", (event) => move(...at(event)));
    view.addEventListener("pointerleave", () => move(...state.pinned));
    view.addEventListener("click", (event) => { state.pinned = at(event); move(...state.pinned); });
  }

  function keys(pad) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    pad.tabIndex = 0;
    pad.setAttribute("role", "application");
    pad.setAttribute("aria-label", "Position that asks; the arrow keys move it");
    pad.setAttribute("aria-describedby", "pad-help");
    pad.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      if (!step || event.metaKey || event.ctrlKey || event.altKey) return;
      event.preventDefault();
      const { stride, step: every } = samples[state.sample].windows[0], size = stride * every;
      const centre = (value, by, limit) => {
        const cell = Math.floor(value / size) + by;
        return Math.min(Math.ceil(limit / size) - 1, Math.max(0, cell)) * size + size / 2;
      };
      const sample = samples[state.sample];
      state.pinned = [centre(state.y, step[0], sample.height), centre(state.x, step[1], sample.width)];
      move(...state.pinned, true);
    });
  }

  function addHeads(figure, stage, index) {
    const box = $(".heads", figure);
    for (let head = 0; head <= stage.shown; head++) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(document.createElement("span"), head ? String(head) : "mean");
      button.setAttribute("aria-label", head ? `Head ${head}` : "Mean of the heads");
      button.addEventListener("click", () => { state.head[index] = head; drawPosition(); });
      box.append(button);
    }
    if (stage.shown === 1 && stage.heads === 1) box.hidden = true;
  }

  function addGroups(block, stage, index) {
    if (stage.groups === 1) return;
    const box = $(".groups", block);
    box.append(stage.shown < stage.groups ? `The first ${stage.shown} groups ` : "Group ");
    for (let group = 0; group < stage.shown; group++) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = group + 1;
      button.setAttribute("aria-label", `Group ${group + 1} of stage ${stage.stage + 1}`);
      button.addEventListener("click", () => { state.group[index] = group; drawSample(); });
      box.append(button);
    }
  }

  all("[data-sample]").forEach((button) => button.addEventListener("click", () => choose(Number(button.dataset.sample))));
  all("[data-window]").forEach((figure, i) => addHeads(figure, samples[0].windows[i], i));
  all("[data-channel]").forEach((block, i) => addGroups(block, samples[0].channels[i], i));
  all("[data-window] .view").concat(all("#pad")).forEach(listen);
  if ($("#pad")) keys($("#pad"));
  state.pinned = [Math.floor(samples[0].height / 2), Math.floor(samples[0].width / 2)];
  move(...state.pinned);
  drawSample();
})();
