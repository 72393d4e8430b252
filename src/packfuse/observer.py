"""Watches the members at every step, for the record."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from packfuse.engine import Engine
from packfuse.record import TraceStep
from packfuse.row import Row


@dataclass(slots=True)
class Observed:
    """What was seen in one row."""

    steps: int = 0
    agreed: int = 0
    overruled: int = 0
    trace: list[TraceStep] = field(default_factory=list)
    pending: tuple[Tensor, Tensor] | None = None


class Observer:
    """Counts agreement step by step, and keeps a trace when asked to.

    It serves greedy decoding and sampling, where row i of the batch stays row i.
    """

    def __init__(self, engine: Engine, trace: bool) -> None:
        """`trace` keeps one entry a step as well."""
        self.engine, self.tracing = engine, trace
        self.names = [member.name for member in engine.members]
        self._rows: dict[int, Observed] = {}

    def row(self, index: int) -> Observed:
        """What was seen in row `index` of the batch."""
        return self._rows.get(index, Observed())

    def __call__(self, row: Row, logps: Tensor, fused: Tensor) -> None:
        """See one position; `Watch` of the engine."""
        seen = self._rows.setdefault(row.place, Observed())
        if seen.pending is not None:
            self.settle(seen, row.ids[-1])
        first = logps.argmax(-1).tolist()
        speaking = [c for c, w in zip(first, self._weights(row), strict=True) if w > 0]
        seen.steps += 1
        seen.agreed += len(set(speaking)) <= 1
        seen.overruled += int(fused.argmax()) != first[self.engine.reference_index]
        if self.tracing:
            seen.pending = (logps, fused)

    def _weights(self, row: Row) -> list[float]:
        if row.weights is None:
            return [1.0] * len(self.names)
        weights: list[float] = row.weights.tolist()
        return weights

    def settle(self, seen: Observed, token: int) -> None:
        """Write down the token that was chosen after the last position seen."""
        if seen.pending is None:
            return
        logps, fused = seen.pending
        seen.pending = None
        spell = self.engine.reference.spell
        seen.trace.append(
            TraceStep(
                text=spell(token),
                probability=float(fused[token].exp()),
                member_probabilities={
                    name: float(p)
                    for name, p in zip(self.names, logps[:, token].exp(), strict=True)
                },
                member_choices={
                    name: spell(int(c))
                    for name, c in zip(self.names, logps.argmax(-1), strict=True)
                },
            )
        )
