"""The member of a server: what it is, its sessions, and the thread that computes."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import xxhash

from packfuse import __version__
from packfuse.models.member import Member
from packfuse.models.remote.peer.wire import VERSION, MemberCard, Request
from packfuse.models.vocab_subset import VocabSubset
from packfuse.server.member.sessions import Sessions
from packfuse.server.member.worker import Job, Worker

T = TypeVar("T")

_SUBSETS = 64
"""Most subsets of the vocabulary that are kept for clients."""


class Host:
    """A member that clients read.

    Attributes:
        member: The member. Only the worker's thread uses it.
        sessions: The clients' sessions. Only the worker's thread uses them.
        subsets: Subsets of the vocabulary by their digest.
        worker: The thread.
        state: Digest of what the member's distributions depend on.
    """

    def __init__(self, member: Member, lease: float, max_bytes: int) -> None:
        """Wrap a member, which no other code may use from now on; `worker.start` begins.

        Args:
            member: The member.
            lease: See `Sessions`, as for `max_bytes`.
            max_bytes: Most bytes of all sessions.
        """
        self.member, self._lease = member, lease
        self.sessions = Sessions(member, lease, max_bytes)
        self.subsets: OrderedDict[str, VocabSubset] = OrderedDict()
        self.worker = Worker(self.sessions.end_expired)
        self.state = self._state()

    def _state(self) -> str:
        known = [self.member.quick_digest(), self.member.vocabulary.fingerprint]
        return xxhash.xxh3_128_hexdigest(repr(known).encode())

    def learn(self, request: Request) -> list[str]:
        """Keep the subsets of a request; the digests of those that are needed and not known."""
        for name, ids in request.subsets.items():
            self.subsets[name] = VocabSubset(ids, self.member.vocabulary.columns)
        needed = list(dict.fromkeys(row.subset for row in request.header.rows if row.subset))
        for name in needed:
            if name in self.subsets:
                self.subsets.move_to_end(name)
        while len(self.subsets) > max(_SUBSETS, len(needed)):
            self.subsets.popitem(last=False)
        return [name for name in needed if name not in self.subsets]

    def card(self) -> Future[MemberCard]:
        """What the server says of its member, which is looked at again."""
        return self._soon(self._card)

    def _card(self) -> MemberCard:
        member, facts, vocabulary = self.member, self.member.facts, self.member.vocabulary
        before = member.state
        member.refresh()
        if member.state != before:
            self.sessions.clear()
            self.state = self._state()
        return MemberCard(
            protocol=VERSION,
            packfuse=__version__,
            model=facts.source,
            state=self.state,
            vocabulary=vocabulary.fingerprint,
            columns=vocabulary.columns,
            end_ids=vocabulary.end_ids,
            context_window=member.context_window,
            dtype=facts.dtype,
            parameters=facts.parameters,
            lease=self._lease,
            clients=self.sessions.clients,
            sessions=len(self.sessions),
            cache_bytes=self.sessions.nbytes,
        )

    def digest(self) -> Future[str]:
        """Digest of all that the member's distributions depend on."""
        return self._soon(self.member.digest)

    def tokenizer_files(self) -> dict[str, str]:
        """The files of the tokenizer, without code."""
        with self.member.vocabulary.lock, tempfile.TemporaryDirectory() as folder:
            self.member.tokenizer.save_pretrained(folder)
            paths = [path for path in Path(folder).rglob("*") if path.suffix in (".json", ".jinja")]
            return {
                path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
                for path in paths
            }

    def _soon(self, act: Callable[[], T]) -> Future[T]:
        """The result of something that is done in the worker's thread."""
        found: Future[T] = Future()

        def run() -> None:
            try:
                found.set_result(act())
            except BaseException as error:
                found.set_exception(error)

        self.worker.submit(Job("", 0, run))
        return found
