/* What is said of an answer in words and tables: its weights, its course, one token, one piece. */

const INFINITE = 9999;

/* Weights as bars, with what the members' readings of the prompt say of them. */
function weightsTable(members, record) {
  const scored = record.prompt_loss !== null;
  const heads = ["member", "weight", ...(scored ? ["perplexity"] : []), "prompt tokens"];
  const rows = record.members.map((name) => {
    const weight = record.weights[name];
    const bar = element("span", "", `bar ${members.classes(name)}`);
    bar.style.setProperty("--share", weight);
    const cell = element("span", weight.toFixed(3), "weight");
    cell.append(bar);
    const reading = scored ? [perplexity(record.prompt_loss[name])] : [];
    const tokens = String(record.usage.prompt_tokens_by_member[name]);
    return [members.label(name), cell, ...reading, tokens];
  });
  return table("Weights on this prompt", heads, rows);
}

function figure(value) {
  if (value === undefined) return "–";
  return value >= INFINITE ? "∞" : value.toFixed(3);
}

function perplexity(loss) {
  if (loss === undefined) return "–";
  const value = Math.exp(loss);
  if (loss >= INFINITE || !Number.isFinite(value)) return "∞";
  return value < 1e6 ? value.toPrecision(3).replace(/e\+?/, "e") : value.toExponential(1);
}

/* Tokens, speed, agreement and drafts in one line. */
function course(record) {
  const { timings, usage, drafts } = record;
  const count = usage.completion_tokens;
  const found = [
    `${count} ${count === 1 ? "token" : "tokens"} of ${record.reference} (${record.finish_reason})`,
    `${timings.tokens_per_second.toFixed(1)} tokens/s`,
    `prompt read in ${(timings.prefill_seconds + timings.weights_seconds).toFixed(1)} s`,
  ];
  if (record.agreed !== null) found.push(`members agreed on ${percent(record.agreed)}`);
  if (record.overruled !== null) found.push(`reference overruled on ${percent(record.overruled)}`);
  if (record.fused !== null && record.fused < 1) found.push(`fused on ${percent(record.fused)}`);
  if (drafts) {
    found.push(`${drafts.accepted} of ${drafts.drafted} drafted tokens accepted in `
      + `${drafts.rounds} ${drafts.rounds === 1 ? "round" : "rounds"}`);
  }
  for (const [name, at] of Object.entries(record.left_out)) {
    found.push(`${name} left out after ${at} tokens`);
  }
  return element("p", found.join(" · "), "course");
}

/* Members with a weight whose own first choice was another token. */
function overruled(members, step) {
  return members.weighted.filter((name) => step.member_choices[name] !== step.text);
}

function disagreed(members, step) {
  const choices = members.weighted.map((name) => step.member_choices[name]);
  return new Set(choices).size > 1;
}

/* Everything about a unit of the answer: a table for each of its tokens. */
function tokenDetails(members, unit) {
  return unit.steps.flatMap((step) => stepDetails(members, step));
}

function stepDetails(members, step) {
  const head = element("p", "", "headline");
  head.append(quoted(step.text), ` ${probability(step.probability)} under the pack`);
  const rows = members.names.map((name) => {
    if (!members.weighted.includes(name)) return [members.label(name), "no weight", "–"];
    return [members.label(name), quoted(step.member_choices[name]),
      probability(step.member_probabilities[name])];
  });
  const drafted = step.drafted ? [element("p", "Drafted, and accepted by the pack.", "verdict")] : [];
  return [head, verdict(members, step), ...drafted,
    table("", ["member", "its first choice", "this token"], rows), ...alternatives(step)];
}

/* In a sentence: who carried a token, and who was overruled. */
function verdict(members, step) {
  const made = element("p", "", "verdict");
  if (!step.fused) {
    made.append("The gate was closed: ", members.label(step.carried_by), " decided alone.");
    return made;
  }
  made.append("Carried by ", members.label(step.carried_by), ". ");
  const against = overruled(members, step);
  if (!disagreed(members, step)) {
    made.append(against.length ? "All members preferred another token." : "All members agreed.");
    return made;
  }
  made.append("The members disagreed; overruled: ");
  against.forEach((name, at) => made.append(at ? ", " : "", members.label(name)));
  made.append(against.length ? "." : "none.");
  return made;
}

function alternatives(step) {
  if (!step.alternatives.length) return [];
  const made = element("p", "The pack's first choices: ");
  step.alternatives.forEach((one, at) => {
    made.append(at ? ", " : "", quoted(one.text), ` ${probability(Math.exp(one.logprob))}`);
  });
  return [made];
}

/* The member that read a piece of the prompt best, and whether by much: a nat or more. */
function bestReader(step) {
  const sorted = Object.entries(step.loss).sort((one, other) => one[1] - other[1]);
  const [best, ...rest] = sorted;
  return { name: best?.[0], notable: rest.length > 0 && rest[rest.length - 1][1] - best[1] >= 1 };
}

function pieceDetails(members, unit) {
  return unit.steps.flatMap((step) => {
    const head = element("p", "", "headline");
    head.append(quoted(step.text), " in the prompt");
    const rows = Object.entries(step.loss).map(([name, loss]) => [
      members.label(name), perplexity(loss / Math.max(1, step.tokens)), figure(loss),
    ]);
    return [head, table("", ["member", "perplexity", "loss, nats"], rows)];
  });
}
