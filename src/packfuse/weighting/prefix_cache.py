"""Prompts that the members have read, kept so that a common prefix is not read again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from packfuse.errors import ConfigError
from packfuse.models.member import Member, Session
from packfuse.weighting.fit_positions import FitKey, FitScore
from packfuse.weighting.methods.base import Weights

Ids = NDArray[np.int64]

SHARE = 0.06
"""Default size of the cache, as a share of the size of the members' parameters."""

MAX_SCORE_SHARE = 0.5
"""Largest share of the cache's limit for the scores of one prompt; the rest is for KV caches."""

_MIN_SHARED = 8
"""Number of tokens; a shorter common prefix is not reused."""

_COVERED = 0.9
"""An entry is replaced by a new prompt that begins with this share of its tokens."""

_MARGIN = 0.95
"""A prompt that is too large is cut to this share of the limit, as tokens differ in size."""


@dataclass(frozen=True, slots=True)
class PrefixEntry:
    """One prompt in the cache. Its fields are never modified.

    Attributes:
        ids: By member, the tokens of the prompt.
        states: By member, what its model was when it read the prompt.
        sessions: By member, the session (KV cache) after the prompt, or after a prefix of it.
        logps: By member, tables of the log-probability of each token given the tokens before it,
            nats; NaN where it is unknown. The table under None is for the member's own tokens; the
            others are for the reference's tokens, under the reference and the alignment.
        scores: Compressed log-probabilities at fit positions.
    """

    ids: list[Ids]
    states: list[Hashable]
    sessions: list[Session]
    logps: list[dict[Hashable, Weights]]
    scores: dict[FitKey, FitScore]

    def session_bytes(self, members: Sequence[Member]) -> int:
        """Memory of the sessions, in bytes."""
        return sum(m.nbytes(session) for m, session in zip(members, self.sessions, strict=True))

    @property
    def score_bytes(self) -> int:
        """Memory of the ids, log-probabilities and scores, in bytes."""
        # A session also has a list of its ids, 8 bytes each.
        tables = sum(2 * ids.nbytes for ids in self.ids)
        tables += sum(table.nbytes for own in self.logps for table in own.values())
        return tables + sum(s.nbytes + y.nbytes for s, y in self.scores.values())

    def shared(self, ids: Sequence[Ids], states: Sequence[Hashable]) -> tuple[int, ...]:
        """By member, the length of the prefix that this prompt has in common with `ids`.

        It is 0 for a member whose model is another now than when it read this prompt.
        """
        old = zip(self.ids, self.states, strict=True)
        return tuple(
            _common_length(own, new) if state == now else 0
            for (own, state), new, now in zip(old, ids, states, strict=True)
        )

    def scores_within(self, lengths: Sequence[int]) -> dict[FitKey, FitScore]:
        """The scores that depend on the first `lengths[k]` tokens of each member k only."""
        fit = ((key, zip(key.counts, lengths, strict=True)) for key in self.scores)
        return {key: self.scores[key] for key, both in fit if all(c <= n for c, n in both)}

    def with_shorter_sessions(self, members: Sequence[Member], share: float) -> PrefixEntry:
        """The same with sessions cut to `share` of their tokens.

        All log-probabilities and scores stay: they are small, and expensive to compute.
        """
        pairs = zip(members, self.sessions, strict=True)
        sessions = [member.keep(session, int(share * session.length)) for member, session in pairs]
        return replace(self, sessions=sessions)

    def trimmed(self) -> PrefixEntry:
        """The same without the ids, log-probabilities and scores beyond the sessions' ends."""
        lengths = [session.length for session in self.sessions]
        return PrefixEntry(
            [ids[:n].copy() for ids, n in zip(self.ids, lengths, strict=True)],
            self.states,
            self.sessions,
            [
                {view: table[:n].copy() for view, table in own.items()}
                for own, n in zip(self.logps, lengths, strict=True)
            ],
            self.scores_within(lengths),
        )


