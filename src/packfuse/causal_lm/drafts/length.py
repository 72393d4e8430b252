"""Chooses the length of drafts from the share of drafted tokens that were accepted so far."""

from __future__ import annotations

from dataclasses import dataclass, field

FREE_TOKENS = {"cpu": 3}
"""By device type, the number of drafted tokens that one pass verifies at almost no extra cost. A
processor multiplies a matrix by four vectors in little more time than by one (dev/log.md)."""

FREE_COST = (0.05, 0.03)
"""Extra cost of a pass that verifies no more than that: fixed, and for each drafted token. Costs
are in decoding steps of the pack."""

VERIFY_COST = {"cpu": (0.35, 0.065)}
"""The same for longer drafts, by device type."""

OTHER_VERIFY_COST = (0.05, 0.01)
"""The same for longer drafts, on other devices."""

_DECAY = 0.97
"""Factor on the counts at every round, so that recent drafts weigh more."""

_PRIOR_TOKENS = 3
"""Weight of the prior acceptance rate, in tokens."""


@dataclass(slots=True)
class DraftLength:
    """Estimates the acceptance rate, and the draft length with the lowest cost per token.

    It counts tokens and measures no times, so that the same seed gives the same answer.

    Attributes:
        cost: Cost of drafting one token, in decoding steps of the pack.
        max_draft_tokens: Longest draft, in tokens.
        device: Type of device, for the cost of verification.
        prior: Acceptance rate that is assumed before anything was drafted. Without drafts the
            estimate returns to it.
        steps: What a pass over 1, 2, 3, ... new tokens costs, in decoding steps, where that was
            measured; empty for what is usual for the type of device.

    Example:
        >>> length = DraftLength(cost=0.1, max_draft_tokens=8)
        >>> first = length.best()
        >>> for _ in range(20):
        ...     length.update(drafted=first, accepted=0)
        >>> first > 0, length.best()
        (True, 0)
    """

    cost: float
    max_draft_tokens: int
    device: str = "cpu"
    prior: float = 0.8
    steps: tuple[float, ...] = ()
    _accepted: float = field(default=0.0, init=False)
    _verified: float = field(default=0.0, init=False)

    def best(self) -> int:
        """Number of tokens to draft now; 0 if drafting does not pay."""
        return min(range(self.max_draft_tokens + 1), key=self._cost_per_token)

    def update(self, drafted: int, accepted: int) -> None:
        """Count the result of one draft; zeros for a round without a draft."""
        self._accepted, self._verified = self._accepted * _DECAY, self._verified * _DECAY
        self._accepted += accepted
        # Tokens after the first rejected one were not verified.
        self._verified += min(drafted, accepted + 1)

    def _cost_per_token(self, drafted: int) -> float:
        """Expected cost of each token of the answer, in decoding steps, for drafts of a length."""
        if drafted == 0:
            return 1.0
        rate = (self._accepted + _PRIOR_TOKENS * self.prior) / (self._verified + _PRIOR_TOKENS)
        expected_tokens = sum(rate**i for i in range(drafted + 1))
        return (self._verification(drafted) + drafted * self.cost) / expected_tokens

    def _verification(self, drafted: int) -> float:
        """Cost of a pass that verifies so many drafted tokens, in decoding steps."""
        if self.steps:
            # Longer passes are no steps: as if they took several.
            whole, rest = divmod(drafted + 1, len(self.steps))
            return whole * self.steps[-1] + (self.steps[rest - 1] if rest else 0)
        fixed, each = VERIFY_COST.get(self.device, OTHER_VERIFY_COST)
        if drafted <= FREE_TOKENS.get(self.device, 0):
            fixed, each = FREE_COST
        return 1 + fixed + drafted * each
