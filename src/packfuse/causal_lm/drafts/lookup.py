"""Drafts by prompt lookup: what followed the last tokens where they occurred before."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from packfuse.causal_lm.drafts.base import Draft, DraftContext, Drafter, Proposal
from packfuse.causal_lm.drafts.length import DraftLength


class Lookup(Draft):
    """Propose what followed the longest earlier occurrence of the last tokens.

    Drafting costs almost nothing. It pays where an answer quotes its context, and in code.
    transformers' own prompt lookup takes the first occurrence of the last two tokens; the longest
    match is correct more often (docs/speed.md).

    Attributes:
        min_match: Shortest match that is used, in tokens.
        max_match: Longest match that is searched for, in tokens.
    """

    name: ClassVar[str] = "lookup"
    source: ClassVar[str] = "prompt lookup decoding, A. Saxena 2023 (github.com/apoorvumang)"

    max_draft_tokens: int = Field(default=24, ge=1)
    min_match: int = Field(default=3, ge=1)
    max_match: int = Field(default=16, ge=1)

    def drafter(self, context: DraftContext) -> LookupDrafter:
        """See `Draft`."""
        return LookupDrafter(context, self)


class LookupDrafter(Drafter):
    """Searches the text so far. Draft lengths are learned for each length of match."""

    def __init__(self, context: DraftContext, draft: Lookup) -> None:
        """Start with acceptance rates that grow with the length of the match."""
        super().__init__(context)
        self.draft = draft
        matches = range(draft.min_match, draft.max_match + 1)
        self._lengths = {
            match: context.draft_length(0.0, draft.max_draft_tokens, prior=1 - 1 / (match + 1))
            for match in matches
        }
        self._used: DraftLength | None = None

    def propose(self, ids: Tensor, room: int) -> Proposal:
        """See `Drafter`."""
        self._used = None
        match, draft = repetition(ids[0].tolist(), self.draft.min_match, self.draft.max_match)
        if not draft:
            return Proposal()
        self._used = self._lengths[match]
        draft = draft[: min(self._used.best(), room)]
        ends = self.context.engine.reference.end_ids
        draft = draft[: next((i for i, token in enumerate(draft) if token in ends), len(draft))]
        return Proposal(self.context.allowed_prefix(ids, draft))

    def update(self, drafted: int, accepted: int) -> None:
        """See `Drafter`."""
        if self._used is not None:
            self._used.update(drafted, accepted)


def repetition(ids: list[int], min_match: int, max_match: int) -> tuple[int, list[int]]:
    """Find the longest earlier occurrence of the last tokens.

    Args:
        ids: The text so far.
        min_match: Shortest match that is used, in tokens.
        max_match: Longest match that is searched for, in tokens.

    Returns:
        The length of the match, and the tokens after it; of several longest matches, the last one
        in the text. (0, []) if there is none.

    Example:
        >>> repetition([1, 2, 3, 9, 8, 1, 2, 3], min_match=2, max_match=4)
        (3, [9, 8, 1, 2, 3])
    """
    count = len(ids)
    best, after = 0, count
    for end in range(count - 1, 0, -1):
        if ids[end - 1] != ids[-1]:
            continue
        match = 1
        while match < min(max_match, end) and ids[end - 1 - match] == ids[count - 1 - match]:
            match += 1
        if match > best:
            best, after = match, end
        if best == max_match:
            break
    return (best, ids[after:]) if best >= min_match else (0, [])
