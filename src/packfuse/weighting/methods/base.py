"""The interface of a weighting: from the members' log-probabilities of a prompt to weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import softmax
from torch import Tensor

from packfuse.errors import WeightsError
from packfuse.fusion.rules.sharpening import Sharpening

Weights = NDArray[np.float64]
"""One number per member, `[K]`."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The scores of K members on one prompt.

    Attributes:
        losses: Prompt losses `[K]`, in nats per reference token of the prompt's text; per token of
            the member if the weighting has `normalize="own"`.
        tokens: Number of reference tokens that were scored; 0 for a prompt without text.
        pieces: Log-probabilities `[K, M]`, nats. A piece is the text between two neighboring token
            boundaries that all members share; each member scores it in its own tokens.
        scores: Log-probabilities `[K, T, C]`, nats, at T positions over C candidates, which are
            tokens of the reference; the last candidate may stand for all other tokens together.
            None unless the weighting has `needs_scores`.
        labels: Index of the candidate that came next, `[T]`.
        skill: In a chat, the weights `[K]` under which the pack prefers right answers to wrong
            ones in worked chats; None in a plain text.
        usual_losses: The losses `[K]` that would be usual, by those on the worked questions, nats
            per reference token; None without `skill`.

    Raises:
        WeightsError: for a loss that is NaN.

    Example:
        >>> evidence = Evidence(np.array([2.0, 3.0]), tokens=5, pieces=np.array([[-10.0], [-15.0]]))
        >>> evidence.members
        2
    """

    losses: Weights
    tokens: int
    pieces: Weights
    scores: Tensor | None = None
    labels: Tensor | None = None
    skill: Weights | None = None
    usual_losses: Weights | None = None

    def __post_init__(self) -> None:
        # Every comparison with NaN is false, so it would go unnoticed.
        if np.isnan(self.losses).any():
            at = int(np.isnan(self.losses).argmax())
            raise WeightsError(
                f"the prompt loss of member {at} (counted from 0) is not a number",
                hint="its logits contain NaN: try another dtype",
            )

    @property
    def members(self) -> int:
        """Number of members, K."""
        return len(self.losses)


class FitLimits(NamedTuple):
    """How much of a prompt is kept for fitting; None keeps everything.

    Attributes:
        positions: Maximum number of positions; memory may allow fewer.
        candidates: Number of tokens of each member at a position; all others are one candidate.
        pieces: Maximum number of pieces of the text on which losses are computed.
    """

    positions: int | None = 128
    candidates: int | None = 256
    pieces: int | None = 256


class Weighting(BaseModel, ABC):
    """How weights are computed from the members' scores on a prompt.

    Each weighting is one file in this folder: a frozen pydantic model whose fields are its
    parameters. The registry finds it by its `name`.

    Example:
        A weighting by inverse loss:

        >>> class Inverse(Weighting):
        ...     def fit(self, evidence, pool):
        ...         return (1 / evidence.losses) / (1 / evidence.losses).sum()
        >>> Inverse().fit(Evidence(np.array([1.0, 3.0]), 5, np.zeros((2, 0))), "logit")
        array([0.75, 0.25])
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """The name in settings: `weighting="<name>"`."""
    source: ClassVar[str]
    """The paper and section of the method."""
    needs_losses: ClassVar[bool] = True
    """Whether the prompt has to be scored."""

    normalize: Literal["reference", "own"] = "reference"
    """Unit of the prompt loss: nats per `"reference"` token, which members can be compared by, or
    nats per `"own"` token of the member, as in the paper."""
    pieces: int | None = Field(default=FitLimits().pieces, ge=1)
    """Maximum number of pieces of the prompt on which losses are computed, evenly spread; None for
    all, as in the papers."""

    @property
    def needs_skill(self) -> bool:
        """Whether `Evidence.skill` is needed in a chat."""
        return False

    @property
    def sharpening(self) -> Sharpening | None:
        """The power to which fused distributions are raised; None to leave them as they are."""
        return None

    def power(self, weights: Weights) -> float | None:
        """The power for weights `[K]`; None without `sharpening`."""
        sharpening = self.sharpening
        return float(sharpening.power(torch.from_numpy(weights))) if sharpening else None

    def prompt_share(self, tokens: int, *, chat: bool) -> float:
        """The share of the weights that is fitted to the prompt, 0 to 1; the rest is the prior's.

        Args:
            tokens: Number of tokens of the prompt that were scored.
            chat: Whether `Evidence.skill` is known.
        """
        return 1.0

    def needs_scores(self, pool: str) -> bool:
        """Whether `Evidence.scores` is needed for rules with this `Rule.pool`."""
        return False

    @property
    def limits(self) -> FitLimits:
        """How much of the prompt is needed."""
        return FitLimits(pieces=self.pieces)

    def for_members(self, names: Sequence[str]) -> Weights | None:
        """Weights `[K]` that do not depend on the prompt; None if they do.

        Args:
            names: The members' names, in order.
        """
        return None

    @abstractmethod
    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Compute the weights for a prompt.

        Args:
            evidence: The members' scores.
            pool: `Rule.pool` of the fusion rule: "logit" or "linear".

        Returns:
            Weights `[K]`, non-negative, with sum one.
        """


class Shrinking(Weighting):
    """A weighting that is shrunk towards prior weights: the shorter the prompt, the more."""

    shrinkage: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the prior, in tokens of a prompt; 0 for none, as in the papers."""

    def shrink(self, weights: Weights, evidence: Evidence) -> Weights:
        """`weights`, `[K]` or rows of them, blended with the prior; see `blend`."""
        share = self.prompt_share(evidence.tokens, chat=evidence.skill is not None)
        return blend(weights, self.prior_weights(evidence), share)

    def prompt_share(self, tokens: int, *, chat: bool) -> float:
        """See `Weighting.prompt_share`."""
        return tokens / max(tokens + self.prior_tokens(chat=chat), 1)

    def prior_tokens(self, *, chat: bool) -> float:
        """Weight of the prior, in tokens of the prompt; `chat` as in `prompt_share`."""
        return self.shrinkage

    def prior_weights(self, evidence: Evidence) -> Weights:
        """The prior `[K]`: equal weights."""
        return equal(evidence.members)


