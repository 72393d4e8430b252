"""Whether the answers of captured steps are those of eager ones, on the device itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from packfuse import Pack
from parts.gpu_bench import Bench, random_models, trained_tokenizer
from parts.rows import Row, Target, compare

CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "sampled": ({}, {"do_sample": True, "seed": 1}),
    "beams": ({}, {"num_beams": 3}),
    "drafts by lookup": ({"draft": "lookup"}, {}),
    "drafts by the reference": ({"draft": "reference"}, {}),
    "pruned heads": ({"heads": "pruned"}, {}),
    "unite": ({"fusion": "unite"}, {}),
    "exact weights": ({"weighting": "exact"}, {}),
}
"""Settings of the pack, and arguments of the call."""

PROMPTS = ("On day 3 the keeper", ["She counted the gulls", "On day 4", "the lamp burned low"])


def answers(bench: Bench) -> Iterator[Row]:
    """Tiny models in float32: the share of answers that are the same, token for token."""
    tokenizers = [trained_tokenizer(part, 400) for part in range(2)]
    models = random_models(tokenizers, bench.device, small=True)
    pairs = list(zip(models, tokenizers, strict=True))
    static = "static" if bench.device.type == "cpu" else "auto"
    usual = {"weighting": "uniform", "prefix_cache": 0, "progress": False}
    for name, (settings, arguments) in CALLS.items():
        same: list[bool] = []
        packs = [
            Pack.from_pretrained(pairs, steps=steps, **{**usual, **settings})
            for steps in (static, "eager")
        ]
        for prompt in PROMPTS:
            found, expected = (
                pack.generate(prompt, max_new_tokens=24, min_new_tokens=24, **arguments)
                for pack in packs
            )
            several = isinstance(found, list)
            both = zip(found, expected, strict=True) if several else [(found, expected)]
            same += [one.token_ids == other.token_ids for one, other in both]
        eager = packs[0].runtime.eager_members
        yield compare(
            f"answers, {name}", "eager steps", [float(sum(same))], [float(len(same))],
            unit="answers", target=Target(value=1.0, least=True),
            note=f"eager: {eager}" if eager else "",
        )  # fmt: skip
