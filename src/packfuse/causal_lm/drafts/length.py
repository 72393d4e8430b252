"""How many tokens to draft: as many as pay, by how often drafts were right so far."""

from __future__ import annotations

from dataclasses import dataclass, field

FREE = {"cpu": 3}
"""How many drafted tokens a pass takes along for next to nothing, by device: a processor multiplies
a matrix by four vectors in little more time than by one (dev/log.md)."""

CHECK = {"cpu": (0.35, 0.065)}
"""What a pass over more of them costs on top of one over a single token, in steps of the pack: at
once, and for each drafted token."""

_FORGET = 0.97
_TRIED = 3
"""How many tokens' worth the chance is that was assumed before anything was drafted."""


@dataclass(slots=True)
class DraftLength:
    """Learns the chance that a drafted token is right, and which length is worth its cost.

    It counts tokens, not seconds, so that the same seed gives the same answer.

    Attributes:
        price: Cost of drafting one token, in steps of the pack.
        most: Longest draft.
        device: Type of device, for the cost of checking.
        chance: The chance of a token before anything was drafted; what is learned fades back to it.

    Example:
        >>> pace = DraftLength(price=0.1, most=8)
        >>> first = pace.length()
        >>> for _ in range(20): pace.learn(drafted=first, accepted=0)
        >>> first > 0, pace.length()
        (True, 0)
    """

    price: float
    most: int
    device: str = "cpu"
    chance: float = 0.8
    _right: float = field(default=0.0, init=False)
    _seen: float = field(default=0.0, init=False)

    def length(self) -> int:
        """How many tokens to draft now; 0 where no draft pays."""
        return min(range(self.most + 1), key=self._cost)

    def learn(self, drafted: int, accepted: int) -> None:
        """Take in how much of a draft was right; nothing drafted fades what is known."""
        self._right, self._seen = self._right * _FORGET, self._seen * _FORGET
        self._right += accepted
        self._seen += min(drafted, accepted + 1)

    def _cost(self, drafted: int) -> float:
        """Steps of the pack for each token that comes out, for drafts of this length."""
        if drafted == 0:
            return 1.0
        right = (self._right + _TRIED * self.chance) / (self._seen + _TRIED)
        came = sum(right**i for i in range(drafted + 1))
        entry, each = CHECK.get(self.device, (0.05, 0.01))
        if drafted <= FREE.get(self.device, 0):
            entry, each = 0.05, 0.03
        return (1 + entry + drafted * (self.price + each)) / came
