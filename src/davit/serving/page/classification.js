// The most likely classes: bars beside the picture, the first on it.

import { el, list, percent, row } from "./dom.js";

export const parameters = () => ({ top: 5 });

export const classesOf = (result) => result.top;

export const asAsked = (answer) => answer;

export function summary({ top }) {
  return top.slice(0, 2).map(({ label, score }) => `${label} ${percent(score)}`).join(", ");
}

export function show({ result, sheet, panel, explain }) {
  const rows = result.top.map(({ label, score }) => row(label, percent(score), score));
  rows.forEach((each, index) => {
    each.disabled = !explain;
    each.onclick = () => explain(result.top[index].index);
  });
  sheet.append(el("p", { className: "tag best" }, summary({ top: result.top.slice(0, 1) })));
  panel.append(el("h2", {}, "Most likely classes"), list(rows, "Classes"));
  if (explain) panel.append(el("p", { className: "quiet" }, "Press a class to see which parts of the picture speak for it."));
}
