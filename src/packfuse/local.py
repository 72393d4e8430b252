"""A member that is a transformers model in this process."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from packfuse import kvcache
from packfuse.columns import Columns
from packfuse.errors import LoadError, MemberError, PromptError
from packfuse.head import Heads
from packfuse.member import Member, Read, Session
from packfuse.vocabulary import Vocabulary

LOGITS_BYTES = 32 * 2**20
"""Largest block of float32 logits made at once; longer reads go in chunks."""

_SNAPSHOTS = 4


@dataclass(slots=True)
class _State:
    """A row's cache, batch size one, and copies of states that cannot be rolled back."""

    cache: DynamicCache
    snapshots: list[tuple[int, list[Any]]] = field(default_factory=list)


class _Piece:
    """What one request reads in one forward pass.

    Attributes:
        request: Whose it is.
        ids: The tokens read.
        kept: After how many of the last of them the request wants log-probabilities.
        wanted: After how many they are worked out: all, where somebody watches.
    """

    def __init__(self, request: Read, start: int, stop: int) -> None:
        """Tokens `start:stop` of the request."""
        self.request = request
        self.ids = request.ids[start:stop]
        self.kept = max(0, stop - max(start, len(request.ids) - request.keep))
        self.wanted = len(self.ids) if request.visit else self.kept

    def take(self, logps: Tensor, pruned: bool) -> Iterator[Tensor]:
        """Show what was worked out to whoever watches; what is kept of it, if anything."""
        self.request.show(self.request.session.length - len(self.ids), logps)
        if self.kept:
            kept = logps if self.kept == len(logps) else logps[-self.kept :].clone()
            columns = None if pruned else self.request.counted
            yield kept if columns is None else columns.restrict(kept)

    @property
    def positions(self) -> range:
        """How many tokens the session has read at each place wanted; before the pass."""
        end = self.request.session.length + len(self.ids)
        return range(end - self.wanted + 1, end + 1)


