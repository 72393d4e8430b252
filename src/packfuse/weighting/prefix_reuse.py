"""What earlier prompts spare the members of a new one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from packfuse.alignment.base import Same
from packfuse.fusion.engine import Engine
from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Member, Read, ReadCallback, Session
from packfuse.weighting.methods.base import Weights
from packfuse.weighting.prefix_cache import FitKey, FitScore, Ids, PrefixCache, PrefixEntry
from packfuse.weighting.prompt_scores import PromptScores

_STEP = 8
"""How many tokens of a prompt are read in the time of one token on its own, about."""


class PrefixReuse:
    """One prompt's dealings with the prefix cache.

    Members stand in their own tokens, so each takes over what it has in common with some kept
    prompt. What the scoring needs comes along, also for tokens that have to be read again because
    their keys and values were too large to keep: log-probabilities, and the scores at fitting
    positions, which depend on the reference and the alignment. Where such scores are missing, the
    single token before them is read again, or all that follows. Full-vocabulary scores
    (`candidates=None`) are not kept: too large.

    Attributes:
        cached: By member, how many of its tokens were taken over.
    """

    def __init__(
        self, cache: PrefixCache, engine: Engine, row: PackSequence, scoring: PromptScores | None
    ) -> None:
        """Look a fed row up, and tell the scoring what is known already."""
        self.cache, self.engine, self.row, self.scoring = cache, engine, row, scoring
        self.cached: tuple[int, ...] = tuple(0 for _ in engine.members)
        read = (reader.ids(row.text_ids, row.text) for reader in row.streams if reader)
        self._ids: list[Ids] = [np.array(ids, dtype=np.int64) for ids in read]
        matches = cache.match(self._ids)
        self._best = [_furthest(matches, k) for k in range(len(self._ids))]
        self._logps = [self._known(matches, k) for k in range(len(self._ids))]
        self._scores: dict[FitKey, FitScore] = {}
        for kept, shared in matches:
            self._scores.update(kept.within(shared))
        if scoring is not None:
            scoring.fits.remember(self._scores)
            for k, side in enumerate(scoring.members):
                known = self._logps[k].get(self._view(k, scoring), side.logps)
                reach = min(len(known), len(side.logps))
                side.logps[:reach] = known[:reach]

    def begin(self, callbacks: Sequence[ReadCallback | None]) -> None:
        """Put the row's sessions where the members have to read on."""
        cached = []
        for k, (member, reader) in enumerate(
            zip(self.engine.members, self.row.streams, strict=True)
        ):
            kept, shared = self._best[k]
            start, again = self._plan(k, shared)
            if kept is not None and reader is not None and start > 0:
                self.cache.touch(kept)
                reader.session = self._take(k, member, kept.sessions[k], start, again, callbacks[k])
            cached.append(min(reader.session.length, len(self._ids[k]) - 1) if reader else 0)
        self.cached = tuple(cached)

    def keep(self) -> None:
        """Keep the prompt, which every member has read."""
        sessions = [
            member.fork(reader.session)
            for member, reader in zip(self.engine.members, self.row.streams, strict=True)
            if reader is not None
        ]
        logps, scores = self._logps, self._scores
        if (scoring := self.scoring) is not None:
            for k, side in enumerate(scoring.members):
                logps[k] = {**logps[k], self._view(k, scoring): side.logps.copy()}
            if scoring.limits.candidates is not None:
                scores = {**scores, **scoring.fits.parts}
        self.cache.add(PrefixEntry(self._ids, sessions, logps, scores))

    def _known(
        self, matches: Sequence[tuple[PrefixEntry, tuple[int, ...]]], k: int
    ) -> dict[Hashable, Weights]:
        """Log-probabilities of member k's tokens, NaN where unknown."""
        reader = self.row.streams[k]
        columns = reader.subset if reader else None
        found: dict[Hashable, Weights] = {}
        for kept, shared in matches:
            reach = shared[k]
            if columns is not None and not columns.exact:
                # How much its columns miss is seen where it reads.
                reach = min(reach, kept.sessions[k].length)
            for how, table in kept.logps[k].items():
                known = found.setdefault(how, np.full(len(self._ids[k]), np.nan))[:reach]
                np.copyto(known, table[:reach], where=np.isnan(known))
        return found

    def _view(self, k: int, scoring: PromptScores) -> Hashable:
        """Under which name log-probabilities of member k are kept."""
        own = scoring.mapped[k] is None or isinstance(scoring.mapped[k], Same)
        return None if own else (self.engine.view.reference, self.engine.view.alignment)

    def _plan(self, k: int, shared: int) -> tuple[int, list[int]]:
        """How many tokens member k need not read, and after which of them it is asked again."""
        if self.scoring is None or not shared:
            return shared, []
        # A token's log-probability is heard when the one before it is read.
        start = min(shared, min(self.scoring.unscored(k), default=shared + 1) - 1)
        asked = sorted(count for count in self.scoring.fits.wanted[k] if count <= start)
        return _cheapest(start, asked)

    def _take(
        self,
        k: int,
        member: Member,
        kept: Session,
        start: int,
        again: list[int],
        callback: ReadCallback | None,
    ) -> Session:
        """Member k's session at `start` or before, with what is asked `again` heard."""
        session = member.fork(kept)
        member.rollback(session, start)
        for count in again:
            side = member.fork(session)
            member.rollback(side, count - 1)
            if side.length < count - 1:
                # It cannot stand just anywhere: it reads on from here.
                return side
            member.read([Read(side, [int(self._ids[k][count - 1])], 1, callback)])
        return session


def _furthest(
    matches: Sequence[tuple[PrefixEntry, tuple[int, ...]]], k: int
) -> tuple[PrefixEntry | None, int]:
    """The kept prompt whose keys and values serve member k longest, and how long."""
    found = [(kept, min(shared[k], kept.sessions[k].length)) for kept, shared in matches]
    return max(found, key=lambda match: match[1], default=(None, 0))


def _cheapest(start: int, asked: list[int]) -> tuple[int, list[int]]:
    """Where to read on from, and which of the counts `asked` before that to read one by one."""
    costs: list[tuple[int, Any, list[int]]] = [(_STEP * len(asked), start, asked)]
    for done, count in enumerate(asked):
        costs.append((_STEP * done + start - count + 1, count - 1, asked[:done]))
    _, start, again = min(costs, key=lambda option: option[0])
    return start, again
