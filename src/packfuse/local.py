"""A member that is a transformers model in this process."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from packfuse.errors import LoadError, MemberError, PromptError
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


class LocalMember(Member):
    """One model and its tokenizer. The model is used as it is and never altered."""

    def __init__(self, name: str, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        """Wrap a loaded causal LM.

        Raises:
            LoadError: if the model keeps no cache that can be shared between rows.
        """
        parameters = inspect.signature(model.forward).parameters
        if "past_key_values" not in parameters:
            raise LoadError(
                f"member {name!r}: {type(model).__name__} does not take `past_key_values`",
                hint="models with a cache of their own kind (pure Mamba, RWKV) cannot join a pack",
            )
        self.name, self.model, self.vocabulary = name, model.eval(), vocabulary
        self.context_window = context_window(model.config, vocabulary.tokenizer)
        self._keeps_logits = "logits_to_keep" in parameters
        self._positions = "position_ids" in parameters

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.vocabulary.tokenizer

    def open(self) -> Session:
        """A row in which nothing has been read."""
        return Session(state=_State(self._new_cache()))

    def _new_cache(self) -> DynamicCache:
        """Sliding-window layers keep everything, so that any suffix can be rolled back."""
        cache = DynamicCache(config=self.model.config)
        cache.layers = [
            DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer
            for layer in cache.layers
        ]
        return cache

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """Rows with equally many new tokens run as one batch; see `Member.read`."""
        results: dict[int, Tensor] = {}
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].ids))
        for _, group in groupby(order, key=lambda i: len(requests[i].ids)):
            rows = list(group)
            for row, kept in zip(rows, self._read([requests[i] for i in rows]), strict=True):
                results[row] = kept
        return [results[row] for row in range(len(requests))]

    def _read(self, requests: list[Read]) -> list[Tensor]:
        count = len(requests[0].ids)
        for request in requests:
            self._check(request)
        keep = max(request.keep for request in requests)
        visiting = any(request.visit for request in requests)
        size = max(1, LOGITS_BYTES // (4 * self.vocabulary.columns * len(requests)))
        kept: list[Tensor] = []
        for start, stop in _chunks(count, 0 if visiting else count - keep, size):
            wanted = stop - start if visiting else max(0, stop - max(start, count - keep))
            logps = self._forward(requests, start, stop, max(1, wanted))
            for row, request in enumerate(requests):
                if request.visit:
                    request.visit(request.session.length - (stop - start), logps[row])
            tail = stop - max(start, count - keep)
            if tail > 0:
                kept.append(logps[:, -tail:].clone() if visiting else logps)
        whole = kept[0] if len(kept) == 1 else torch.cat(kept, dim=1)
        return [whole[row, keep - r.keep :] for row, r in enumerate(requests)]

    def _check(self, request: Read) -> None:
        total = request.session.length + len(request.ids)
        if total > self.context_window:
            raise PromptError(
                f"member {self.name!r} would read {total} tokens",
                hint=f"its context window is {self.context_window}: shorten the prompt or the answer",
            )

    @torch.no_grad()
    def _forward(self, requests: list[Read], start: int, stop: int, wanted: int) -> Tensor:
        """Read tokens `start:stop` of each request; log-probabilities `[B, wanted, columns]`."""
        sessions = [request.session for request in requests]
        device = self.model.get_input_embeddings().weight.device
        ids = torch.tensor([list(r.ids[start:stop]) for r in requests], device=device)
        lengths = [session.length for session in sessions]
        batch = _join([session.state.cache for session in sessions], lengths)
        inputs: dict[str, Any] = {"past_key_values": batch, "use_cache": True}
        longest, new = max(lengths), stop - start
        if len(set(lengths)) > 1:
            slots = torch.arange(longest + new, device=device)
            pads = torch.tensor([longest - length for length in lengths], device=device)
            inputs["attention_mask"] = (slots >= pads[:, None]).long()
        if self._positions:
            offsets = torch.tensor(lengths, device=device)
            inputs["position_ids"] = offsets[:, None] + torch.arange(new, device=device)
        if self._keeps_logits:
            inputs["logits_to_keep"] = wanted
        for session, length in zip(sessions, lengths, strict=True):
            self._snapshot(session, length)
        try:
            logits = self.model(input_ids=ids, **inputs).logits[:, -wanted:]
        except RuntimeError as error:
            raise MemberError(f"member {self.name!r} failed after {longest} tokens: {error}") from error
        for session, cache, request in zip(sessions, _part(batch, lengths, new), requests, strict=True):
            session.state.cache = cache
            session.ids.extend(request.ids[start:stop])
        real, columns = self.vocabulary.size, self.vocabulary.columns
        logps = torch.log_softmax(logits[..., :real].float(), dim=-1)
        if bool(torch.isnan(logps[..., 0]).any()):
            raise MemberError(
                f"member {self.name!r} gave NaN logits at token {longest + new}",
                hint="load it in bfloat16 or float32, or leave it out of the pack",
            )
        if real == columns:
            return logps
        # Columns that are no token get no mass.
        return nn.functional.pad(logps, (0, columns - real), value=float("-inf"))

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`. Recurrent and convolutional states return to a snapshot."""
        if length >= session.length:
            return
        state: _State = session.state
        if any(_fixed_states(layer) for layer in state.cache.layers):
            usable = [entry for entry in state.snapshots if entry[0] <= length]
            state.snapshots = usable
            if not usable:
                session.ids, session.state = [], _State(self._new_cache())
                return
            length, states = usable[-1]
            _restore(state.cache, states)
        for layer in state.cache.layers:
            if isinstance(layer, DynamicLayer) and layer.is_initialized:
                layer.keys = layer.keys[:, :, :length]
                layer.values = layer.values[:, :, :length]
        del session.ids[length:]

    def fork(self, session: Session) -> Session:
        """See `Member.fork`: attention tensors are shared, since nothing writes into them."""
        state: _State = session.state
        fresh = _State(_copy(state.cache), list(state.snapshots))
        return Session(ids=list(session.ids), state=fresh)

    def _snapshot(self, session: Session, length: int) -> None:
        layers = session.state.cache.layers
        if length and any(_fixed_states(layer) for layer in layers):
            states = [_clone(layer) for layer in layers]
            session.state.snapshots = [*session.state.snapshots, (length, states)][-_SNAPSHOTS:]


