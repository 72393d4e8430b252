"""Takes messages from the thread that computes to the connection of a client."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError

_AHEAD = 4
"""Most messages that wait for a client while its prompt is read; about 32 MB each."""

_SLOW_SECONDS = 10.0
"""How long the member, and so all other clients, waits for a client that reads its messages too
slowly."""


class Channel:
    """The messages for one answer.

    Attributes:
        left: Set when the client has left.
    """

    def __init__(self) -> None:
        """Made in the event loop of the connection."""
        self._loop = asyncio.get_running_loop()
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)
        self.left = threading.Event()

    def check(self) -> None:
        """End the work for a client that has left.

        Raises:
            CancelledError: if it has.
        """
        if self.left.is_set():
            raise CancelledError

    def send(self, *messages: bytes) -> None:
        """Send messages; wait while too many are on their way.

        Raises:
            CancelledError: if the client has left, or is too slow.
        """
        self.check()
        if not self._room.acquire(timeout=_SLOW_SECONDS):
            self.left.set()
            raise CancelledError
        self.check()
        self._put(b"".join(messages))

    def end(self, *messages: bytes) -> None:
        """Send the last messages."""
        self._put(b"".join(messages))
        self._put(None)

    def _put(self, message: bytes | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._messages.put_nowait, message)

    async def next(self) -> bytes | None:
        """The next messages; None after the last ones. Called in the event loop."""
        found = await self._messages.get()
        self._room.release()
        return found

    def leave(self) -> None:
        """The client has left."""
        self.left.set()
        self._room.release()
