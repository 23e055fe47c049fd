// The page: pictures in, answers out. Everything about a task is in the file of its name.

import { Api, address, curlLine } from "./api.js";
import { Asking } from "./asking.js";
import * as classification from "./classification.js";
import * as detection from "./detection.js";
import { $, choose, copy, el, percent, plural } from "./dom.js";
import * as embedding from "./embedding.js";
import { makeSheet, readPicture, thumbnail } from "./picture.js";
import * as segmentation from "./segmentation.js";

const TASKS = { classification, detection, segmentation, embedding };
const LONG = 240; // characters of a data URI that are not worth showing

const settings = { threshold: 0.5, opacity: 0.6 };
const state = { models: [], model: null, items: [], current: null, view: "result", class: null };
const api = new Api(askKey);
const asking = new Asking(api, answered);
let attentionView = null;

// ---- What is asked ----

function predictAddress(curl = false) {
  const { name, kind } = state.model;
  return address("predict", name, TASKS[kind].parameters(settings, curl));
}

function explainAddress() {
  return address("explain", state.model.name, state.class === null ? {} : { class: state.class });
}

function prediction(item, first = false) {
  return asking.entry(item, predictAddress(), first);
}

function answered(item) {
  mark(item);
  progress();
  if (item === state.current || state.model.kind === "embedding") show();
}

// ---- Pictures ----

function add(files) {
  const items = [...files].map(makeItem);
  if (!items.length) return;
  state.items.push(...items);
  items.forEach(mark);
  select(items[0]);
}

function makeItem(file) {
  const item = { file, name: file.name || "picture", entries: new Map(), stop: new AbortController(), picture: undefined };
  const sign = el("span", { className: "sign" });
  item.button = el("button", { type: "button", title: item.name }, el("span", { className: "thumb" }), sign, el("span", {}, item.name));
  item.button.addEventListener("click", () => select(item));
  const remover = el("button", { type: "button", className: "remove", ariaLabel: `Remove ${item.name}` }, "\u00d7");
  remover.addEventListener("click", () => remove(item));
  item.entry = el("li", {}, item.button, remover);
  $("#thumbs").append(item.entry);
  readPicture(file).then((picture) => $(".thumb", item.button).append(thumbnail(picture)), () => {});
  return item;
}

async function select(item) {
  if (state.current) state.current.picture = undefined; // screens are large: only one picture is kept decoded
  state.current = item;
  for (const each of state.items) each.button.ariaCurrent = each === item ? "true" : null;
  prediction(item, true);
  show();
  progress();
  const picture = await readPicture(item.file).catch(() => null);
  if (state.current !== item) return;
  item.picture = picture;
  show();
}

function remove(item) {
  const index = state.items.indexOf(item);
  item.stop.abort();
  item.entry.remove();
  state.items.splice(index, 1);
  const next = state.items[Math.min(index, state.items.length - 1)] ?? null;
  (next?.button ?? $("#files")).focus();
  if (item === state.current) {
    state.current = null;
    if (next) select(next);
  }
  show();
  progress();
}

function mark(item) {
  const { state: now } = prediction(item);
  const [sign, words] = { done: ["", ""], failed: ["\u2717 ", ", not answered"] }[now] ?? ["\u2026 ", ", waiting"];
  item.button.dataset.state = now;
  item.button.ariaLabel = item.name + words;
  $(".sign", item.button).textContent = sign;
}

function progress() {
  const done = state.items.filter((item) => ["done", "failed"].includes(prediction(item).state)).length;
  const bar = $("#progress"), all = state.items.length;
  $("#strip").hidden = !all;
  bar.hidden = done === all;
  Object.assign(bar, { max: Math.max(1, all), value: done });
  if (done < all) tell(`${done} of ${plural(all, "picture")} answered`);
  else if (state.current) tellCurrent();
  else tell("");
}

function tell(words) {
  if ($("#status").textContent !== words) $("#status").textContent = words;
}

function tellCurrent() {
  const { name } = state.current, entry = prediction(state.current);
  if (entry.state === "failed") return tell(`${name}: ${entry.error.message}`);
  const task = TASKS[state.model.kind], took = `${Math.round(entry.milliseconds).toLocaleString("en")} ms`;
  tell(`${name}: ${task.summary(entry.answer.results[0], settings)} (${took})`);
}

// ---- What is shown ----

function show() {
  const item = state.current;
  $("#viewer").hidden = !item;
  if (!item) return;
  const views = state.model.explain ? ["result", "attention"] : ["result"];
  if (!views.includes(state.view)) state.view = "result";
  choose($("#views"), ["Result", "Attention"].slice(0, views.length), views.indexOf(state.view), (i) => {
    state.view = views[i];
    show();
  });
  $("#result").hidden = state.view !== "result";
  $("#attention").hidden = state.view !== "attention";
  if (state.view === "attention") showAttention(item);
  else showResult(item);
}

function showResult(item) {
  const entry = prediction(item), result = entry.answer?.results?.[0];
  const { width, height } = result?.width ? result : (item.picture ?? { width: 4, height: 3 });
  const panel = $("#panel"), below = $("#below");
  const board = item.picture === undefined ? el("canvas") : item.picture?.board; // undefined: not yet decoded
  const sheet = makeSheet(board, width, height, item.name);
  $("#frame").replaceChildren(sheet);
  panel.replaceChildren();
  below.replaceChildren();
  showRequest(entry);
  if (entry.state !== "done") return showState(panel, entry, () => asking.again(item, predictAddress()));
  const others = state.items.flatMap((other) => {
    const { state: now, answer } = prediction(other);
    return now === "done" ? [{ item: other, result: answer.results[0] }] : [];
  });
  const explain = state.model.explain ? explainClass : null;
  const changed = () => { showRequest(entry); tellCurrent(); };
  TASKS[state.model.kind].show({ result, sheet, panel, below, settings, item, others, explain, changed, select });
}

