/* The chat of `packfuse serve`; the views of its answers are in view.js. */

const part = (id) => document.getElementById(id);
let messages = [];
let names = [];
let turns = [];
let running = null;
const details = detailsRegion("Point at a token to see what each member proposed.");
part("token").append(details.root);

function headers() {
  const key = part("key").value;
  const found = { "Content-Type": "application/json" };
  if (key) found.Authorization = `Bearer ${key}`;
  return found;
}

async function loadModels() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (!answer.ok) return;
  const { data } = await answer.json();
  part("model").replaceChildren(...data.map((one) => {
    const option = element("option", one.id);
    option.dataset.members = JSON.stringify(one.members);
    return option;
  }));
  chooseModel();
}

function chooseModel() {
  const option = part("model").selectedOptions[0];
  names = option ? JSON.parse(option.dataset.members) : [];
}

function showRecord(members, record) {
  turns.push(record.weights);
  const over = turns.length > 1 ? [turnsChart(members, turns)] : [];
  part("weights").replaceChildren(
    weightsTable(members, record), course(record), ...notes(record), ...over,
  );
  const steps = record.prompt_trace ?? [];
  part("reading").hidden = !steps.length;
  part("curves").replaceChildren(...(steps.length ? [promptChart(members, steps)] : []));
  part("record").replaceChildren(recordDetails(record));
}

/* The tokens of one answer as they come; they are drawn once a frame, however many came. */
class Arriving {
  constructor(turn) {
    this.members = new Members(names);
    this.tokens = answerTokens(turn, this.members, details.show, `Answer ${turns.length + 1}`);
    this.waiting = [];
    this.frame = null;
  }

  add(steps) {
    this.waiting.push(...steps);
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const chat = part("chat");
    const follows = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 60;
    this.tokens.add(this.waiting.splice(0));
    if (follows) chat.scrollTop = chat.scrollHeight;
  }

  /* Draws what is left, also in a tab without frames. */
  end(record) {
    cancelAnimationFrame(this.frame);
    this.members.weights = record?.weights ?? null;
    this.draw();
    if (record) this.tokens.mark();
  }
}

async function* events(body) {
  const decoder = new TextDecoder();
  let rest = "";
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const lines = rest.split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

async function answer(turn) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal: running.signal,
    body: JSON.stringify({ model: part("model").value, messages, stream: true, trace: true }),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const arriving = new Arriving(turn);
  let text = "";
  let record = null;
  try {
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      text += chunk.choices[0]?.delta?.content ?? "";
      arriving.add(chunk.trace ?? []);
      record = chunk.fusion ?? record;
    }
  } finally {
    arriving.end(record);
  }
  if (record) showRecord(arriving.members, record);
  // Tokens show control tokens and stop strings as well; the text has neither.
  turn.dataset.text = text;
  turn.before(readAloud(text));
  part("status").textContent = text;
  messages.push({ role: "assistant", content: text });
}

function setRunning(controller) {
  running = controller;
  part("send").hidden = Boolean(controller);
  part("stop").hidden = !controller;
}

async function send(event) {
  event.preventDefault();
  const text = part("prompt").value;
  if (running || !text) return;
  part("prompt").value = "";
  messages.push({ role: "user", content: text });
  const turn = element("div", "", "turn assistant");
  const question = element("div", visible(text), "turn user");
  question.dir = "auto";
  part("chat").append(question, turn);
  part("chat").scrollTop = part("chat").scrollHeight;
  setRunning(new AbortController());
  try {
    await answer(turn);
    turn.dataset.done = "true";
  } catch (error) {
    messages.pop();
    const stopped = error.name === "AbortError";
    const problem = element("div", stopped ? "Stopped." : error.message, "turn problem");
    problem.setAttribute("role", "alert");
    part("chat").append(problem);
  } finally {
    setRunning(null);
  }
}

part("form").addEventListener("submit", send);
part("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
part("stop").addEventListener("click", () => running?.abort());
part("clear").addEventListener("click", () => {
  messages = [];
  turns = [];
  part("chat").replaceChildren();
});
part("key").addEventListener("change", loadModels);
part("model").addEventListener("change", chooseModel);
loadModels();
