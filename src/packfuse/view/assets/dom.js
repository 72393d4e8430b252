"use strict";

/* Elements are made with text, never with markup: nothing that a model wrote is parsed. */
function element(kind, text = "", classes = "") {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function drawn(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/* A table from rows of cells: texts or elements. The first cell of a row is its heading. */
function table(caption, heads, rows) {
  const made = element("table");
  made.append(element("caption", caption));
  const head = element("tr");
  for (const text of heads) {
    const cell = element("th", text);
    cell.scope = "col";
    head.append(cell);
  }
  const body = element("tbody");
  for (const cells of rows) {
    const row = element("tr");
    cells.forEach((content, at) => {
      const cell = element(at ? "td" : "th");
      if (!at) cell.scope = "row";
      cell.append(content);
      row.append(cell);
    });
    body.append(row);
  }
  const top = element("thead");
  top.append(head);
  made.append(top, body);
  return made;
}

const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]/g;

/* Control characters, and those that turn the direction of what follows, by their numbers. */
function visible(text) {
  return text.replace(INVISIBLE, (letter) =>
    `⟨U+${letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/* A token in quotes, in a direction of its own. */
function quoted(text) {
  const spelled = text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
  return element("bdi", `“${visible(spelled)}”`, "quoted");
}

const COLORS = 6;
const STYLES = 5;

/* The members of a pack: names, colors and numbers. */
class Members {
  constructor(names, weights = null) {
    this.names = names;
    this.weights = weights;
  }

  /* Those with a weight; all, while the weights are unknown. */
  get weighted() {
    return this.weights ? this.names.filter((name) => this.weights[name] > 0) : this.names;
  }

  /* The classes that give an element the color and the line of a member. */
  classes(name) {
    const at = this.names.indexOf(name);
    return at < 0 ? "" : `c${at % COLORS} s${at % STYLES}`;
  }

  label(name) {
    const made = element("span", "", `member ${this.classes(name)}`);
    made.append(element("span", String(this.names.indexOf(name) + 1), "badge"), " ", name);
    return made;
  }
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

/* A probability in three digits; very small ones keep their order of magnitude. */
function probability(value) {
  return value === 0 || value >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}
