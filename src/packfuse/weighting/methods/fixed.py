"""Weights that the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from packfuse.errors import WeightsError
from packfuse.registry import suggest
from packfuse.weighting.methods.base import Evidence, Weighting, Weights

TOLERANCE = 1e-6
"""How much the sum of the weights may differ from one."""


class Fixed(Weighting):
    """The same weights on every prompt, by member name or in the members' order.

    Members that are not named get 0.

    Example:
        >>> Fixed(weights={"b": 0.75, "a": 0.25}).for_members(["a", "b", "c"])
        array([0.25, 0.75, 0.  ])
    """

    # `for_members` names the member whose weight is no number.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)

    name: ClassVar[str] = "fixed"
    source: ClassVar[str] = "given by the user"
    needs_losses: ClassVar[bool] = False

    weights: dict[str, float] | tuple[float, ...]
    """`{name: weight}`, or one weight per member, in order; with sum one."""

    def for_members(self, names: Sequence[str]) -> Weights:
        """The weights `[K]` in the order of `names`.

        Raises:
            WeightsError: for a weight that is negative or not finite, a name that is not a
                member's, a wrong number of weights, or a sum other than one.
        """
        given = self._by_name(names)
        for name, weight in given.items():
            if not (np.isfinite(weight) and weight >= 0):
                raise WeightsError(
                    f"the weight of {name!r} is {weight}", hint="weights are numbers from 0 to 1"
                )
        total = sum(given.values())
        if abs(total - 1) > TOLERANCE:
            raise WeightsError(f"the weights sum to {total:.9g}, not to 1", hint=_scaled(given))
        return np.array([given.get(name, 0.0) for name in names]) / total

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Not available, because fixed weights do not depend on the prompt; see `for_members`.

        Raises:
            WeightsError: always.
        """
        raise WeightsError(
            "fixed weights are not fitted to a prompt", hint="use for_members(names)"
        )

    def _by_name(self, names: Sequence[str]) -> dict[str, float]:
        if not isinstance(self.weights, dict):
            if len(self.weights) != len(names):
                raise WeightsError(
                    f"{len(self.weights)} weights for {len(names)} members",
                    hint=f"give one weight for each of {', '.join(names)}",
                )
            return dict(zip(names, self.weights, strict=True))
        for name in self.weights:
            if name not in names:
                raise WeightsError(
                    f"a weight is given for {name!r}, which is not a member",
                    hint=suggest(name, names),
                )
        return self.weights


def _scaled(given: dict[str, float]) -> str:
    """The hint that writes out the same proportions with the sum one."""
    total = sum(given.values())
    if total <= 0:
        return "give at least one member a weight above 0"
    return "write " + ", ".join(f"{name}: {weight / total:.4g}" for name, weight in given.items())
