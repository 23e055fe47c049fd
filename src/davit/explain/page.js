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
  const middle = { y: Math.floor(samples[0].height / 2), x: Math.floor(samples[0].width / 2) };
  const state = {
    sample: 0, point: middle, pinned: middle,
    head: samples[0].windows.map(() => 0), group: samples[0].channels.map(() => 0),
  };

  function load(index) {
    loaded[index] ??= pictures(samples[index]);
    return loaded[index];
  }

  function drawStage(figure, stage, sample, image, sprite, head) {
    const says = windowWords(stage, state.point);
    drawWindow($(".view", figure), stage, sample, image, sprite, head, state.point);
    $(".says", figure).textContent = head ? `head ${head} of ${stage.heads}` : says;
    all(".heads button", figure).forEach((button, i) => drawHead($("span", button), stage, sprite, i, state.point));
    return says;
  }

  function drawGroup(block, stage, sample, affinity, maps, group) {
    drawAffinity($(".matrix .view", block), stage, sample, affinity, group);
    if (!$(".pictures", block)) return;
    drawChannels($(".pictures .view", block), stage, maps, group);
    all(".ids span", block).forEach((span, i) => { span.textContent = stage.chosen[group][i]; });
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
      const says = drawStage(figure, sample.windows[i], sample, image, windows[i][0], state.head[i]);
      return `stage ${sample.windows[i].stage + 1} ${says}`;
    });
    if (sample.windows.length) drawPoint($("#pad"), sample.windows[0], sample, image, state.point);
    if (say) $("#pad-says").textContent = told.join("; ");
  }

  async function drawSample() {
    const index = state.sample, sample = samples[index];
    const [image, windows, channels] = await load(index);
    if (index !== state.sample) return;
    all("[data-received]").forEach((figure, i) => {
      drawReceived($(".view", figure), sample.windows[i], sample, image, windows[i][1]);
    });
    all("[data-channel]").forEach((block, i) => {
      press(all(".groups button", block), state.group[i]);
      drawGroup(block, sample.channels[i], sample, ...channels[i], state.group[i]);
    });
  }

  function choose(index) {
    const old = samples[state.sample], sample = samples[index];
    const { y, x } = state.point;
    state.sample = index;
    all(".samples").forEach((strip) => press(all("button", strip), index));
    state.pinned = { y: (y * sample.height) / old.height, x: (x * sample.width) / old.width };
    move(state.pinned);
    drawSample();
  }

  function move(point, say) {
    state.point = point;
    drawPosition(say);
  }

  function listen(view) {
    const at = (event) => pointAt(event, view, samples[state.sample]);
    view.addEventListener("pointermove", (event) => move(at(event)));
    view.addEventListener("pointerleave", () => move(state.pinned));
    view.addEventListener("click", (event) => { state.pinned = at(event); move(state.pinned); });
  }

  function keys(pad) {
    pad.tabIndex = 0;
    pad.setAttribute("role", "application");
    pad.setAttribute("aria-label", "Position that asks; the arrow keys move it");
    pad.setAttribute("aria-describedby", "pad-help");
    pad.addEventListener("keydown", (event) => {
      const sample = samples[state.sample];
      const next = pointAfter(event, sample.windows[0], sample, state.point);
      if (!next) return;
      event.preventDefault();
      state.pinned = next;
      move(next, true);
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
  drawPosition();
  drawSample();
})();
