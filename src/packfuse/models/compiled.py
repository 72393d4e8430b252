"""Members whose decoding steps are compiled with `torch.compile`: the setting `compiled`.

The setting is experimental on processors: a step takes about 0.85 of its time, nothing is gained
with speculative decoding, and loading takes minutes. It was not measured on GPUs.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from packfuse.errors import MemberError
from packfuse.hf_compat.models import COMPILE_ERRORS, compile_hindrance, compiled_call
from packfuse.models.batching import ReadChunk
from packfuse.models.compute.lm_head import LMHead
from packfuse.models.hf_member import HFMember
from packfuse.models.kv.fixed_shape import (
    FixedShapeBatch,
    can_read,
    mark_dynamic,
)
from packfuse.models.kv.ragged import ForwardBatch
from packfuse.models.member import Read
from packfuse.models.vocab_subset import VocabSubset

MAX_GRAPHS = 32
"""Most graphs of one LM head: for one or several rows, new tokens, and selected positions."""

_OWN_GRAPHS: dict[str, Any] = {"recompile_limit": MAX_GRAPHS}

MAX_FULL_LOGITS = 16
"""Most positions of a batch at which logits are computed at all of them."""

PRECOMPILED_WIDTHS = (1, 2)
"""Numbers of new tokens whose steps are compiled at load; others are compiled when needed."""

COMPILER_LOCK = threading.Lock()
"""Held while a compiled step runs: torch identifies graphs by one number for the process."""

_compiled: WeakKeyDictionary[HFMember, Compiled] = WeakKeyDictionary()


class Compiled(HFMember):
    """A member that reads a few new tokens with compiled code, and longer texts without.

    A compiled step runs on the whole KV store of its rows, so its graph does not depend on their
    lengths. One compiled step runs at a time in the process. Hooks that are added to the model
    after compilation do not run in compiled steps. In inference mode steps are compiled once more.

    Invariants: a `Compiled` is made from another `HFMember` by copying the attributes of that
    member, without `HFMember.__init__`. Both share the model, the vocabulary, the empty cache and
    the `LMHead`, so a session of one can be read by the other. Therefore `HFMember` sets all its
    attributes in `__init__` and assigns none later but in `refresh`, which both do for themselves,
    and everything that only compiled members have is set after the copy.

    Attributes:
        refused: Why steps cannot be compiled; None if they can. If it is set, the member reads like
            an `HFMember`.
    """

    def __init__(self, member: HFMember) -> None:
        """A compiled variant of `member`, with the same model."""
        vars(self).update(vars(member))
        self.refused: str | None = None
        self._calls = CompiledCalls(self._lm_head)

    def forget(self) -> None:
        """See `Member.forget`."""
        super().forget()
        self._calls.clear()

    def compile_ahead(self, subset: VocabSubset | None, width: int) -> None:
        """Compile the step in which one row reads `width` tokens.

        Args:
            subset: The tokens of which logits are computed; None for all.
            width: Number of new tokens.

        Warns:
            RuntimeWarning: if it cannot be compiled; from then on the member does not use
                compiled code.
        """
        session, token = self.open(), int(self._lm_head.probe_ids[0, 0])
        try:
            self.read([Read(session, [token])])
            self.read([Read(session, [token] * width, subset=subset)])
        except MemberError as error:
            self.refused = str(error)
            _warn(self, self.refused)

    def _forward_batch(self, read_chunks: Sequence[ReadChunk], room: int) -> ForwardBatch:
        row_caches = [chunk.request.session.state.row_cache for chunk in read_chunks]
        new = [len(chunk.ids) for chunk in read_chunks]
        if self.refused is None and can_read(row_caches, new):
            return FixedShapeBatch(self._empty_cache, self.model.config, row_caches, new)
        return super()._forward_batch(read_chunks, room)

    def _forward(
        self, read_chunks: list[ReadChunk], subset: VocabSubset | None, room: int
    ) -> list[list[Tensor]]:
        stores = {chunk.request.session.state.row_cache.store for chunk in read_chunks} - {None}
        try:
            return super()._forward(read_chunks, subset, room)
        except BaseException:
            # The failed step may have written NaN, and later steps get the whole store.
            for row_cache in [row_cache for store in stores for row_cache in store.row_caches]:
                row_cache.detach()
            raise

    def _selected_logits(
        self,
        batch: ForwardBatch,
        inputs: dict[str, Any],
        flat: list[int],
        subset: VocabSubset | None,
    ) -> Tensor:
        if not isinstance(batch, FixedShapeBatch):
            return super()._selected_logits(batch, inputs, flat, subset)
        count = batch.size * batch.width
        # In small batches all logits are computed, so that the selection needs no graph of its own.
        positions = torch.tensor(
            list(range(count)) if count <= MAX_FULL_LOGITS else flat, device=self.device
        )
        mark_dynamic(positions, 0)
        with COMPILER_LOCK:
            try:
                logits = self._run(self._calls.at(positions, subset), inputs)[0]
            except COMPILE_ERRORS as error:
                self.refused = " ".join(str(error).split("\n")[:2])
                raise MemberError(
                    f"member {self.name!r} cannot be compiled: {self.refused}",
                    hint="try again: from now on this member reads as with compiled=False",
                ) from error
        return logits[flat] if count <= MAX_FULL_LOGITS else logits


class CompiledCalls:
    """The compiled calls of one member: one for each LM head."""

    def __init__(self, lm_head: LMHead) -> None:
        """Nothing is compiled yet."""
        self._lm_head = lm_head
        # Keys are subsets, which are freed with their pack, or the `LMHead` for the whole head.
        self._calls: WeakKeyDictionary[Any, tuple[Any, Callable[..., Any]]] = WeakKeyDictionary()

    def clear(self) -> None:
        """Forget all that was compiled."""
        self._calls.clear()

    def at(self, positions: Tensor, subset: VocabSubset | None) -> Callable[..., Any]:
        """The compiled call of a twin of the model with logits at some positions only.

        Args:
            positions: Flat positions `[P]`; see `LMHead.select`.
            subset: The tokens of which logits are computed; None for all.
        """
        key = self._lm_head if subset is None else subset
        if key not in self._calls:
            twin = self._lm_head.select(torch.zeros(1, dtype=torch.long), subset)
            # No CUDA graphs of the compiler's own: there would be one for each store, size of a
            # store, and thread.
            self._calls[key] = twin, compiled_call(twin, **_OWN_GRAPHS)
        twin, call = self._calls[key]
        twin.get_output_embeddings().positions = positions
        return call


def compile_steps(member: HFMember) -> HFMember:
    """The compiled variant of a member, made once; the member itself if it cannot be compiled.

    Warns:
        RuntimeWarning: if it cannot be compiled, with the reason.
    """
    if isinstance(member, Compiled):
        return member
    twin = _compiled.get(member)
    if reason := _unsupported_reason(member) if twin is None else twin.refused:
        _warn(member, reason)
        return member
    return _compiled.setdefault(member, twin or Compiled(member))


def _warn(member: HFMember, reason: str) -> None:
    warnings.warn(f"member {member.name!r} is not compiled: {reason}", RuntimeWarning, 3)


def _unsupported_reason(member: HFMember) -> str | None:
    """Why the steps of a member cannot be compiled; None if they can."""
    return compile_hindrance(member.model) or member.fixed_steps_hindrance()
