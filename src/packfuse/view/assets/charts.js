/* Line charts as SVG. The lines of members differ in color, in dashes and by the number at the end. */

const DASHES = ["none", "7 4", "2 3", "10 3 2 3", "1 6"];
const HEIGHT = 226;
const LABEL_GAP = 17;
const EDGE = { left: 46, right: 26, top: 12, bottom: 50 };

function scale(low, high, from, to) {
  const range = high - low || 1;
  return (value) => from + ((value - low) / range) * (to - from);
}

/* Round numbers that divide a range into about `count` parts. */
function ticks(low, high, count) {
  const raw = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(at);
  return found.map((value) => Number(value.toPrecision(6)));
}

/* given: [[member, [[x, y], ...]], ...]; options: title, x and y (names of the axes), high (of y),
whole (whether x are whole numbers), width, spell (what is written for a y). Returns a figure, with
its numbers as a table. */
function lineChart(members, given, options) {
  const series = given.filter(([, own]) => own.length);
  const { title, x, y, high = null, whole = false, width = 640, spell = decimals } = options;
  const points = series.flatMap(([, own]) => own);
  const xs = points.map((point) => point[0]);
  const most = high ?? Math.max(...points.map((point) => point[1]));
  const place = {
    x: scale(Math.min(...xs), Math.max(...xs), EDGE.left, width - EDGE.right),
    y: scale(0, most, HEIGHT - EDGE.bottom, EDGE.top),
  };
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", class: "chart" });
  picture.setAttribute("aria-label", `${title}, by member: ${y} over ${x}`);
  for (const value of ticks(0, most, 4)) {
    picture.append(...yTick(place.y(value), spell(value), width));
  }
  const marks = ticks(Math.min(...xs), Math.max(...xs), 6);
  for (const value of marks.filter((one) => !whole || Number.isInteger(one))) {
    picture.append(label(place.x(value), HEIGHT - EDGE.bottom + 3, value, "middle", "1em"));
  }
  picture.append(label((width + EDGE.left) / 2, HEIGHT - 5, x, "middle"));
  const drawnLines = series.map(([name, own]) => line(members, name, own, place));
  picture.append(...drawnLines);
  spread(drawnLines.map((group) => group.lastChild));
  const figure = element("figure");
  figure.append(element("figcaption", title), picture, numbers(series, x, spell));
  return figure;
}

function decimals(value) {
  return String(Number(value.toFixed(3)));
}

/* Moves the numbers at the ends of lines apart. */
function spread(labels) {
  let low = -Infinity;
  const sorted = labels.sort((one, next) => one.getAttribute("y") - next.getAttribute("y"));
  for (const own of sorted) {
    low = Math.max(low + LABEL_GAP, Number(own.getAttribute("y")));
    own.setAttribute("y", low);
  }
}

function label(x, y, text, anchor, dy = "0") {
  const made = drawn("text", { x, y, dy, "text-anchor": anchor });
  made.textContent = text;
  return made;
}

function yTick(at, text, width) {
  const rule = drawn("line", { x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at, class: "rule" });
  return [rule, label(EDGE.left - 6, at + 4, text, "end")];
}

function line(members, name, points, place) {
  const index = members.names.indexOf(name);
  const group = drawn("g", { class: members.classes(name) });
  const drawnAt = points.map(([x, y]) => `${place.x(x).toFixed(1)},${place.y(y).toFixed(1)}`);
  group.append(drawn("polyline", {
    points: drawnAt.join(" "), class: "line", "stroke-dasharray": DASHES[index % DASHES.length],
  }));
  if (points.length < 40) {
    for (const [x, y] of points) group.append(drawn("circle", { cx: place.x(x), cy: place.y(y), r: 3 }));
  }
  const [x, y] = points[points.length - 1];
  group.append(label(place.x(x) + 7, place.y(y) + 4, index + 1, "start"));
  return group;
}

const MOST_ROWS = 100;

/* The numbers of a chart, for whoever cannot see it; of a long one, evenly spread ones. */
function numbers(series, x, spell) {
  const known = series.map(([, points]) => new Map(points));
  const xs = [...new Set(known.flatMap((own) => [...own.keys()]))].sort((one, next) => one - next);
  const step = Math.ceil(xs.length / MOST_ROWS);
  const rows = xs.filter((_, index) => index % step === 0).map((at) =>
    [String(at), ...known.map((own) => (own.has(at) ? spell(own.get(at)) : "–"))]);
  const folded = element("details");
  folded.append(element("summary", "Numbers"), table("", [x, ...series.map(([name]) => name)], rows));
  return folded;
}
