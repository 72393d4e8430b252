"""A drafter that lets some of the members, or copies of them, write ahead."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from packfuse.causal_lm.drafts.base import DraftContext, Drafter, Proposal
from packfuse.causal_lm.drafts.length import DraftLength
from packfuse.fusion.sequence import PackSequence
from packfuse.models.int8 import can_copy, int8_copy


class ModelDrafter(Drafter):
    """Forks the pack's row, drops those who do not speak, and goes on from there.

    The fork shares what the members have read, so nothing is read twice; it is dropped afterwards.
    """

    def __init__(
        self, context: DraftContext, drafting_members: Collection[int], most: int, quantize: bool
    ) -> None:
        """`drafting_members` are numbers of members, the reference among them."""
        super().__init__(context)
        engine = context.engine
        self.drafting_members = frozenset(drafting_members)
        members = list(engine.members)
        cost = 0.0
        for k in self.drafting_members:
            light = quantize and can_copy(members[k])
            members[k] = int8_copy(members[k]) if light else members[k]
            cost += (0.4 if light else 1.0) / len(members)
        self._engine = engine.with_members(members)
        self._pace = DraftLength(cost, most, context.device)

    def propose(self, ids: Tensor, room: int) -> Proposal:
        """See `Drafter`."""
        wanted = min(self._pace.length(), room)
        cache, rows = self.context.cache, self.context.cache.rows
        if not wanted or len(rows) != 1:
            return Proposal()
        row, new = self._fork(rows[0]), ids[0, cache.seen :].tolist()
        ends = self.context.engine.reference.end_ids
        tokens: list[int] = []
        scores: list[Tensor] = []
        while new and len(tokens) < wanted:
            logits = self._engine.advance([row], [new], self.context.fusion)[:, -1]
            token, chosen_from = self.context.choose(ids, logits)
            tokens.append(token)
            scores.append(chosen_from)
            if token in ends:
                break
            new, ids = [token], torch.cat([ids, ids.new_tensor([[token]])], 1)
        drawn = self.context.settings.do_sample and scores
        return Proposal(tokens, torch.cat(scores) if drawn else None)

    def _fork(self, row: PackSequence) -> PackSequence:
        twin = row.fork()
        for k, member in enumerate(self._engine.members):
            stream = twin.streams[k]
            if stream is None:
                continue
            if k in self.drafting_members:
                stream.member = member
            else:
                twin.streams[k] = None
        if len(self.drafting_members) == 1:
            twin.weights = torch.zeros(len(twin.streams))
            twin.weights[list(self.drafting_members)] = 1.0
        return twin

    def learn(self, drafted: int, accepted: int) -> None:
        """See `Drafter`."""
        self._pace.learn(drafted, accepted)
