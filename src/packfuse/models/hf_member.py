"""A member that is a transformers model in this process."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from packfuse.errors import LoadError, MemberError, PromptError
from packfuse.hf_compat import CACHE, cache_argument, grouped_attention
from packfuse.models.batching import MAX_PADDING, ReadChunk, batches, chunks
from packfuse.models.kv.ragged import ForwardBatch, RaggedBatch
from packfuse.models.kv.store import RowCache, has_states, new_cache
from packfuse.models.lm_head import LMHead
from packfuse.models.member import Member, Read, Session
from packfuse.models.onednn import OneDNNLinear
from packfuse.models.vocab_subset import VocabSubset
from packfuse.text.vocabulary import Vocabulary

LOGITS_BYTES = 32 * 2**20
"""Largest block of float32 logits made at once; longer reads go in chunks."""

_SNAPSHOTS = 4


@dataclass(slots=True)
class _SessionState:
    """What a row has read, and copies of states that cannot be rolled back."""

    row_cache: RowCache
    snapshots: list[tuple[int, list[Any]]] = field(default_factory=list)


class HFMember(Member):
    """One model and its tokenizer. The model is used as it is and never altered."""

    def __init__(self, name: str, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        """Wrap a loaded causal LM.

        Raises:
            LoadError: if the model keeps no cache that rows can share, copy and roll back.
        """
        parameters = inspect.signature(model.forward).parameters
        hint = "models with a cache of their own kind (pure Mamba, RWKV) cannot join a pack"
        cache = cache_argument(model)
        if cache is None:
            kind = type(model).__name__
            raise LoadError(f"member {name!r}: {kind} does not take `{CACHE}`", hint=hint)
        try:
            self._empty_cache = new_cache(model.config)
        except (TypeError, KeyError) as error:
            raise LoadError(f"member {name!r} keeps its past in a {error}", hint=hint) from error
        model.eval()
        self.name, self.model, self.vocabulary = name, model, vocabulary
        self.context_window = context_window(model.config, vocabulary.tokenizer)
        self._cache_name = cache
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters
        self._lm_head = LMHead(model)
        self._uses_onednn = any(
            type(module) is nn.Linear and module.weight.dtype == torch.float32
            for module in model.modules()
        )
        # Padding would enter states, and without positions a row has to begin the batch's.
        self._allows_padding = self._takes_positions and not has_states(self._empty_cache)

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.vocabulary.tokenizer

    @property
    def device(self) -> torch.device:
        """See `Member.device`."""
        weight: Any = self.model.get_input_embeddings().weight
        return torch.device(weight.device)

    def open(self) -> Session:
        """A row in which nothing has been read."""
        return Session(state=_SessionState(RowCache(self._empty_cache)))

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """Rows with about as many new tokens run as one batch; see `Member.read`."""
        for request in requests:
            self._check_context_window(request)
        results: dict[int, Tensor] = {}
        for rows in batches(requests, MAX_PADDING if self._allows_padding else None):
            for row, kept in zip(rows, self._read([requests[i] for i in rows]), strict=True):
                results[row] = kept
        return [results[row] for row in range(len(requests))]

    def _check_context_window(self, request: Read) -> None:
        total = request.session.length + len(request.ids)
        if total > self.context_window:
            raise PromptError(
                f"member {self.name!r} would read {total} tokens, and can read "
                f"{self.context_window}",
                hint="shorten the prompt or the answer",
            )

    def _read(self, requests: list[Read]) -> list[Tensor]:
        """Requests of about one length, in chunks that keep the logits small."""
        columns = self._columns(requests[0])
        size = max(1, self._block_positions // len(requests))
        long = any(request.callback and len(request.ids) > size for request in requests)
        # Bodies read long texts in one go, and heads follow in blocks. Not where there are states,
        # of which copies are taken before every chunk.
        whole = long and not has_states(self._empty_cache) and self._lm_head.separable
        kept: list[list[Tensor]] = [[] for _ in requests]
        # Logits that nobody wants cost nothing, unless the model makes them all.
        for start, stop in list(
            chunks(requests, None if whole else size, skips_logits=self._can_skip_logits)
        ):
            pieces = [ReadChunk(request, start, stop) for request in requests]
            reading = [
                (piece, found) for piece, found in zip(pieces, kept, strict=True) if piece.ids
            ]
            heard = self._forward([piece for piece, _ in reading], columns, -stop)
            for (_, found), parts in zip(reading, heard, strict=True):
                found.extend(parts)
        return [found[0] if len(found) == 1 else torch.cat(found) for found in kept]

    @property
    def _block_positions(self) -> int:
        """At how many places logits are made at once."""
        return max(1, LOGITS_BYTES // (4 * self.vocabulary.columns))

    @torch.no_grad()
    def _forward(
        self, pieces: list[ReadChunk], columns: VocabSubset | None, room: int
    ) -> list[list[Tensor]]:
        """Read the pieces side by side, of which so many tokens more follow.

        Returns:
            Of each what its request keeps, log-probabilities `[n, columns]` in blocks.
        """
        sessions = [piece.request.session for piece in pieces]
        for session in sessions:
            self._save_snapshot(session)
        running = self._forward_batch(pieces, room)
        try:
            kept, log_normalizers = self._collect(
                pieces, self._logits(pieces, running, columns), columns
            )
        except BaseException:
            for session in sessions:
                # Some layers may have read the tokens: what is there is worth nothing now.
                session.ids, session.state = [], self.open().state
            raise
        running.finish()
        for piece, session, level in zip(pieces, sessions, log_normalizers, strict=True):
            session.log_normalizers = level
            session.ids.extend(piece.ids)
        return kept

    def _collect(
        self, pieces: Sequence[ReadChunk], blocks: Iterable[Tensor], columns: VocabSubset | None
    ) -> tuple[list[list[Tensor]], Sequence[Tensor]]:
        """What each piece keeps of blocks of logits, one piece after the other, and the levels."""
        kept: list[list[Tensor]] = [[] for _ in pieces]
        counts = [(k, count) for k, piece in enumerate(pieces) for count in piece.counts]
        log_normalizers, pruned, waiting = [], columns is not None, iter(blocks)
        while True:
            # What is raised by whoever watches is not the member's fault.
            with self._naming_member(pieces):
                logits = next(waiting, None)
                if logits is None:
                    break
                here, counts = counts[: len(logits)], counts[len(logits) :]
                logps, level = self._logps(logits, [count for _, count in here], columns)
            log_normalizers.append(level)
            # Or there would be room for two blocks of each.
            del logits
            at = 0
            for k, some in groupby(k for k, _ in here):
                heard = [count for _, count in here[at:][: len(list(some))]]
                kept[k].extend(pieces[k].deliver(heard, logps[at:][: len(heard)], pruned=pruned))
                at += len(heard)
            del logps
        return kept, torch.cat(log_normalizers).split([len(piece.positions) for piece in pieces])

    @contextmanager
    def _naming_member(self, pieces: Sequence[ReadChunk]) -> Iterator[None]:
        """Errors of the model, or of torch, come with the member's name."""
        try:
            yield
        except MemberError:
            raise
        except RuntimeError as error:
            at = max(piece.request.session.length for piece in pieces)
            raise MemberError(f"member {self.name!r} failed after {at} tokens: {error}") from error

    def _forward_batch(self, pieces: Sequence[ReadChunk], room: int) -> ForwardBatch:
        """How the pieces are read."""
        row_caches = [piece.request.session.state.row_cache for piece in pieces]
        return RaggedBatch(
            self._empty_cache, row_caches, [len(piece.ids) for piece in pieces], room
        )

    def _columns(self, request: Read) -> VocabSubset | None:
        """Those that a pass works out, where all requests are like this one; None for all."""
        columns = request.active_subset
        if request.callback or columns is None or not self._lm_head.prunes(columns):
            return None
        return columns

    def _logits(
        self, pieces: Sequence[ReadChunk], running: ForwardBatch, columns: VocabSubset | None
    ) -> Iterator[Tensor]:
        """The logits wanted, one piece after the other, in blocks `[P, columns]`."""
        ids = [list(piece.ids) for piece in pieces]
        inputs = running.inputs(ids, self.device, positions=self._takes_positions)
        inputs[self._cache_name] = running.cache
        flat = [at for k, piece in enumerate(pieces) for at in running.places(k, piece.positions)]
        observed = any(piece.request.callback for piece in pieces)
        if observed and len(flat) > self._block_positions and self._lm_head.separable:
            body, hidden = self._lm_head.body(torch.tensor(flat, dtype=torch.long))
            self._run(body, inputs)
            for some in hidden().split(self._block_positions):
                yield self._after(some)
            return
        if self._lm_head.replaceable:
            yield self._selected_logits(running, inputs, flat, columns)
            return
        rows, places = [at // running.width for at in flat], [at % running.width for at in flat]
        if self._takes_logits_to_keep:
            inputs["logits_to_keep"] = running.width - min(places, default=running.width - 1)
        logits = self._run(self.model, inputs)
        cut = running.width - logits.shape[1]
        yield logits[rows, [place - cut for place in places]]

    def _selected_logits(
        self,
        running: ForwardBatch,
        inputs: dict[str, Any],
        flat: list[int],
        columns: VocabSubset | None,
    ) -> Tensor:
        """The logits at some places of the batch, `[P, columns]`, and no others."""
        return self._run(self._lm_head.pick(torch.tensor(flat, dtype=torch.long), columns), inputs)[
            0
        ]

    def _run(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The logits that the model, or a twin of it, makes of its inputs."""
        with self._fast_kernels():
            logits: Tensor = model(**inputs).logits
        return logits

    def _after(self, hidden: Tensor) -> Tensor:
        """The logits `[P, columns]` of hidden states."""
        with self._fast_kernels():
            return self._lm_head.after(hidden)

    @contextmanager
    def _fast_kernels(self) -> Iterator[None]:
        """Products by oneDNN and attention without copies, on processors."""
        if self.device.type != "cpu":
            yield
            return
        with grouped_attention(), OneDNNLinear() if self._uses_onednn else nullcontext():
            yield

    @property
    def _can_skip_logits(self) -> bool:
        """Whether logits that nobody wants need not be made."""
        return self._takes_logits_to_keep or self._lm_head.replaceable

    def _logps(
        self, logits: Tensor, counts: Sequence[int], columns: VocabSubset | None
    ) -> tuple[Tensor, Tensor]:
        """Normalized over the columns that are tokens, and how far the logits lay above that.

        Args:
            logits: `[P, columns]`.
            counts: After how many tokens each of them is.
            columns: Those that were worked out; None for all.
        """
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
                logits[:, size:] = float("-inf")
            logps, first = torch.log_softmax(logits, dim=-1), 0
        # A single NaN or infinity makes a whole row NaN.
        broken = torch.isnan(logps[:, first])
        if bool(broken.any()):
            raise MemberError(
                f"member {self.name!r} gave NaN logits after token "
                f"{counts[int(broken.nonzero()[0])]}",
                hint="load it in bfloat16 or float32, or leave it out of the pack",
            )
        return logps, logits[:, 0] - logps[:, first]

    def rollback(self, session: Session, length: int) -> None:
        """See `Member.rollback`. Recurrent and convolutional states return to a snapshot."""
        if length >= session.length:
            return
        state: _SessionState = session.state
        saved: list[Any] = []
        if has_states(self._empty_cache):
            state.snapshots = [entry for entry in state.snapshots if entry[0] <= length]
            length, saved = state.snapshots[-1] if state.snapshots else (0, saved)
        if length <= 0:
            session.ids, session.state = [], self.open().state
            return
        if saved:
            state.row_cache.restore(saved)
        state.row_cache.cut(length)
        del session.ids[length:]

    def fork(self, session: Session) -> Session:
        """See `Member.fork`: attention tensors are shared."""
        state: _SessionState = session.state
        fresh = _SessionState(state.row_cache.fork(), list(state.snapshots))
        return replace(session, ids=list(session.ids), state=fresh, log_normalizers=None)

    def keep(self, session: Session, length: int) -> Session:
        """See `Member.keep`."""
        kept = self.fork(session)
        if length < session.length:
            self.rollback(kept, length)
            kept.state.row_cache.leave()
        return kept

    def nbytes(self, session: Session) -> int:
        """See `Member.nbytes`; what views keep alive counts in full, and once."""
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


def context_window(config: PreTrainedConfig, tokenizer: Any) -> int:
    """How many tokens a model can read, by its configuration or else its tokenizer."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if value := getattr(text, name, None):
            return int(value)
    return int(min(tokenizer.model_max_length, 2**31 - 1))
