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
