"""Members whose steps are compiled."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from packfuse.errors import MemberError
from packfuse.hf_compat import COMPILE_ERRORS, OWN_GRAPHS, compile_hindrance, compiled_call
from packfuse.models.batching import ReadChunk
from packfuse.models.hf_member import HFMember
from packfuse.models.kv.fixed_shape import (
    FixedShapeBatch,
    can_read,
    mark_dynamic,
    unsupported_reason,
)
from packfuse.models.kv.ragged import ForwardBatch
from packfuse.models.member import Read
from packfuse.models.vocab_subset import VocabSubset

MAX_GRAPHS = 32
"""Most graphs of one head: one or several rows, tokens, places."""

_OWN_GRAPHS: dict[str, Any] = {"recompile_limit": MAX_GRAPHS, **OWN_GRAPHS}

MAX_FULL_LOGITS = 16
"""Places up to which logits are made at all of them."""

PRECOMPILED_WIDTHS = (1, 2)
"""How many tokens rows read in the steps that are compiled at once; others wait until needed."""

_compiler_lock = threading.Lock()
"""The compiler knows whose graphs are meant by one number for the whole process."""

_compiled: WeakKeyDictionary[HFMember, Compiled] = WeakKeyDictionary()


class Compiled(HFMember):
    """A local member that reads a few tokens in compiled code, and longer texts as it always did.

    A step works on the whole store of its rows, so that nothing in it depends on how long they are.
    Steps take turns, whichever member and thread they are of. Hooks that the model gets after its
    steps were compiled do not run in them. In inference mode they are compiled once more.

    Attributes:
        refused: Why the compiler would not, if so; it reads as it always did then.
    """

    def __init__(self, member: HFMember) -> None:
        """A twin of `member`, over the same model."""
        vars(self).update(vars(member))
        self.refused: str | None = None
        # By columns, which go with their pack; the whole head by `Heads`, which stays.
        self._calls: WeakKeyDictionary[Any, tuple[Any, Callable[..., Any]]] = WeakKeyDictionary()

    def compile_ahead(self, columns: VocabSubset | None, width: int) -> None:
        """Compile the step in which one row reads so many tokens.

        Warns:
            RuntimeWarning: if it cannot be compiled. The member goes its usual way from then on.
        """
        row, token = self.open(), int(self._lm_head.probe[0, 0])
        try:
            self.read([Read(row, [token])])
            self.read([Read(row, [token] * width, subset=columns)])
        except MemberError as error:
            self.refused = str(error)
            _warn(self, self.refused)

    def _forward_batch(self, pieces: Sequence[ReadChunk], room: int) -> ForwardBatch:
        row_caches = [piece.request.session.state.row_cache for piece in pieces]
        new = [len(piece.ids) for piece in pieces]
        if self.refused is None and can_read(row_caches, new):
            return FixedShapeBatch(self._empty_cache, self.model.config, row_caches, new)
        return super()._forward_batch(pieces, room)

    def _forward(
        self, pieces: list[ReadChunk], columns: VocabSubset | None, room: int
    ) -> list[list[Tensor]]:
        stores = {piece.request.session.state.row_cache.store for piece in pieces} - {None}
        try:
            return super()._forward(pieces, columns, room)
        except BaseException:
            # What is left behind might be NaN, and a step is shown the whole store.
            for row_cache in [row_cache for store in stores for row_cache in store.row_caches]:
                row_cache.leave()
            raise

    def _selected_logits(
        self,
        running: ForwardBatch,
        inputs: dict[str, Any],
        flat: list[int],
        columns: VocabSubset | None,
    ) -> Tensor:
        if not isinstance(running, FixedShapeBatch):
            return super()._selected_logits(running, inputs, flat, columns)
        count = running.size * running.width
        # Where there are few places, whichever of them are asked for is no kind of its own.
        asked = torch.tensor(
            list(range(count)) if count <= MAX_FULL_LOGITS else flat, device=self.device
        )
        mark_dynamic(asked, 0)
        with _compiler_lock:
            twin, call = self._call(columns)
            twin.get_output_embeddings().places = asked
            try:
                logits = self._run(call, inputs)[0]
            except COMPILE_ERRORS as error:
                self.refused = " ".join(str(error).split("\n")[:2])
                raise MemberError(
                    f"member {self.name!r} cannot be compiled: {self.refused}",
                    hint="ask again: from now on it reads as if compiled=False",
                ) from error
        return logits[flat] if count <= MAX_FULL_LOGITS else logits

    def _call(self, columns: VocabSubset | None) -> tuple[Any, Callable[..., Any]]:
        """The model under the head for these columns, and its compiled call."""
        key = self._lm_head if columns is None else columns
        if key not in self._calls:
            twin = self._lm_head.pick(torch.zeros(1, dtype=torch.long), columns)
            # No CUDA graphs: there would be one for each store, size of it, and thread.
            self._calls[key] = twin, compiled_call(twin, **_OWN_GRAPHS)
        return self._calls[key]


def compile_steps(member: HFMember) -> HFMember:
    """The twin of a member whose steps are compiled, made once; itself where they cannot be.

    Warns:
        RuntimeWarning: if they cannot be, with the reason.
    """
    if isinstance(member, Compiled):
        return member
    twin = _compiled.get(member)
    if reason := _unsupported_reason(member) if twin is None else twin.refused:
        _warn(member, reason)
        return member
    return _compiled.setdefault(member, twin or Compiled(member))


def _warn(member: HFMember, reason: str) -> None:
    """Warn that a member goes its usual way."""
    warnings.warn(f"member {member.name!r} is not compiled: {reason}", RuntimeWarning, 3)


def _unsupported_reason(member: HFMember) -> str | None:
    """Why a member's steps cannot be compiled; None if they can."""
    model: Any = member.model
    devices = {str(parameter.device) for parameter in model.parameters()}
    if reason := compile_hindrance(model):
        return reason
    if len(devices) > 1:
        return f"its model is spread over {', '.join(sorted(devices))}"
    if not member._lm_head.replaceable:
        return "its output head is out of reach"
    if not member._takes_positions:
        return f"{type(model).__name__} takes no positions"
    return unsupported_reason(member._empty_cache, model.config)