class PrefixCache:
    """Prompts within a limit of memory; the least recently used are evicted first.

    Attributes:
        members: The members of the pack, in order.
        limit: Largest size, in bytes.
        nbytes: Present size, in bytes.
    """

    def __init__(self, members: Sequence[Member], limit: int) -> None:
        """An empty cache for all engines of a pack.

        Args:
            members: The members of the pack, in order.
            limit: Largest size, in bytes.
        """
        self.members, self.limit, self.nbytes = list(members), limit, 0
        self._entries: list[tuple[PrefixEntry, int]] = []

    def __len__(self) -> int:
        """Number of prompts in the cache."""
        return len(self._entries)

    @property
    def states(self) -> list[Hashable]:
        """By member, what its model is now."""
        return [member.state for member in self.members]

    def match(self, ids: Sequence[Ids]) -> list[tuple[PrefixEntry, tuple[int, ...]]]:
        """Entries with a common prefix that members read with the weights that they have now.

        Args:
            ids: By member, the tokens of a prompt.

        Returns:
            Pairs of an entry and, by member, the length of the common prefix.
        """
        states = self.states
        found = [(entry, entry.shared(ids, states)) for entry, _ in self._entries]
        return [(entry, shared) for entry, shared in found if max(shared) >= _MIN_SHARED]

    def touch(self, used: PrefixEntry) -> None:
        """Mark an entry as the most recently used."""
        self._entries.sort(key=lambda item: item[0] is used)

    def add(self, new: PrefixEntry) -> None:
        """Add a prompt; one that is larger than the limit is cut, or dropped if nothing fits."""
        fitting = self._cut_to_limit(new) if any(map(len, new.ids)) else None
        if fitting is None:
            return
        new, _ = fitting
        self._entries = [item for item in self._entries if not _covers(new, item[0])]
        self._entries.append(fitting)
        self.nbytes = sum(size for _, size in self._entries)
        while self.nbytes > self.limit:
            self.nbytes -= self._entries.pop(0)[1]

    def _cut_to_limit(self, new: PrefixEntry) -> tuple[PrefixEntry, int] | None:
        """As much of a prompt as fits into the limit, and its size in bytes; None for nothing.

        The sessions are cut first. The scores are cut as well if they exceed their share.
        """
        while True:
            sessions, scores = new.session_bytes(self.members), new.score_bytes
            if sessions + scores <= self.limit:
                return new, sessions + scores
            if not any(session.length for session in new.sessions):
                return None
            if scores <= MAX_SCORE_SHARE * self.limit:
                share = _MARGIN * (self.limit - scores) / sessions
                new = new.with_shorter_sessions(self.members, share)
            else:
                share = _MARGIN * self.limit / (sessions + scores)
                new = new.with_shorter_sessions(self.members, share).trimmed()

    def clear(self) -> None:
        """Remove all prompts."""
        self._entries, self.nbytes = [], 0


def prefix_limit(setting: int | str, parameters: int) -> int:
    """The limit of a pack's prefix cache, in bytes.

    Args:
        setting: A number of bytes; "auto" (or True) for a share of the size of the parameters; 0
            (or False) for no cache.
        parameters: Size of the members' parameters, in bytes.

    Raises:
        ConfigError: for anything else.
    """
    if setting == "auto" or setting is True:
        return int(SHARE * parameters)
    if not isinstance(setting, int) or setting < 0:
        raise ConfigError(
            f"prefix_cache={setting!r} is not a size",
            hint='give a number of bytes, "auto", or 0 for no cache',
        )
    return int(setting)


def _covers(new: PrefixEntry, old: PrefixEntry) -> bool:
    shared = old.shared(new.ids, new.states)
    return all(n >= _COVERED * len(ids) for n, ids in zip(shared, old.ids, strict=True))


def _common_length(one: Ids, other: Ids) -> int:
    """Length of the common prefix."""
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size
