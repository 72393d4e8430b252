/* The views of a whole answer; the page of `packfuse serve` uses the parts. */

const WINDOW = 8; // tokens on both sides, over which the curves along a prompt are means
const HIGHEST = 20; // nats per token: the top of those curves
const KEYS = "Arrow keys go from token to token; up and down to where the members differ.";
const DRAFTED = "Tokens under a dotted line were drafted.";

/* The tokens of an answer, colored by the member that carried each. */
function answerTokens(root, members, show, label = "The answer, token by token") {
  return new TokenText(root, {
    label,
    mark(item, unit) {
      const name = unit.last.carried_by;
      item.dataset.member = name;
      item.className += ` ${members.classes(name)}`;
      item.classList.toggle("drafted", unit.steps.every((step) => step.drafted));
      return unit.steps.some((step) => disagreed(members, step));
    },
    show: (unit) => show(tokenDetails(members, unit)),
  });
}

function promptTokens(root, members, show) {
  return new TokenText(root, {
    label: "The prompt, piece by piece",
    mark(item, unit) {
      const { name, notable } = bestReader(unit.last);
      item.className += ` ${members.classes(name)}`;
      return notable;
    },
    show: (unit) => show(pieceDetails(members, unit)),
  });
}

/* Perplexity along the prompt, by member: means over neighboring pieces. */
function promptChart(members, steps) {
  const total = (some, value) => some.reduce((sum, step) => sum + value(step), 0);
  const curve = (name) => steps.map((step, at) => {
    const near = steps.slice(Math.max(0, at - WINDOW), at + WINDOW + 1);
    const tokens = total(near, (own) => Math.max(1, own.tokens));
    const loss = total(near, (own) => own.loss[name]) / tokens;
    return [step.start, Math.min(loss, HIGHEST) / Math.LN2];
  });
  const readers = members.names.filter((name) => Object.hasOwn(steps[0].loss, name));
  return lineChart(members, readers.map((name) => [name, curve(name)]), {
    title: "Perplexity along the prompt", x: "byte of the prompt",
    y: "perplexity", spell: (value) => Number((2 ** value).toPrecision(3)).toLocaleString("en"),
  });
}

/* The weights over the turns of a chat, from the first turn on. */
function turnsChart(members, turns) {
  const points = (name) => turns.flatMap((weights, at) =>
    (Object.hasOwn(weights, name) ? [[at + 1, weights[name]]] : []));
  return lineChart(members, members.names.map((name) => [name, points(name)]), {
    title: "Weights over the turns of the chat", x: "turn", y: "weight", high: 1, whole: true, width: 420,
  });
}

/* The record without its traces, as JSON to unfold. */
function recordDetails(record) {
  const { trace, prompt_trace: _, ...rest } = record;
  const made = element("details");
  const text = element("pre", JSON.stringify(rest, null, 1));
  text.tabIndex = 0;
  made.append(element("summary", "Record"), text);
  return made;
}

function notes(record) {
  return record.notes.map((text) => element("p", `Note: ${text}`, "note"));
}

/* A heading with what belongs under it. */
function section(title, ...content) {
  const made = element("section");
  made.append(element("h2", title), ...content);
  return made;
}

/* A region that shows details, and is read aloud when they change. */
function detailsRegion(hint) {
  const made = element("div", "", "shown");
  made.setAttribute("aria-live", "polite");
  made.append(element("p", hint, "hint"));
  return { root: made, show: (parts) => made.replaceChildren(...parts) };
}

/* Which color and line is whose. */
function legend(members) {
  const made = element("p", "", "legend");
  for (const name of members.names) {
    const label = members.label(name);
    label.classList.add("underlined");
    made.append(label, " ");
  }
  return made;
}

/* A text for screen readers, which would read tokens one by one. */
function readAloud(text) {
  return element("p", text, "aloud");
}

/* The view of one answer: {text, record, turns}. */
function showAnswer(root, { text, record, turns }) {
  const members = new Members(record.members, record.weights);
  const details = detailsRegion("Point at a token to see what each member proposed.");
  const main = element("main");
  main.append(element("h1", "A fused answer", "aloud"));
  main.append(section("Answer", ...answerText(text, record, members, details.show)));
  if (record.prompt_trace?.length) {
    const tokens = element("div");
    promptTokens(tokens, members, details.show).add(record.prompt_trace);
    const hint = element("p", "Colored by the member that read it best.", "hint");
    main.append(section("Prompt", promptChart(members, record.prompt_trace), hint, tokens));
  }
  const aside = element("aside");
  aside.setAttribute("aria-label", "Details");
  const token = section("Token", details.root);
  token.id = "details";
  token.tabIndex = 0; // in a narrow window it scrolls
  aside.append(token, section("Members", weightsTable(members, record)));
  if (turns.length > 1) aside.append(section("Chat", turnsChart(members, turns)));
  aside.append(recordDetails(record));
  root.replaceChildren(main, aside);
}

function answerText(text, record, members, show) {
  const trace = record.trace ?? [];
  if (!trace.length) {
    const plain = element("p", visible(text), "plain");
    plain.dir = "auto";
    return [plain, course(record), ...notes(record),
      element("p", "No tokens were recorded: call with trace=True to see them.", "hint")];
  }
  const tokens = element("div");
  answerTokens(tokens, members, show).add(trace);
  const hint = trace.some((step) => step.drafted) ? `${KEYS} ${DRAFTED}` : KEYS;
  return [legend(members), readAloud(text), tokens, element("p", hint, "hint"), course(record), ...notes(record)];
}