function showState(panel, { state: now, words, error }, again) {
  if (now !== "failed") return panel.append(el("p", { className: "quiet" }, `${words}\u2026`));
  const button = el("button", { type: "button" }, "Try again");
  button.addEventListener("click", () => { again(); show(); });
  panel.append(el("div", { className: "warning" }, el("h2", {}, "No answer"), el("p", {}, error.message),
    el("p", { className: "quiet" }, el("code", {}, error.type ?? error.name)), button));
}

async function showAttention(item) {
  const where = explainAddress(), entry = asking.entry(item, where, true), problem = $("#attention-problem");
  showRequest(entry);
  problem.hidden = entry.state === "done";
  $("#explained").hidden = entry.state !== "done";
  problem.replaceChildren();
  if (entry.state !== "done") return showState(problem, entry, () => asking.again(item, where));
  const view = await attention();
  const result = prediction(item).answer?.results?.[0];
  await view.show(entry.answer, result ? TASKS[state.model.kind].classesOf(result) : []);
}

// The drawing of attention is only there, and only fetched, where a model can be explained.
async function attention() {
  attentionView ??= import("./explain.js").then(({ AttentionView }) => new AttentionView(explainClass, tell));
  return attentionView;
}

async function explainClass(index) {
  state.class = index;
  state.view = "attention";
  show();
  (await attention()).showLayer("cam");
}

function showRequest({ answer }) {
  const explaining = state.view === "attention", { kind } = state.model;
  const asked = answer && !explaining && !answer.results[0].error ? TASKS[kind].asAsked(answer, settings) : answer;
  const where = explaining ? explainAddress() : predictAddress(true);
  fill($("#answer"), asked ? JSON.stringify(asked, null, 1) : "", shorten(asked));
  fill($("#request"), curlLine(where, state.current.name, api.hasKey));
}

function fill(details, text, shown = text) {
  $("pre", details).textContent = shown;
  details.hidden = !text;
  $(".copy", details).onclick = async (event) => {
    await copy(text);
    event.target.textContent = "Copied";
    setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
  };
}

function shorten(value) {
  const short = (_, each) => (typeof each === "string" && each.startsWith("data:") && each.length > LONG
    ? `${each.slice(0, 40)}\u2026 (${each.length.toLocaleString("en")} characters)` : each);
  return value ? JSON.stringify(value, short, 1) : "";
}

// ---- Models and the key ----

async function start() {
  try {
    const busy = () => { $("#about").textContent = "The server is still loading its models."; };
    const answer = await api.ask("v1/models", { busy });
    state.models = answer.models;
    state.model = answer.models.find(({ name }) => name === answer.default) ?? answer.models[0];
  } catch (error) {
    const button = el("button", { type: "button" }, "Try again");
    button.addEventListener("click", start);
    return $("#about").replaceChildren(error.message, " ", button);
  }
  const chooser = $("#model");
  chooser.replaceChildren(...state.models.map(({ name }) => el("option", { value: name, selected: name === state.model.name }, name)));
  $("#choose-model").hidden = state.models.length < 2;
  chooser.onchange = () => chooseModel(state.models[chooser.selectedIndex]);
  about();
  listen();
}

function chooseModel(model) {
  Object.assign(state, { model, class: null });
  about();
  if (state.current) prediction(state.current, true);
  state.items.forEach(mark);
  progress();
  show();
}

function about() {
  const { name, kind, classes, size, backend, explain } = state.model;
  const parts = [state.models.length > 1 ? kind : `${name}: ${kind}`];
  if (classes) parts.push(plural(classes, "class", "classes"));
  parts.push(`pictures as ${size[0]} x ${size[1]}`, `computed by ${backend}`);
  if (!explain) parts.push("no attention to see: that needs a checkpoint");
  $("#about").textContent = `${parts.join(", ")}.`;
}

// Resolves to the key, or to null where the visitor has none.
function askKey(wrong) {
  const dialog = $("#key"), field = $("#key-value");
  $("#key-words").textContent = wrong
    ? "The server does not know the last one." : "It is kept until this tab closes, and sent to this server alone.";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue ? field.value : null), { once: true });
  });
}

function listen() {
  const files = $("#files"), dragging = (on) => document.body.classList.toggle("dragging", on);
  files.addEventListener("change", () => { add(files.files); files.value = ""; });
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  document.addEventListener("dragover", (event) => { event.preventDefault(); dragging(true); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) dragging(false); });
  document.addEventListener("drop", (event) => { event.preventDefault(); dragging(false); add(event.dataTransfer.files); });
  $("#clear").addEventListener("click", () => { while (state.items.length) remove(state.items.at(-1)); });
  $("#thumbs").addEventListener("keydown", (event) => {
    const index = state.items.findIndex(({ button }) => button === event.target);
    if (index < 0) return;
    if (event.key === "Delete") return remove(state.items[index]);
    const next = state.items[index + { ArrowRight: 1, ArrowLeft: -1 }[event.key]];
    if (!next) return;
    event.preventDefault();
    next.button.focus();
    select(next);
  });
}

start();
