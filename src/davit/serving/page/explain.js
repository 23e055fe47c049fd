// Both attentions for a point of the picture, and Grad-CAM and rollout over it.

import * as draw from "./attention.js";
import { $, choose, el, percent } from "./dom.js";
import { fitSheet } from "./picture.js";

const SIDE = 896; // of the large canvas, about
const TILE = 72; // of a channel's map
const LAYERS = {
  window: ["Window attention", "What the outlined position attends to inside its window, drawn lighter the more it does."],
  received: ["Received", "The same attention averaged over all positions that ask: light ones are looked at by their whole window."],
  cam: ["Grad-CAM", "Which parts of the picture speak for a class."],
  rollout: ["Rollout", "Where the answer comes from, followed through both attentions of all blocks."],
};

export class AttentionView {
  #state = { layer: "window", stage: 0, head: 0, group: 0, point: { y: 0.5, x: 0.5 }, map: null };
  #shown = null; // {sample, image, windows, channels, cam, rollout}, decoded
  #pinned = this.#state.point;
  #latest = null;
  #channelsDrawn = [];
  #tell;

  // `ask(label)` is called when Grad-CAM is wanted for another class, `tell(words)` for those who hear the page.
  constructor(ask, tell) {
    this.#tell = tell;
    $("#class").addEventListener("change", (event) => ask(event.target.value));
    const pad = $("#pad");
    pad.addEventListener("pointermove", (event) => this.#move(event));
    pad.addEventListener("pointerleave", () => { this.#state.point = this.#pinned; this.#draw(); });
    pad.addEventListener("click", (event) => { this.#move(event); this.#pinned = this.#state.point; });
    pad.addEventListener("keydown", (event) => this.#step(event));
  }

  // Show an answer of /v1/explain; `labels` are the classes to choose from for Grad-CAM.
  async show(answer, labels) {
    if (this.#latest === answer) return;
    this.#latest = answer;
    const overlay = (each) => (each ? draw.picture(each.image) : null);
    const [[image, windows, channels], cam, rollout] = await Promise.all([
      draw.pictures(answer), overlay(answer.cam), overlay(answer.rollout)]);
    if (this.#latest !== answer) return;
    this.#shown = { sample: answer, image, windows, channels, cam, rollout };
    fitSheet($("#pad"), answer.width, answer.height);
    const chosen = answer.cam?.label;
    $("#class").replaceChildren(...[...new Set([...(answer.cam ? [chosen] : []), ...labels])]
      .map((label) => el("option", { value: label, selected: label === chosen }, label)));
    this.#draw();
  }

  showLayer(layer) {
    this.#set({ layer });
  }

  #set(change) {
    Object.assign(this.#state, change);
    this.#draw();
  }

  #move(event) {
    if (!this.#shown) return;
    const { sample } = this.#shown, { y, x } = draw.pointAt(event, $("#pad"), sample);
    this.#set({ point: { y: y / sample.height, x: x / sample.width } });
  }

  #step(event) {
    const stage = this.#stage()?.stage;
    const next = stage && draw.pointAfter(event, stage, this.#shown.sample, this.#point());
    if (!next) return;
    event.preventDefault();
    const { sample } = this.#shown;
    this.#pinned = { y: next.y / sample.height, x: next.x / sample.width };
    this.#set({ point: this.#pinned });
    this.#tell(this.#words());
  }

  #point() {
    const { point } = this.#state, { sample } = this.#shown;
    return { y: point.y * sample.height, x: point.x * sample.width };
  }

  // The window attention of the chosen stage, or else of the last: {stage, sprite, received}; null where there is none.
  #stage() {
    if (!this.#shown?.sample.windows.length) return null;
    const { sample, windows } = this.#shown;
    const index = Math.min(this.#state.stage, windows.length - 1);
    const [sprite, received] = windows[index];
    return { stage: sample.windows[index], sprite, received };
  }

  #draw() {
    if (!this.#shown) return;
    const { sample, cam, rollout } = this.#shown;
    const has = { window: sample.windows.length, received: sample.windows.length, cam, rollout };
    const layers = Object.keys(LAYERS).filter((each) => has[each]);
    const layer = layers.includes(this.#state.layer) ? this.#state.layer : layers[0];
    choose($("#layers"), layers.map((each) => LAYERS[each][0]), layers.indexOf(layer), (i) => this.#set({ layer: layers[i], map: null }));
    $("#layer-words").textContent = layer ? LAYERS[layer][1] : "";
    this.#drawStages();
    this.#drawHeads(layer);
    $("#choose-class").hidden = layer !== "cam";
    this.#drawLayer(layer);
    this.#drawChannels();
  }

  #drawStages() {
    const { windows, channels } = this.#shown.sample;
    const stages = windows.length ? windows : channels;
    choose($("#stages"), stages.map(({ stage }) => `Stage ${stage + 1}`), Math.min(this.#state.stage, stages.length - 1),
      (stage) => this.#set({ stage, head: 0, group: 0, map: null }));
  }

  #drawHeads(layer) {
    const box = $("#heads"), found = layer === "window" ? this.#stage() : null;
    box.hidden = !found || found.stage.heads === 1;
    if (box.hidden) return;
    const { stage, sprite } = found;
    while (box.children.length > stage.shown + 1) box.lastChild.remove();
    for (let head = box.children.length; head <= stage.shown; head++) {
      const button = el("button", { type: "button" }, el("span"), head ? String(head) : "mean");
      button.ariaLabel = head ? `Head ${head}` : "Mean of the heads";
      button.onclick = () => this.#set({ head });
      box.append(button);
    }
    [...box.children].forEach((button, head) => {
      button.ariaPressed = String(head === this.#state.head);
      draw.drawHead($("span", button), stage, sprite, head, this.#point());
    });
  }

  #drawLayer(layer) {
    const { sample, image, cam, rollout } = this.#shown, pad = $("#pad"), found = this.#stage();
    if (this.#state.map) return this.#drawMap(pad);
    if (layer === "window") {
      draw.drawWindow(pad, found.stage, sample, image, found.sprite, this.#state.head, this.#point(), SIDE);
    } else if (layer === "received") {
      draw.drawReceived(pad, found.stage, sample, image, found.received, SIDE);
    } else {
      const over = { cam, rollout }[layer];
      const [pen] = draw.pictureCanvas(pad, sample, image, LAYERS[layer]?.[0] ?? sample.name, SIDE, 1);
      pen.imageSmoothingEnabled = true;
      if (over) pen.drawImage(over, 0, 0, pen.canvas.width, pen.canvas.height);
    }
    $("#says").textContent = layer === "window" ? this.#words() : layer === "cam" ? camWords(sample.cam) : "";
  }

  #words() {
    const { stage } = this.#stage(), { head } = this.#state;
    const [row, column] = draw.query(stage, this.#point());
    const words = head ? `head ${head} of ${stage.heads}` : draw.windowWords(stage, this.#point());
    return `Row ${row.token + 1}, column ${column.token + 1}: ${words}`;
  }

  // A channel's map over the picture.
  #drawMap(pad) {
    const { sample, image, channels } = this.#shown, { index, after, stage, group } = this.#state.map;
    const number = sample.channels[stage].chosen[group][index];
    const words = `Channel ${number}, ${after ? "after" : "before"} the attention`;
    const [pen] = draw.pictureCanvas(pad, sample, image, words, SIDE, 1);
    pen.globalAlpha = 0.8;
    draw.pasteChannel(pen, sample.channels[stage], channels[stage][1], group, after, index, 0, 0, pen.canvas.width, pen.canvas.height);
    pen.globalAlpha = 1;
    $("#says").textContent = words;
  }

  #drawChannels() {
    const { sample, channels } = this.#shown;
    $("#channels").hidden = !channels.length;
    if (!channels.length) return;
    const at = Math.min(this.#state.stage, channels.length - 1), stage = sample.channels[at];
    const group = Math.min(this.#state.group, stage.shown - 1), [affinity, maps] = channels[at];
    const wanted = [sample, at, group];
    if (wanted.every((each, i) => each === this.#channelsDrawn[i])) return; // their buttons keep the focus
    this.#channelsDrawn = wanted;
    const [h, w] = stage.side, groups = stage.groups > 1 ? `${stage.groups} groups of ${stage.channels} channels` : `${stage.channels} channels`;
    $("#channels-words").textContent = `stage ${stage.stage + 1}: ${groups}, maps of ${h} x ${w}`;
    choose($("#groups"), Array.from({ length: stage.shown }, (_, i) => `Group ${i + 1}`), group, (i) => this.#set({ group: i, map: null }));
    draw.drawAffinity($("#affinity"), stage, sample, affinity, group);
    $("#maps").replaceChildren(...[0, 1].map((after) => this.#mapLine(stage, maps, at, group, after)));
  }

  #mapLine(stage, maps, at, group, after) {
    const [h, w] = stage.side, scale = Math.max(1, Math.round(TILE / Math.max(h, w)));
    const tiles = stage.chosen[group].map((number, index) => {
      const board = el("canvas", { width: w * scale, height: h * scale, ariaHidden: "true" });
      const pen = board.getContext("2d"), map = { stage: at, group, index, after };
      pen.imageSmoothingEnabled = false;
      draw.pasteChannel(pen, stage, maps, group, after, index, 0, 0, board.width, board.height);
      const button = el("button", { type: "button" }, board, String(number));
      button.ariaLabel = `Channel ${number}, ${after ? "after" : "before"} the attention`;
      for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => this.#set({ map }));
      for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => this.#set({ map: null }));
      return button;
    });
    const words = after ? "After the attention mixed in the others" : "The most energetic channels by themselves";
    return el("figure", {}, el("figcaption", { className: "quiet" }, words), el("div", { className: "tiles" }, ...tiles));
  }
}

function camWords({ label, score }) {
  return `${label}: ${percent(score)}`;
}
