"use strict";

const COLORS = ["#2f7ed8", "#d9822b", "#2a9d61", "#b14fc5", "#c8a415", "#d0455c"];
const part = (id) => document.getElementById(id);
let messages = [];
let members = [];
let running = null;

function element(kind, text = "", classes = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = classes;
  return made;
}

function colored(name, made) {
  made.style.setProperty("--color", COLORS[Math.max(members.indexOf(name), 0) % COLORS.length]);
  return made;
}

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
  members = option ? JSON.parse(option.dataset.members) : [];
}

function showWeights(record) {
  const rows = Object.entries(record.weights).map(([name, weight]) => {
    const row = element("div", "", "bar");
    const bar = element("meter");
    bar.value = weight;
    const label = colored(name, element("div", name, "name"));
    row.append(label, element("span", weight.toFixed(3)), bar);
    return row;
  });
  const agreed = record.agreed === null ? [] : [
    element("p", `All members agreed at ${Math.round(100 * record.agreed)} % of the tokens.`, "hint"),
  ];
  part("weights").replaceChildren(...rows, ...agreed);
  const { trace, ...rest } = record;
  part("record").textContent = JSON.stringify(rest, null, 1);
}

function showToken(step) {
  const table = element("table");
  const head = element("tr");
  head.append(element("th", "member"), element("th", "its choice"), element("th", "this token"));
  table.append(head);
  for (const [name, choice] of Object.entries(step.member_choices)) {
    const row = element("tr");
    const share = step.member_probabilities[name];
    row.append(
      colored(name, element("td", name, "name")),
      element("td", JSON.stringify(choice)),
      element("td", share.toFixed(3)),
    );
    table.append(row);
  }
  const title = `${JSON.stringify(step.text)}, ${step.probability.toFixed(3)} under the pack`;
  part("token").replaceChildren(element("p", title), table);
}

/* Who proposed a token: of the members whose own first choice it was, the surest. */
function proposer(step) {
  const own = members.filter((name) => step.member_choices[name] === step.text);
  own.sort((a, b) => step.member_probabilities[b] - step.member_probabilities[a]);
  return { name: own[0], agreed: own.length === members.length };
}

function addTokens(turn, steps) {
  for (const step of steps) {
    if (!step.utf8.length) continue;
    const { name, agreed } = proposer(step);
    const token = element("span", step.text, agreed ? "token agreed" : "token");
    token.tabIndex = 0;
    if (name) {
      colored(name, token);
      token.dataset.member = name;
    }
    for (const event of ["mouseenter", "focus"]) token.addEventListener(event, () => showToken(step));
    turn.append(token);
  }
  part("chat").scrollTop = part("chat").scrollHeight;
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
  let text = "";
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    text += chunk.choices[0]?.delta?.content ?? "";
    addTokens(turn, chunk.trace ?? []);
    if (chunk.fusion) showWeights(chunk.fusion);
  }
  // Incomplete characters at the edge of a token are whole only in the text.
  turn.dataset.text = text;
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
  part("chat").append(element("div", text, "turn user"), turn);
  setRunning(new AbortController());
  try {
    await answer(turn);
    turn.dataset.done = "true";
  } catch (error) {
    messages.pop();
    const stopped = error.name === "AbortError";
    part("chat").append(element("div", stopped ? "Stopped." : error.message, "turn problem"));
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
  part("chat").replaceChildren();
});
part("key").addEventListener("change", loadModels);
part("model").addEventListener("change", chooseModel);
loadModels();
