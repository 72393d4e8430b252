"""What the expert is worth beside the starter models: on its library, and on everything else.

Every passage is read by every member after its first 600 characters, in bits per byte; and the
weights that a pack of three gives its members are fitted on those characters, less a last word that
is cut.

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
    """`each` passages of every kind; of the library only files that the expert never saw."""
    chooser = random.Random(seed)  # noqa: S311 - a choice of texts, no secret
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    licence = (stdlib / "LICENSE.txt").read_text(encoding="utf-8")
    source = [path.read_text(encoding="utf-8") for path in sorted(stdlib.glob("*.py"))]
    learned, held_out = corpus(wheel)
    seen = {line for text in learned.values() for line in text.splitlines()}
    new = [text for text in cuts(held_out, 50 * each, PASSAGE, seed + 1) if _news(text, seen) > 0.5]
    return {
        "client, held out": cuts(held_out, each, PASSAGE, seed),
        "client, mostly new lines": new[:each],
        "python": list(_cut(source, each, chooser)),
        "documentation": list(_cut(list(topics.values()), each, chooser)),
        "licence": list(_cut([licence], each, chooser)),
    }


def _news(text: str, seen: set[str]) -> float:
    """The share of a text that lies in lines that no file learned from has."""
    lines = text.splitlines()[1:-1]  # the first and the last one are cut
    return sum(len(line) for line in lines if line not in seen) / len(text)


def _cut(texts: list[str], count: int, chooser: random.Random) -> Iterator[str]:
    long = [text for text in texts if len(text) > PASSAGE]
    for _ in range(count):
        text = chooser.choice(long)
        start = chooser.randrange(len(text) - PASSAGE)
        yield text[start : start + PASSAGE]


def bits(member: HFMember, text: str) -> tuple[float, int]:
    """Bits over the tokens of `text` that begin after the context, and how many bytes they are."""
    data, context = text.encode(), len(text[:CONTEXT].encode())
    ids, ends = member.vocabulary.encode_spans(data)
    first = 1 + next(index for index, end in enumerate(ends) if end >= context)
    stream = torch.tensor([[*member.vocabulary.prefix_ids, *ids]])
    tail = len(ids) - first
    with torch.inference_mode():
        logits = member.model(stream).logits[0, -tail - 1 : -1].float()
    loss = torch.nn.functional.cross_entropy(logits, stream[0, -tail:], reduction="sum")
    return float(loss) / math.log(2), len(data) - ends[first - 1]


def measure(pack: Pack, texts: list[str], label: str) -> Means:
    """Bits per byte and mean weights, by member."""
    sums = {member.name: [0.0, 0] for member in pack.members}
    weights = {name: dict.fromkeys(pack.names, 0.0) for name in WEIGHTINGS}
    for text in track(texts, label):
        for member in pack.members:
            found, size = bits(member, text)
            sums[member.name][0] += found
            sums[member.name][1] += size
        words = text[:CONTEXT].rsplit(maxsplit=1)[0]  # half a word at the end is no fair prompt
        verdicts = pack.weigh(words, WEIGHTINGS).weights
        for name, shares in weights.items():
            for member_name in shares:
                shares[member_name] += verdicts[name][member_name] / len(texts)
    return {"bits_per_byte": {name: b / n for name, (b, n) in sums.items()}, **weights}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description="Measure the small expert.")
    options.add_argument("--wheel", type=Path, help="its data, if it is on disk already")
    options.add_argument("--each", type=int, default=20)
    options.add_argument("--seed", type=int, default=7)
    asked = options.parse_args()
    pack, console = Pack.starter(expert=True), Console()
    found: dict[str, Means] = {}
    for kind, texts in passages(asked.wheel, asked.each, asked.seed).items():
        found[kind] = measure(pack, texts, kind)
        table = Table("", *pack.names, title=kind)
        for row, values in found[kind].items():
            table.add_row(row, *(f"{value:.3f}" for value in values.values()))
        console.print(table)
    print(json.dumps({"passages_of_each_kind": asked.each, **found}))


if __name__ == "__main__":
    main()
