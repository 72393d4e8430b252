"""Members with given distributions over words and marks, which one writes as a token of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from packfuse import Pack
from packfuse.alignment.spelling import spelled_bytes
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico
from tests.support.scripted import ASSISTANT, TEMPLATE, Scripted

CHAT = [{"role": "user", "content": "go"}]
OPEN, CLOSE = "«", "»"
"""Around a control token in what a member has read."""

FAINT = -30.0
"""Log-probability of all tokens that a plan leaves out, nats."""

Plan = Callable[[str], Mapping[str, float]]
"""From the answer so far, with control tokens in `OPEN` and `CLOSE`, to probabilities of what
follows: control tokens by name, the end as "", words by the first token of their encoding."""


class Planned(Scripted):
    """A model with the distributions of a plan.

    Attributes:
        read: The answer that it read last; bytes of a part of a character are surrogates.
        history: All that it has read.
    """

    def __init__(self, vocabulary: Vocabulary, plan: Plan, faint: float = FAINT) -> None:
        super().__init__(vocabulary, lambda _: "")
        self.plan, self.faint, self.read = plan, faint, ""
        self.history: list[str] = []

    def fill(self, logits: Tensor, prefix: list[int], text: bytes) -> None:
        own = self.vocabulary
        spelled = b"".join(
            own.token_bytes[i] or f"{OPEN}{own.spell(i)}{CLOSE}".encode() for i in prefix
        )
        _, separator, answer = spelled.rpartition(ASSISTANT)
        if not separator:
            return
        self.read = answer.decode(errors="surrogateescape")
        self.history.append(self.read)
        logits.fill_(self.faint)
        logits[own.size :] = -float("inf")
        for words, p in self.plan(self.read).items():
            logits[self.token(words)] = Tensor([p]).log()

    def token(self, words: str) -> int:
        own = self.vocabulary
        if not words:
            return own.end_ids[0]
        if words in own.controls:
            return own.controls[words]
        return own.encode_bytes(words.encode(errors="surrogateescape"))[0]


@functools.cache
def small(words: tuple[str, ...], controls: tuple[str, ...], name: str) -> Vocabulary:
    """A small byte-level vocabulary with a chat template."""
    tokenizer = fusing.bpe(*words, name=name, controls=("<end>", *controls)).tokenizer
    return with_template(tokenizer)


def with_template(tokenizer: Any, mentioned: Sequence[str] = ()) -> Vocabulary:
    """A tokenizer with the template of the tests, which mentions some tokens in a comment."""
    tokenizer.chat_template = "{#" + " ".join(mentioned) + "#}" + TEMPLATE
    return Vocabulary(tokenizer, pico.padded_size(tokenizer))


def planned_pack(
    members: Sequence[tuple[Vocabulary, Plan]],
    reference: int,
    faint: float = FAINT,
    **settings: Any,
) -> Pack:
    """A pack of planned members with equal weights."""
    made = [
        HFMember(f"member-{k}", Planned(own, plan, faint).eval(), own)
        for k, (own, plan) in enumerate(members)
    ]
    settings = {"weighting": "uniform", "reference": f"member-{reference}", **settings}
    return Pack(made, progress=False, **settings)


def written(pack: Pack, **settings: Any) -> tuple[str, list[str]]:
    """The answer, with marks spelled, and what each member has read of it."""
    answer = pack.generate(CHAT, **settings)
    own = pack.model.engine.reference
    data = b"".join(spelled_bytes(own, i) or b"" for i in answer.token_ids)
    models: list[Any] = [member.model for member in pack.members]
    return data.decode(errors="replace"), [model.read for model in models]
