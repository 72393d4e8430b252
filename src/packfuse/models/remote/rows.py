"""Whole distributions from the most probable tokens that a server names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packfuse.errors import PackError
from packfuse.models.member import NamedFacts
from packfuse.models.remote.protocols import Candidates

FEW = 100
"""Number of candidates below which fusion loses much, and the reference knows better where the
probability of the other tokens belongs (dev/log.md)."""

_LEAST_OUTSIDE = 1e-9
"""Least probability of all tokens that are not named, so that none is impossible."""
_ROUNDING = 1e-3
"""How far a server's probabilities may be from a distribution."""


@dataclass(slots=True)
class Named:
    """What a server named over the places of a session.

    Attributes:
        places: Number of places.
        mass: Sum over them of the probability of all tokens that were not named.
    """

    places: int = 0
    mass: float = 0.0

    def add(self, rows: Sequence[tuple[Tensor, float]]) -> None:
        """Count the places of `row`s."""
        self.places += len(rows)
        self.mass += sum(outside for _, outside in rows)

    def facts(self, most: int | None) -> NamedFacts | None:
        """See `Member.named`; `most` is the most tokens of a place, None for all."""
        return NamedFacts(most, self.mass / self.places) if most and self.places else None


class NonsenseError(PackError, ValueError):
    """Candidates that are no part of a distribution."""


def row(candidates: Candidates, columns: int, size: int) -> tuple[Tensor, float]:
    """Log-probabilities `[columns]` of all tokens, nats, float32, and the probability not named.

    The probability that the candidates leave is spread evenly over the tokens that are not named.

    Args:
        candidates: The tokens that are named.
        columns: Size of the output dimension.
        size: Number of tokens; columns behind them have no token.

    Raises:
        NonsenseError: for ids outside the vocabulary, or values that are no log-probabilities.
    """
    ids = torch.from_numpy(candidates.ids)
    logps = torch.from_numpy(candidates.logps)
    mass = _checked_mass(ids, logps, columns)
    unnamed = max(size - len(ids), 0)
    rest = max(1 - mass, _LEAST_OUTSIDE) if unnamed else 0.0
    found = torch.full((columns,), -math.inf, dtype=torch.float64)
    if unnamed:
        found[:size] = math.log(rest / unnamed)
    found[ids] = logps
    return (found - math.log(mass + rest)).float(), max(0.0, 1 - mass)


def _checked_mass(ids: Tensor, logps: Tensor, columns: int) -> float:
    if not len(ids) or len(ids) != len(logps):
        raise NonsenseError("no candidates")
    if int(ids.min()) < 0 or int(ids.max()) >= columns:
        raise NonsenseError(f"a token id outside of 0 to {columns - 1}")
    if len(ids.unique()) != len(ids):
        raise NonsenseError("a token id twice")
    mass = float(logps.exp().sum())
    if not 0 < mass <= 1 + _ROUNDING:
        raise NonsenseError(f"probabilities that sum to {mass:g}")
    return mass
