"""Many settings in one reading: several rules, weights and gates on the same distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.alignment.lexicon import Lexicon
from packfuse.fusion.carrying import CarriedLogps
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.pooling import PositionCallback, combine, gate_open
from packfuse.fusion.rules.base import Rule

IMPOSSIBLE = math.log(1e-6)
"""Nats that a token counts for which a rule gives no probability (UniTE: outside its union)."""


@dataclass(slots=True)
class FusedTokens:
    """The distributions of S settings at one position, at the tokens looked at.

    Attributes:
        logps: Log-probability of each token looked at, `[S, L]`, nats.
        first: The most probable token by setting, `[S]`.
        fused: Whether the setting's gate was open, `[S]`.
    """

    logps: NDArray[np.float64]
    first: NDArray[np.int64]
    fused: NDArray[np.bool_]


class MultiFusion:
    """A `Fusion` of several settings at once, for one sequence at a time.

    The members read once. At every position each setting combines their distributions, and only the
    probabilities of the tokens looked at are kept.
    """

    observer: PositionCallback | None = None

    def __init__(self, rules: Sequence[Rule], gates: Sequence[Gate]) -> None:
        """A rule and a gate by setting; settings with equal rules are combined together."""
        self._groups: list[tuple[Rule, list[int]]] = []
        for index, rule in enumerate(rules):
            known = next((settings for own, settings in self._groups if own == rule), None)
            if known is None:
                self._groups.append((rule, [index]))
            else:
                known.append(index)
        self._gates = list(gates)
        self._wanted: list[Sequence[int]] = []
        self._last: CarriedLogps | None = None
        self.found: list[FusedTokens] = []
        self.weights: NDArray[np.float64] = np.zeros((0, 0))
        """`[S, K]`; to be set before tokens are looked at."""

    def uses_lexicon(self, lexicon: Lexicon | None) -> bool:
        """See `Fusion`: whether any setting's rule needs it."""
        return lexicon is not None and any(rule.uses_words for rule, _ in self._groups)

    def look_at(self, tokens: Sequence[Sequence[int]]) -> None:
        """Name the tokens to look at in the next positions; earlier findings are dropped."""
        self._wanted, self.found = list(tokens), []

    def fuse(self, carried: CarriedLogps, weights: Tensor) -> tuple[Tensor, list[bool]]:
        """See `Fusion`. The findings are kept in `found`; the distribution itself is empty."""
        self._last = carried
        if self._wanted:
            self.found.append(self.at_last_position(self._wanted.pop(0)))
        count = len(weights)
        return carried.logps.new_empty(count, 0), [True] * count

    def at_last_position(self, tokens: Sequence[int]) -> FusedTokens:
        """The settings' distributions at these tokens, at the position that was read last.

        Raises:
            LookupError: if nothing has been read.
        """
        carried = self._last
        if carried is None:
            raise LookupError("nothing has been read yet")
        wanted = torch.tensor(list(tokens), device=carried.logps.device)
        count = len(self._gates)
        found = FusedTokens(
            logps=np.zeros((count, len(tokens))),
            first=np.zeros(count, dtype=np.int64),
            fused=np.zeros(count, dtype=np.bool_),
        )
        for rule, settings in self._groups:
            # One by one, so that one vocabulary of numbers stays in the processor's cache.
            distinct, which = np.unique(self.weights[settings], axis=0, return_inverse=True)
            for number, row in enumerate(distinct):
                weights = torch.from_numpy(row[None]).to(carried.logps)
                fused = combine(rule, carried, weights)[0]
                for at in np.array(settings)[which == number]:
                    found.fused[at] = bool(gate_open(self._gates[at], carried, weights))
                    logps = fused if found.fused[at] else carried.reference_logps[0]
                    found.logps[at] = logps[wanted].double().cpu().numpy()
                    found.first[at] = int(logps.argmax())
        return found


def total(
    found: Sequence[FusedTokens], column: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probability of a run of tokens by setting, nats, and how many had no probability."""
    table = np.stack([position.logps[:, column] for position in found])
    missing = np.isneginf(table)
    return np.where(missing, IMPOSSIBLE, table).sum(0), missing.sum(0)
