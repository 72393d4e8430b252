"""The interface of a weighting: what the members made of the prompt in, who is trusted out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import softmax
from torch import Tensor

from packfuse.errors import WeightsError

Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What K members made of one prompt.

    Attributes:
        losses: `[K]` prompt loss, nats per reference token of the prompt's text (or per own token,
            if the weighting asks for the paper's normalization).
        tokens: How many reference tokens were scored; 0 for a prompt that says nothing.
        pieces: `[K, M]` log-probability in nats of each piece of text between neighboring
            boundaries that all members share; every member in its own tokens.
        scores: `[K, T, C]` log-probabilities at T fitting positions over C candidates of the
            reference vocabulary (the last may stand for all others together); None unless
            the weighting sets `needs_scores`.
        labels: `[T]` which candidate came next.
    """

    losses: Weights
    tokens: int
    pieces: Weights
    scores: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse losses that are not numbers: every comparison with them would be false."""
        if np.isnan(self.losses).any():
            at = int(np.isnan(self.losses).argmax())
            raise WeightsError(
                f"the prompt loss of member {at} (counted from 0) is not a number",
                hint="its logits hold NaN: try another dtype",
            )

    @property
    def members(self) -> int:
        """K."""
        return len(self.losses)


class FitLimits(NamedTuple):
    """How much of a prompt's distributions to keep for fitting; None keeps everything.

    Attributes:
        positions: Most positions; memory may allow fewer.
        candidates: Tokens of each member at a position; all others together count as one.
        pieces: Most pieces of the text to take losses on.
    """

    positions: int | None = 128
    candidates: int | None = 256
    pieces: int | None = 256


class Weighting(BaseModel, ABC):
    """How much to trust each member on a prompt.

    A weighting is one file in this folder: a frozen pydantic model whose fields are its parameters.
    It registers itself by its `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """What users write: `weighting="<name>"`."""
    source: ClassVar[str]
    """The paper and section that the weighting comes from."""
    needs_losses: ClassVar[bool] = True
    """Whether the prompt has to be scored at all."""

    normalize: Literal["reference", "own"] = "reference"
    """Prompt loss in nats per `"reference"` token (comparable) or per `"own"` token (the paper)."""
    pieces: int | None = Field(default=FitLimits().pieces, ge=1)
    """Most pieces of the prompt to take losses on, evenly spread; None for all (the papers)."""

    def needs_scores(self, pool: str) -> bool:
        """Whether `Evidence.scores` is needed to fit a rule of this `pool`."""
        return False

    @property
    def limits(self) -> FitLimits:
        """How many scores are wanted."""
        return FitLimits(pieces=self.pieces)

    def for_members(self, names: Sequence[str]) -> Weights | None:
        """Weights `[K]` that no prompt can change, or None where the prompt decides."""
        return None

    @abstractmethod
    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Weights `[K]`, non-negative, summing to one, for a rule of `pool` "logit" or "linear"."""


class Shrinking(Weighting):
    """A weighting that trusts short prompts less: weights move towards those of a prior."""

    shrinkage: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """How many tokens' worth of the prior to add to the prompt; 0 for the papers' own."""

    def shrink(self, weights: Weights, evidence: Evidence) -> Weights:
        """`weights`, `[K]` or rows of them, blended with the prior by the prompt's length."""
        return blend(weights, self.towards(evidence), evidence.tokens, self.shrinkage)

    def towards(self, evidence: Evidence) -> Weights:
        """The prior `[K]`: equal weights."""
        return equal(evidence.members)


class Fitted(Shrinking):
    """A weighting that is fitted to the members' distributions at positions of the prompt."""

    # docs/evidence.md, "Short prompts": as good as 8 tokens of equal weights where members are of
    # like quality, and better where they are not.
    shrinkage: float = Field(default=32.0, ge=0, allow_inf_nan=False)
    """How many tokens' worth of the prior to add to the prompt; 0 for the papers' own."""
    prior: Literal["equal", "sim"] = "sim"
    """What a short prompt falls back to: equal weights, or `softmax(-loss)`, which has no use for a
    member that finds even a few words impossible."""
    positions: int | None = Field(default=FitLimits().positions, ge=1)
    """Most positions to fit to, evenly spread; memory may allow fewer. None for all (the paper)."""
    candidates: int | None = Field(default=FitLimits().candidates, ge=1)
    """Tokens of each member to tell apart at a position; None for all of them (the paper)."""

    def needs_scores(self, pool: str) -> bool:
        """Only logits have to be pooled over candidates."""
        return pool == "logit"

    def towards(self, evidence: Evidence) -> Weights:
        """The prior `[K]`, as the parameter says."""
        return equal(evidence.members) if self.prior == "equal" else likely(evidence.losses)

    @property
    def limits(self) -> FitLimits:
        """As the parameters say."""
        return FitLimits(self.positions, self.candidates, self.pieces)


def equal(members: int) -> Weights:
    """The same weight for every member."""
    return np.full(members, 1.0 / members)


def likely(losses: Weights, tau: float = 1.0) -> Weights:
    """`softmax(-loss / τ)`; members with infinite loss get nothing, unless all have.

    Example:
        >>> likely(np.array([1.0, 1.0, np.inf]))
        array([0.5, 0.5, 0. ])
    """
    if np.isinf(losses).all():
        return equal(len(losses))
    with np.errstate(over="ignore"):
        found: Weights = softmax(-(losses - losses.min()) / tau)
    return found


def blend(weights: Weights, prior: Weights, tokens: int, shrinkage: float) -> Weights:
    """`(n w + c u) / (n + c)`: n tokens speak for the weights w, c for the prior u.

    As a Dirichlet prior worth c tokens would; no tokens at all give equal weights.

    Example:
        >>> blend(np.array([1.0, 0.0]), equal(2), tokens=8, shrinkage=8.0)
        array([0.75, 0.25])
    """
    if tokens <= 0:
        return np.full_like(weights, 1.0 / weights.shape[-1])
    return (tokens * weights + shrinkage * prior) / (tokens + shrinkage)
