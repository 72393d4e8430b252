"""Weights with priors, temperatures and a sharpness that were fitted to questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from packfuse.errors import WeightsError
from packfuse.fusion.rules.sharpening import Sharpening
from packfuse.weighting.methods.base import Evidence, Weights, blend
from packfuse.weighting.methods.exact import Exact

TOLERANCE = 1e-3
"""How much the sum of the priors may differ from one: people round them."""


class MemberCalibration(BaseModel):
    """What was fitted to one member."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prior: float = Field(ge=0, le=1)
    """Its weight on every prompt; the priors of all members sum to one."""
    temperature: float = Field(default=1.0, gt=0)
    """The member's distributions are raised to the power of one over it: above 1 the member is
    surer than it is right."""


class Calibrated(Exact):
    """`exact`, drawn towards one prior a member, with temperatures and a sharpness.

    A share `trust` of the weights is that of `exact` on the prompt, as the pack has it without a
    calibration; the rest is the prior. With temperatures T, weights w and sharpness s the logit
    pool is

        softmax(s · Σ_k w_k log p_k / T_k),    w = trust · exact(prompt) + (1 - trust) · prior

    `packfuse determine` finds the numbers by a convex fit to right answers. The weights that this
    class returns are `w_k / T_k`, scaled to sum to one; `sharpening` does the rest.

    With `trust` 0 no prompt is scored, and members whose prior is 0 are never run.

    Example:
        >>> fitted = {"a": {"prior": 0.75}, "b": {"prior": 0.25, "temperature": 2.0}}
        >>> Calibrated(members=fitted, trust=0).for_members(["a", "b"]).round(3)
        array([0.857, 0.143])
    """

    name: ClassVar[str] = "calibrated"
    source: ClassVar[str] = (
        "log-linear pools (Genest and Zidek 1986), temperatures as in arXiv 1706.04599"
    )

    members: dict[str, MemberCalibration] = Field(min_length=1)
    """By member, in the pack's order: its prior and its temperature."""
    sharpness: float = Field(default=1.0, gt=0)
    """Above 1, the pool is surer than the mean of its members."""
    trust: float = Field(default=1.0, ge=0, le=1)
    """Share of the weights that is fitted to the prompt."""
    questions: int = Field(default=0, ge=0)
    """Number of questions that this was fitted to."""

    @model_validator(mode="after")
    def _priors_sum_to_one(self) -> Calibrated:
        total = sum(own.prior for own in self.members.values())
        if abs(total - 1) > TOLERANCE:
            raise ValueError(f"the priors sum to {total:.6g}, not to 1")
        return self

    @property
    def sharpening(self) -> Sharpening | None:
        """The temperatures and the sharpness; None if all are 1."""
        temperatures = tuple(own.temperature for own in self.members.values())
        if self.sharpness == 1 and all(own == 1 for own in temperatures):
            return None
        return Sharpening(temperatures, self.sharpness)

    def for_members(self, names: Sequence[str]) -> Weights | None:
        """Weights `[K]` if no prompt counts; else None.

        Raises:
            WeightsError: if the members are not those of the calibration, in its order.
        """
        if list(names) != list(self.members):
            raise WeightsError(
                f"the calibration is of {', '.join(self.members)}; the pack has {', '.join(names)}",
                hint='run packfuse determine for these members, or take weighting "exact"',
            )
        return None if self.trust else self._tempered(self._priors)

    def prompt_share(self, tokens: int, *, chat: bool) -> float:
        """The share that is fitted to the prompt, of the share `trust`; see `Weighting`."""
        return self.trust * self._exact.prompt_share(tokens, chat=chat)

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The weights on a prompt; see `Weighting.fit`."""
        own = self._exact.fit(evidence, pool)
        return self._tempered(blend(own, self._priors, self.trust))

    @property
    def _exact(self) -> Exact:
        """The weighting without the calibration."""
        return Exact(**{name: getattr(self, name) for name in Exact.model_fields})

    @property
    def _priors(self) -> Weights:
        found = np.array([own.prior for own in self.members.values()])
        scaled: Weights = found / found.sum()
        return scaled

    def _tempered(self, weights: Weights) -> Weights:
        """`w_k / T_k`, scaled to sum to one."""
        found = weights / np.array([own.temperature for own in self.members.values()])
        scaled: Weights = found / found.sum()
        return scaled
