"""What happens to the sessions that a server keeps, until it is sent there."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from queue import SimpleQueue
from uuid import uuid4

from packfuse.models.remote.peer.wire import Operation
from packfuse.models.remote.rows import Named

_DELAY = 0.5
"""Time for which the end of a session waits for a read to travel with, in seconds."""

_MOST = 1000
"""Most operations that wait for a server that does not answer; the rest is left to the lease."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class PeerState:
    """A session of a server.

    Attributes:
        number: Its number there.
        client: Whose number it is.
        known: Whether the server has it, as far as is known here.
        named: What the server named, where it does not name all tokens.
    """

    number: int
    client: str
    known: bool = False
    named: Named = field(default_factory=Named)


@dataclass(slots=True, weakref_slot=True)
class Outbox:
    """Forks and ends of sessions, which travel with the next read, in their order.

    The ends of the last sessions travel by themselves, in a thread.

    Attributes:
        client: The name under which the server keeps the sessions; another one in a forked child.
        lock: Held from `take` until the server has what was taken, so that the order is kept.
    """

    client: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _operations: deque[Operation] = field(default_factory=deque)
    _ended: SimpleQueue[bool] = field(default_factory=SimpleQueue)
    _numbers: count[int] = field(default_factory=count)
    _process: int = 0

    def __post_init__(self) -> None:
        """See the class."""
        self.renew()

    def renew(self) -> None:
        """Begin anew, as a forked child does: the sessions of its parent are not its own."""
        self.client, self._process = uuid4().hex, os.getpid()
        self.lock, self._operations, self._ended = threading.Lock(), deque(), SimpleQueue()

    def state(self) -> PeerState:
        """A session that the server does not have."""
        made = PeerState(next(self._numbers), self.client)
        # The queue and the deque may be used wherever the garbage collector runs; a lock may not.
        weakref.finalize(made, _end, self._operations, self._ended, made.number).atexit = False
        return made

    def copy(self, state: PeerState, kind: str, length: int) -> PeerState:
        """A copy of a session, or of its first tokens; see `Operation` for its kinds."""
        made = self.state()
        made.named = replace(state.named)
        if state.known and state.client == self.client:
            keep = kind == "keep"
            self._operations.append(("keep" if keep else "fork", made.number, state.number, length))
            made.known = True
        return made

    def take(self) -> list[Operation]:
        """What happened since this was called last."""
        taken = []
        while self._operations:
            taken.append(self._operations.popleft())
        return taken

    def restore(self, operations: Sequence[Operation]) -> None:
        """Put back what the server may not have got; it may get it twice."""
        self._operations.extendleft(reversed(operations[-_MOST:]))

    def flush_by(self, send: Callable[[], object], name: str) -> None:
        """Start the thread, in which `send` is called some time after sessions have ended.

        It ends with `close`. The thread holds what `send` refers to until then.
        """
        own = (self._ended, send)
        threading.Thread(target=_flush, args=own, name=name, daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._ended.put(False)


def _end(operations: deque[Operation], ended: SimpleQueue[bool], number: int) -> None:
    operations.append(("drop", number, 0, 0))
    ended.put(True)


def _flush(ended: SimpleQueue[bool], send: Callable[[], object]) -> None:
    going = True
    while going:
        going = ended.get()
        time.sleep(_DELAY)
        while going and not ended.empty():
            going = ended.get()
        send()
