"""One sequence of a read: what is asked for, and what has come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from packfuse.models.member import Read
from packfuse.models.remote.peer.outbox import PeerState
from packfuse.models.remote.peer.wire import Answer, RowHeader, prefix_digest, subset_digest
from packfuse.models.remote.protocols import Candidates
from packfuse.models.remote.rows import NonsenseError, row
from packfuse.models.vocab_subset import VocabSubset

_ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2}
"""How far the sum of probabilities may be from 1, in nats."""


class PeerRow:
    """One sequence of a read.

    Attributes:
        request: The request.
        subset: The tokens over which the server normalizes; None for all.
        digest: Digest of the subset; None for all.
        kept: What the request returns, by count `[columns]`.
    """

    def __init__(self, request: Read, columns: int, size: int, candidates: int | None) -> None:
        """Nothing was read yet.

        Args:
            request: The request.
            columns: Size of the output dimension.
            size: Number of tokens; columns behind them have no token.
            candidates: Most tokens that are named at a place; None for all.
        """
        self.request, self._columns, self._size = request, columns, size
        self._candidates = candidates
        # A callback gets distributions over all tokens, and so do the most probable ones.
        pruned = candidates is None and not request.callback
        self.subset: VocabSubset | None = request.active_subset if pruned else None
        self.digest = subset_digest(self.subset.ids) if self.subset else None
        self.kept: dict[int, Tensor] = {}
        session, callback = request.session, request.callback
        self._end = session.length + len(request.ids)
        between = range(session.length + 1, self._end + 1)
        self.counts = [count for count in between if callback and callback.wants(count)]

    @property
    def state(self) -> PeerState:
        """The session of the server."""
        found: PeerState = self.request.session.state
        return found

    @property
    def start(self) -> int:
        """How many of the tokens the server has."""
        return self.request.session.length if self.state.known else 0

    @property
    def ids(self) -> list[int]:
        """The tokens to send."""
        return [*self.request.session.ids[self.start :], *self.request.ids]

    @property
    def header(self) -> RowHeader:
        """What is sent besides the numbers."""
        return RowHeader(
            session=self.state.number,
            start=self.start,
            prefix=prefix_digest(self.request.session.ids[: self.start]),
            tokens=len(self.ids),
            keep=self.request.keep,
            counts=len(self.counts) if self.request.callback else None,
            subset=self.digest,
        )

    def take(self, answer: Answer) -> None:
        """Pass distributions on to the callback, and keep what the request returns.

        Raises:
            NonsenseError: if they are no distributions.
        """
        counts = answer.header.counts
        logps = self._whole(answer, len(counts))
        if self.request.callback:
            self.request.notify(counts, logps)  # also at the places that are returned
        for count, own in zip(counts, logps, strict=True):
            if count >= self._returned[0]:
                self.kept[count] = own if len(counts) == 1 else own.clone()

    def _whole(self, answer: Answer, places: int) -> Tensor:
        """Log-probabilities `[places, columns]`, float32."""
        logps, ids = answer.tensors.get("logps"), answer.tensors.get("ids")
        if logps is None or logps.dtype not in _ROUNDING or logps.dim() != 2:
            raise NonsenseError("no log-probabilities")
        rounding, logps = _ROUNDING[logps.dtype], logps.float()
        if self._candidates is not None:
            return self._from_candidates(logps, ids, places)
        width = self._columns if self.subset is None else len(self.subset.ids)
        if logps.shape != (places, width):
            raise NonsenseError(f"{tuple(logps.shape)} log-probabilities, not {(places, width)}")
        if not bool((logps.logsumexp(-1).abs() < rounding).all()):
            raise NonsenseError("probabilities that do not sum to one")
        if self.subset is None:
            return logps
        whole = logps.new_full((places, self._columns), -math.inf)
        return whole.index_copy_(1, self.subset.ids, logps)

    def _from_candidates(self, logps: Tensor, ids: Tensor | None, places: int) -> Tensor:
        if ids is None or ids.shape != logps.shape or len(ids) != places:
            raise NonsenseError("no tokens for the log-probabilities")
        found = [
            Candidates(own.numpy().astype(np.int64), values.double().numpy())
            for own, values in zip(ids, logps, strict=True)
        ]
        rows = [row(one, self._columns, self._size) for one in found]
        self.state.named.add(rows)
        return torch.stack([logps for logps, _ in rows])

    @property
    def _returned(self) -> Sequence[int]:
        """The counts after which distributions are returned."""
        return range(self._end - self.request.keep + 1, self._end + 1)

    def check(self) -> None:
        """Refuse an answer that is not complete.

        Raises:
            NonsenseError: naming what is missing.
        """
        if missing := [count for count in self._returned if count not in self.kept]:
            raise NonsenseError(f"nothing after {missing[0]} tokens")

    def finish(self, normalizers: Tensor | None) -> Tensor:
        """Advance the session; what the request returns, `[keep, columns]`."""
        session = self.request.session
        session.ids.extend(self.request.ids)
        session.log_normalizers = normalizers
        self.state.known = True
        found = [self.kept[count] for count in self._returned]
        logps = found[0][None] if len(found) == 1 else torch.stack(found)
        subset = None if self.subset else self.request.active_subset
        return logps if subset is None else subset.restrict(logps)
