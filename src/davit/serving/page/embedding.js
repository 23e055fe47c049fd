// A vector: to take away, and to compare with those of the other pictures.

import { el, list, plural, row } from "./dom.js";

export const parameters = () => ({});

export const classesOf = () => [];

export const asAsked = (answer) => answer;

export function summary({ embedding }) {
  return `a vector of ${plural(embedding.length, "number")}`;
}

export function show({ result, panel, below, others, item, select }) {
  panel.append(
    el("h2", {}, "Vector"),
    el("p", {}, `${plural(result.embedding.length, "number")}, of length 1 as a whole.`),
    el("p", {}, download(result, item.name)));
  if (others.length < 2) {
    panel.append(el("p", { className: "quiet" }, "Add another picture to see how alike they are."));
    return;
  }
  const near = others.filter((other) => other.item !== item)
    .map((other) => ({ item: other.item, likeness: dot(result.embedding, other.result.embedding) }))
    .sort((a, b) => b.likeness - a.likeness);
  const rows = near.map(({ item: other, likeness }) => {
    const each = row(other.name, likeness.toFixed(3), Math.max(0, likeness));
    each.addEventListener("click", () => select(other));
    return each;
  });
  panel.append(el("h3", {}, "Most alike"), list(rows, "Most alike"));
  below.append(el("h2", {}, "Similarity"), matrix(others));
}

function dot(a, b) {
  return a.reduce((sum, value, index) => sum + value * b[index], 0);
}

function download({ embedding }, name) {
  const link = el("a", { className: "button", href: "", download: `${name}.json` }, "Download as JSON");
  link.addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([JSON.stringify(embedding)], { type: "application/json" }));
    link.href = address;
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
  return link;
}

function matrix(others) {
  const head = (scope, text) => el("th", { scope, title: text }, el("span", {}, text));
  const all = others.map(({ result }) => others.map((other) => dot(result.embedding, other.result.embedding)));
  const least = Math.min(...all.flat());
  const cell = (likeness) => {
    const made = el("td", {}, likeness.toFixed(2));
    made.style.setProperty("--share", (likeness - least) / (1 - least || 1));
    return made;
  };
  const lines = others.map(({ item }, index) => el("tr", {}, head("row", item.name), ...all[index].map(cell)));
  return el("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Similarity of all pictures" },
    el("table", {},
      el("caption", { className: "quiet" }, "Cosine of each pair of vectors"),
      el("thead", {}, el("tr", {}, el("td"), ...others.map(({ item }) => head("col", item.name)))),
      el("tbody", {}, ...lines)));
}