class Fitted(Shrinking):
    """A weighting that is fitted to the members' distributions at positions of the prompt."""

    # 32 with the prior "sim" measured as good as 8 with equal weights for members of similar
    # quality, and better for others.
    shrinkage: float = Field(default=32.0, ge=0, allow_inf_nan=False)
    """Weight of the prior, in tokens of a prompt; 0 for none, as in the paper."""
    prior: Literal["equal", "sim"] = "sim"
    """Prior weights: "equal", or "sim" for `softmax(-loss)`, which gives almost no weight to a
    member that finds even a few words of the prompt nearly impossible. In a chat, see `chat`."""
    chat: float | None = Field(default=4096.0, ge=0, allow_inf_nan=False)
    """Weight of the prior in a chat, in tokens: how well a member reads a question does not tell
    how well it answers. The prior is then the skill of the members in worked chats; see
    `skill_here`. None for the prior of plain texts; no effect without `shrinkage`."""
    positions: int | None = Field(default=FitLimits().positions, ge=1)
    """Maximum number of positions to fit to, evenly spread; memory may allow fewer. None for all,
    as in the paper."""
    candidates: int | None = Field(default=FitLimits().candidates, ge=1)
    """Number of tokens of each member that are distinguished at a position; None for all, as in the
    paper."""

    def needs_scores(self, pool: str) -> bool:
        """True for a logit pool; a linear pool is fitted to pieces of text."""
        return pool == "logit"

    @property
    def needs_skill(self) -> bool:
        """Whether the prior in a chat is the members' skill."""
        return self.chat is not None and self.shrinkage > 0

    def prior_tokens(self, *, chat: bool) -> float:
        """Weight of the prior, in tokens; see `shrinkage` and `chat`."""
        return float(self.chat or 0) if chat and self.needs_skill else self.shrinkage

    def prior_weights(self, evidence: Evidence) -> Weights:
        """The prior `[K]`; see `prior` and `chat`."""
        skill = evidence.skill if self.needs_skill else None
        if evidence.tokens <= 0:
            return equal(evidence.members) if skill is None else skill
        if skill is not None:
            return skill_here(skill, evidence)
        return equal(evidence.members) if self.prior == "equal" else loss_softmax(evidence.losses)

    def without_loss(self, evidence: Evidence) -> Weights:
        """The weights `[K]` where a prompt has nothing to fit to."""
        known = evidence.skill is not None and self.needs_skill
        return self.prior_weights(evidence) if known else equal(evidence.members)

    @property
    def limits(self) -> FitLimits:
        """The limits that the parameters set."""
        return FitLimits(self.positions, self.candidates, self.pieces)


def equal(members: int) -> Weights:
    """Equal weights `[K]`.

    Example:
        >>> equal(2)
        array([0.5, 0.5])
    """
    return np.full(members, 1.0 / members)


def loss_softmax(losses: Weights, tau: float = 1.0) -> Weights:
    """`softmax(-loss / τ)` `[K]`. Members with infinite loss get 0, unless all have infinite loss.

    Example:
        >>> loss_softmax(np.array([1.0, 1.0, np.inf]))
        array([0.5, 0.5, 0. ])
    """
    if np.isinf(losses).all():
        return equal(len(losses))
    with np.errstate(over="ignore"):
        found: Weights = softmax(-(losses - losses.min()) / tau)
    return found


ORDINARY = 1.25
"""Nats per token: by this much, losses differ on questions that all members know how to read."""


def skill_here(skill: Weights, evidence: Evidence) -> Weights:
    """Skill `[K]` on one question: less for members that find it stranger than the others do.

    A member that does not know the language of a question has no skill there. A member's loss is
    compared with its own usual loss, and the difference with the least difference of all members:
    what is d nats per token more than `ORDINARY` counts `exp(-d**2 / 2)`.

    Example:
        >>> losses = np.array([4.0, 7.0])
        >>> known = Evidence(losses, 8, np.zeros((2, 0)), usual_losses=np.array([3.0, 3.0]))
        >>> skill_here(np.array([0.75, 0.25]), known).round(3)
        array([0.933, 0.067])
    """
    strange = evidence.losses - (0.0 if evidence.usual_losses is None else evidence.usual_losses)
    finite = np.where(np.isfinite(strange), strange, 1e3)
    excess = (finite - finite.min() - ORDINARY).clip(min=0.0)
    found: Weights = skill * np.exp(-(excess**2) / 2)
    total = float(found.sum())
    return found / total if total > 0 else skill


def blend(weights: Weights, prior: Weights, share: float) -> Weights:
    """`s w + (1 - s) u`: weights w of which a share s counts, and a prior u.

    With `s = n / (n + c)` for weights from n tokens, this is the posterior mean under a Dirichlet
    prior worth c tokens.

    Args:
        weights: Weights w, `[K]` or rows of them.
        prior: Prior weights u, `[K]`.
        share: The share s, 0 to 1.

    Example:
        >>> blend(np.array([1.0, 0.0]), equal(2), share=0.5)
        array([0.75, 0.25])
    """
    return share * weights + (1 - share) * prior
