"""Where the tokens of two vocabularies overlap without ending together."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from packfuse.alignment.token_pairs import TokenPairs
from packfuse.text.vocabulary import Vocabulary

MOST = 256
"""Straddles that one reference token can begin, and as many at each boundary inside it."""

LEAST = 1e-5
"""Share of a reference token's mass below which a straddle is dropped."""


@dataclass(frozen=True, slots=True)
class InnerBoundary:
    """A member boundary inside a reference token.

    Attributes:
        pending: Bytes from this boundary to the end of the reference token.
        logps: The member's log-probabilities here, `[member columns]`.
        token: What the member reads next on its own path.
    """

    pending: bytes
    logps: Tensor
    token: int


class InnerBoundaries:
    """Byte ranges and consistency of a member and the reference, cached."""

    def __init__(self, relation: TokenPairs, member: Vocabulary, reference: Vocabulary) -> None:
        """Nothing is computed yet."""
        self.relation, self.member, self.reference = relation, member, reference
        self.continuations = lru_cache(maxsize=8192)(self._continuations)
        self.consistent = lru_cache(maxsize=65536)(self._consistent)
        self._overhangs = lru_cache(maxsize=1024)(self._find_overhangs)

    def _continuations(self, rest: bytes) -> Tensor:
        """Reference tokens that can come next when the text goes on with `rest`, `[n]`."""
        low, high = _prefix_range(self.reference.sorted_bytes, rest)
        ids = self.reference.sorted_ids[low:high]
        first = self.reference.first_token(rest)
        if first is None or self.reference.token_bytes[first] == rest:
            return ids
        return torch.cat([ids, torch.tensor([first])])

    def _consistent(self, target: int, rest: bytes) -> bool:
        """Whether the reference writes `target` first when `rest` follows it."""
        text = (self.reference.token_bytes[target] or b"") + rest
        firsts = {self.reference.first_token(text), self.reference.first_token(text + b"a")}
        return target in firsts

    def _find_overhangs(self, target: int) -> tuple[list[bytes], Tensor]:
        """What each partner of `target` adds to it, b"" for most, and which add something."""
        token = self.reference.token_bytes[target] or b""
        partners = (
            self.member.token_bytes[i] or b"" for i in self.relation.partners(target).tolist()
        )
        rests = [mine[len(token) :] if mine.startswith(token) else b"" for mine in partners]
        return rests, torch.tensor([bool(rest) for rest in rests], dtype=torch.bool)

    def begin(
        self, target: int, member: Tensor, reference: Tensor
    ) -> tuple[list[tuple[bytes, float]], float]:
        """Split what the member's cut sends to `target`.

        Args:
            target: The reference token.
            member: The member's log-probabilities before it, `[member columns]`.
            reference: The reference's, `[reference columns]`.

        Returns:
            (remaining bytes, probability) of the member tokens that go on past the target's end,
            and the probability of all others.
        """
        mass = self.relation.flow(target, member, reference)[1].cpu()
        rests, over = self._overhangs(target)
        least = LEAST * float(mass.sum())
        values, places = (mass * over).topk(min(MOST, len(mass)))
        found = [
            (rests[place], value)
            for value, place in zip(values.tolist(), places.tolist(), strict=True)
            if value > least and rests[place]
        ]
        return found, float(mass[~over].sum())

    def longer(self, inner: InnerBoundary, target: int) -> list[tuple[bytes, float]]:
        """(remaining bytes, probability) of member tokens that go on past the target's end."""
        low, high = _prefix_range(self.member.sorted_bytes, inner.pending)
        probs = inner.logps[self.member.sorted_ids[low:high]].exp()
        values, places = probs.topk(min(MOST, len(probs)))
        least = LEAST * float(inner.logps[inner.token].exp())
        found: list[tuple[bytes, float]] = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            rest = self.member.sorted_bytes[low + place][len(inner.pending) :]
            if value > least and rest and self.consistent(target, rest):
                found.append((rest, value))
        return found


def _prefix_range(words: Sequence[bytes], prefix: bytes) -> tuple[int, int]:
    """The range of sorted `words` that begin with `prefix`."""
    low = bisect.bisect_left(words, prefix)
    return low, bisect.bisect_right(words, prefix, lo=low, key=lambda word: word[: len(prefix)])
