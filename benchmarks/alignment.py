"""What carrying a distribution costs, and what fusing wins: bits per byte on real text.

    python benchmarks/alignment.py [--data FOLDER] [--each 4] [--seed 7] [--small] [--save]

Every passage is cut in two. Weights are fitted to the first half; the second half is scored by each
member alone in its own tokens, by each member carried into the tokens of the other, and by the pack
under every rule and weighting, with either member as the reference. The texts come with Python;
`--data` adds questions from a folder of JSON lines. The last line of the output is one JSON
document; `--save` keeps it in benchmarks/measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import MEASURED, machine, progress
from passages import passages, write_jsonl
from tables import markdown

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.evaluation import Evaluation, Journal, Setting, evaluate, every_method, read_questions
from packfuse.evaluation.tasks import tasks
from packfuse.registry import parse_spec
from packfuse.weighting.methods import weightings


def settings(pack: Pack, alignment: str, reference: str) -> list[Setting]:
    """Every method in the tokens of one reference, and each other member carried into them."""
    made = alignments().make(parse_spec(alignment))
    own = replace(Setting.of(pack), alignment=made, reference=reference)
    carried = [
        replace(own, weighting=weightings().make({"name": "fixed", "weights": shares}))
        for shares in (_only(pack, name) for name in pack.names if name != reference)
    ]
    return [*every_method(own), *carried]


def _only(pack: Pack, name: str) -> dict[str, float]:
    """Weights that give everything to one member."""
    return {other: float(other == name) for other in pack.names}


def measure(pack: Pack, texts: list[str], options: argparse.Namespace) -> Evaluation:
    """Score all texts in every way; the members read each text once for each reference."""
    task = tasks().make("text")
    chosen = [
        setting
        for alignment in options.alignment or ["bytes"]
        for reference in pack.names
        for setting in settings(pack, alignment, reference)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "passages.jsonl"
        write_jsonl(path, texts)
        asked = read_questions(path, task, None, options.seed)
        with Journal(Path(folder) / "journal.jsonl") as journal:
            step = progress("alignment")
            return evaluate(pack, asked, task, chosen, journal=journal, step=step)


def summary(found: Evaluation) -> dict[str, Any]:
    """Bits per byte by system, the cost of carrying, and the best setting over the best member."""
    bits = {row.label: row.bits_per_byte.value for row in found.rows if row.bits_per_byte}
    fused = {label: value for label, value in bits.items() if label not in found.members}
    best_member = min(found.members, key=lambda name: bits[name])
    best = min(fused, key=lambda label: fused[label])
    carried: dict[str, dict[str, float]] = {}
    for row in found.packs:
        shares = (row.setting or {})["weighting"].get("weights")
        if shares:
            member = max(shares, key=lambda name: shares[name])
            carried[row.label] = {member: bits[row.label] / bits[member] - 1}
    return {
        "bits_per_byte": bits,
        "carrying_loss": carried,
        "best_member": best_member,
        "best_setting": best,
        "gain": 1 - bits[best] / bits[best_member],
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures, best first."""
    ordered = sorted(found["bits_per_byte"].items(), key=lambda item: item[1])
    print(markdown([("system", "bits per byte "), *((k, f"{bits:.4f}") for k, bits in ordered)]))
    for label, losses in found["carrying_loss"].items():
        print(f"carrying loss, {label}: {next(iter(losses.values())):+.1%}")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of question files in JSON lines")
    parser.add_argument("--each", type=int, default=4, help="passages of every kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--alignment", action="append", help="name:param=value; repeatable")
    parser.add_argument("--small", action="store_true", help="one short passage, to try it out")
    parser.add_argument("--save", action="store_true", help="keep the result")
    options = parser.parse_args()
    texts = [passage.text for passage in passages(options.seed, options.each, options.data)]
    if options.small:
        texts = [texts[0][:120]]
    started = time.time()
    found = summary(measure(Pack.starter("small", progress=False), texts, options))
    show(found)
    document = {"machine": machine(), "seconds": time.time() - started, "passages": len(texts)}
    document |= found
    if options.save and not options.small:
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        (MEASURED / "alignment.json").write_text(text, encoding="utf-8")
    print(json.dumps(document))


if __name__ == "__main__":
    main()
