"""Reuses what the members have already read and scored of a new prompt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from packfuse.alignment.pairings import Same
from packfuse.fusion.engine import Engine
from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Member, Read, ReadCallback, Session
from packfuse.weighting.fit_positions import FitKey, FitScore
from packfuse.weighting.methods.base import Weights
from packfuse.weighting.prefix_cache import Ids, PrefixCache, PrefixEntry
from packfuse.weighting.prompt_scores import PromptScores

_SINGLE_TOKEN = 8
"""Cost of reading a single token, in tokens of a longer prompt (approximate)."""

Matches = Sequence[tuple[PrefixEntry, tuple[int, ...]]]
"""Entries of the cache and, by member, the length of the common prefix; see `PrefixCache.match`."""


class PrefixReuse:
    """Looks one prompt up in the prefix cache, and adds the prompt once it has been read.

    Every member has tokens of its own, so each reuses the longest prefix that an entry has in
    common with its own tokens. Scores are reused too, also where the KV cache was too large to be
    kept: the log-probabilities of tokens, and the compressed distributions at fit positions, which
    depend on the reference and the alignment. If such a distribution is missing, the member reads
    the token before the position again, or everything from there on, whichever is cheaper. Whole
    distributions (`candidates=None`) are too large to be kept.

    Attributes:
        cached: By member, the number of tokens that are not read again.
    """

    def __init__(
        self,
        cache: PrefixCache,
        engine: Engine,
        sequence: PackSequence,
        scores: PromptScores | None,
    ) -> None:
        """Look the prompt up, and fill in the scores that are known.

        Args:
            cache: The prefix cache.
            engine: The members and the reference.
            sequence: Its prompt has been fed, and is not read yet.
            scores: The scores of the prompt; None if it is not scored.
        """
        self.cache, self.engine, self.sequence, self.scores = cache, engine, sequence, scores
        self.cached: tuple[int, ...] = tuple(0 for _ in engine.members)
        own_ids = (
            stream.ids(sequence.text_ids, sequence.text) if stream else []
            for stream in sequence.streams
        )
        self._ids: list[Ids] = [np.array(ids, dtype=np.int64) for ids in own_ids]
        self._states = cache.states
        matches = cache.match(self._ids)
        self._best = [_longest(matches, k) for k in range(len(self._ids))]
        self._logps = [self._known_logps(matches, k) for k in range(len(self._ids))]
        self._fit_scores: dict[FitKey, FitScore] = {}
        for entry, shared in matches:
            self._fit_scores.update(entry.scores_within(shared))
        if scores is not None:
            scores.fit_positions.reuse(self._fit_scores)
            for k, own in enumerate(scores.members):
                known = self._logps[k].get(self._view(k, scores), own.logps)
                length = min(len(known), len(own.logps))
                own.logps[:length] = known[:length]

    def begin(self, callbacks: Sequence[ReadCallback | None]) -> None:
        """Give every stream the session from which its member reads on.

        Args:
            callbacks: By member, called with distributions of tokens that are read again.
        """
        cached = []
        for k, (member, stream) in enumerate(
            zip(self.engine.members, self.sequence.streams, strict=True)
        ):
            entry, shared = self._best[k]
            start, again = self._plan(k, shared)
            if entry is not None and stream is not None and start > 0:
                self.cache.touch(entry)
                session = entry.sessions[k]
                stream.session = self._resume(k, member, session, start, again, callbacks[k])
            cached.append(min(stream.session.length, len(self._ids[k]) - 1) if stream else 0)
        self.cached = tuple(cached)

    def keep(self) -> None:
        """Add the prompt to the cache, after every member has read it."""
        sessions = [
            member.fork(stream.session) if stream else member.open()
            for member, stream in zip(self.engine.members, self.sequence.streams, strict=True)
        ]
        logps, fit_scores = self._logps, self._fit_scores
        if (scores := self.scores) is not None:
            for k, own in enumerate(scores.members):
                logps[k] = {**logps[k], self._view(k, scores): own.logps.copy()}
            if scores.limits.candidates is not None:
                fit_scores = {**fit_scores, **scores.fit_positions.scores}
        self.cache.add(PrefixEntry(self._ids, self._states, sessions, logps, fit_scores))

    def _known_logps(self, matches: Matches, k: int) -> dict[Hashable, Weights]:
        """Tables of the log-probabilities of member k's tokens, NaN where unknown."""
        stream = self.sequence.streams[k]
        subset = stream.subset if stream else None
        found: dict[Hashable, Weights] = {}
        for entry, shared in matches:
            length = shared[k]
            if subset is not None and not subset.exact:
                # The session measures the probability outside the subset only where it reads.
                length = min(length, entry.sessions[k].length)
            for view, table in entry.logps[k].items():
                known = found.setdefault(view, np.full(len(self._ids[k]), np.nan))[:length]
                np.copyto(known, table[:length], where=np.isnan(known))
        return found

    def _view(self, k: int, scores: PromptScores) -> Hashable:
        """The key of member k's log-probabilities in `PrefixEntry.logps`."""
        own = scores.mapped[k] is None or isinstance(scores.mapped[k], Same)
        return None if own else (self.engine.view.reference, self.engine.view.alignment)

    def _plan(self, k: int, shared: int) -> tuple[int, list[int]]:
        """How many tokens member k skips, and after which of them a distribution is missing."""
        if self.scores is None or not shared:
            return shared, []
        # A token's log-probability is computed when the token before it is read.
        start = min(shared, min(self.scores.unscored(k), default=shared + 1) - 1)
        needed = self.scores.fit_positions.needed[k]
        return _cheapest(start, sorted(count for count in needed if count <= start))

    def _resume(
        self,
        k: int,
        member: Member,
        cached: Session,
        start: int,
        again: list[int],
        callback: ReadCallback | None,
    ) -> Session:
        """Member k's session after `start` tokens or fewer; tokens in `again` are read again."""
        session = member.fork(cached)
        member.rollback(session, start)
        for count in again:
            single = member.fork(session)
            member.rollback(single, count - 1)
            if single.length < count - 1:
                # Recurrent and convolutional members go back to saved states only: this member
                # reads on from there.
                return single
            member.read([Read(single, [int(self._ids[k][count - 1])], 1, callback)])
        return session


def _longest(matches: Matches, k: int) -> tuple[PrefixEntry | None, int]:
    """The entry whose session has the most tokens in common with member k's, and how many."""
    found = [(entry, min(shared[k], entry.sessions[k].length)) for entry, shared in matches]
    return max(found, key=lambda match: match[1], default=(None, 0))


def _cheapest(start: int, missing: list[int]) -> tuple[int, list[int]]:
    """Where to read on from, and which single tokens before that to read again.

    Args:
        start: The last place where reading can go on.
        missing: Places up to `start` without a distribution, in ascending order.
    """
    costs: list[tuple[int, Any, list[int]]] = [(_SINGLE_TOKEN * len(missing), start, missing)]
    for done, count in enumerate(missing):
        costs.append((_SINGLE_TOKEN * done + start - count + 1, count - 1, missing[:done]))
    _, start, again = min(costs, key=lambda option: option[0])
    return start, again
