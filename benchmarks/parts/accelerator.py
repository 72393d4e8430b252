"""What only a GPU can show."""

from __future__ import annotations

import torch

from .bench import Bench
from .rows import Part, Row, Target


def measure(bench: Bench) -> Part:
    """Nothing yet; the target stays on the list."""
    reason = "not written yet" if torch.cuda.is_available() else "no GPU here"
    row = Row(
        what="two members of 7B, random weights, bfloat16: time per token",
        against="sum of the members' compiled steps",
        target=Target(value=1.05),
        skipped=reason,
    )
    return Part(title="On a GPU", about="Open.", rows=[row])
