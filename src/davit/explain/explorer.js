// Explained pictures: one of them is shown, a position in it asks, and buttons choose block, head, group and target.

const texts = all("script.picture-data"), parsed = [], decoded = new WeakMap();

function sampleAt(index) {
  parsed[index] ??= JSON.parse(texts[index].textContent);
  return parsed[index];
}

// A sprite of an entry as an image, decoded on first use.
function sprite(entry, key) {
  if (!decoded.has(entry)) decoded.set(entry, {});
  decoded.get(entry)[key] ??= new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = entry[key];
  });
  return decoded.get(entry)[key];
}

function stagesOf(entries) {
  const stages = new Map();
  for (const entry of entries) stages.set(entry.stage, [...(stages.get(entry.stage) ?? []), entry]);
  return stages;
}

function button(text, label, press) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(text);
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", press);
  return made;
}

function press(buttons, chosen) {
  buttons.forEach((each, index) => each.setAttribute("aria-pressed", index === chosen));
}

function explore() {
  const state = { sample: 0, y: 0, x: 0, pinned: null, block: {}, head: {}, group: {}, token: {}, target: 0, map: null };
  const now = () => sampleAt(state.sample);

  // The place of a stage's chosen block among those that are there, the last one at first; and its entry.
  function place(entries, stage) {
    const last = stagesOf(entries).get(stage).length - 1;
    return Math.min(state.block[stage] ?? last, last);
  }
  const chosen = (entries, stage) => stagesOf(entries).get(stage)[place(entries, stage)];

  // Draws only what nobody has asked for anew by the time the sprites are decoded.
  const turns = new Map();
  async function draw(parts) {
    const mine = (turns.get(parts) ?? 0) + 1, sample = now();
    turns.set(parts, mine);
    const image = await sprite(sample, "image");
    const drawn = await Promise.all(parts.flatMap((part) => part(sample, image)));
    if (mine !== turns.get(parts) || sample !== now()) return "";
    return drawn.map((finish) => finish()).filter(Boolean).join("; ");
  }

  const windows = (sample, image) => all("[data-window]").map(async (figure) => {
    const stage = Number(figure.dataset.window), entry = chosen(sample.windows, stage);
    const map = await sprite(entry, "sprite"), head = Math.min(state.head[stage] ?? 0, entry.shown);
    return () => {
      press(all(".heads button", figure), head);
      press(all(".blocks button", figure), place(sample.windows, stage));
      drawWindow($(".view", figure), entry, sample, state, image, map, head);
      all(".heads button", figure).forEach((each, index) => drawHead($("span", each), entry, state, map, index));
      $(".says", figure).textContent = windowWords(entry, state, head);
      return `stage ${stage + 1} ${windowWords(entry, state, 0)}`;
    };
  });

  const pads = (sample, image) => all(".pad").map(async (pad) => () => {
    const [pen, scale] = pictureCanvas(pad, sample, image, sample.name, 448, 1);
    if (!sample.windows.length) return;
    const stage = chosen(sample.windows, sample.windows[0].stage);
    const [row, column] = query(stage, state), unit = stage.stride * scale;
    outline(pen, column.token * unit, row.token * unit, unit, unit, true);
  });

  const range = (figure, edges) => { $(".says", figure).textContent = rangeWords(edges); };

  const rollouts = (sample, image) => all("[data-rollout=position]").map(async (figure) => {
    const tiles = await sprite(sample.rollout, "tiles");
    return () => range(figure, drawRollout($(".view", figure), sample.rollout, sample, state, image, tiles));
  });

  const received = (sample, image) => all("[data-received]").map(async (figure) => {
    const stage = Number(figure.dataset.received), entry = chosen(sample.windows, stage);
    const map = await sprite(entry, "received");
    return () => {
      drawMap($(".view", figure), sample, image, map, entry.side, entry.stride, `Attention received at stage ${stage + 1}`);
    };
  });

  const means = (sample, image) => all("[data-rollout=mean]").map(async (figure) => {
    const map = await sprite(sample.rollout, "image"), label = "Mean rollout of all positions";
    return () => {
      drawMap($(".view", figure), sample, image, map, sample.rollout.cells, sample.rollout.stride, label);
      range(figure, sample.rollout.range);
    };
  });

  const channels = (sample) => all("[data-channel]").map(async (block) => {
    const stage = Number(block.dataset.channel), entry = chosen(sample.channels, stage);
    const [affinity, maps] = await Promise.all([sprite(entry, "affinity"), sprite(entry, "maps")]);
    return () => drawChannels(block, sample, stage, entry, affinity, maps);
  });

  function drawChannels(block, sample, stage, entry, affinity, maps) {
    const group = Math.min(state.group[stage] ?? 0, entry.shown - 1), tokens = entry.chosen[group];
    const label = `Affinity of group ${group + 1} at stage ${stage + 1} of ${sample.name}`;
    drawAffinity($(".matrix .view", block), entry, group, affinity, state.token[stage], label);
    press(all(".groups button", block), group);
    press(all(".blocks button", block), place(sample.channels, stage));
    const boxes = all(".tokens button", block);
    boxes.forEach((box, index) => {
      drawToken($("span", box), entry, group, index, maps);
      $("small", box).textContent = tokens[index];
    });
    const held = tokens.indexOf(state.token[stage]);
    press(boxes, held);
    $(".takes", block).textContent = held < 0 ? "" : `${sourceWords(entry, group, held)}.`;
  }

  const cams = (sample, image) => all("[data-cam]").map(async (part) => {
    const cam = sample.cams[Math.min(state.target, sample.cams.length - 1)];
    part.hidden = !cam;
    if (!cam) return () => {};
    const at = state.map ?? cam.stage, map = cam.maps[at], covered = cam.occlusion;
    const [heat, loss] = await Promise.all([sprite(map, "image"), covered && sprite(covered, "image")]);
    return () => {
      drawCam($("[data-heat] .view", part), sample, image, cam, at, heat);
      $("[data-heat] .says", part).textContent =
        `${cam.label}, ${cam.score.toFixed(3)}; map of stage ${at + 1}, ${map.side.join(" x ")}` + (map.empty ? ": nothing speaks for it" : "");
      const figure = $("[data-covered]", part);
      if (figure && covered) {
        drawMap($(".view", figure), sample, image, loss, covered.side, covered.stride, `Occlusion of ${cam.label}`, true);
      }
      press(all(".maps button", part), at);
      press(all(".targets button", part), sample.cams.indexOf(cam));
    };
  });

  const position = [windows, pads, rollouts], everything = [...position, received, means, channels, cams];

  function addTargets() {
    for (const part of all("[data-cam]")) {
      $(".targets", part).replaceChildren(...now().cams.map((cam, index) =>
        button(`${cam.label} ${cam.score.toFixed(3)}`, "", () => { state.target = index; draw(everything); })));
    }
    for (const list of all("[data-answer]")) {
      list.replaceChildren(...(now().answer ?? []).map(([label, score]) => {
        const line = document.createElement("li"), name = document.createElement("span"), bar = document.createElement("i");
        name.textContent = label;
        bar.style.setProperty("--share", `${100 * score}%`);
        line.append(name, score.toFixed(3), bar);
        return line;
      }));
    }
  }

  function choose(index) {
    const old = now(), sample = sampleAt(index);
    state.y *= sample.height / old.height;
    state.x *= sample.width / old.width;
    Object.assign(state, { sample: index, pinned: [state.y, state.x], target: 0, token: {} });
    all(".samples").forEach((strip) => press(all("button", strip), index));
    all("[data-name]").forEach((title) => { title.textContent = sample.name; });
    addTargets();
    draw(everything);
  }

  async function move(y, x, say) {
    Object.assign(state, inside(now(), { y, x }));
    const told = await draw(position);
    if (say && told) all(".pad-says").forEach((heard) => { heard.textContent = told; });
  }

  function listen(view) {
    const at = (event) => {
      const { y, x } = pointAt(event, view, now());
      return [y, x];
    };
    view.addEventListener("pointermove", (event) => move(...at(event)));
    view.addEventListener("pointerleave", () => move(...state.pinned));
    view.addEventListener("click", (event) => { state.pinned = at(event); move(...state.pinned); });
  }

  function keys(pad) {
    pad.tabIndex = 0;
    pad.setAttribute("role", "application");
    pad.setAttribute("aria-label", "Position that asks; the arrow keys move it");
    pad.addEventListener("keydown", (event) => {
      const next = pointAfter(event, now().windows[0], now(), state);
      if (!next) return;
      event.preventDefault();
      state.pinned = [next.y, next.x];
      move(...state.pinned, true);
    });
  }

  function addBlocks(part, entries, stage) {
    const blocks = stagesOf(entries).get(stage);
    if (blocks.length < 2) return;
    const box = $(".blocks", part);
    box.append("Block ");
    blocks.forEach((entry, index) => box.append(button(entry.block + 1, `Block ${entry.block + 1} of stage ${stage + 1}`, () => {
      state.block[stage] = index;
      draw(everything);
    })));
  }

  function addHeads(figure, stage, entry) {
    const box = $(".heads", figure);
    for (let head = 0; head <= entry.shown; head++) {
      const made = button(document.createElement("span"), head ? `Head ${head}` : "Mean of the heads", () => {
        state.head[stage] = head;
        draw(everything);
      });
      made.append(head ? String(head) : "mean");
      box.append(made);
    }
    if (entry.shown === 1 && entry.heads === 1) box.hidden = true;
  }

  function addGroups(block, stage, entry) {
    const box = $(".groups", block);
    if (entry.groups > 1) box.append(entry.shown < entry.groups ? `The first ${entry.shown} groups ` : "Group ");
    for (let group = 0; group < entry.shown && entry.groups > 1; group++) {
      box.append(button(group + 1, `Group ${group + 1} of stage ${stage + 1}`, () => {
        state.group[stage] = group;
        state.token[stage] = undefined;
        draw(everything);
      }));
    }
    const tokens = $(".tokens", block);
    tokens?.replaceChildren(...entry.chosen[0].map((_, index) => {
      const made = button(document.createElement("span"), "", () => {
        const current = chosen(now().channels, stage);
        state.token[stage] = current.chosen[Math.min(state.group[stage] ?? 0, current.shown - 1)][index];
        draw(everything);
      });
      made.append(document.createElement("small"));
      return made;
    }));
    const matrix = $(".matrix .view", block);
    matrix.addEventListener("click", (event) => {
      const box = matrix.getBoundingClientRect();
      state.token[stage] = Math.floor((event.clientY - box.top) / box.height * entry.channels);
      draw(everything);
    });
  }

  const first = now();
  for (const part of all("[data-cam]")) {
    [0, 1, 2, 3].forEach((stage) => $(".maps", part).append(
      button(stage + 1, `Map of stage ${stage + 1}`, () => { state.map = stage; draw(everything); })));
  }
  all("[data-sample]").forEach((each) => each.addEventListener("click", () => choose(Number(each.dataset.sample))));
  all("[data-window]").forEach((figure) => {
    const stage = Number(figure.dataset.window);
    addBlocks(figure, first.windows, stage);
    addHeads(figure, stage, chosen(first.windows, stage));
  });
  all("[data-channel]").forEach((block) => {
    const stage = Number(block.dataset.channel);
    addBlocks(block, first.channels, stage);
    addGroups(block, stage, chosen(first.channels, stage));
  });
  all("[data-window] .view").concat(all(".pad"), all("[data-rollout=position] .view")).forEach(listen);
  all(".pad").forEach(keys);
  state.pinned = [Math.floor(first.height / 2), Math.floor(first.width / 2)];
  [state.y, state.x] = state.pinned;
  addTargets();
  draw(everything);
}

if (texts.length) explore();
