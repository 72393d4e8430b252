"""Drafts by repetition where there is one, and by the reference elsewhere."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.causal_lm.drafts.base import Draft, DraftContext, Drafter, Proposal
from packfuse.causal_lm.drafts.lookup import Lookup
from packfuse.causal_lm.drafts.reference import Reference


class Auto(Draft):
    """`lookup` if the text repeats itself, else `reference`."""

    name: ClassVar[str] = "auto"
    source: ClassVar[str] = "packfuse"

    def drafter(self, context: DraftContext) -> Drafter:
        """See `Draft`."""
        return _Either(context, [Lookup(), Reference(most=self.most)])


class _Either(Drafter):
    """The first of several drafters that has something to propose."""

    def __init__(self, context: DraftContext, drafts: list[Draft]) -> None:
        super().__init__(context)
        self._drafters = [draft.drafter(context) for draft in drafts]
        self._asked: list[Drafter] = []

    def propose(self, ids: Tensor, room: int) -> Proposal:
        """See `Drafter`."""
        self._asked = []
        for drafter in self._drafters:
            self._asked.append(drafter)
            proposal = drafter.propose(ids, room)
            if len(proposal.tokens):
                return proposal
        return Proposal()

    def learn(self, drafted: int, accepted: int) -> None:
        """See `Drafter`; those that proposed nothing learn that."""
        for drafter in self._asked[:-1]:
            drafter.learn(0, 0)
        if self._asked:
            self._asked[-1].learn(drafted, accepted)
