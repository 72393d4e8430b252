"""Records agreement and, if asked for, probabilities at every position of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import FusedPosition
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.result import TraceStep


@dataclass(slots=True)
class RecordedSequence:
    """What was recorded of one sequence. Positions are numbers of ids that had been read.

    Attributes:
        agreed: Whether all members with a weight had the same first choice, by position.
        overruled: Whether the pack's first choice was not the reference's, by position.
        is_fused: Whether the gate was open, by position.
        trace: What is known of the token that followed, by position.
        pending: Distributions at the last positions, whose tokens may still be rejected.
    """

    agreed: dict[int, bool] = field(default_factory=dict)
    overruled: dict[int, bool] = field(default_factory=dict)
    is_fused: dict[int, bool] = field(default_factory=dict)
    trace: dict[int, TraceStep] = field(default_factory=dict)
    pending: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first position, where the answer begins."""
        return min(self.agreed, default=0)

    def share(self, flags: dict[int, bool], tokens: int) -> float | None:
        """Share of the positions of an answer of `tokens` that are flagged; None if none is."""
        end = self.first + tokens
        seen = [flag for at, flag in flags.items() if at < end]
        return sum(seen) / len(seen) if seen else None


class TraceRecorder:
    """Records agreement position by position, and a trace if asked for.

    For greedy decoding and sampling, where row i of the batch stays row i. After a rejected draft
    its positions come again with other tokens before them; the last ones count.
    """

    def __init__(self, engine: Engine, trace: bool, drafted: int = 0) -> None:
        """`trace` keeps one entry a position; `drafted` is the longest draft, tokens."""
        self.engine, self.tracing = engine, trace
        self._depth = drafted + 1 if drafted else 0
        self.names = [member.name for member in engine.members]
        self._rows: dict[int, RecordedSequence] = {}

    def row(self, index: int) -> RecordedSequence:
        """What was recorded of row `index` of the batch."""
        return self._rows.get(index, RecordedSequence())

    def __call__(self, row: PackSequence, position: FusedPosition) -> None:
        """Record one position; a `PositionCallback`."""
        read, logps, fused = position.tokens_read, position.logps, position.fused
        seen = self._rows.setdefault(row.row, RecordedSequence())
        first = logps.argmax(-1).tolist()
        choices = [c for c, w in zip(first, self._weights(row), strict=True) if w > 0]
        seen.agreed[read] = len(set(choices)) <= 1
        seen.overruled[read] = int(fused.argmax()) != first[self.engine.reference_index]
        seen.is_fused[read] = position.is_fused
        if self.tracing:
            seen.pending[read] = logps, fused
            # No draft reaches further back.
            self._settle(seen, row.ids, read - self._depth)

    def _weights(self, row: PackSequence) -> list[float]:
        if row.weights is None:
            return [1.0] * len(self.names)
        weights: list[float] = row.weights.tolist()
        return weights

    def finish(self, seen: RecordedSequence, answer: Sequence[int]) -> list[TraceStep]:
        """The trace of an answer, one entry a token."""
        ids = [-1] * seen.first + list(answer)
        self._settle(seen, ids, len(ids))
        steps = range(seen.first, len(ids))
        return [seen.trace[at] for at in steps if at in seen.trace]

    def _settle(self, seen: RecordedSequence, ids: Sequence[int], read: int) -> None:
        """Complete the pending positions before `read` with the tokens that were chosen there."""
        for at in [at for at in seen.pending if at < read]:
            seen.trace[at] = self._entry(*seen.pending.pop(at), ids[at])

    def _entry(self, logps: Tensor, fused: Tensor, token: int) -> TraceStep:
        spell = self.engine.reference.spell
        chances, choices = logps[:, token].exp().tolist(), logps.argmax(-1).tolist()
        return TraceStep(
            text=spell(token),
            probability=float(fused[token].exp()),
            member_probabilities=dict(zip(self.names, chances, strict=True)),
            member_choices=dict(zip(self.names, map(spell, choices), strict=True)),
        )
