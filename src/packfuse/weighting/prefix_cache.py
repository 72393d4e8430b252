"""Prompts that the members have read, kept for the next one that begins the same."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from packfuse.errors import ConfigError
from packfuse.models.member import Member, Session
from packfuse.weighting.methods.base import Weights

Ids = NDArray[np.int64]
FitScore = tuple[Tensor, Tensor]
"""Compressed scores of one position, `[K, 1, C]`, and its label `[1]`."""

SHARE = 0.06
"""Part of the members' own memory that kept prompts may take."""
_LEAST = 8
"""Tokens: what begins alike for less is not worth taking over."""
_COVERED = 0.9
"""A prompt of which a new one repeats this much adds little: it makes way."""

NOTED = 0.5
"""Part of the bound that what was said of one prompt may take, beside what was read of it."""

_MARGIN = 0.95
"""What is cut to the bound is cut a little shorter: bytes are not spread quite evenly."""


class FitKey(NamedTuple):
    """A position at which members' distributions were carried to the reference.

    Attributes:
        how: What besides the tokens decides the scores: reference, alignment, candidates.
        label: The reference token that comes next.
        counts: How many tokens each member has read there.
    """

    how: Hashable
    label: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefixEntry:
    """A prompt. Nothing in it is ever written to.

    Attributes:
        ids: By member, its tokens.
        sessions: By member, having read them, or no more than a beginning.
        logps: By member, the log-probability of each token given those before it, NaN where it is
            not known, nats; under None in the member's own words, otherwise through a pairing.
        scores: What fitting weights needs of the members' distributions.
    """

    ids: list[Ids]
    sessions: list[Session]
    logps: list[dict[Hashable, Weights]]
    scores: dict[FitKey, FitScore]

    def held(self, members: Sequence[Member]) -> int:
        """Memory of what the members have read, bytes."""
        return sum(m.nbytes(session) for m, session in zip(members, self.sessions, strict=True))

    @property
    def noted(self) -> int:
        """Memory of the rest, bytes."""
        # A session has a list of its ids, 8 bytes each, besides.
        tables = sum(2 * ids.nbytes for ids in self.ids)
        tables += sum(table.nbytes for known in self.logps for table in known.values())
        return tables + sum(s.nbytes + y.nbytes for s, y in self.scores.values())

    def shared(self, ids: Sequence[Ids]) -> tuple[int, ...]:
        """By member, how long a beginning this prompt has in common with another."""
        return tuple(_common(*pair) for pair in zip(self.ids, ids, strict=True))

    def within(self, lengths: Sequence[int]) -> dict[FitKey, FitScore]:
        """The scores that depend on no more than so many tokens of each member."""
        fit = ((spot, zip(spot.counts, lengths, strict=True)) for spot in self.scores)
        return {spot: self.scores[spot] for spot, both in fit if all(c <= n for c, n in both)}

    def cut(self, members: Sequence[Member], share: float) -> PrefixEntry:
        """The same with no more than this share of what the members have read.

        What was said of the rest stays: it is small, and takes long to work out.
        """
        read = zip(members, self.sessions, strict=True)
        sessions = [member.keep(session, int(share * session.length)) for member, session in read]
        return replace(self, sessions=sessions)

    def trimmed(self) -> PrefixEntry:
        """The same without what was said of tokens that no session has read."""
        lengths = [session.length for session in self.sessions]
        return PrefixEntry(
            [ids[:n].copy() for ids, n in zip(self.ids, lengths, strict=True)],
            self.sessions,
            [
                {how: table[:n].copy() for how, table in known.items()}
                for known, n in zip(self.logps, lengths, strict=True)
            ],
            self.within(lengths),
        )


class PrefixCache:
    """Kept prompts within a bound of memory; those unused for longest go first.

    Attributes:
        limit: Most bytes.
        nbytes: Bytes held.
    """

    def __init__(self, members: Sequence[Member], limit: int) -> None:
        """Empty; `members` are those of every engine that uses it, in order."""
        self.members, self.limit, self.nbytes = list(members), limit, 0
        self._kept: list[tuple[PrefixEntry, int]] = []

    def __len__(self) -> int:
        """How many prompts are kept."""
        return len(self._kept)

    def match(self, ids: Sequence[Ids]) -> list[tuple[PrefixEntry, tuple[int, ...]]]:
        """Prompts that begin like these tokens, and how far by member."""
        found = [(kept, kept.shared(ids)) for kept, _ in self._kept]
        return [(kept, shared) for kept, shared in found if max(shared) >= _LEAST]

    def touch(self, used: PrefixEntry) -> None:
        """Say that a prompt was of use just now."""
        self._kept.sort(key=lambda entry: entry[0] is used)

    def add(self, new: PrefixEntry) -> None:
        """Keep a prompt, or as much of what was read of it as the bound allows."""
        if not all(map(len, new.ids)):
            return
        while (size := (held := new.held(self.members)) + (noted := new.noted)) > self.limit:
            if not any(session.length for session in new.sessions):
                return
            if noted <= NOTED * self.limit:
                new = new.cut(self.members, _MARGIN * (self.limit - noted) / held)
            else:
                new = new.cut(self.members, _MARGIN * self.limit / size).trimmed()
        self._kept = [entry for entry in self._kept if not _covers(new, entry[0])]
        self._kept.append((new, size))
        self.nbytes = sum(size for _, size in self._kept)
        while self.nbytes > self.limit:
            self.nbytes -= self._kept.pop(0)[1]

    def clear(self) -> None:
        """Forget everything."""
        self._kept, self.nbytes = [], 0


def prefix_limit(setting: int | str, parameters: int) -> int:
    """How many bytes of prompts a pack may keep.

    Args:
        setting: That number, "auto" (or True) for a share of the parameters, or 0 (or False).
        parameters: The members' parameters, bytes.

    Raises:
        ConfigError: for anything else.
    """
    if setting == "auto" or setting is True:
        return int(SHARE * parameters)
    if not isinstance(setting, int) or setting < 0:
        raise ConfigError(
            f"prefix_cache={setting!r} is no size", hint='a number of bytes, "auto", or 0 for none'
        )
    return int(setting)


def _covers(new: PrefixEntry, old: PrefixEntry) -> bool:
    common = old.shared(new.ids)
    return all(n >= _COVERED * len(ids) for n, ids in zip(common, old.ids, strict=True))


def _common(one: Ids, other: Ids) -> int:
    """Length of the common beginning."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size
