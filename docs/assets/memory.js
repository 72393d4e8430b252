// The calculator of memory.md. Its numbers are those of memory.json, which dev/memory.py computes.
"use strict";

const TYPES = { bfloat16: 2, float16: 2, float32: 4, "8 bits": 1, "4 bits": 0.56 };
const PREFIX_SHARE = 0.06;
const DATA = new URL("memory.json", document.currentScript.src);

const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;

function labeled(text, control) {
  const label = document.createElement("label");
  label.append(`${text} `, control);
  return label;
}

function choice(names, chosen) {
  const select = document.createElement("select");
  for (const name of names) select.add(new Option(name, name, false, name === chosen));
  return select;
}

function number(value) {
  const input = document.createElement("input");
  Object.assign(input, { type: "number", min: 1, value });
  return input;
}

// Bytes by part; caches of quantized models are in 16 bits.
function needed(models, names, type, context, rows) {
  const chosen = names.filter((name) => name in models).map((name) => models[name]);
  const weights = chosen.reduce((sum, model) => sum + model.parameters * TYPES[type], 0);
  const each = type === "float32" ? 2 : 1;
  const caches = chosen.reduce((sum, model) => sum + model.kv_bytes * each * context * rows, 0);
  return { weights, caches, prefix: PREFIX_SHARE * weights };
}

async function start(box) {
  const models = await (await fetch(DATA)).json();
  const names = ["(none)", ...Object.keys(models)];
  const members = ["Qwen3-1.7B", "SmolLM3-3B", "(none)"].map((name) => choice(names, name));
  const type = choice(Object.keys(TYPES), "bfloat16");
  const [context, rows] = [number(4096), number(1)];
  const result = document.createElement("output");
  const show = () => {
    const chosen = members.map((member) => member.value);
    const parts = needed(models, chosen, type.value, context.valueAsNumber || 0, rows.valueAsNumber || 0);
    const total = parts.weights + parts.caches + parts.prefix;
    result.textContent =
      `${gigabytes(total)}: ${gigabytes(parts.weights)} weights, ${gigabytes(parts.caches)} KV caches, ` +
      `at most ${gigabytes(parts.prefix)} prefix cache`;
  };
  members.forEach((member, index) => box.append(labeled(`member ${index + 1}`, member)));
  box.append(labeled("weights in", type), labeled("tokens", context), labeled("answers at once", rows), result);
  box.addEventListener("input", show);
  show();
}

for (const box of document.querySelectorAll(".calculator")) {
  start(box).catch(() => {
    box.textContent = "The calculator needs these pages from a server; packfuse check computes the same.";
  });
}
