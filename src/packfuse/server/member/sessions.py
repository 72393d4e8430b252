"""The sessions of all clients, which end with their client's lease or when memory is short."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from packfuse.models.member import Member, Session
from packfuse.models.remote.peer.wire import Operation, RowHeader, prefix_digest

Key = tuple[str, int]
"""Client and number of a session."""

_GROWTH = 1.1
"""The memory of a session is measured again when it has so many times as many tokens."""


@dataclass(slots=True)
class _Held:
    """A session, and its memory in bytes when it had `tokens` tokens."""

    session: Session
    nbytes: int = 0
    tokens: int = 0


class Sessions:
    """The sessions of all clients. A client that needs one that has ended reads it again."""

    def __init__(
        self,
        member: Member,
        lease: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No client has sessions yet.

        Args:
            member: The member.
            lease: Time after which a client that sends nothing loses its sessions, in seconds.
            max_bytes: Most bytes of all sessions; those that were not used for longest end first.
                What sessions share counts for each of them.
            clock: The time, in seconds.
        """
        self._member, self._lease, self._max_bytes, self._clock = member, lease, max_bytes, clock
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._until: dict[str, float] = {}

    def __len__(self) -> int:
        """Number of sessions."""
        return len(self._held)

    @property
    def clients(self) -> int:
        """Number of clients that have sessions."""
        return len({client for client, _ in self._held})

    @property
    def nbytes(self) -> int:
        """Memory of the sessions."""
        return sum(held.nbytes for held in self._held.values())

    def apply(self, client: str, operations: Iterable[Operation]) -> None:
        """Do what a client did with its sessions, and renew its lease.

        A session that has ended, or that is longer than it was, is found out when it is read.
        """
        self._until[client] = self._clock() + self._lease
        for kind, number, source, length in operations:
            held = self._held.get((client, source))
            if kind == "drop":
                self._held.pop((client, number), None)
            elif held is None:
                continue
            elif kind == "fork":
                self._held[client, number] = _Held(self._member.fork(held.session))
            else:
                self._held[client, number] = _Held(self._member.keep(held.session, length))

    def has(self, client: str, row: RowHeader) -> bool:
        """Whether a row's session is here, with the tokens that the client expects."""
        held = self._held.get((client, row.session))
        if held is None or not row.start:
            return not row.start
        ids = held.session.ids
        return len(ids) >= row.start and prefix_digest(ids[: row.start]) == row.prefix

    def cut(self, client: str, row: RowHeader) -> tuple[Session, list[int]]:
        """A row's session, cut to where it is read on.

        Returns:
            The session, and the tokens that it has lost besides, as recurrent members do.
        """
        key = client, row.session
        if key not in self._held:
            self._held[key] = _Held(self._member.open())
        self._held.move_to_end(key)
        session = self._held[key].session
        before = session.ids[: row.start]
        self._member.rollback(session, row.start)
        return session, before[session.length :]

    def end(self, client: str, numbers: Iterable[int]) -> None:
        """End sessions."""
        for number in numbers:
            self._held.pop((client, number), None)

    def measure(self, client: str, used: Collection[int]) -> None:
        """Look how large sessions have become; end others where all are too large together."""
        for number in used:
            held = self._held.get((client, number))
            if held is None:
                continue  # it was ended in a pause
            length = held.session.length
            if not held.tokens <= length <= _GROWTH * held.tokens:
                held.nbytes, held.tokens = self._member.nbytes(held.session), length
        total, kept = self.nbytes, {(client, number) for number in used}
        for key in list(self._held):
            if total <= self._max_bytes:
                return
            if key not in kept:
                total -= self._held.pop(key).nbytes

    def end_expired(self) -> None:
        """End the sessions of clients that sent nothing for the time of their lease."""
        now = self._clock()
        lost = {client for client, until in self._until.items() if until < now}
        for client in lost:
            del self._until[client]
        for key in [key for key in self._held if key[0] in lost]:
            del self._held[key]

    def clear(self) -> None:
        """End all sessions."""
        self._held.clear()
