"""What all parts share: the options, the packs, the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from packfuse import Pack
from packfuse.models.member import Member

from .clock import exactly
from .texts import prose

PLAIN: dict[str, Any] = {"draft": None, "gate": "every", "heads": "full", "prefix_cache": 0}
"""Every token is fused, LM heads are whole, nothing is kept between calls."""
FAST: dict[str, Any] = {"draft": "auto", "heads": "pruned"}
"""The settings that make answers fast while every token is still fused."""


@dataclass
class Bench:
    """The options of a run, and the pack that is measured.

    Lengths are in tokens of the reference.

    Attributes:
        rounds: How often the contestants take turns.
        tokens: Length of most answers.
        rows_tokens: Length of answers in batches.
        contexts: Lengths of prompts.
        batches: Sequences in a batch.
        largest: Most prompt tokens of a batch; larger batches are left out.
        short: Length of the answer to a short prompt, against the papers' way.
        long: Lengths of the long context and of its answer, against the papers' way.
        answer: Length of answers that are drafted.
        reused: Length of a context that is read twice.
        experimental: Whether packs with `parallel=True` and `compiled=True` are measured.
        reference: Name of the reference member.
    """

    rounds: int = 3
    tokens: int = 32
    rows_tokens: int = 16
    contexts: Sequence[int] = (128, 512, 2048)
    batches: Sequence[int] = (1, 4, 8, 16)
    largest: int = 4096
    short: int = 256
    long: tuple[int, int] = (1024, 64)
    answer: int = 96
    reused: int = 1024
    experimental: bool = False
    reference: str = "SmolLM2-135M-Instruct"
    _texts: count[int] = field(default_factory=count)

    @cached_property
    def pack(self) -> Pack:
        """The starter pack with plain settings, after a first call."""
        pack = Pack.starter("small", progress=False, reference=self.reference, **PLAIN)
        pack.generate("Warm up.", **exactly(4))
        return pack

    @property
    def members(self) -> list[Member]:
        """The members of the pack."""
        return self.pack.members

    def variant(self, **settings: Any) -> Pack:
        """The same members under other settings, after a first call."""
        settings = {**PLAIN, "reference": self.reference, **settings}
        pack = Pack(self.members, progress=False, **settings)
        pack.generate("Warm up.", **exactly(4))
        return pack

    def prose(self, tokens: int) -> str:
        """About that many tokens of documentation; every call gives another text."""
        own = self.members[self.pack.default_reference].vocabulary
        return prose(own, tokens, next(self._texts))
