/* Tokens as units that can be shown: the shortest runs of tokens that are whole characters.

A token may end within a character, and an emoji may be several characters: a text in which each
token is an element of its own would show broken ones. */

const MOST_STEPS = 64; // of a unit, so that a flood of combining marks takes no quadratic time

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/* The text of bytes; what is no character is replaced. */
function decoded(bytes) {
  return decoder.decode(new Uint8Array(bytes));
}

class Unit {
  constructor(step) {
    this.steps = [];
    this.bytes = [];
    this.control = !step.utf8.length;
    this.add(step);
  }

  add(step) {
    this.steps.push(step);
    this.bytes.push(...step.utf8);
    this.text = this.control ? step.text : decoded(this.bytes);
  }

  get last() {
    return this.steps[this.steps.length - 1];
  }

  /* Whether another unit, which follows at once, belongs to the same character. */
  continuesIn(next) {
    if (this.control || next.control || this.steps.length + next.steps.length > MOST_STEPS) {
      return false;
    }
    const byte = next.bytes[0];
    if (byte >= 0x20 && byte < 0x7f && this.bytes[this.bytes.length - 1] < 0x80) return false;
    // Bytes of one character read otherwise together than apart.
    const within = byte >= 0x80 && byte < 0xc0;
    if (within && decoded([...this.bytes, ...next.bytes]) !== this.text + next.text) return true;
    const at = this.text.length;
    return Unit.segmenter.segment(this.text + next.text).containing(at)?.index !== at;
  }
}
Unit.segmenter = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/* Adds a step to a list of units; returns how many units at the end were there before and changed. */
function addStep(units, step) {
  const last = units[units.length - 1];
  const made = new Unit(step);
  if (!last || !last.continuesIn(made) || apart(last.last, step)) {
    units.push(made);
    return 0;
  }
  last.add(step);
  // What was a broken character may now be one that belongs to the unit before.
  const before = units[units.length - 2];
  if (before && !apart(before.last, last.steps[0]) && before.continuesIn(last)) {
    units.pop();
    for (const own of last.steps) before.add(own);
    return 2;
  }
  return 1;
}

/* Whether two pieces of a prompt have text between them that was not scored. */
function apart(one, next) {
  return next.start !== undefined && one.start + one.utf8.length !== next.start;
}
