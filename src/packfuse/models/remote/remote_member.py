"""A member whose model runs in a server."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace

import torch
import xxhash
from torch import Tensor

from packfuse.errors import ServerError
from packfuse.models.member import Member, MemberFacts, NamedFacts, Read, Session
from packfuse.models.remote.client import MAX_CONNECTIONS
from packfuse.models.remote.protocols import Candidates, Protocol
from packfuse.models.remote.rows import FEW, Named, NonsenseError, row
from packfuse.process import on_fork
from packfuse.text.vocabulary import Vocabulary

CANDIDATES = 256
"""Default number of tokens that a server is asked for at a place."""

MAX_SCORED_PLACES = 128
"""Most places of a prompt that are scored by a server that scores one place a request."""

_WAIT_SECONDS = 0.02
"""How long a prompt's requests are waited for before other answers get a step."""

_SHORT, _LONG, _MISSES = 8, 256, 3
"""Steps of at most 8 tokens after at least 256 are watched; three in a row without the server's
prefix cache are worth a warning."""


class RemoteMember(Member):
    """A member whose model runs in a server. A session is its token ids, and nothing else.

    The server's own prefix cache makes it fast: each step sends the whole sequence, of which the
    server has read all but the last tokens.

    Attributes:
        protocol: The server.
        candidates: Most tokens that it is asked for at a place.
    """

    elsewhere = True

    def __init__(
        self, name: str, protocol: Protocol, vocabulary: Vocabulary, candidates: int = CANDIDATES
    ) -> None:
        """Wrap a server that has been probed.

        Args:
            name: The member's name.
            protocol: The server.
            vocabulary: Its tokenizer.
            candidates: Most tokens that it is asked for at a place.
        """
        facts = protocol.facts
        self.name, self.protocol, self.vocabulary = name, protocol, vocabulary
        self.context_window = facts.context_window - 1  # a server predicts a token, in its window
        limits = (candidates, facts.max_candidates, vocabulary.size)
        self.candidates = min(limit for limit in limits if limit is not None)
        self.max_scored_places = None if protocol.scores_prompts else MAX_SCORED_PLACES
        self.names_few = self.candidates < min(FEW, vocabulary.size)
        self.state = self.quick_digest()
        self._misses = 0
        self._renew()
        on_fork(self._renew)

    def _renew(self) -> None:
        """New threads; also in a forked child, where the old ones do not exist."""
        self._threads = ThreadPoolExecutor(MAX_CONNECTIONS, f"packfuse-{self.name}")

    @property
    def device(self) -> torch.device:
        """See `Member.device`; its distributions are made on the processor."""
        return torch.device("cpu")

    @property
    def facts(self) -> MemberFacts:
        """See `Member.facts`."""
        facts = self.protocol.facts
        return MemberFacts(f"{self.protocol.client.url} ({facts.model})", "", facts.parameters)

    @property
    def api(self) -> str:
        """What settings call the kind of server."""
        return self.protocol.api

    @property
    def model_name(self) -> str:
        """What the server calls its model."""
        return self.protocol.facts.model

    @property
    def named_tokens(self) -> int | None:
        """Most tokens that the server names at a place; None for all."""
        return self.candidates if self.candidates < self.vocabulary.size else None

    def digest(self) -> str:
        """See `Member.digest`. A server says its model's name and size, and not its weights."""
        return self.quick_digest()

    def quick_digest(self) -> str:
        """See `Member.quick_digest`."""
        parts = [self.protocol.api, self.protocol.client.url, self.protocol.facts, self.candidates]
        return xxhash.xxh3_128_hexdigest(repr(parts).encode())

    def renamed(self, name: str) -> RemoteMember:
        """See `Member.renamed`."""
        return RemoteMember(name, self.protocol.renamed(name), self.vocabulary, self.candidates)

    def refresh(self) -> None:
        """See `Member.refresh`: ask the server whether it still has the same model."""
        before = self.protocol.facts
        with self._understood():
            same = self.protocol.probe()
        if not same:
            raise self._error(f"it is no server of {self.protocol.api} any more")
        if self.protocol.facts != before:
            now = self.protocol.facts
            self.protocol.facts = before
            raise self._error(
                f"it has another model than when it joined: {now.model!r}", "load the pack again"
            )

    def named(self, session: Session) -> NamedFacts | None:
        """See `Member.named`."""
        state: Named = session.state
        return state.facts(self.named_tokens)

    def open(self) -> Session:
        """See `Member.open`."""
        return Session(state=Named())

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """See `Member.read`. All requests are sent at once, the places of each one in turn."""
        self.check_context_window(requests)
        needed = [_counts(request) for request in requests]
        futures = [
            self._threads.submit(self._named, [*request.session.ids, *request.ids], counts)
            for request, counts in zip(requests, needed, strict=True)
        ]
        pause = next((request.pause for request in requests if request.pause), None)
        while pause and wait(futures, timeout=_WAIT_SECONDS).not_done:
            pause.call()
        wait(futures)
        found = [future.result() for future in futures]
        # All answers are checked before the first session is advanced.
        rows = [[self._row(one) for one in own] for own in found]
        self._watch(requests, found)
        return [self._take(*each) for each in zip(requests, needed, rows, strict=True)]

    def _watch(self, requests: Sequence[Read], found: Sequence[Sequence[Candidates]]) -> None:
        """Warn once if the server reads whole sequences again and again."""
        for request, own in zip(requests, found, strict=True):
            total, cached = request.session.length + len(request.ids), own[-1].cached
            watched = len(request.ids) <= _SHORT and total >= _LONG and self._misses < _MISSES
            if not watched or cached is None:
                continue
            self._misses = self._misses + 1 if cached < total // 2 else 0
            if self._misses == _MISSES:
                warnings.warn(
                    f"member {self.name!r}: the server had {cached} of {total} tokens in its KV "
                    "cache, and reads the rest at each step; give it a larger cache or more slots",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def _take(
        self, request: Read, counts: list[int], found: Sequence[tuple[Tensor, float]]
    ) -> Tensor:
        """Advance a session by what the server named at these counts; what the request returns."""
        callback, session = request.callback, request.session
        logps = torch.stack([row for row, _ in found])
        if callback is not None:
            wanted = [index for index, count in enumerate(counts) if callback.wants(count)]
            request.notify([counts[index] for index in wanted], logps[wanted])
        state: Named = session.state
        state.add(found)
        session.ids.extend(request.ids)
        kept = logps[-request.keep :]
        subset = None if callback else request.active_subset
        return kept if subset is None else subset.restrict(kept)

    def _named(self, ids: list[int], counts: list[int]) -> list[Candidates]:
        with self._understood():
            if counts[1:] and self.protocol.scores_prompts:
                return self.protocol.scores(ids, counts, self.candidates)
            return [self.protocol.read(ids[:count], self.candidates) for count in counts]

    def _row(self, candidates: Candidates) -> tuple[Tensor, float]:
        with self._understood():
            return row(candidates, self.vocabulary.columns, self.vocabulary.size)

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Turn what an answer of another form raises into an error of the server."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            problem = error.message if isinstance(error, NonsenseError) else repr(error)
            raise self._error(
                f"its answer is none of {self.protocol.api}'s: {problem}",
                f"is it a {self.protocol.api} server?",
            ) from error

    def _error(self, problem: str, hint: str = "") -> ServerError:
        return self.protocol.client.error(problem, hint)

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`."""
        del session.ids[length:]

    def fork(self, session: Session) -> Session:
        """See `Member.fork`."""
        return replace(session, ids=list(session.ids), state=replace(session.state))

    def keep(self, session: Session, length: int) -> Session:
        """See `Member.keep`."""
        kept = self.fork(session)
        self.rollback(kept, length)
        return kept

    def nbytes(self, session: Session) -> int:
        """See `Member.nbytes`: the server keeps the rest."""
        return 8 * session.length


def _counts(request: Read) -> list[int]:
    """The counts of tokens after which a request needs distributions, ascending."""
    start, end = request.session.length, request.session.length + len(request.ids)
    callback, first = request.callback, end - request.keep + 1
    return [
        count
        for count in range(start + 1, end + 1)
        if count >= first or (callback is not None and callback.wants(count))
    ]
