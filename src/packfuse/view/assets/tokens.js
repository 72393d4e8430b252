/* A text of which every token can be pointed at, and reached with the arrow keys.

The text is one stop of the tab key. Events are handled by the container, and the work of one move
does not depend on the length of the text. */
class TokenText {
  /* root: an empty element; label: its name for screen readers; mark(item, unit): colors a token and
  returns whether it is notable; show(unit): shows its details. */
  constructor(root, { label, mark, show }) {
    this.root = root;
    this.markItem = mark;
    this.show = show;
    this.units = [];
    this.items = [];
    this.current = null;
    root.classList.add("tokens");
    root.dir = "auto";
    root.setAttribute("role", "listbox");
    root.setAttribute("aria-label", label);
    root.addEventListener("mouseover", (event) => this.preview(event.target));
    root.addEventListener("mouseleave", () => this.current && this.show(this.unitOf(this.current)));
    root.addEventListener("focusin", (event) => this.select(event.target));
    root.addEventListener("click", (event) => this.itemOf(event.target)?.focus());
    root.addEventListener("keydown", (event) => this.move(event));
  }

  add(steps) {
    const fresh = document.createDocumentFragment();
    for (const step of steps) {
      const before = this.units.length;
      const changed = addStep(this.units, step);
      if (this.units.length < before) this.items.pop().remove();
      if (changed) this.fill(this.items.length - 1);
      else fresh.append(...this.item());
    }
    this.root.append(fresh);
    if (!this.current && this.items.length) this.items[0].tabIndex = 0;
  }

  /* Colors all tokens again, after the weights have become known. */
  mark() {
    this.items.forEach((_, at) => this.fill(at));
  }

  /* The elements of the last unit: the token, and before it a mark where text was left out. */
  item() {
    const at = this.units.length - 1;
    const made = element("span");
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", "false");
    made.tabIndex = -1;
    made.dataset.at = at;
    this.items.push(made);
    this.fill(at);
    if (!at || !apart(this.units[at - 1].last, this.units[at].steps[0])) return [made];
    const gap = element("span", " ⋯ ", "gap");
    gap.setAttribute("aria-hidden", "true");
    return [gap, made];
  }

  fill(at) {
    const unit = this.units[at];
    const item = this.items[at];
    item.textContent = visible(unit.text);
    item.className = unit.control ? "token control" : "token";
    if (/^\s*\n/.test(unit.text)) item.classList.add("break");
    // A token without letters needs a name.
    if (!unit.text.trim()) item.setAttribute("aria-label", TokenText.blank(unit.text));
    else item.removeAttribute("aria-label");
    item.classList.toggle("notable", this.markItem(item, unit));
  }

  static blank(text) {
    if (text.includes("\n")) return "line break";
    return text ? "space" : "nothing";
  }

  itemOf(target) {
    return target.closest?.(".token");
  }

  unitOf(item) {
    return this.units[item.dataset.at];
  }

  preview(target) {
    const item = this.itemOf(target);
    if (item) this.show(this.unitOf(item));
  }

  select(target) {
    const item = this.itemOf(target);
    if (!item) return;
    const before = this.current ?? this.items[0];
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
    item.tabIndex = 0;
    item.setAttribute("aria-selected", "true");
    this.current = item;
    this.show(this.unitOf(item));
  }

  move(event) {
    const at = Number((this.itemOf(event.target) ?? this.items[0])?.dataset.at);
    const to = {
      ArrowRight: () => at + 1,
      ArrowLeft: () => at - 1,
      ArrowDown: () => this.notable(at, 1),
      ArrowUp: () => this.notable(at, -1),
      Home: () => 0,
      End: () => this.items.length - 1,
    }[event.key]?.();
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.items[to]?.focus();
  }

  /* The next notable token in a direction. */
  notable(at, way) {
    let next = at + way;
    while (this.items[next] && !this.items[next].classList.contains("notable")) next += way;
    return next;
  }
}
