// Both attentions for a point of the picture, and Grad-CAM and rollout over it.

import { $, choose, el, percent } from "./dom.js";
import * as draw from "./explorer_draw.js";
import { decode, fitSheet } from "./picture.js";

const SIDE = 896; // of the large canvas, about
const TILE = 72; // of a channel's map
const LAYERS = {
  window: ["Window attention", "What the outlined position attends to inside its window: the brighter, the more."],
  received: ["Received", "Window attention averaged over all positions that ask: bright ones are looked at by their whole window."],
  cam: ["Grad-CAM", "Which parts of the picture speak for a class."],
  rollout: ["Rollout", "Where in the picture the outlined position of the last map comes from, followed down through all blocks."],
};

export class AttentionView {
  #state = { layer: "window", stage: 2, camStage: null, mean: false, head: 0, group: 0, map: null };
  #point = { y: 0.5, x: 0.5 }; // shares of the picture, so that it stays where it is in the next one
  #pinned = this.#point;
  #latest = null;
  #shown = null; // {sample, image, windows, channels, cams, rollout}: an answer and its pictures, decoded
  #channelsDrawn = [];
  #tell;

  // `explain(index)` is called when Grad-CAM is wanted for another class, `tell(words)` for those who hear the page.
  constructor(explain, tell) {
    this.#tell = tell;
    $("#class").addEventListener("change", (event) => explain(Number(event.target.value)));
    const pad = $("#pad");
    pad.addEventListener("pointermove", (event) => this.#move(event));
    pad.addEventListener("pointerleave", () => { this.#point = this.#pinned; this.#draw(); });
    pad.addEventListener("click", (event) => { this.#move(event); this.#pinned = this.#point; });
    pad.addEventListener("keydown", (event) => this.#step(event));
  }

  // Show an answer of /v1/explain; `classes` of {label, index} may be chosen for Grad-CAM.
  async show(sample, classes) {
    if (this.#latest === sample) return;
    this.#latest = sample;
    const all = (entries, ...keys) => Promise.all(entries.map((entry) => Promise.all(keys.map((key) => decode(entry[key])))));
    const [[[image]], windows, channels, cams, [rollout]] = await Promise.all([
      all([sample], "image"),
      all(sample.windows, "sprite", "received"),
      all(sample.channels, "affinity", "maps"),
      all(sample.cam?.maps ?? [], "image"),
      all(sample.rollout ? [sample.rollout] : [], "image", "tiles"),
    ]);
    if (this.#latest !== sample) return;
    this.#shown = { sample, image, windows, channels, cams, rollout };
    this.#state.camStage = null;
    fitSheet($("#pad"), sample.width, sample.height);
    this.#fillClasses(sample.cam, classes);
    this.#draw();
  }

  showLayer(layer) {
    this.#set({ layer, map: null });
  }

  #fillClasses(cam, classes) {
    const known = new Map(classes.map(({ index, label }) => [index, label]));
    if (cam) known.set(cam.class, cam.label);
    const options = [...known].map(([index, label]) => el("option", { value: index, selected: index === cam?.class }, label));
    $("#class").replaceChildren(...options);
  }

  #set(change) {
    Object.assign(this.#state, change);
    this.#draw();
  }

  // ---- The point ----

  #pixel() {
    const { width, height } = this.#shown.sample;
    return { y: this.#point.y * height, x: this.#point.x * width };
  }

  #setPixel({ y, x }) {
    const { width, height } = this.#shown.sample;
    this.#point = { y: y / height, x: x / width };
    this.#draw();
  }

  #move(event) {
    if (this.#shown) this.#setPixel(draw.pointAt(event, $("#pad"), this.#shown.sample));
  }

  #step(event) {
    const stage = this.#shown?.sample.windows[this.#windowIndex()];
    const next = this.#shown && draw.pointAfter(event, stage, this.#shown.sample, this.#pixel());
    if (!next) return;
    event.preventDefault();
    this.#setPixel(next);
    this.#pinned = this.#point;
    this.#tell($("#says").textContent);
  }

  #windowIndex() {
    return Math.min(this.#state.stage, this.#shown.sample.windows.length - 1);
  }

  // ---- Drawing ----

  #draw() {
    if (!this.#shown) return;
    const { sample } = this.#shown;
    const has = { window: sample.windows.length, received: sample.windows.length, cam: sample.cam, rollout: sample.rollout };
    const layers = Object.keys(LAYERS).filter((each) => has[each]);
    const layer = layers.includes(this.#state.layer) ? this.#state.layer : layers[0];
    choose($("#layers"), layers.map((each) => LAYERS[each][0]), layers.indexOf(layer), (i) => this.showLayer(layers[i]));
    $("#layer-words").textContent = LAYERS[layer]?.[1] ?? "";
    $("#choose-class").hidden = layer !== "cam";
    this.#drawStages(layer);
    this.#drawHeads(layer);
    this.#drawLayer(layer);
    this.#drawChannels();
  }

  #drawStages(layer) {
    const { sample } = this.#shown, box = $("#stages"), named = (all) => all.map(({ stage }) => `Stage ${stage + 1}`);
    if (layer === "rollout") {
      return choose(box, ["One position", "All positions"], Number(this.#state.mean), (i) => this.#set({ mean: i === 1, map: null }));
    }
    if (layer === "cam") {
      const chosen = this.#state.camStage ?? sample.cam.stage;
      return choose(box, named(sample.cam.maps), chosen, (camStage) => this.#set({ camStage, map: null }));
    }
    const stages = sample.windows.length ? sample.windows : sample.channels;
    choose(box, named(stages), Math.min(this.#state.stage, stages.length - 1),
      (stage) => this.#set({ stage, head: 0, group: 0, map: null }));
  }

  #drawHeads(layer) {
    const { sample, windows } = this.#shown, box = $("#heads"), at = this.#windowIndex(), stage = sample.windows[at];
    box.hidden = layer !== "window" || stage.heads === 1;
    if (box.hidden) return;
    while (box.children.length > stage.shown + 1) box.lastChild.remove();
    for (let head = box.children.length; head <= stage.shown; head++) {
      const button = el("button", { type: "button" }, el("span"), head ? String(head) : "mean");
      button.ariaLabel = head ? `Head ${head}` : "Mean of the heads";
      button.onclick = () => this.#set({ head });
      box.append(button);
    }
    [...box.children].forEach((button, head) => {
      button.ariaPressed = String(head === this.#state.head);
      draw.drawHead($("span", button), stage, this.#pixel(), windows[at][0], head);
    });
  }

  // The large picture, and the line that says what is in it.
  #drawLayer(layer) {
    const { sample, image, windows, cams, rollout } = this.#shown, pad = $("#pad"), says = $("#says");
    const at = this.#windowIndex(), stage = sample.windows[at], point = this.#pixel(), { head, mean, map } = this.#state;
    says.textContent = "";
    if (map) return this.#drawMap(pad, says, map);
    if (layer === "window") {
      draw.drawWindow(pad, stage, sample, point, image, windows[at][0], head, SIDE);
      says.textContent = `${place(draw.query(stage, point))}: ${draw.windowWords(stage, point, head)}`;
    } else if (layer === "received") {
      const label = `Attention received at stage ${stage.stage + 1}`;
      draw.drawMap(pad, sample, image, windows[at][1], stage.side, stage.stride, label, false, SIDE);
    } else if (layer === "cam") {
      const camStage = this.#state.camStage ?? sample.cam.stage, { label, score, maps } = sample.cam;
      draw.drawCam(pad, sample, image, sample.cam, camStage, cams[camStage][0], SIDE);
      says.textContent = `${label}: ${percent(score)}${maps[camStage].empty ? "; nothing at this stage speaks for it" : ""}`;
    } else if (layer === "rollout" && mean) {
      const { cells, stride, range } = sample.rollout;
      draw.drawMap(pad, sample, image, rollout[0], cells, stride, "Mean rollout of all positions", false, SIDE);
      says.textContent = draw.rangeWords(range);
    } else if (layer === "rollout") {
      const range = draw.drawRollout(pad, sample.rollout, sample, point, image, rollout[1], SIDE);
      says.textContent = `${place(draw.rolloutQuery(sample.rollout, point))}: ${draw.rangeWords(range)}`;
    } else {
      draw.pictureCanvas(pad, sample, image, sample.name, SIDE, 1);
    }
  }

  // A channel's map over the picture.
  #drawMap(pad, says, { at, group, index, after }) {
    const { sample, image, channels } = this.#shown, stage = sample.channels[at];
    const words = channelWords(stage.chosen[group][index], after), [pen] = draw.pictureCanvas(pad, sample, image, words, SIDE, 1);
    says.textContent = after ? draw.sourceWords(stage, group, index) : words;
    pen.globalAlpha = 0.8;
    draw.pasteChannel(pen, stage, group, index, after, channels[at][1], 0, 0, pen.canvas.width, pen.canvas.height);
    pen.globalAlpha = 1;
  }

  #drawChannels() {
    const { sample, channels } = this.#shown;
    $("#channels").hidden = !channels.length;
    if (!channels.length) return;
    const at = Math.min(this.#state.stage, channels.length - 1), stage = sample.channels[at];
    const group = Math.min(this.#state.group, stage.shown - 1), [affinity, maps] = channels[at];
    const words = `Affinity of group ${group + 1} at stage ${stage.stage + 1}`, { map } = this.#state;
    draw.drawAffinity($("#affinity"), stage, group, affinity, map ? stage.chosen[group][map.index] : undefined, words);
    const wanted = [sample, at, group];
    if (wanted.every((each, i) => each === this.#channelsDrawn[i])) return; // its buttons keep the focus
    this.#channelsDrawn = wanted;
    const [h, w] = stage.side, groups = stage.groups > 1 ? `${stage.groups} groups of ` : "";
    $("#channels-words").textContent = `stage ${stage.stage + 1}: ${groups}${stage.channels} channels, maps of ${h} x ${w}`;
    choose($("#groups"), Array.from({ length: stage.shown }, (_, i) => `Group ${i + 1}`), group, (i) => this.#set({ group: i, map: null }));
    $("#maps").replaceChildren(...[0, 1].map((after) => this.#mapLine(stage, maps, at, group, after)));
  }

  #mapLine(stage, maps, at, group, after) {
    const [h, w] = stage.side, scale = Math.max(1, Math.round(TILE / Math.max(h, w)));
    const tiles = stage.chosen[group].map((channel, index) => {
      const board = el("canvas", { width: w * scale, height: h * scale, ariaHidden: "true" });
      const pen = board.getContext("2d"), map = { at, group, index, after };
      pen.imageSmoothingEnabled = false;
      draw.pasteChannel(pen, stage, group, index, after, maps, 0, 0, board.width, board.height);
      const button = el("button", { type: "button", ariaLabel: channelWords(channel, after) }, board, String(channel));
      for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => this.#set({ map }));
      for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => this.#set({ map: null }));
      return button;
    });
    const words = after ? "After the attention mixed in the others" : "The most energetic channels by themselves";
    return el("figure", {}, el("figcaption", { className: "quiet" }, words), el("div", { className: "tiles" }, ...tiles));
  }
}

function place([row, column]) {
  return `Row ${row.token + 1}, column ${column.token + 1}`;
}

function channelWords(channel, after) {
  return `Channel ${channel}, ${after ? "after" : "before"} the attention`;
}
