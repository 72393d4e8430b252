"""What fusing costs over running the members alone, on one machine in one run.

    python benchmarks/speed.py [--tokens 128] [--rounds 3] [--context 128] [--context 1024]

Prints ratios; the last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pydoc_data.topics import topics
from typing import Any

import torch
from common import machine
from rich.console import Console
from rich.table import Table
from transformers.generation.streamers import BaseStreamer

from packfuse import Pack
from packfuse.fitting import prefill
from packfuse.generation import Runner
from packfuse.local import LocalMember
from packfuse.prompt import from_text
from packfuse.registry import weightings
from packfuse.request import check

_TEXT = "\n\n".join(topics[name] for name in sorted(topics))


class _Clock(BaseStreamer):
    """Notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt, then one token at a time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing."""

    @property
    def step(self) -> float:
        """Median seconds between tokens, the prompt's pass left out."""
        gaps = [b - a for a, b in zip(self.times[1:], self.times[2:], strict=False)]
        return statistics.median(gaps)


def prompt_of(member: LocalMember, tokens: int) -> str:
    """Documentation prose of about that many tokens."""
    ids = member.vocabulary.encode(_TEXT[: tokens * 8])[:tokens]
    return member.vocabulary.decode(ids).decode(errors="ignore")


def alone(member: LocalMember, prompt: str, tokens: int) -> float:
    """Seconds per token of one member under transformers' own `generate`."""
    ids = [*member.vocabulary.prefix_ids, *member.vocabulary.encode(prompt)]
    clock = _Clock()
    member.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        streamer=clock,
    )
    return clock.step


def fused(pack: Pack, prompt: str, tokens: int) -> float:
    """Seconds per token of the pack."""
    request = check(
        prompt,
        {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens},
        rule=pack.rule,
        weighting=weightings().make("sim"),
    )
    clock = _Clock()
    Runner(pack, request).run(clock)
    return clock.step


def steps(pack: Pack, context: int, tokens: int, rounds: int) -> dict[str, Any]:
    """The pack's step over the sum of the members' own, in turn, `rounds` times."""
    prompt = prompt_of(pack.members[0], context)
    table: dict[str, list[float]] = {name: [] for name in [*pack.names, "pack"]}
    for _ in range(rounds):
        for member in pack.members:
            table[member.name].append(alone(member, prompt, tokens))
        table["pack"].append(fused(pack, prompt, tokens))
    ratios = [
        own / sum(table[name][i] for name in pack.names) for i, own in enumerate(table["pack"])
    ]
    milliseconds = {name: 1000 * statistics.median(times) for name, times in table.items()}
    return {
        "context": context,
        "ms": milliseconds,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def weights(pack: Pack, context: int, rounds: int) -> dict[str, Any]:
    """Fitting weights over the prompt pass of both members, and `exact` over `opt`."""
    model = pack.model
    vocabularies = [member.vocabulary for member in pack.members]
    reference = pack.default_reference
    text = from_text(prompt_of(pack.members[0], context), vocabularies, reference)
    plain = _bare_prefill(pack, text.stream)
    found: dict[str, list[tuple[float, float]]] = {}
    # As published, the greedy search goes over whole vocabularies at every position.
    published = {"normalize": "own", "shrinkage": 0, "positions": None, "candidates": None}
    settings = {"sim": {}, "opt": {}, "opt, as published": published, "exact": {}}
    for _ in range(rounds):
        for name, parameters in settings.items():
            kind = {"name": name.split(",")[0], **parameters}
            _, fit = prefill(model.engine, text, weightings().make(kind))
            found.setdefault(name, []).append((fit.prefill_seconds, fit.weights_seconds))
    seconds = {n: statistics.median(w for _, w in rows) for n, rows in found.items()}
    read = statistics.median(p for rows in found.values() for p, _ in rows)
    return {
        "context": context,
        "seconds": seconds,
        "prefill_seconds": read,
        "bare_prefill_seconds": plain,
        "exact/prefill": seconds["exact"] / read,
        "exact/opt, as published": seconds["exact"] / seconds["opt, as published"],
        "exact/opt on the same positions": seconds["exact"] / seconds["opt"],
        "sim/prefill": seconds["sim"] / read,
        "scoring prefill/bare prefill": read / plain,
    }


@torch.no_grad()
def _bare_prefill(pack: Pack, stream: tuple[int, ...]) -> float:
    """Both members read the prompt and give one distribution: what generation needs anyway."""
    text = pack.model.engine.reference.decode(stream).decode()
    started = time.perf_counter()
    for member in pack.members:
        ids = [*member.vocabulary.prefix_ids, *member.vocabulary.encode(text)]
        member.model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, action="append")
    parser.add_argument("--reference", default="SmolLM2-135M-Instruct")
    options = parser.parse_args()
    console = Console()
    pack = Pack.starter(reference=options.reference, prefix_cache=0)
    fused(pack, "Warm up.", 4)
    rows = [
        steps(pack, c, options.tokens, options.rounds) for c in options.context or [128, 512, 2048]
    ]
    fitting = weights(pack, 512, options.rounds)
    table = Table(title="Milliseconds per token, greedy, batch 1")
    for column in ("context", *pack.names, "pack", "pack / sum"):
        table.add_column(column, justify="right")
    for row in rows:
        times = [f"{row['ms'][name]:.1f}" for name in [*pack.names, "pack"]]
        table.add_row(str(row["context"]), *times, f"{row['ratio']:.3f}")
    console.print(table)
    for name, value in fitting.items():
        if "/" in name:
            console.print(f"{name}, 512-token prompt: {value:.3f}")
    print(json.dumps({"machine": machine(), "steps": rows, "weights": fitting}))


if __name__ == "__main__":
    main()
