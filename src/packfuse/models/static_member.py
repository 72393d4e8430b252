"""Members whose decoding steps run over static KV stores, on CUDA captured as CUDA graphs.

An eager step of a large model on a GPU waits for the processor, which launches a thousand kernels
for each member and token. A captured step is one launch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from packfuse.hf_compat.models import (
    COMPILE_ERRORS,
    capture_hindrance,
    compile_hindrance,
    has_any_hooks,
)
from packfuse.models.batching import ReadChunk, batches
from packfuse.models.compiled import COMPILER_LOCK, CompiledCalls
from packfuse.models.compute.graphs import CudaGraphs, first_cause, plain_call
from packfuse.models.devices import free_memory, is_offloaded
from packfuse.models.hf_member import HFMember
from packfuse.models.kv.static_step import Outputs, StaticStep, finish_step, step_numbers
from packfuse.models.kv.static_store import SCRATCH_SLOTS, DecodeStores, StaticStore, rows_step
from packfuse.models.member import Read, Session, Unchecked, check
from packfuse.models.vocab_subset import VocabSubset
from packfuse.transfer import host_tensor, upload

MAX_NEW_TOKENS = SCRATCH_SLOTS
"""Most new tokens of a row in a step; longer reads take a `RaggedBatch`."""

_HOOKS = "its model has hooks, which a captured step would not call"

_STEP_ERRORS = (
    AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip
"""Errors of models in a step that they may not raise elsewhere: some read the cache's length as a
number, which is a tensor here."""

SPARE = 1.1
"""Free memory that a new store needs, in its own size."""


class StaticMember(HFMember):
    """A member that reads a few new tokens of any rows in one captured step.

    Rows that have read their prompt move to a store of fixed size. A step over it is captured once
    for a number of rows, of new tokens a row, and an LM head, all from short lists of sizes.
    Prompts, long reads and reads with a callback take the passes of `HFMember`.

    Invariants: as with `Compiled`, it is made from another `HFMember` by copying its attributes, so
    a session of one can be read by the other. The stores and the steps are its own, and are freed
    with it.

    Attributes:
        refused: Why steps are not captured; None if they are. If it is set, the member reads like
            an `HFMember`.
    """

    def __init__(self, member: HFMember) -> None:
        """A variant of `member` with the same model, for which `static_hindrance` is None."""
        vars(self).update(vars(member))
        self.refused: str | None = None
        device = self.device
        on_cuda = device.type == "cuda"
        self._capture = CudaGraphs(device) if on_cuda else plain_call
        self._stores = DecodeStores(
            self.context_window,
            lambda nbytes: SPARE * nbytes <= free_memory(device),
        )

    def refresh(self) -> None:
        """See `Member.refresh`. Hooks that were added would not be called."""
        super().refresh()
        if self.refused is None and has_any_hooks(self.model):
            self._refuse(_HOOKS)

    def forget(self) -> None:
        """See `Member.forget`."""
        super().forget()
        self._stores.clear()

    def keep(self, session: Session, length: int) -> Session:
        """See `Member.keep`. Nothing is kept in a static store, which holds many rows."""
        kept = super().keep(session, length)
        store = kept.state.row_cache.store
        if store is not None and store.static:
            kept.state.row_cache.detach()
        return kept

    def _batches(self, requests: Sequence[Read]) -> Iterator[list[int]]:
        # Known before the first group is read, which may change the answers.
        steps = [self._is_step(request) for request in requests]
        for own in (True, False):
            rows = [row for row, is_step in enumerate(steps) if is_step is own]
            # Rows of a step are padded to one width, which costs little.
            padding = MAX_NEW_TOKENS if own else self._max_padding
            for batch in batches([requests[row] for row in rows], padding):
                yield [rows[index] for index in batch]

    def _is_step(self, request: Read) -> bool:
        return (
            self.refused is None
            and request.callback is None
            and request.session.length > 0
            and len(request.ids) <= MAX_NEW_TOKENS
            # What is captured would be the step without it.
            and not torch.is_autocast_enabled(self.device.type)
        )

    def _forward(
        self, read_chunks: list[ReadChunk], subset: VocabSubset | None, room: int
    ) -> list[list[Tensor]]:
        if not all(self._is_step(chunk.request) for chunk in read_chunks):
            return super()._forward(read_chunks, subset, room)
        row_caches = [chunk.request.session.state.row_cache for chunk in read_chunks]
        store = self._stores.place(row_caches, [len(chunk.ids) for chunk in read_chunks])
        if store is None:
            return super()._forward(read_chunks, subset, room)
        try:
            outputs = self._step(store, read_chunks, subset)
        except _STEP_ERRORS as error:
            # Nothing was read: what a step writes is behind the ends of its rows.
            reason = str(first_cause(error)).split("\n")[0]
            self._refuse(f"a step cannot be captured: {reason}")
            return super()._forward(read_chunks, subset, room)
        finish_step(store, row_caches, [chunk.ids for chunk in read_chunks])
        return self._deliver(read_chunks, outputs, pruned=subset is not None)

    def _refuse(self, reason: str) -> None:
        """Take no more steps."""
        self.refused = reason
        self._stores.clear()
        warnings.warn(f"member {self.name!r} decodes eagerly: {reason}", RuntimeWarning, 2)

    @torch.no_grad()
    def _step(
        self, store: StaticStore, read_chunks: Sequence[ReadChunk], subset: VocabSubset | None
    ) -> Outputs:
        """Run one step.

        Returns:
            Log-probabilities `[P, columns]`, log-normalizers `[P]`, and whether the logits were
            NaN, `[P]`, at the positions of the chunks in their order.
        """
        row_caches = [chunk.request.session.state.row_cache for chunk in read_chunks]
        rows = rows_step(1 + max(row_cache.row for row_cache in row_caches))
        width = rows_step(max(len(chunk.ids) for chunk in read_chunks))
        every = any(chunk.positions != [len(chunk.ids) - 1] for chunk in read_chunks)
        numbers = step_numbers(rows, width, row_caches, [chunk.ids for chunk in read_chunks])

        def forward(inputs: dict[str, Any], cache: DynamicCache, flat: Tensor) -> Outputs:
            inputs[self._cache_name] = cache
            return self._outputs(self._logits_at(flat, subset, inputs), subset)

        def make() -> StaticStep:
            return StaticStep(
                store,
                rows,
                width,
                every=every,
                empty=self._empty_cache,
                config=self.model.config,
                positions=self._takes_positions,
                device=self.device,
            )

        key = rows, width, every, subset
        step = store.step(key, make)
        found = step(host_tensor(numbers, self.device), forward, self._capture)
        if every:
            flat = [
                row_cache.row * width + position
                for row_cache, chunk in zip(row_caches, read_chunks, strict=True)
                for position in chunk.positions
            ]
        else:
            flat = [row_cache.row for row_cache in row_caches]
        if flat == list(range(len(flat))):
            return tuple(tensor[: len(flat)].clone() for tensor in found)
        index = upload(flat, self.device)
        return tuple(tensor.index_select(0, index) for tensor in found)

    def _logits_at(
        self, flat: Tensor, subset: VocabSubset | None, inputs: dict[str, Any]
    ) -> Tensor:
        """Logits `[P, columns]` at flat positions `[P]` of a step."""
        return self._run(self._lm_head.select(flat, subset), inputs)[0]

    def _outputs(self, logits: Tensor, subset: VocabSubset | None) -> Outputs:
        """Log-probabilities, log-normalizers and NaN flags of logits; nothing waits for them."""
        logps, column, log_normalizers = self._normalized(logits, subset)
        return logps, log_normalizers, torch.isnan(column)

    def _deliver(
        self, read_chunks: Sequence[ReadChunk], outputs: Outputs, *, pruned: bool
    ) -> list[list[Tensor]]:
        """Give each chunk its part of the outputs; NaN is found out now, or by the caller later."""
        sizes = [len(chunk.positions) for chunk in read_chunks]
        logps, log_normalizers, flags = (tensor.split(sizes) for tensor in outputs)
        for at, chunk in enumerate(read_chunks):
            session = chunk.request.session
            session.log_normalizers = log_normalizers[at]
            session.ids.extend(chunk.ids)
            session.unchecked = Unchecked.after(session.unchecked, flags[at], chunk.counts)
        check([(self, c.request.session) for c in read_chunks if not c.request.defers_check])
        return [
            list(chunk.deliver(chunk.counts, rows, pruned=pruned))
            for chunk, rows in zip(read_chunks, logps, strict=True)
        ]


class CompiledStaticMember(StaticMember):
    """A member whose steps over static stores are compiled before they are captured.

    Attributes:
        compile_error: Why its steps are not compiled; None if they are.
    """

    def __init__(self, member: HFMember) -> None:
        """See `StaticMember`; a model that cannot be compiled is captured as it is written."""
        super().__init__(member)
        self.compile_error = compile_hindrance(member.model)
        self._calls = CompiledCalls(self._lm_head)

    def forget(self) -> None:
        """See `Member.forget`."""
        super().forget()
        self._calls.clear()

    def _logits_at(
        self, flat: Tensor, subset: VocabSubset | None, inputs: dict[str, Any]
    ) -> Tensor:
        if self.compile_error is None:
            try:
                with COMPILER_LOCK:
                    return self._run(self._calls.at(flat, subset), inputs)[0]
            except COMPILE_ERRORS as error:
                self.compile_error = " ".join(str(error).split("\n")[:2])
                message = f"member {self.name!r} is not compiled: {self.compile_error}"
                warnings.warn(message, RuntimeWarning, 2)
        return super()._logits_at(flat, subset, inputs)


def static_hindrance(member: HFMember) -> str | None:
    """Why the steps of a member cannot run over a static store; None if they can."""
    model = member.model
    if is_offloaded(model):
        return "some of its weights are on the device only while they are used"
    if has_any_hooks(model):
        return _HOOKS
    return capture_hindrance(model) or member.fixed_steps_hindrance()
