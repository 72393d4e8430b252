"""Keys and values of many sequences, in llama.cpp's memory."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.errors import LoadError, MemberError
from packfuse.models.llama_cpp.library import forget_errors, last_errors, library
from packfuse.models.llama_cpp.model import LlamaModel

SEQUENCES = 32
"""Most sequences; each takes a row in the buffer of logits."""

STATEFUL_SEQUENCES = 20
"""The same for models with recurrent states, of which each sequence has one."""

UBATCH = 512
"""Most tokens of one computation; larger batches are computed in several."""

LOGITS_BYTES = 16 * 2**20
"""Most bytes of the logits of one batch, where it has more of them than sequences."""

_NO_CELL = 1
"""What `llama_decode` returns where no cells are free; nothing was computed then."""


class NoRoomError(MemberError):
    """There are not enough free cells, or no free sequence, for a batch."""


@dataclass(frozen=True, slots=True)
class Part:
    """New tokens of one sequence.

    Attributes:
        sequence: Its number.
        start: Number of tokens before them.
        ids: The tokens.
        positions: Indices into `ids` after which logits are wanted, ascending.
    """

    sequence: int
    start: int
    ids: Sequence[int]
    positions: Sequence[int] = ()


class LlamaContext:
    """The cells of a model, each with the keys and values of a token of one or several sequences.

    Not safe from two threads. Freed with the last reference.

    Attributes:
        model: The model.
        cells: Number of cells.
        sequences: Number of sequences.
        logits: Most logits of a batch.
        tokens: Most tokens of a batch.
    """

    def __init__(self, model: LlamaModel, cells: int, tokens: int) -> None:
        """Reserve memory.

        Args:
            model: The model.
            cells: Number of cells; llama.cpp rounds it up.
            tokens: Most tokens of a batch.

        Raises:
            LoadError: if llama.cpp cannot compute with the model.
        """
        self._library = library()
        self.model, self.tokens = model, tokens
        self.sequences = STATEFUL_SEQUENCES if model.has_states else SEQUENCES
        fitting = LOGITS_BYTES // (4 * model.columns)
        self.logits = max(self.sequences, min(fitting, UBATCH))
        self._batch = _Batch(self._library, tokens)
        self._threads = 0
        self._open(cells)

    def _open(self, cells: int) -> None:
        """Take memory for so many cells, and free what there was.

        Raises:
            LoadError: if there is no such memory; what there was is as before.
        """
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = cells, self.tokens, UBATCH
        parameters.n_seq_max, parameters.n_outputs_max = self.sequences, self.logits
        parameters.kv_unified = True  # sequences share cells, so a fork copies nothing
        parameters.swa_full = True  # a sliding window could not be rolled back
        parameters.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_ENABLED
        forget_errors()
        pointer = self._library.llama_init_from_model(self.model.pointer, parameters)
        if not pointer:
            reason = last_errors("no reason given")
            raise LoadError(f"llama.cpp has no memory for {cells} tokens: {reason}")
        memory = self._library.llama_get_memory(pointer)
        # The model goes into the finalizer: it must not be freed before its context.
        free = weakref.finalize(self, _free, self._library, pointer, self.model)
        free.atexit = False
        self._pointer, self._memory, self._free = pointer, memory, free
        self.cells, self._threads = int(self._library.llama_n_ctx(pointer)), 0
        self._most = int(self._library.llama_n_batch(pointer))  # at most the number of cells

    def grow(self, cells: int) -> None:
        """More cells; all sequences stay.

        Raises:
            LoadError: if there is no memory; all is as before then.
        """
        call, old, free = self._library, self._pointer, self._free
        saved = (ctypes.c_uint8 * self.state_bytes)()
        call.llama_state_get_data(old, saved, len(saved))
        self._open(cells)
        read = call.llama_state_set_data(self._pointer, saved, len(saved))
        free()
        if read != len(saved):
            raise MemberError(f"llama.cpp lost its keys and values: {last_errors('no reason')}")

    def decode(self, parts: Sequence[Part]) -> Tensor:
        """Read tokens of several sequences.

        Returns:
            Logits `[n, columns]` at the wanted positions in the order of the parts, float32, in
            memory that is valid until the next call.

        Raises:
            NoRoomError: if no cells are free; nothing was read then.
            MemberError: if the computation fails.
        """
        count = sum(len(part.ids) for part in parts)
        if count > self._most:  # llama.cpp would end the process
            raise NoRoomError(f"no room for {count} more tokens")
        self._use_threads()
        forget_errors()
        code = self._library.llama_decode(self._pointer, self._batch.filled(parts))
        if code == _NO_CELL:
            raise NoRoomError(f"no room for {count} more tokens")
        if code:
            raise MemberError(f"llama.cpp failed with {code}: {last_errors('no reason given')}")
        wanted, columns = sum(len(part.positions) for part in parts), self.model.columns
        if not wanted:
            return torch.empty(0, columns)
        found = self._library.llama_get_logits(self._pointer)
        array: NDArray[np.float32] = np.ctypeslib.as_array(found, (wanted, columns))
        return torch.from_numpy(array)

    def _use_threads(self) -> None:
        """As many threads as torch has in this thread, like members of transformers."""
        wanted = torch.get_num_threads()
        if wanted != self._threads:
            self._library.llama_set_n_threads(self._pointer, wanted, wanted)
            self._threads = wanted

    def remove(self, sequence: int, start: int = 0) -> bool:
        """Drop the tokens of a sequence from `start` on.

        Returns:
            False if that is not possible, since layers have a recurrent state; nothing is done.
        """
        return bool(self._library.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def copy(self, source: int, target: int) -> None:
        """Let an empty sequence have the tokens of another one; no keys and values are copied."""
        self._library.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    @property
    def state_bytes(self) -> int:
        """Bytes of the keys, values and states of all sequences."""
        return int(self._library.llama_state_get_size(self._pointer))

    def nbytes(self, sequence: int) -> int:
        """Bytes of the keys, values and states of a sequence."""
        return int(self._library.llama_state_seq_get_size(self._pointer, sequence))


class _Batch:
    """Memory for the batches that `llama_decode` takes."""

    def __init__(self, library: Any, tokens: int) -> None:
        """Memory for as many tokens."""
        self._ids, self._positions = np.empty(tokens, np.int32), np.empty(tokens, np.int32)
        self._sequences, self._wanted = np.empty(tokens, np.int32), np.empty(tokens, np.int8)
        self._counts = np.ones(tokens, np.int32)
        # llama.cpp takes a pointer to the sequences of each token, of which there is one here.
        first = self._sequences.ctypes.data
        self._pointers = first + 4 * np.arange(tokens, dtype=np.uintp)
        self._batch = library.llama_batch()
        for name, array in (
            ("token", self._ids),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):
            kind = dict(library.llama_batch._fields_)[name]
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, kind))

    def filled(self, parts: Sequence[Part]) -> Any:
        """The batch with these tokens."""
        start = 0
        for part in parts:
            stop = start + len(part.ids)
            self._ids[start:stop] = part.ids
            self._positions[start:stop] = range(part.start, part.start + len(part.ids))
            self._sequences[start:stop] = part.sequence
            self._wanted[start:stop] = 0
            self._wanted[[start + index for index in part.positions]] = 1
            start = stop
        self._batch.n_tokens = start
        return self._batch


def _free(library: Any, pointer: Any, model: LlamaModel) -> None:
    """Free a context, and only then its model."""
    library.llama_free(pointer)
    del model
