"""Many settings, one reading: what rules, weightings and gates make of the same voices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from packfuse.fusion.engine import Engine
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.pooling import CarriedLogps, Pooling, PositionCallback
from packfuse.fusion.read_plan import ReadPlan
from packfuse.fusion.rules.base import Rule

IMPOSSIBLE = math.log(1e-6)
"""Nats that a token counts which a rule gives no probability at all (UniTE: outside its union)."""


@dataclass(slots=True)
class Said:
    """What S settings say at one place.

    Attributes:
        logps: Log-probability of each token asked about, `[S, L]`, nats.
        first: The likeliest token by setting, `[S]`.
        fused: Whether the setting's gate was open, `[S]`.
    """

    logps: NDArray[np.float64]
    first: NDArray[np.int64]
    fused: NDArray[np.bool_]


class Panel(Pooling):
    """Takes the place of an engine's pooling, for one row at a time.

    The members read once; at every place each setting combines what they said, and only the
    probabilities of the tokens asked about are kept.
    """

    def __init__(self, engine: Engine, rules: Sequence[Rule], gates: Sequence[Gate]) -> None:
        """A rule and a gate by setting; settings with equal rules are combined together."""
        super().__init__(engine.members, engine.reference_index, engine.pairings, engine.lexicon)
        self._groups: list[tuple[Rule, list[int]]] = []
        for index, rule in enumerate(rules):
            known = next((places for own, places in self._groups if own == rule), None)
            if known is None:
                self._groups.append((rule, [index]))
            else:
                known.append(index)
        self._gates = list(gates)
        self._asked: list[Sequence[int]] = []
        self._last: CarriedLogps | None = None
        self.said: list[Said] = []
        self.weights: NDArray[np.float64] = np.zeros((0, 0))
        """`[S, K]`; to be set before anything is asked."""

    def uses_lexicon(self, rule: Rule) -> bool:
        """Whether any setting's rule will."""
        return any(super(Panel, self).uses_lexicon(own) for own, _ in self._groups)

    def ask(self, tokens: Sequence[Sequence[int]]) -> None:
        """At the next places that are combined, look at these tokens; forget what was said."""
        self._asked, self.said = list(tokens), []

    def pool(
        self,
        rule: Rule,
        jobs: Sequence[ReadPlan],
        steps: Sequence[int],
        watch: PositionCallback | None,
    ) -> None:
        """Combine one place of the one job under every setting; see `Pooling.pool`."""
        voices = self.hear(jobs, steps, words=self.uses_lexicon(rule))
        for index, job in enumerate(jobs):
            # The engine stacks what comes out; nobody reads it here.
            job.out.append(voices.logps.new_empty(0))
            job.row.last = voices.logps[self.reference, index]
        self._last = voices
        if self._asked:
            self.said.append(self.look(self._asked.pop(0)))

    def look(self, tokens: Sequence[int]) -> Said:
        """What the settings say of these tokens at the place that was read last.

        Raises:
            LookupError: if nothing has been read.
        """
        voices = self._last
        if voices is None:
            raise LookupError("nothing has been read yet")
        wanted = torch.tensor(list(tokens), device=voices.logps.device)
        count = len(self._gates)
        said = Said(
            logps=np.zeros((count, len(tokens))),
            first=np.zeros(count, dtype=np.int64),
            fused=np.zeros(count, dtype=np.bool_),
        )
        for rule, places in self._groups:
            # One by one: a vocabulary's worth of numbers stays in the processor's cache.
            distinct, which = np.unique(self.weights[places], axis=0, return_inverse=True)
            for number, row in enumerate(distinct):
                weights = torch.from_numpy(row[None]).to(voices.logps)
                fused = self.combine(rule, voices, weights)[0]
                for at in np.array(places)[which == number]:
                    said.fused[at] = bool(self.opened(self._gates[at], voices, weights))
                    heard = fused if said.fused[at] else voices.reference_logps[0]
                    said.logps[at] = heard[wanted].double().cpu().numpy()
                    said.first[at] = int(heard.argmax())
        return said


def total(said: Sequence[Said], column: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probability of a run of tokens by setting, nats, and how many had no probability."""
    table = np.stack([place.logps[:, column] for place in said])
    missing = np.isneginf(table)
    return np.where(missing, IMPOSSIBLE, table).sum(0), missing.sum(0)
