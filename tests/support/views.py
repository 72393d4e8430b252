"""Answers with any tokens, for tests of what is shown of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packfuse import Answer, FusionRecord
from packfuse.generation.output.result import PromptStep, Timings, TraceStep, Usage

NAMES = ("first", "second", "third")


def step(token: bytes | str, seed: int = 0, names: Sequence[str] = NAMES) -> TraceStep:
    """A token with random probabilities; a `str` is a control token."""
    dice = np.random.default_rng(seed)
    text = token if isinstance(token, str) else token.decode(errors="replace")
    shares = {name: dice.random() for name in names}
    choices = {name: text if dice.random() < 0.7 else f"<i>{name}</i>" for name in names}
    return TraceStep(
        text=text,
        probability=sum(shares.values()) / len(names),
        member_probabilities=shares,
        member_choices=choices,
        utf8=[] if isinstance(token, str) else list(token),
        carried_by=max(shares, key=lambda name: shares[name]),
    )


def answer(
    tokens: Sequence[bytes | str],
    prompt: Sequence[bytes] = (),
    names: Sequence[str] = NAMES,
    **fields: Any,
) -> Answer:
    """An answer of these tokens to a prompt of these pieces."""
    starts = [sum(map(len, prompt[:at])) for at in range(len(prompt))]
    dice = np.random.default_rng(1)
    pieces = [
        PromptStep(
            text=piece.decode(errors="replace"), utf8=list(piece), start=start, tokens=1,
            loss={name: dice.exponential(2.0) for name in names},
        )
        for piece, start in zip(prompt, starts, strict=True)
    ]  # fmt: skip
    usage = Usage(
        prompt_tokens=9, completion_tokens=len(tokens), total_tokens=9 + len(tokens),
        prompt_tokens_by_member=dict.fromkeys(names, 9),
    )  # fmt: skip
    timings = Timings(
        prefill_seconds=0.5, weights_seconds=0.1, decode_seconds=2.0, tokens_per_second=5.0
    )
    plain: dict[str, Any] = {
        "fusion": {"name": "packllm"},
        "weighting": {"name": "exact"},
        "alignment": {},
    }
    record = FusionRecord(
        members=list(names), reference=names[0], weights={name: 1 / len(names) for name in names},
        prompt_loss=dict.fromkeys(names, 3.0), bits_per_byte=dict.fromkeys(names, 1.5),
        scored_tokens=len(prompt), usage=usage, finish_reason="stop", agreed=0.5, overruled=0.25,
        fused=1.0, timings=timings, prompt_trace=pieces or None,
        trace=[step(token, at, names) for at, token in enumerate(tokens)],
        **plain, **fields,
    )  # fmt: skip
    text = b"".join(one for one in tokens if isinstance(one, bytes)).decode(errors="replace")
    return Answer(text, record, ())
