"""How many tokens to draft: as many as pay, by how often drafts were right so far."""

from __future__ import annotations

from dataclasses import dataclass, field

ENTRY = {"cpu": 0.5}
"""What a pass over several tokens costs on top of one over a single token, in steps of the pack, by
device: a processor multiplies a matrix by one vector much faster than by two (docs/log.md)."""

CHECK = {"cpu": 0.08}
"""What each drafted token adds to such a pass, likewise."""

IN_TURN = {"cpu": 3}
"""How many prompts are answered sooner one after the other with drafts that are nearly always right
than side by side without, by device (docs/speed.md)."""

_FORGET = 0.95


@dataclass(slots=True)
class Pace:
    """Learns the chance that a drafted token is right, and which length is worth its cost.

    It counts tokens, not seconds, so that the same seed gives the same answer.

    Attributes:
        price: Cost of drafting one token, in steps of the pack.
        most: Longest draft.
        device: Type of device, for the cost of checking.
        chance: The chance of a token before anything was drafted; what is learned fades back to it.

    Example:
        >>> pace = Pace(price=0.1, most=8)
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
        right = (self._right + 4 * self.chance) / (self._seen + 4)
        came = sum(right**i for i in range(drafted + 1))
        check = CHECK.get(self.device, 0.01)
        return (1 + ENTRY.get(self.device, 0.05) + drafted * (self.price + check)) / came
