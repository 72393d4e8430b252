"""A drafter that decodes with some of the members, or with quantized copies of them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from packfuse.causal_lm.drafts.base import DraftContext, Drafter, Proposal
from packfuse.fusion.room import overflow
from packfuse.fusion.sequence import PackSequence
from packfuse.models.int8 import drafting_copy

_INT8_COST = 0.4
"""Time of a step of a quantized copy, as a share of its member's."""


class ModelDrafter(Drafter):
    """Forks the sequence, keeps the streams of the drafting members only, and decodes with them.

    The fork shares the KV caches of the sequence, so nothing is read twice. It is discarded after
    each proposal.
    """

    def __init__(
        self,
        context: DraftContext,
        drafting_members: Collection[int],
        max_draft_tokens: int,
        quantize: bool,
    ) -> None:
        """Prepare the drafting members.

        Args:
            context: The running answer.
            drafting_members: Indices of members, the reference among them; those that do not read
                the sequence do not draft either.
            max_draft_tokens: Longest draft, in tokens.
            quantize: Whether to draft with int8 copies, for members that can be copied.
        """
        super().__init__(context)
        engine = context.engine
        begun = next(iter([*context.cache.prompts, *context.cache.sequences]), None)
        reading = [
            k for k in range(len(engine.members)) if begun is None or begun.streams[k] is not None
        ]
        self.drafting_members = frozenset(drafting_members).intersection(reading)
        members = list(engine.members)
        cost = 0.0
        for k in self.drafting_members:
            copied = drafting_copy(members[k]) if quantize else None
            members[k] = copied or members[k]
            cost += (_INT8_COST if copied else 1.0) * context.step_share(k, reading)
        self._engine = engine.with_members(members)
        self._length = context.draft_length(cost, max_draft_tokens)

    def propose(self, ids: Tensor, room: int) -> Proposal:
        """See `Drafter`."""
        limit = min(self._length.best(), room)
        cache, sequences = self.context.cache, self.context.cache.sequences
        if not limit or len(sequences) != 1:
            return Proposal()
        sequence, new = self._fork(sequences[0]), ids[0, cache.length :].tolist()
        ends = self.context.engine.reference.end_ids
        tokens: list[int] = []
        scores: list[Tensor] = []
        while new and len(tokens) < limit and not overflow(sequence, new):
            logits = self._engine.advance([sequence], [new], self.context.fusion)[:, -1]
            token, processed = self.context.choose(ids, logits)
            tokens.append(token)
            scores.append(processed)
            if token in ends:
                break
            new, ids = [token], torch.cat([ids, ids.new_tensor([[token]])], 1)
        sampled = self.context.settings.do_sample and scores
        return Proposal(tokens, torch.cat(scores) if sampled else None)

    def _fork(self, sequence: PackSequence) -> PackSequence:
        """A copy of a sequence that the drafting members extend."""
        twin = sequence.fork()
        for k, member in enumerate(self._engine.members):
            stream = twin.streams[k]
            if stream is None:
                continue
            if k in self.drafting_members:
                stream.hand_over(member)
            else:
                twin.streams[k] = None
        if len(self.drafting_members) == 1:
            twin.weights = torch.zeros(len(twin.streams))
            twin.weights[list(self.drafting_members)] = 1.0
        return twin

    def update(self, drafted: int, accepted: int) -> None:
        """See `Drafter`."""
        self._length.update(drafted, accepted)
