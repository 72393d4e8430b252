# ruff: noqa: E501 - tables are as wide as they are
"""Writes docs/evidence.md from measured results; benchmarks/evidence.py measures them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from packfuse.evaluation import Evaluation
from packfuse.evaluation.markdown import table, verdict
from packfuse.evaluation.plot import draw, drawing
from packfuse.evaluation.report import ReportRow

HEAD = """# Evidence

Does fusing help, which models fuse, and why are the defaults what they are? Every number here is
measured on small models, on development questions, by one command and a seed:

    python benchmarks/evidence.py --data FOLDER

{machine}. Members: {members}. Brackets hold 95 % intervals of a paired bootstrap over questions;
differences are system minus the best member alone, and **bold where the interval excludes zero**.
"bits/byte" is the loss on the right answer, over its own bytes, so that models with different
tokenizers compare. A setting reads *rule · weighting · alignment · reference*.
"""

CLAIMS = """## What the papers claim, and what we see at this size

| claim | here |
|---|---|
| PackLLM: prompt perplexity tells who will answer better ([2404.11531](https://arxiv.org/abs/2404.11531)) | {perplexity} |
| PackLLM: the greedy search finds good weights | {search} |
| PackLLM: MinED maps tokens well | {mined} |
| PackLLM: fusing gains 1.89 points on average over its baselines | {points} |
| UniTE: the union of the top 10 is enough, +1.2 points on average ([2410.03777](https://arxiv.org/abs/2410.03777)) | {unite} |
| UniTE: members further than 10 % from the best one do harm | {gap} |
"""


class Results:
    """What benchmarks/evidence.py and benchmarks/checks.py left in the work folder."""

    def __init__(self, work: Path) -> None:
        """Read whatever is there."""
        self.work = work

    def evaluation(self, name: str) -> Evaluation | None:
        """One run."""
        path = self.work / f"{name}.json"
        return Evaluation.model_validate_json(path.read_text()) if path.exists() else None

    def check(self, name: str) -> dict[str, Any] | None:
        """One of the papers' checks."""
        path = self.work / f"{name}.json"
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return found


def write(work: Path, page: Path, machine: str, members: str, defaults: str) -> None:
    """Write the page and its plots, from everything that has been measured."""
    results = Results(work)
    plots = page.parent / "evidence"
    plots.mkdir(parents=True, exist_ok=True)
    parts = [HEAD.format(machine=machine, members=members), "## In short\n"]
    parts += [f"- {line}" for line in _verdicts(results)]
    parts.append("")
    for name, title in MAIN.items():
        found = results.evaluation(name)
        if found:
            parts += _main(found, title, name, plots)
    parts += _shrinkage(results)
    parts += _alignments(results)
    parts += _written(results)
    parts += _domains(results, plots)
    parts += [*_perplexity(results), *_search(results), *_mined(results)]
    parts += [_claims(results), defaults]
    page.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")


MAIN = {
    "piqa": "PIQA, by likelihood",
    "arc": "ARC-Challenge, by likelihood",
    "text": "Plain text",
}
WRITTEN = {
    "arc-letter": "ARC-Challenge, by letter",
    "mmlu-letter": "MMLU, by letter",
    "triviaqa": "TriviaQA, exact match",
    "gsm8k": "GSM8K, right number",
}


def _verdicts(results: Results) -> Iterable[str]:
    for name, title in {**MAIN, **WRITTEN}.items():
        found = results.evaluation(name)
        for figure in (found.best if found else {}) if name != "text" else ["bits_per_byte"]:
            if found and figure != "raw" and (line := verdict(found, figure)):
                yield f"**{title}**, {found.questions} questions. {line}"


def _auto(row: ReportRow) -> bool:
    return row.member or (row.setting or {}).get("reference") == "auto"


def _open(row: ReportRow) -> bool:
    return (row.setting or {}).get("weighting", {}).get("name") != "fixed"


def _main(found: Evaluation, title: str, name: str, plots: Path) -> list[str]:
    """Every rule with every weighting under `auto`, and what the reference does."""
    shown = [row for row in found.rows if _auto(row) and _open(row)]
    trimmed = found.model_copy(update={"rows": [r for r in found.rows if _auto(r)]})
    draw(trimmed, plots / f"{name}.png")
    return [
        f"## {title}\n",
        _asked(found),
        "",
        table(found, shown),
        "",
        f"![{title}]({plots.name}/{name}.png)",
        "",
        *_by_reference(found),
    ]


def _by_reference(found: Evaluation) -> list[str]:
    """Every method in every member's tokens, where that was measured."""
    if all(_auto(row) for row in found.packs):
        return []
    return [
        "By reference, `bytes` alignment; bits/byte"
        + (" and accuracy" if found.rows[0].accuracy else "")
        + ":\n",
        _references(found),
        "",
    ]


def _asked(found: Evaluation) -> str:
    skipped = f", {len(found.skipped)} lines skipped" if found.skipped else ""
    inexact = max(row.inexact for row in found.rows)
    impossible = {row.label: row.impossible for row in found.rows if row.impossible}
    lines = [f"{found.questions} questions of {Path(found.source).name}{skipped}."]
    if inexact:
        lines.append(
            f"In {inexact} of them the text before and the answer share a token, and other bytes "
            "than the answer's are scored."
        )
    if impossible:
        lines.append(
            f"UniTE gives no probability outside its union: up to {max(impossible.values())} "
            "tokens of the right answers, which count 1e-6 each."
        )
    return " ".join(lines)


def _references(found: Evaluation) -> str:
    references = ["auto", *found.members]
    lines = [
        "| method | " + " | ".join(references) + " |",
        "|---|" + "---:|" * len(references),
    ]
    for label in dict.fromkeys(_method(row) for row in found.packs if _open(row)):
        cells = []
        for reference in references:
            row = next(
                r
                for r in found.packs
                if _method(r) == label and (r.setting or {})["reference"] == reference
            )
            bits = f"{row.bits_per_byte.value:.4f}" if row.bits_per_byte else ""
            cells.append(bits + (f" ({row.accuracy.value:.1%})" if row.accuracy else ""))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _method(row: ReportRow) -> str:
    return row.label.rpartition(" · ")[0]


def _shrinkage(results: Results) -> list[str]:
    """How far short prompts should be trusted."""
    parts = []
    for name, title in MAIN.items():
        found = results.evaluation(f"{name}-shrinkage")
        if found:
            parts += [f"### {title}\n", _asked(found), "", table(found), ""]
    if not parts:
        return []
    return [
        "## Short prompts\n",
        "`shrinkage` adds that many tokens' worth of a prior to what the prompt says: equal weights, "
        "or with `prior=sim` those of `softmax(-loss)`. The prompts of both sets are short, some "
        "twenty and some thirty tokens.\n",
        *parts,
    ]


def _alignments(results: Results) -> list[str]:
    """The same questions under other alignments."""
    parts = []
    for name, title in MAIN.items():
        found = results.evaluation(f"{name}-alignments")
        if not found:
            continue
        rows = [row for row in found.rows if _auto(row)]
        parts += [f"### {title}\n", _asked(found), "", table(found, rows), ""]
    return ["## Alignments\n", *parts] if parts else []


def _written(results: Results) -> list[str]:
    parts = []
    for name, title in WRITTEN.items():
        found = results.evaluation(name)
        if found:
            rows = [row for row in found.rows if _auto(row) and _open(row)]
            parts += [f"### {title}\n", _asked(found), "", table(found, rows), ""]
    return ["## Letters and written answers\n", *parts] if parts else []


def _domains(results: Results, plots: Path) -> list[str]:
    """Three members, one of them an expert: who is trusted where, and what it brings."""
    names = sorted(path.stem for path in results.work.glob("domain-*.json"))
    found = {name.removeprefix("domain-"): results.evaluation(name) for name in names}
    known = {name: one for name, one in found.items() if one}
    if not known:
        return []
    expert = next(iter(known.values())).members[-1]
    lines = [
        f"| domain | passages | best member | its bits/byte | {expert} alone | weighting "
        "| weights | pack bits/byte | minus best member |",
        "|---|---:|---|---:|---:|---|---|---:|---:|",
    ]
    for domain, one in known.items():
        best = one.best["bits_per_byte"]
        for row in one.packs:
            shares = " / ".join(f"{share:.2f}" for share in row.weights.values())
            lines.append(
                f"| {domain} | {one.questions} | {best} | {_bits(one.row(best))} "
                f"| {_bits(one.row(expert))} | {_method(row).split(' · ')[1]} | {shares} "
                f"| {_bits(row)} | {_against(row)} |"
            )
    _domain_plot(known, expert, plots / "domains.png")
    members = " / ".join(next(iter(known.values())).members)
    return [
        "## Three members, one of them an expert\n",
        f"Second halves of passages, weights fitted to the first halves; rule `packllm`, alignment "
        f"`bytes`, reference `auto`. Weights are those of {members}, means over passages.\n",
        *lines,
        "",
        "![The weight of the expert, and the pack's loss, by domain](evidence/domains.png)",
        "",
    ]


def _bits(row: ReportRow) -> str:
    return f"{row.bits_per_byte.value:.4f}" if row.bits_per_byte else ""


def _against(row: ReportRow) -> str:
    figure = row.against.bits_per_byte
    if figure is None:
        return ""
    text = f"{figure.value:+.4f} ({figure.low:+.4f} to {figure.high:+.4f})"
    return f"**{text}**" if figure.excludes_zero else text


def _domain_plot(known: dict[str, Evaluation], expert: str, path: Path) -> None:
    pyplot = drawing()
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4))
    domains = list(known)
    weightings = [_method(row).split(" · ")[1] for row in known[domains[0]].packs]
    width = 0.8 / len(weightings)
    for at, weighting in enumerate(weightings):
        places = [d + at * width for d in range(len(domains))]
        rows = [known[domain].packs[at] for domain in domains]
        axes[0].bar(places, [row.weights[expert] for row in rows], width, label=weighting)
        differences = [row.against.bits_per_byte for row in rows]
        axes[1].bar(
            places,
            [d.value if d else 0.0 for d in differences],
            width,
            yerr=[
                [d.value - d.low if d else 0.0 for d in differences],
                [d.high - d.value if d else 0.0 for d in differences],
            ],
            label=weighting,
        )
    for axis, title in zip(
        axes, (f"weight of {expert}", "bits per byte, pack minus best member"), strict=True
    ):
        axis.set_xticks([d + 0.4 - width / 2 for d in range(len(domains))], domains, fontsize=8)
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=8)
    axes[1].axhline(0, color="#444444", linewidth=1)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _perplexity(results: Results) -> list[str]:
    found = results.check("perplexity")
    if not found:
        return []
    lines = ["| model | prompt, bits/byte | accuracy |", "|---|---:|---:|"]
    for row in sorted(found["models"], key=lambda row: float(row["prompt_bits_per_byte"])):
        lines.append(
            f"| {row['model']} | {row['prompt_bits_per_byte']:.3f} | {row['accuracy']:.1%} |"
        )
    return [
        "## Prompt perplexity against accuracy, by model\n",
        f"{found['questions']} questions of {found['source']}. To have more models, Gaussian noise "
        "is added to one member's matrices, as a share of their own spread. Spearman's rank "
        f"correlation {found['spearman']:+.2f} (p = {found['p']:.3f}).\n",
        *lines,
        "",
    ]


def _search(results: Results) -> list[str]:
    found = results.check("search")
    if not found:
        return []
    lines = [
        "| members | pool | method | loss above the grid's best, mean | worst | time / grid |",
        "|---:|---|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['members']} | {row['pool']} | {row['method']} | {row['mean_gap']:+.5f} "
            f"| {row['worst_gap']:+.5f} | {row['time']:.4f} |"
        )
    return [
        "## `opt` and `exact` against exhaustive search\n",
        f"{found['prompts']} prompts of 400 characters, nats per position; the grid holds all "
        f"weights in steps of {found['step']:g}. Members, in order: {', '.join(found['members'])}. "
        "Below zero: better than every point of the grid.\n",
        *lines,
        "",
    ]


def _mined(results: Results) -> list[str]:
    found = results.check("mined")
    if not found:
        return []
    lines = [
        "| member → reference | reference tokens with a twin | mapped to it | to a beginning "
        "| in text: right or a beginning |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in sorted(found["rows"], key=lambda row: -float(row["overlap"])):
        lines.append(
            f"| {row['member']} → {row['reference']} | {row['overlap']:.1%} | {row['twin']:.1%} "
            f"| {row['begins']:.1%} | {row['in_text']:.1%} |"
        )
    return [
        "## MinED's map as vocabularies overlap less\n",
        "Which member token the smallest edit distance gives a reference token: its twin (the same "
        "bytes), one that begins it, or neither. The last column counts tokens as they occur in "
        "text. What that does to fusion is in the tables under *Alignments*.\n",
        *lines,
        "",
    ]


def _claims(results: Results) -> str:
    def or_open(make: Callable[[], str]) -> str:
        try:
            return make()
        except (AttributeError, KeyError, TypeError, StopIteration, ValueError):
            return "not measured"

    def perplexity() -> str:
        found = results.check("perplexity") or {}
        return (
            f"yes, by model: rank correlation {found['spearman']:+.2f} over "
            f"{len(found['models'])} models"
        )

    def search() -> str:
        rows = (results.check("search") or {})["rows"]
        own = [r for r in rows if r["method"] == "opt" and r["pool"] == "logit"]
        worst = max(own, key=lambda row: float(row["worst_gap"]))
        return (
            f"nearly: on average {own[-1]['mean_gap']:+.4f} nats from the best grid point with "
            f"{own[-1]['members']} members, at worst {worst['worst_gap']:+.4f}; `exact` is never "
            "above it"
        )

    def mined() -> str:
        rows = (results.check("mined") or {})["rows"]
        low = min(rows, key=lambda row: float(row["in_text"]))
        high = max(rows, key=lambda row: float(row["in_text"]))
        return (
            f"{high['in_text']:.0%} of the tokens in text for {high['member']} → "
            f"{high['reference']}, {low['in_text']:.0%} for {low['member']} → {low['reference']}"
        )

    def points() -> str:
        return _best_points(results, ("packllm",))

    def unite() -> str:
        return _best_points(results, ("unite",))

    def gap() -> str:
        found = results.evaluation("arc")
        if found is None:
            raise KeyError("arc")
        low, high = sorted(r.accuracy.value for r in found.rows if r.member and r.accuracy)
        row = next(r for r in found.packs if r.label.startswith("packllm · exact") and _auto(r))
        return (
            f"ARC-Challenge: {1 - low / high:.0%} apart; `packllm` with `exact` {_against(row)} "
            "bits per byte"
        )

    return CLAIMS.format(
        perplexity=or_open(perplexity),
        search=or_open(search),
        mined=or_open(mined),
        points=or_open(points),
        unite=or_open(unite),
        gap=or_open(gap),
    )


def _best_points(results: Results, rules: Sequence[str]) -> str:
    """Points of accuracy of the best setting with these rules, minus the best member."""
    shown = []
    for name, title in MAIN.items():
        found = results.evaluation(name)
        if found is None or not found.rows[0].accuracy:
            continue
        rows = [
            row
            for row in found.packs
            if row.setting and row.setting["fusion"]["name"] in rules and _open(row) and _auto(row)
            if row.setting["weighting"]["name"] != "top1"
        ]
        best = max(rows, key=lambda row: row.accuracy.value if row.accuracy else 0.0)
        against = best.against.accuracy
        if against:
            shown.append(
                f"{title.split(',')[0]} {100 * against.value:+.1f} points "
                f"({100 * against.low:+.1f} to {100 * against.high:+.1f})"
            )
    return "; ".join(shown)