class LocalMember(Member):
    """One model and its tokenizer. The model is used as it is and never altered."""

    def __init__(self, name: str, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        """Wrap a loaded causal LM.

        Raises:
            LoadError: if the model keeps no cache that rows can share, copy and roll back.
        """
        parameters = inspect.signature(model.forward).parameters
        hint = "models with a cache of their own kind (pure Mamba, RWKV) cannot join a pack"
        if "past_key_values" not in parameters:
            kind = type(model).__name__
            raise LoadError(f"member {name!r}: {kind} does not take `past_key_values`", hint=hint)
        try:
            kvcache.new_cache(model.config)
        except (TypeError, KeyError) as error:
            raise LoadError(f"member {name!r} keeps its past in a {error}", hint=hint) from error
        model.eval()
        self.name, self.model, self.vocabulary = name, model, vocabulary
        self.context_window = context_window(model.config, vocabulary.tokenizer)
        self._keeps_logits = "logits_to_keep" in parameters
        self._positions = "position_ids" in parameters
        self._heads = Heads(model)

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.vocabulary.tokenizer

    def open(self) -> Session:
        """A row in which nothing has been read."""
        return Session(state=_State(kvcache.new_cache(self.model.config)))

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """Rows with equally many new tokens run as one batch; see `Member.read`."""
        for request in requests:
            self._check_room(request)
        results: dict[int, Tensor] = {}
        shapes = [
            (len(r.ids), r.session.length > 0, r.visit is not None, id(r.counted)) for r in requests
        ]
        order = sorted(range(len(requests)), key=shapes.__getitem__)
        for _, group in groupby(order, key=shapes.__getitem__):
            rows = list(group)
            for row, kept in zip(rows, self._read([requests[i] for i in rows]), strict=True):
                results[row] = kept
        return [results[row] for row in range(len(requests))]

    def _check_room(self, request: Read) -> None:
        total = request.session.length + len(request.ids)
        if total > self.context_window:
            raise PromptError(
                f"member {self.name!r} would read {total} tokens, and can read "
                f"{self.context_window}",
                hint="shorten the prompt or the answer",
            )

    def _read(self, requests: list[Read]) -> list[Tensor]:
        """Requests of one length, in chunks that keep the logits small."""
        count = len(requests[0].ids)
        keep = max(request.keep for request in requests)
        visiting = any(request.visit for request in requests)
        columns = self._columns(requests[0])
        size = max(1, LOGITS_BYTES // (4 * self.vocabulary.columns * len(requests)))
        kept: list[list[Tensor]] = [[] for _ in requests]
        # Logits that nobody wants cost nothing, unless the model makes them all.
        silent = count - keep if self._chooses and not visiting else 0
        for start, stop in _chunks(count, silent, size):
            pieces = [_Piece(request, start, stop) for request in requests]
            for piece, logps, found in zip(
                pieces, self._forward(pieces, columns), kept, strict=True
            ):
                found.extend(piece.take(logps, pruned=columns is not None))
        return [found[0] if len(found) == 1 else torch.cat(found) for found in kept]

    @torch.no_grad()
    def _forward(self, pieces: list[_Piece], columns: Columns | None) -> list[Tensor]:
        """Read the pieces side by side; log-probabilities `[wanted, columns]` of each."""
        sessions = [piece.request.session for piece in pieces]
        lengths = [session.length for session in sessions]
        for session in sessions:
            _take_snapshot(session)
        batch = kvcache.join([session.state.cache for session in sessions], lengths)
        try:
            logits = self._logits(pieces, batch, columns)
            logps, levels = self._logps(logits, pieces, columns)
        except BaseException as error:
            for session in sessions:
                # Some layers may have read the tokens: what is there is worth nothing now.
                session.ids, session.state = [], self.open().state
            if isinstance(error, RuntimeError) and not isinstance(error, MemberError):
                at = max(lengths)
                raise MemberError(
                    f"member {self.name!r} failed after {at} tokens: {error}"
                ) from error
            raise
        counts = [piece.wanted for piece in pieces]
        parts = zip(kvcache.part(batch, lengths), levels.split(counts), strict=True)
        for piece, session, (cache, level) in zip(pieces, sessions, parts, strict=True):
            session.state.cache, session.levels = cache, level
            session.ids.extend(piece.ids)
        return list(logps.split(counts))

    def _columns(self, request: Read) -> Columns | None:
        """Those that a pass works out, where all requests are like this one; None for all."""
        columns = request.counted
        if request.visit or columns is None or not self._heads.prunes(columns):
            return None
        return columns

    def _logits(self, pieces: list[_Piece], batch: DynamicCache, columns: Columns | None) -> Tensor:
        """The logits wanted, one piece after the other, `[P, columns]`."""
        inputs = self._inputs(pieces)
        rows, width = inputs["input_ids"].shape
        wanted = [piece.wanted for piece in pieces]
        if self._heads.replaceable:
            places = [
                row * width + place
                for row, count in enumerate(wanted)
                for place in range(width - count, width)
            ]
            model = self._heads.pick(torch.tensor(places), columns)
            logits: Tensor = model(**inputs, past_key_values=batch).logits
            return logits[0]
        if self._keeps_logits:
            inputs["logits_to_keep"] = max(1, *wanted)
        logits = self.model(**inputs, past_key_values=batch).logits
        last = logits.shape[1]
        return torch.cat([logits[row, last - wanted[row] :] for row in range(rows)])

    def _inputs(self, pieces: list[_Piece]) -> dict[str, Any]:
        device: Any = self.model.get_input_embeddings().weight.device
        lengths = [piece.request.session.length for piece in pieces]
        longest, new = max(lengths), len(pieces[0].ids)
        ids = torch.tensor([list(piece.ids) for piece in pieces], device=device)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": True}
        if len(set(lengths)) > 1:
            slots = torch.arange(longest + new, device=device)
            pads = torch.tensor([longest - length for length in lengths], device=device)
            inputs["attention_mask"] = (slots >= pads[:, None]).long()
        if self._positions:
            offsets = torch.tensor(lengths, device=device)
            inputs["position_ids"] = offsets[:, None] + torch.arange(new, device=device)
        return inputs

    @property
    def _chooses(self) -> bool:
        """Whether logits that nobody wants need not be made."""
        return self._keeps_logits or self._heads.replaceable

    def _logps(
        self, logits: Tensor, pieces: list[_Piece], columns: Columns | None
    ) -> tuple[Tensor, Tensor]:
        """Normalized over the columns that are tokens, and how far the logits lay above that."""
        count, size = self.vocabulary.columns, self.vocabulary.size
        expected = count if columns is None else len(columns.ids)
        if logits.shape[-1] != expected:
            raise MemberError(
                f"member {self.name!r} gives {logits.shape[-1]} logits, not {expected}",
                hint="model and tokenizer do not belong together",
            )
        logits = logits.float()
        if columns is not None:
            logps, first = columns.spread(logits), int(columns.ids[0])
        else:
            if size < count:
                pads = torch.arange(count, device=logits.device) >= size
                logits = logits.masked_fill(pads, float("-inf"))
            logps, first = torch.log_softmax(logits, dim=-1), 0
        # A single NaN or infinity makes a whole row NaN.
        broken = torch.isnan(logps[:, first])
        if bool(broken.any()):
            positions = [place for piece in pieces for place in piece.positions]
            raise MemberError(
                f"member {self.name!r} gave NaN logits after token "
                f"{positions[int(broken.nonzero()[0])]}",
                hint="load it in bfloat16 or float32, or leave it out of the pack",
            )
        return logps, logits[:, 0] - logps[:, first]

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`. Recurrent and convolutional states return to a snapshot."""
        if length >= session.length:
            return
        state: _State = session.state
        saved: list[Any] = []
        if kvcache.has_states(state.cache):
            state.snapshots = [entry for entry in state.snapshots if entry[0] <= length]
            length, saved = state.snapshots[-1] if state.snapshots else (0, saved)
        if length <= 0:
            # A cache cut to nothing would not join those that never held anything.
            session.ids, session.state = [], self.open().state
            return
        kvcache.restore(state.cache, saved)
        kvcache.cut(state.cache, length)
        del session.ids[length:]

    def fork(self, session: Session) -> Session:
        """See `Member.fork`: attention tensors are shared."""
        state: _State = session.state
        fresh = _State(kvcache.fork(state.cache), list(state.snapshots))
        return replace(session, ids=list(session.ids), state=fresh, levels=None)

    def keep(self, session: Session, length: int) -> Session:
        """See `Member.keep`."""
        kept = self.fork(session)
        if length < session.length:
            self.rollback(kept, length)
            kvcache.detach(kept.state.cache)
        return kept

    def nbytes(self, session: Session) -> int:
        """See `Member.nbytes`; what views keep alive counts in full, and once."""
        state: _State = session.state
        layers = [*state.cache.layers, *(layer for _, saved in state.snapshots for layer in saved)]
        stores = (tensor.untyped_storage() for tensor in kvcache.tensors(layers))
        return sum({store.data_ptr(): store.nbytes() for store in stores}.values())


def _take_snapshot(session: Session) -> None:
    state: _State = session.state
    if session.length and kvcache.has_states(state.cache):
        entry = session.length, kvcache.snapshot(state.cache)
        earlier = [old for old in state.snapshots if old[0] < session.length]
        state.snapshots = [*earlier, entry][-_SNAPSHOTS:]


def _chunks(count: int, silent: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges to read, each with `size` logits at most; the first `silent` tokens have none."""
    start = 0
    while start < count:
        stop = min(count, max(start, silent) + size)
        yield start, stop
        start = stop


def context_window(config: PreTrainedConfig, tokenizer: Any) -> int:
    """How many tokens a model can read, by its configuration or else its tokenizer."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if value := getattr(text, name, None):
            return int(value)
    return int(min(tokenizer.model_max_length, 2**31 - 1))
