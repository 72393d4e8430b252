"""What all parts share: the options, the packs, the text to read."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from packfuse import Pack
from packfuse.errors import PackError
from packfuse.models.hf_member import HFMember

from .clock import exactly
from .texts import prose

_PLAIN = {"draft": None, "gate": "every", "heads": "full", "prefix_cache": 0}
_FAST = {"draft": "auto", "heads": "pruned"}
"""What makes answers fast, with every token fused all the same."""


@dataclass
class Bench:
    """The options of a run, and the pack that it measures.

    Lengths are in tokens, those of prompts in the reference's.

    Attributes:
        rounds: How often contestants take turns.
        tokens: Of most answers.
        rows_tokens: Of answers in batches.
        contexts: Of prompts.
        batches: Rows at a time.
        largest: Most prompt tokens of a batch; larger ones are left out.
        short: Of the papers' answer to a short prompt.
        long: Of the papers' long context, and of its answer.
        answer: Of answers that are drafted.
        reused: Of a context that is read again.
        reference: Whose tokens are used.
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
    reference: str = "SmolLM2-135M-Instruct"
    _texts: count[int] = field(default_factory=count)

    @cached_property
    def pack(self) -> Pack:
        """The starter pack, warm: every token fused, whole heads, nothing kept between calls."""
        pack = Pack.starter(progress=False, reference=self.reference, **known(_PLAIN))
        pack.generate("Warm up.", **exactly(4))
        return pack

    @property
    def members(self) -> list[HFMember]:
        """Its members."""
        return self.pack.members

    def variant(self, **settings: Any) -> Pack:
        """The same members under other settings, warm as well."""
        settings = {**known(_PLAIN), "reference": self.reference, **settings}
        pack = Pack(self.members, progress=False, **settings)
        pack.generate("Warm up.", **exactly(4))
        return pack

    @property
    def fast_settings(self) -> dict[str, Any]:
        """Those that make a pack fast, as far as packs have them."""
        return known(_FAST)

    def prose(self, tokens: int) -> str:
        """About that many tokens of documentation that no call before this one has given."""
        own = self.members[self.pack.default_reference].vocabulary
        return prose(own, tokens, next(self._texts))


def known(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that packs have."""
    return {name: value for name, value in settings.items() if has_setting(name)}


def has_setting(name: str) -> bool:
    """Whether packs have a setting of that name."""
    return name in inspect.signature(Pack.__init__).parameters


def refusal(pack: Pack, prompt: str, arguments: dict[str, Any]) -> str | None:
    """Why a pack does not answer with these arguments; None if it does."""
    try:
        pack.generate(prompt, **exactly(4), **arguments)
    except (PackError, TypeError, ValueError) as error:
        return str(error).split(" (")[0]
    return None
