"""Records agreement between members and, on request, probabilities at every step of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from packfuse.causal_lm.drafts.proposals import Proposals
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates.base import Roles
from packfuse.fusion.pooling import FusedPosition
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.output.result import TokenLogprob, TraceStep
from packfuse.models.logps import best_tokens
from packfuse.transfer import download

IMPOSSIBLE = -9999.0
"""Stands for a log-probability of minus infinity, nats, as in OpenAI's API."""


@dataclass(slots=True)
class RecordedSequence:
    """Records of one sequence, by position. A position is the number of ids read before it.

    Attributes:
        agreed: Whether all members with a weight above 0 had the same most probable token.
        overruled: Whether the most probable token of the pack was not that of the reference.
        is_fused: Whether the gate was open.
        trace: The entry of the token that was generated.
        pending: The last positions, whose tokens may still be rejected, with the members' weights.
        returned: Number of entries that `TraceRecorder.new_steps` has returned.
        choices: The most probable token of each member and of the pack, `[K + 1]`, at positions
            that are not in `agreed` and `overruled` yet.
    """

    agreed: dict[int, bool] = field(default_factory=dict)
    overruled: dict[int, bool] = field(default_factory=dict)
    is_fused: dict[int, bool] = field(default_factory=dict)
    trace: dict[int, TraceStep] = field(default_factory=dict)
    pending: dict[int, tuple[FusedPosition, list[float]]] = field(default_factory=dict)
    returned: int = 0
    choices: dict[int, tuple[Tensor, list[bool]]] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first position, where the answer begins."""
        return min(self.is_fused, default=0)

    def count_choices(self, reference: int) -> None:
        """Bring the choices to the host, at once, and compare them; `reference` is its index."""
        if not self.choices:
            return
        (table,) = download([torch.stack([chosen for chosen, _ in self.choices.values()])])
        rows = zip(self.choices.items(), table.tolist(), strict=True)
        for (at, (_, weighted)), (*members, pack) in rows:
            best = {token for token, counts in zip(members, weighted, strict=True) if counts}
            self.agreed[at] = len(best) <= 1
            self.overruled[at] = pack != members[reference]
        self.choices.clear()

    def share(self, flags: dict[int, bool], tokens: int) -> float | None:
        """Share of true flags in an answer of `tokens` tokens; None if nothing was recorded."""
        end = self.first + tokens
        inside = [flag for at, flag in flags.items() if at < end]
        return sum(inside) / len(inside) if inside else None


class TraceRecorder:
    """Records every fused position of a batch; see `Request.records_steps`.

    After a rejected draft, its positions are fused again after other tokens. The last record of a
    position is used.
    """

    def __init__(
        self,
        engine: Engine,
        trace: bool,
        drafted: int = 0,
        top: int = 0,
        roles: Roles | None = None,
    ) -> None:
        """Start without records.

        Args:
            engine: The members and the reference.
            trace: Whether to keep an entry of every step.
            drafted: Longest draft, in tokens; 0 for none.
            top: Number of the most probable tokens in every entry.
            roles: The members' roles under the gate; None if it gives them none.
        """
        self.engine, self.tracing, self.top = engine, trace, top
        self._roles, self.proposals = roles, Proposals()
        self._depth = drafted + 1 if drafted else 0
        self.names = [member.name for member in engine.members]
        self._rows: dict[int, RecordedSequence] = {}

    def row(self, index: int) -> RecordedSequence:
        """The records of row `index` of the batch."""
        found = self._rows.get(index, RecordedSequence())
        found.count_choices(self.engine.reference_index)
        return found

    def __call__(self, sequence: PackSequence, position: FusedPosition) -> None:
        """Record one position; a `PositionCallback`."""
        read, logps, fused = position.tokens_read, position.logps, position.fused
        record = self._rows.setdefault(sequence.row, RecordedSequence())
        # Nothing waits for the device here: the tokens are compared at the end.
        chosen = torch.cat([best_tokens(logps), best_tokens(fused)[None]])
        weights = self._weights(sequence)
        record.choices[read] = chosen, [weight > 0 for weight in weights]
        record.is_fused[read] = position.is_fused
        if self.tracing:
            record.pending[read] = position, weights
            # Tokens before that are in no draft any more.
            self._complete(record, sequence.ids, read - self._depth)

    def _weights(self, sequence: PackSequence) -> list[float]:
        if sequence.weights is None:
            return [1.0] * len(self.names)
        weights: list[float] = sequence.weights.tolist()
        return weights

    def finish(self, record: RecordedSequence, answer: Sequence[int]) -> list[TraceStep]:
        """The trace of an answer, one entry per token."""
        ids = [-1] * record.first + list(answer)
        self._complete(record, ids, len(ids))
        steps = range(record.first, len(ids))
        return [record.trace[at] for at in steps if at in record.trace]

    def new_steps(self, answer: Sequence[int]) -> list[TraceStep]:
        """The entries of row 0, of the answer so far, that no earlier call has returned."""
        if not self.tracing:
            return []
        record = self.row(0)
        steps = self.finish(record, answer)
        new, record.returned = steps[record.returned :], len(steps)
        return new

    def _complete(self, record: RecordedSequence, ids: Sequence[int], end: int) -> None:
        """Make the entries of pending positions before `end` from the tokens chosen there."""
        for at in [at for at in record.pending if at < end]:
            record.trace[at] = self._entry(at, *record.pending.pop(at), ids[at])

    def _entry(
        self, at: int, position: FusedPosition, weights: list[float], token: int
    ) -> TraceStep:
        """The entry of a token that was chosen after `at` others, under weights `[K]`."""
        logps, fused, spell = position.logps, position.fused, self.engine.reference.spell
        probabilities, choices = logps[:, token].exp().tolist(), best_tokens(logps).tolist()
        chosen = self._token(fused, token)
        best = fused.topk(min(self.top, len(fused))).indices.tolist() if self.top else []
        return TraceStep(
            text=chosen.text,
            probability=float(fused[token].exp()),
            member_probabilities=dict(zip(self.names, probabilities, strict=True)),
            member_choices=dict(zip(self.names, map(spell, choices), strict=True)),
            utf8=chosen.utf8,
            logprob=chosen.logprob,
            alternatives=[self._token(fused, other) for other in best],
            fused=position.is_fused,
            carried_by=self.names[self._carrier(probabilities, weights, position.is_fused)],
            drafted=self.proposals.accepted(at, token),
        )

    def _carrier(self, probabilities: list[float], weights: list[float], is_fused: bool) -> int:
        """The member with the largest share of a token; the reference, where shares are equal."""
        reference = self.engine.reference_index
        if is_fused and self._roles is not None:
            return self._roles.nudger
        shares = [w * p for w, p in zip(weights, probabilities, strict=True)]
        if not is_fused or shares[reference] == max(shares):
            return reference
        return shares.index(max(shares))

    def _token(self, fused: Tensor, token: int) -> TokenLogprob:
        """A token and its log-probability under the pack's `fused` `[V]`."""
        reference = self.engine.reference
        return TokenLogprob(
            text=reference.spell(token),
            utf8=list(reference.token_bytes[token] or b""),
            logprob=max(float(fused[token]), IMPOSSIBLE),
        )
