"""Drafts by prompt lookup where the text repeats itself, and by the reference elsewhere."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.causal_lm.drafts.base import Draft, DraftContext, Drafter, Proposal
from packfuse.causal_lm.drafts.lookup import Lookup
from packfuse.causal_lm.drafts.reference import Reference


class Auto(Draft):
    """`lookup` if the end of the text occurs earlier in it, otherwise `reference`."""

    name: ClassVar[str] = "auto"
    source: ClassVar[str] = "packfuse"

    def drafter(self, context: DraftContext) -> Drafter:
        """See `Draft`."""
        return _FirstOf(context, [Lookup(), Reference(max_draft_tokens=self.max_draft_tokens)])


class _FirstOf(Drafter):
    """Uses the first of several drafters that proposes something."""

    def __init__(self, context: DraftContext, drafts: list[Draft]) -> None:
        super().__init__(context)
        self._drafters = [draft.drafter(context) for draft in drafts]
        self._tried: list[Drafter] = []

    def propose(self, ids: Tensor, room: int) -> Proposal:
        """See `Drafter`."""
        self._tried = []
        for drafter in self._drafters:
            self._tried.append(drafter)
            proposal = drafter.propose(ids, room)
            if len(proposal.tokens):
                return proposal
        return Proposal()

    def update(self, drafted: int, accepted: int) -> None:
        """See `Drafter`; drafters that proposed nothing are updated with zeros."""
        for drafter in self._tried[:-1]:
            drafter.update(0, 0)
        if self._tried:
            self._tried[-1].update(drafted, accepted)
