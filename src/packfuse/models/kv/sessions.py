"""Sessions with KV caches in this process: rolled back, forked and kept without a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from packfuse.models.kv.store import RowCache, has_states
from packfuse.models.member import Member, Session

_SNAPSHOTS = 4


@dataclass(slots=True)
class _SessionState:
    """The KV cache of a session, and snapshots of its recurrent states by number of tokens."""

    row_cache: RowCache
    snapshots: list[tuple[int, list[Any]]] = field(default_factory=list)


class KVSessions(Member):
    """A member whose sessions have KV caches in this process."""

    _empty_cache: Any

    def open(self) -> Session:
        """See `Member.open`."""
        return Session(state=_SessionState(RowCache(self._empty_cache)))

    def reset(self, session: Session) -> None:
        """Forget all that a session has read, in place."""
        session.ids, session.state, session.unchecked = [], self.open().state, None

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`. Recurrent states are restored from a snapshot."""
        if length >= session.length:
            return
        state: _SessionState = session.state
        saved: list[Any] = []
        if has_states(self._empty_cache):
            state.snapshots = [entry for entry in state.snapshots if entry[0] <= length]
            length, saved = state.snapshots[-1] if state.snapshots else (0, saved)
        if length <= 0:
            self.reset(session)
            return
        if saved:
            state.row_cache.restore(saved)
        state.row_cache.cut(length)
        del session.ids[length:]

    def fork(self, session: Session) -> Session:
        """See `Member.fork`. Keys and values are shared, states are copied."""
        state: _SessionState = session.state
        fresh = _SessionState(state.row_cache.fork(), list(state.snapshots))
        return replace(
            session, ids=list(session.ids), state=fresh, log_normalizers=None, unchecked=None
        )

    def keep(self, session: Session, length: int) -> Session:
        """See `Member.keep`."""
        kept = self.fork(session)
        if length < session.length:
            self.rollback(kept, length)
            kept.state.row_cache.detach()
        return kept

    def nbytes(self, session: Session) -> int:
        """See `Member.nbytes`. A tensor of which a view is kept counts in full, and once."""
        state: _SessionState = session.state
        layers = [layer for _, saved in state.snapshots for layer in saved]
        stores = (tensor.untyped_storage() for tensor in state.row_cache.tensors(layers))
        return sum({store.data_ptr(): store.nbytes() for store in stores}.values())

    def _save_snapshot(self, session: Session) -> None:
        state: _SessionState = session.state
        if session.length and has_states(self._empty_cache):
            entry = session.length, state.row_cache.snapshot()
            earlier = [old for old in state.snapshots if old[0] < session.length]
            state.snapshots = [*earlier, entry][-_SNAPSHOTS:]
