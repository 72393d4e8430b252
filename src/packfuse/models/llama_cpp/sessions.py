"""Which session has which sequence of a context, and who gives way when there is no room."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from weakref import WeakValueDictionary

import psutil
from torch import Tensor

from packfuse.errors import LoadError
from packfuse.models.llama_cpp.context import LlamaContext, NoRoomError, Part
from packfuse.models.member import Session
from packfuse.process import on_fork

BLOCK = 512
"""Most tokens of a sequence that is read again in one batch."""

FREE_SHARE = 0.5
"""Largest share of the free memory for cells, while sessions can give way instead."""


class Slot:
    """The place of a session in a context: its `Session.state`.

    A session without a sequence has its ids alone, and is read again when it is needed.

    Attributes:
        sequence: Number of its sequence; None if it has none.
        used: When it was used last; larger is later.
    """

    __slots__ = ("__weakref__", "_dropped", "sequence", "used")

    def __init__(self, dropped: deque[int]) -> None:
        """A place without a sequence.

        Args:
            dropped: Gets the number of the sequence when the session is no more. Any thread may
                drop a session, so the sequence is freed later, where the context is used.
        """
        self.sequence: int | None = None
        self.used = 0
        self._dropped = dropped

    def __del__(self) -> None:
        if self.sequence is not None:
            self._dropped.append(self.sequence)


@dataclass(frozen=True, slots=True)
class Work:
    """New tokens of a session, and after which of them logits are wanted."""

    session: Session
    ids: Sequence[int]
    positions: Sequence[int]


class LlamaSessions:
    """The sessions of a model. The least recently used ones give way where there is no room.

    Attributes:
        context: The keys and values.
        lock: Held while the context is used, and while its logits are.
        most_cells: Number of cells up to which the context grows.
    """

    def __init__(self, context: LlamaContext, most_cells: int) -> None:
        """No sessions yet.

        Args:
            context: The context, with no sequences.
            most_cells: Number of cells up to which it grows.
        """
        self.context, self.most_cells = context, most_cells
        self._free = list(range(context.sequences))
        self._dropped: deque[int] = deque()
        self._slots: WeakValueDictionary[int, Slot] = WeakValueDictionary()
        self._clock = count(1)
        self._renew_lock()
        on_fork(self._renew_lock)

    def _renew_lock(self) -> None:
        """A new lock; also in a forked child, where the thread that holds it may not exist."""
        self.lock = threading.RLock()

    @property
    def live(self) -> int:
        """Number of sequences that sessions have."""
        return self.context.sequences - len(self._free) - len(self._dropped)

    def open(self) -> Session:
        """A session that has read nothing."""
        return Session(state=Slot(self._dropped))

    def decode(self, work: Sequence[Work]) -> Tensor:
        """Read new tokens; sessions that have given way are read again before.

        The sessions' ids are left as they are. The caller holds the lock as long as it uses the
        logits.

        Returns:
            See `LlamaContext.decode`.

        Raises:
            NoRoomError: if these sessions together do not fit; none has read anything then.
            MemberError: if the computation fails.
        """
        slots: list[Slot] = [one.session.state for one in work]
        for one in work:
            self._restore(one.session, slots)
        parts = [
            Part(self._sequence(slot), one.session.length, one.ids, one.positions)
            for one, slot in zip(work, slots, strict=True)
        ]
        return self._decode(parts, slots)

    def _restore(self, session: Session, busy: Sequence[Slot]) -> None:
        """Give a session a sequence with its tokens, if it has none."""
        slot: Slot = session.state
        slot.used = next(self._clock)
        if slot.sequence is not None:
            return
        self._take(slot, busy)
        try:
            for start in range(0, session.length, BLOCK):
                ids = session.ids[start : start + BLOCK]
                self._decode([Part(self._sequence(slot), start, ids)], busy)
        except BaseException:
            self.drop(session)
            raise

    def _decode(self, parts: Sequence[Part], busy: Collection[Slot]) -> Tensor:
        self._free_dropped()
        while True:
            try:
                return self.context.decode(parts)
            except NoRoomError:
                if not (self._grow(FREE_SHARE) or self._evict(busy) or self._grow(1.0)):
                    raise

    def _sequence(self, slot: Slot) -> int:
        if slot.sequence is None:
            raise LookupError("the session has no sequence")
        return slot.sequence

    def _take(self, slot: Slot, busy: Collection[Slot]) -> None:
        """Give a slot an empty sequence.

        Raises:
            NoRoomError: if all sequences are of busy slots.
        """
        self._free_dropped()
        if not self._free and not self._evict(busy):
            raise NoRoomError(f"more than {self.context.sequences} sequences at once")
        slot.sequence = self._free.pop()
        self._slots[slot.sequence] = slot

    def _free_dropped(self) -> None:
        """Free the sequences of sessions that are no more."""
        while self._dropped:
            self._clear(self._dropped.popleft())

    def _clear(self, sequence: int) -> None:
        self.context.remove(sequence)
        self._free.append(sequence)

    def _evict(self, busy: Collection[Slot]) -> bool:
        """Take its sequence from the session that was used longest ago; False if there is none."""
        idle = [slot for slot in self._slots.values() if slot not in busy]
        oldest = min(idle, key=lambda slot: slot.used, default=None)
        if oldest is None:
            return False
        self._release(oldest)
        return True

    def _release(self, slot: Slot) -> None:
        if slot.sequence is not None:
            del self._slots[slot.sequence]
            self._clear(slot.sequence)
            slot.sequence = None

    def _grow(self, share: float) -> bool:
        """Twice the cells, if there is memory.

        Args:
            share: Largest share of the free memory that they may take, with the copy meanwhile.
        """
        cells = min(2 * self.context.cells, self.most_cells)
        if cells <= self.context.cells:
            return False
        # Cells run out when they are full, so the state is as large as they are.
        needed = self.context.state_bytes * (cells / self.context.cells + 1)
        if needed > share * psutil.virtual_memory().available:
            return False
        try:
            self.context.grow(cells)
        except LoadError:  # a GPU has no more
            return False
        return True

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`. With recurrent states, the rest is read again when needed."""
        if length >= session.length:
            return
        slot: Slot = session.state
        with self.lock:
            if slot.sequence is not None and not self.context.remove(slot.sequence, length):
                self._release(slot)
        del session.ids[length:]

    def fork(self, session: Session) -> Session:
        """See `Member.fork`: the tokens are shared, not copied."""
        slot: Slot = session.state
        twin = self.open()
        twin.ids = list(session.ids)
        twin.observed, twin.pruned_mass = session.observed, session.pruned_mass
        with self.lock:
            slot.used = next(self._clock)
            twin.state.used = next(self._clock)
            if slot.sequence is not None:
                self._take(twin.state, [slot])
                self.context.copy(slot.sequence, twin.state.sequence)
        return twin

    def drop(self, session: Session) -> None:
        """Take its sequence from a session."""
        with self.lock:
            self._release(session.state)

    def nbytes(self, session: Session) -> int:
        """See `Member.nbytes`."""
        slot: Slot = session.state
        with self.lock:
            held = 0 if slot.sequence is None else self.context.nbytes(slot.sequence)
        return held + 8 * session.length
