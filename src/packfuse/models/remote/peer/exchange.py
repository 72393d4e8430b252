"""Requests to the server of a member, in their order, with what happened to the sessions."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import httpx

from packfuse.models.remote.client import Client
from packfuse.models.remote.peer.outbox import Outbox
from packfuse.models.remote.peer.peer_row import PeerRow
from packfuse.models.remote.peer.wire import (
    CONTENT_TYPE,
    READ,
    VERSION,
    Answer,
    ReadHeader,
    Request,
    answers,
)

_LONGEST = 2**30
"""Most bytes of a message; a server sends blocks of 32 MB."""
_SUBSETS = 8
"""Most subsets of which the server is taken to know the tokens."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a server is asked to send of a distribution.

    Attributes:
        dtype: Type of the log-probabilities.
        candidates: Most tokens that are named at a place; None for all.
    """

    dtype: Literal["float32", "float16"] = "float32"
    candidates: int | None = None


class Exchange:
    """Requests of one member to its server.

    Attributes:
        client: The connection.
        outbox: What happened to the sessions, until it is sent.
    """

    def __init__(self, client: Client, state: str, transfer: Transfer) -> None:
        """Nothing is sent yet.

        Args:
            client: The connection.
            state: What the member is expected to be.
            transfer: What the server is asked to send.
        """
        self.client, self._state, self._transfer = client, state, transfer
        self.outbox = Outbox()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._flushing = False

    def renew(self) -> None:
        """Begin anew in a forked child, in which the thread of the outbox does not exist."""
        self.outbox.renew()
        self._known.clear()
        self._flushing = False

    def forget(self, digests: Iterable[str]) -> None:
        """Send the tokens of these subsets again."""
        for digest in digests:
            self._known.pop(digest, None)

    @contextmanager
    def ask(self, rows: Sequence[PeerRow], pause: int | None) -> Iterator[Iterator[Answer]]:
        """The answer to a request. The server ends its work as soon as the context ends.

        Args:
            rows: The sequences.
            pause: Most tokens that are read without a message.

        Raises:
            ServerError: if the server cannot be reached, refuses, or ends in the middle.
            WireError: for an answer that is none.
        """
        with self.outbox.lock:
            self._start_thread()
            header = ReadHeader(
                version=VERSION,
                client=self.outbox.client,
                state=self._state,
                operations=self.outbox.take(),
                rows=[row.header for row in rows],
                pause=pause,
                dtype=self._transfer.dtype,
                candidates=self._transfer.candidates,
            )
            new = {row.digest: row.subset.ids for row in rows if row.digest and row.subset}
            new = {digest: ids for digest, ids in new.items() if digest not in self._known}
            ids, counts = [row.ids for row in rows], [row.counts for row in rows]
            opened = _open(self.client, self.outbox, Request(header, ids, counts, new))
        try:
            yield answers(self.client.parts(READ, opened), _LONGEST)
        finally:
            opened.close()
        for row in rows:
            if row.digest:
                self._known[row.digest] = None
                self._known.move_to_end(row.digest)
        while len(self._known) > _SUBSETS:
            self._known.popitem(last=False)

    def _start_thread(self) -> None:
        if not self._flushing:
            self._flushing = True
            # The thread must not hold this object, whose end is its own.
            send = partial(_flush, self.client, self.outbox, self._state)
            self.outbox.flush_by(send, f"packfuse-ends-{self.client.name}")
            weakref.finalize(self, self.outbox.close).atexit = False


def _open(client: Client, outbox: Outbox, request: Request) -> httpx.Response:
    """Send a request; what happened to sessions is kept if the server may not have got it."""
    try:
        return client.open(READ, request.encode(), CONTENT_TYPE)
    except BaseException:
        outbox.restore(request.header.operations)
        raise


def _flush(client: Client, outbox: Outbox, state: str) -> None:
    """Tell the server which sessions have ended."""
    with outbox.lock:
        operations = outbox.take()
        if not operations:
            return
        header = ReadHeader(
            version=VERSION, client=outbox.client, state=state, operations=operations
        )
        try:
            opened = _open(client, outbox, Request(header))
            try:
                for _ in client.parts(READ, opened):
                    pass
            finally:
                opened.close()
        except RuntimeError:
            # The server does not answer, or the interpreter ends and has closed the connection.
            # What happened travels with the next read, or the sessions end with their lease.
            return
