// Elements, and what several views do with them. Texts are always set as text: names come from files and models.

export const $ = (selector, root = document) => root.querySelector(selector);

export function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

export function plural(count, word, many = `${word}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? word : many}`;
}

// A button in a list: a colour, a name, a number, and a bar as long as the number's share of one.
export function row(name, number, share, colour = null) {
  const bar = el("i");
  bar.style.setProperty("--share", `${100 * share}%`);
  const made = el("button", { type: "button", className: "row" }, el("span", {}, name), el("b", {}, number), bar);
  if (colour) {
    made.classList.add("coloured");
    made.style.setProperty("--colour", colour);
  }
  return made;
}

export function list(rows, label) {
  return el("ul", { className: "rows", ariaLabel: label }, ...rows.map((each) => el("li", {}, each)));
}

// Fill a group with buttons of which one is pressed. A choice is a text, or elements with a label for all who listen.
export function choose(group, choices, chosen, pick) {
  group.hidden = choices.length < 2;
  while (group.children.length > choices.length) group.lastChild.remove();
  choices.forEach((choice, index) => {
    if (!group.children[index]) group.append(el("button", { type: "button" }));
    const button = group.children[index];
    if (button.textContent !== choice) button.textContent = choice;
    button.ariaPressed = String(index === chosen);
    button.onclick = () => pick(index);
  });
}

// One of some rows is lit: the one under the pointer or the focus, or else the one that was pressed.
export function spotlight(rows, draw) {
  let held = null, lit = null;
  const light = (index) => {
    const next = index ?? held;
    if (next === lit) return;
    lit = next;
    rows.forEach((each, i) => each.classList.toggle("lit", i === lit));
    draw(lit);
  };
  const hold = (index) => {
    held = index === held ? null : index;
    rows.forEach((each, i) => { each.ariaPressed = String(i === held); });
    light(held);
  };
  rows.forEach((each, index) => {
    each.ariaPressed = "false";
    each.addEventListener("pointerenter", () => light(index));
    each.addEventListener("pointerleave", () => light(null));
    each.addEventListener("focus", () => light(index));
    each.addEventListener("blur", () => light(null));
    each.addEventListener("click", () => hold(index));
  });
  return { light, hold };
}

export function slider(name, value, words, change) {
  const output = el("output", {}, words(value));
  const input = el("input", { type: "range", min: 0, max: 1, step: 0.01, value });
  input.addEventListener("input", () => {
    output.textContent = words(input.valueAsNumber);
    change(input.valueAsNumber);
  });
  return el("label", { className: "slider" }, el("span", {}, name, " ", output), input);
}

// `navigator.clipboard` is there only on https and on this machine itself, not for a phone in the same network.
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { value: text, className: "heard" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
