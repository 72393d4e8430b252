"""Several rules, weights and gates applied to the same distributions in one forward pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.alignment.lexicon import Lexicon
from packfuse.fusion.carrying import CarriedLogps
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.pooling import PositionCallback, combine, gate_open
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.sharpening import Sharpening

IMPOSSIBLE = math.log(1e-6)
"""Log-probability, nats, of a token without probability under a rule (UniTE: outside its union)."""


@dataclass(slots=True)
class FusedTokens:
    """The distributions of S settings at one position, at L target tokens.

    Attributes:
        logps: Log-probability of each target token, `[S, L]`, nats.
        first: The most probable token by setting, `[S]`.
        fused: Whether the setting's gate was open, `[S]`.
    """

    logps: NDArray[np.float64]
    first: NDArray[np.int64]
    fused: NDArray[np.bool_]


class MultiFusion:
    """A `Fusion` of several settings at once, for one sequence.

    The members run once. At every position each setting fuses their distributions, and only the
    log-probabilities of the target tokens are kept.
    """

    observer: PositionCallback | None = None
    literal = False

    def __init__(
        self,
        rules: Sequence[Rule],
        gates: Sequence[Gate],
        sharpenings: Sequence[Sharpening | None],
    ) -> None:
        """A rule, a gate and a sharpening by setting; settings with equal rules are grouped."""
        self._groups: list[tuple[Rule, list[int]]] = []
        for index, rule in enumerate(rules):
            known = next((settings for own, settings in self._groups if own == rule), None)
            if known is None:
                self._groups.append((rule, [index]))
            else:
                known.append(index)
        self._gates, self._sharpenings = list(gates), list(sharpenings)
        self._targets: list[Sequence[int]] = []
        self._last: CarriedLogps | None = None
        self.results: list[FusedTokens] = []
        self.weights: NDArray[np.float64] = np.zeros((0, 0))
        """Weights by setting, `[S, K]`; set them before the first position is fused."""

    def uses_lexicon(self, lexicon: Lexicon | None) -> bool:
        """See `Fusion`: whether any rule uses the lexicon."""
        return lexicon is not None and any(rule.uses_words for rule, _ in self._groups)

    def fuses_like(self, other: Any) -> bool:
        """See `Fusion`."""
        return other is self

    def along(self, tokens: Sequence[int], observer: PositionCallback | None = None) -> MultiFusion:
        """The same settings and weights for a sequence whose next tokens are `tokens`."""
        twin = copy.copy(self)
        twin.observer = observer
        twin._targets, twin.results = [[token] for token in tokens], []
        return twin

    def fuse(self, carried: CarriedLogps, weights: Tensor) -> tuple[Tensor, list[bool]]:
        """See `Fusion`. Results are kept in `results`; the returned distribution is empty."""
        self._last = carried
        if self._targets:
            self.results.append(self.at_last_position(self._targets.pop(0)))
        count = len(weights)
        return carried.logps.new_empty(count, 0), [True] * count

    def at_last_position(self, tokens: Sequence[int]) -> FusedTokens:
        """The settings' log-probabilities of tokens at the last position.

        Raises:
            LookupError: before the first position.
        """
        carried = self._last
        if carried is None:
            raise LookupError("no position has been read")
        targets = torch.tensor(list(tokens), device=carried.logps.device)
        count = len(self._gates)
        result = FusedTokens(
            logps=np.zeros((count, len(tokens))),
            first=np.zeros(count, dtype=np.int64),
            fused=np.zeros(count, dtype=np.bool_),
        )
        for rule, settings in self._groups:
            # One row of weights at a time, so that the distribution stays in the processor's cache.
            distinct, which = np.unique(self.weights[settings], axis=0, return_inverse=True)
            for number, row in enumerate(distinct):
                weights = torch.from_numpy(row[None]).to(carried.logps)
                pooled = combine(rule, carried, weights)
                for at in np.array(settings)[which == number]:
                    sharpening = self._sharpenings[at]
                    fused = sharpening.apply(pooled, weights) if sharpening else pooled
                    result.fused[at] = bool(gate_open(self._gates[at], carried, weights))
                    logps = fused[0] if result.fused[at] else carried.reference_logps[0]
                    result.logps[at] = logps[targets].double().cpu().numpy()
                    result.first[at] = int(logps.argmax())
        return result


def total(
    positions: Sequence[FusedTokens], column: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sums over positions, by setting.

    Returns:
        Log-probability of the tokens in nats, `[S]`, and how many had no probability, `[S]`.
    """
    table = np.stack([position.logps[:, column] for position in positions])
    missing = np.isneginf(table)
    return np.where(missing, IMPOSSIBLE, table).sum(0), missing.sum(0)