def _chunks(count: int, silent: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges to read: the part whose logits nobody wants at once, the rest in chunks of `size`."""
    if silent > 0:
        yield 0, silent
    for start in range(max(0, silent), count, size):
        yield start, min(start + size, count)


def context_window(config: Any, tokenizer: Any) -> int:
    """How many tokens a model can read."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if value := getattr(text, name, None):
            return int(value)
    return int(min(tokenizer.model_max_length, 2**31 - 1))


def _fixed_states(layer: Any) -> bool:
    """Whether a layer keeps states that have no time axis (convolutional, recurrent)."""
    return hasattr(layer, "conv_states")


def _clone(layer: Any) -> Any:
    if not _fixed_states(layer):
        return None
    copied = copy.copy(layer)
    for name in ("conv_states", "recurrent_states"):
        states = {i: t if t is None else t.clone() for i, t in getattr(layer, name).items()}
        setattr(copied, name, states)
    for name in ("is_conv_states_initialized", "is_recurrent_states_initialized"):
        setattr(copied, name, dict(getattr(layer, name)))
    copied.has_previous_state = dict(layer.has_previous_state)
    copied.conv_kernel_size = dict(layer.conv_kernel_size)
    return copied


def _restore(cache: DynamicCache, states: list[Any]) -> None:
    for index, saved in enumerate(states):
        if saved is not None:
            layer = _clone(saved)
            layer.keys, layer.values = cache.layers[index].keys, cache.layers[index].values
            cache.layers[index] = layer


def _copy(cache: DynamicCache) -> DynamicCache:
    fresh = copy.copy(cache)
    fresh.layers = [_clone(layer) or copy.copy(layer) for layer in cache.layers]
    return fresh


def _join(caches: list[DynamicCache], lengths: list[int]) -> DynamicCache:
    """One left-padded batch of single-row caches; a single one is used as it is."""
    if len(caches) == 1:
        return caches[0]
    batch, longest = copy.copy(caches[0]), max(lengths)
    batch.layers = []
    for rows in zip(*(cache.layers for cache in caches), strict=True):
        layer = _clone(rows[0]) or copy.copy(rows[0])
        if getattr(layer, "is_initialized", False) and layer.keys is not None:
            for name in ("keys", "values"):
                parts = [
                    nn.functional.pad(getattr(row, name), (0, 0, longest - length, 0))
                    for row, length in zip(rows, lengths, strict=True)
                ]
                setattr(layer, name, torch.cat(parts))
        if _fixed_states(layer):
            for name in ("conv_states", "recurrent_states"):
                for i, first in getattr(layer, name).items():
                    if first is not None:
                        getattr(layer, name)[i] = torch.cat([getattr(r, name)[i] for r in rows])
        batch.layers.append(layer)
    return batch


def _part(batch: DynamicCache, lengths: list[int], new: int) -> list[DynamicCache]:
    """The inverse of `_join` after `new` more tokens."""
    if len(lengths) == 1:
        return [batch]
    longest = max(lengths)
    return [_row(batch, index, longest - length) for index, length in enumerate(lengths)]


def _row(batch: DynamicCache, index: int, pads: int) -> DynamicCache:
    cache = copy.copy(batch)
    cache.layers = []
    for layer in batch.layers:
        single = _clone(layer) or copy.copy(layer)
        if getattr(layer, "is_initialized", False) and layer.keys is not None:
            single.keys = layer.keys[index : index + 1, :, pads:]
            single.values = layer.values[index : index + 1, :, pads:]
        if _fixed_states(layer):
            for name in ("conv_states", "recurrent_states"):
                states = getattr(single, name)
                for i, state in states.items():
                    if state is not None:
                        states[i] = state[index : index + 1].clone()
        cache.layers.append(single)
    return cache
