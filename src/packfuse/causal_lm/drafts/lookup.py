"""Drafts that repeat the text: what followed the last words when they were there before."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from packfuse.causal_lm.drafts.base import Draft, DraftContext, Drafter, Proposal
from packfuse.causal_lm.drafts.length import DraftLength


class Lookup(Draft):
    """Propose what followed the longest repetition of the text's end; costs next to nothing.

    It pays where an answer quotes its context, and in code. transformers' own prompt lookup takes
    the first place where the last two tokens stand; the longest match is right more often
    (docs/speed.md).

    Attributes:
        least: Shortest repetition that counts, tokens.
        longest: Longest one that is looked for.
    """

    name: ClassVar[str] = "lookup"
    source: ClassVar[str] = "prompt lookup decoding, A. Saxena 2023 (github.com/apoorvumang)"

    most: int = Field(default=24, ge=1)
    least: int = Field(default=3, ge=1)
    longest: int = Field(default=16, ge=1)

    def drafter(self, context: DraftContext) -> LookupDrafter:
        """See `Draft`."""
        return LookupDrafter(context, self)


class LookupDrafter(Drafter):
    """Searches one growing text. Longer repetitions are trusted more; how much is learned."""

    def __init__(self, context: DraftContext, draft: Lookup) -> None:
        """Nothing is known of this text yet."""
        super().__init__(context)
        self.draft = draft
        sizes = range(draft.least, draft.longest + 1)
        self._paces = {
            size: DraftLength(0.0, draft.most, context.device, chance=1 - 1 / (size + 1))
            for size in sizes
        }
        self._used: DraftLength | None = None

    def propose(self, ids: Tensor, room: int) -> Proposal:
        """See `Drafter`."""
        self._used = None
        size, draft = repetition(ids[0].tolist(), self.draft.least, self.draft.longest)
        if not draft:
            return Proposal()
        self._used = self._paces[size]
        wanted = min(self._used.length(), room)
        ends = self.context.engine.reference.end_ids
        draft = draft[:wanted]
        draft = draft[: next((i for i, token in enumerate(draft) if token in ends), len(draft))]
        return Proposal(self.context.allowed(ids, draft))

    def learn(self, drafted: int, accepted: int) -> None:
        """See `Drafter`."""
        if self._used is not None:
            self._used.learn(drafted, accepted)


def repetition(ids: list[int], least: int, longest: int) -> tuple[int, list[int]]:
    """How many of the last tokens stand earlier too, and what followed them there.

    Of several places the one with the longest match counts, and of those the last.

    Example:
        >>> repetition([1, 2, 3, 9, 8, 1, 2, 3], least=2, longest=4)
        (3, [9, 8, 1, 2, 3])
    """
    count = len(ids)
    best, after = 0, count
    for end in range(count - 1, 0, -1):
        if ids[end - 1] != ids[-1]:
            continue
        size = 1
        while size < min(longest, end) and ids[end - 1 - size] == ids[count - 1 - size]:
            size += 1
        if size > best:
            best, after = size, end
        if best == longest:
            break
    return (best, ids[after:]) if best >= least else (0, [])
