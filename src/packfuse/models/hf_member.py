"""A member whose model is a transformers model in this process."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from packfuse.errors import LoadError, MemberError, UnsupportedError
from packfuse.hf_compat.models import CACHE, cache_argument, grouped_attention
from packfuse.models.batching import MAX_PADDING, ReadChunk, batches, chunks, max_chunk_tokens
from packfuse.models.compute.lm_head import LMHead
from packfuse.models.compute.onednn import OneDNNLinear, has_layers
from packfuse.models.devices import execution_device
from packfuse.models.fingerprint import ModelState, digest_of, forget_digest
from packfuse.models.kv.fixed_shape import unsupported_reason
from packfuse.models.kv.ragged import ForwardBatch, RaggedBatch
from packfuse.models.kv.sessions import KVSessions
from packfuse.models.kv.store import has_states, new_cache
from packfuse.models.logps import check_numbers, whole_logps
from packfuse.models.member import MemberFacts, Read, Unchecked
from packfuse.models.vocab_subset import VocabSubset
from packfuse.models.window import context_window
from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import upload

LOGITS_BYTES = 32 * 2**20
"""Most bytes of one block of float32 logits; longer reads are cut into chunks."""

DEVICE_LOGITS_BYTES = 8 * LOGITS_BYTES
"""The same on accelerators: the places of a prompt that are scored fit into one block."""

_CACHES = (
    "a member needs a KV cache that can be copied and cut at any token: attention, also beside "
    "recurrent layers"
)


class HFMember(KVSessions):
    """A transformers model and its tokenizer. The model is never altered.

    Attributes:
        model: The model, in evaluation mode.
    """

    def __init__(self, name: str, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        """Wrap a loaded causal language model.

        Raises:
            LoadError: if the rows of the model's cache cannot be stacked, copied and rolled back.
        """
        parameters = inspect.signature(model.forward).parameters
        kind = type(model).__name__
        cache = cache_argument(model)
        if cache is None:
            raise LoadError(f"member {name!r}: {kind} does not take `{CACHE}`", hint=_CACHES)
        try:
            self._empty_cache = new_cache(model.config)
        except UnsupportedError as error:
            raise LoadError(
                f"member {name!r} has an unsupported kind of KV cache: {error.message} ({kind})",
                hint=_CACHES,
            ) from error
        model.eval()
        self.name, self.model, self.vocabulary = name, model, vocabulary
        self.context_window = context_window(model.config, vocabulary.tokenizer)
        self._cache_name = cache
        self._takes_logits_to_keep = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters
        self._lm_head = LMHead(model)
        # Finding them takes longer than asking where they are, which every step does.
        self._embeddings = model.get_input_embeddings()
        self._uses_onednn = has_layers(model)
        # Padding would change recurrent states, and models without position ids count from slot 0.
        self._allows_padding = self._takes_positions and not has_states(self._empty_cache)
        self.state: ModelState = ModelState.of(model, vocabulary.tokenizer)

    def renamed(self, name: str) -> HFMember:
        """See `Member.renamed`."""
        return HFMember(name, self.model, self.vocabulary)

    @property
    def facts(self) -> MemberFacts:
        """See `Member.facts`."""
        model = self.model
        return MemberFacts(
            str(model.name_or_path),
            str(model.dtype),
            int(model.num_parameters()),
            sum(parameter.nbytes for parameter in model.parameters()),
        )

    @property
    def device(self) -> torch.device:
        """See `Member.device`."""
        return execution_device(self._embeddings)

    def refresh(self) -> None:
        """See `Member.refresh`. Adapters, edits in place, `to` and replaced modules are noticed."""
        state = ModelState.of(self.model, self.tokenizer)
        self._embeddings = self.model.get_input_embeddings()
        if state != self.state:
            state.check_tokens(self.name, self.state)
            self.forget()
            self._empty_cache = new_cache(self.model.config)
            self._uses_onednn = has_layers(self.model)
            self.state = state

    def forget(self) -> None:
        """See `Member.forget`."""
        self._lm_head.forget()
        forget_digest(self.model)

    def digest(self) -> str:
        """See `Member.digest`."""
        return digest_of(self.model, self.tokenizer)

    def quick_digest(self) -> str:
        """See `Member.quick_digest`."""
        return self.state.sampled

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """See `Member.read`. Requests with similar numbers of new tokens run as one batch."""
        self.check_context_window(requests)
        results: dict[int, Tensor] = {}
        for rows in self._batches(requests):
            for row, kept in zip(rows, self._read([requests[i] for i in rows]), strict=True):
                results[row] = kept
        return [results[row] for row in range(len(requests))]

    def _batches(self, requests: Sequence[Read]) -> Iterator[list[int]]:
        """Groups of indices of requests that are read together."""
        return batches(requests, self._max_padding)

    @property
    def _max_padding(self) -> int | None:
        """The most padding of a row; None if rows cannot be padded."""
        return MAX_PADDING if self._allows_padding else None

    def _read(self, requests: list[Read]) -> list[Tensor]:
        """Read the requests of one batch, in chunks that limit the memory for logits."""
        subset = self._pruned_subset(requests[0])
        size = max(1, self._block_positions // len(requests))
        long = any(request.callback and len(request.ids) > size for request in requests)
        # The body reads a long text in one pass, and the LM head follows in blocks. Not with
        # recurrent states, which are copied before every chunk.
        whole = long and not has_states(self._empty_cache) and self._lm_head.separable
        kept: list[list[Tensor]] = [[] for _ in requests]
        # Chunks are limited by the number of logits, which most models compute only where needed.
        ranges = chunks(
            requests,
            None if whole else size,
            skips_logits=self._can_skip_logits,
            longest=max_chunk_tokens(self.device),
        )
        for number, (start, stop) in enumerate(list(ranges)):
            if number and (pause := requests[0].pause):
                pause.call()
            all_chunks = [ReadChunk(request, start, stop) for request in requests]
            reading = [
                (chunk, found) for chunk, found in zip(all_chunks, kept, strict=True) if chunk.ids
            ]
            returned = self._forward([chunk for chunk, _ in reading], subset, -stop)
            for (_, found), blocks in zip(reading, returned, strict=True):
                found.extend(blocks)
        return [found[0] if len(found) == 1 else torch.cat(found) for found in kept]

    @property
    def _block_positions(self) -> int:
        """The most positions of one block of logits."""
        room = LOGITS_BYTES if self.device.type == "cpu" else DEVICE_LOGITS_BYTES
        return max(1, room // (4 * self.vocabulary.columns))

    @torch.no_grad()
    def _forward(
        self, read_chunks: list[ReadChunk], subset: VocabSubset | None, room: int
    ) -> list[list[Tensor]]:
        """Read chunks of several requests in one forward pass.

        Args:
            read_chunks: The chunks, none empty.
            subset: Tokens of which logits are computed; None for all.
            room: Number of tokens that later chunks of these requests will read.

        Returns:
            For each chunk the log-probabilities that its request returns, blocks `[n, columns]`.
        """
        sessions = [chunk.request.session for chunk in read_chunks]
        for session in sessions:
            self._save_snapshot(session)
        batch = self._forward_batch(read_chunks, room)
        # On processors nothing is gained by a later check.
        defers = self.device.type != "cpu" and all(c.request.defers_check for c in read_chunks)
        flags: list[Tensor] | None = [] if defers else None
        try:
            kept, log_normalizers = self._collect(
                read_chunks, self._logits(read_chunks, batch, subset), subset, flags
            )
        except BaseException:
            for session in sessions:
                # Some layers may have read the tokens, and others not: the cache is invalid.
                self.reset(session)
            raise
        batch.finish()
        for chunk, session, values in zip(read_chunks, sessions, log_normalizers, strict=True):
            session.log_normalizers = values
            session.ids.extend(chunk.ids)
        if flags is not None:
            own = torch.cat(flags).split([len(chunk.positions) for chunk in read_chunks])
            for chunk, session, broken in zip(read_chunks, sessions, own, strict=True):
                session.unchecked = Unchecked.after(session.unchecked, broken, chunk.counts)
        return kept

    def _collect(
        self,
        read_chunks: Sequence[ReadChunk],
        blocks: Iterable[Tensor],
        subset: VocabSubset | None,
        flags: list[Tensor] | None,
    ) -> tuple[list[list[Tensor]], Sequence[Tensor]]:
        """Normalize blocks of logits and deliver them to the chunks, in the order of the chunks.

        Args:
            read_chunks: The chunks.
            blocks: Logits at their positions, `[P, columns]`.
            subset: Tokens of which there are logits; None for all.
            flags: Gets whether logits are NaN, block by block; None if that is an error at once.

        Returns:
            For each chunk the log-probabilities that its request returns, and the log-normalizers
            (nats) at its positions.
        """
        kept: list[list[Tensor]] = [[] for _ in read_chunks]
        counts = [(k, count) for k, chunk in enumerate(read_chunks) for count in chunk.counts]
        log_normalizers, pruned, remaining = [], subset is not None, iter(blocks)
        while True:
            # Outside: errors of callbacks, which are not errors of the member.
            with self._naming_member(read_chunks):
                logits = next(remaining, None)
                if logits is None:
                    break
                here, counts = counts[: len(logits)], counts[len(logits) :]
                logps, column, values = self._normalized(logits, subset)
                if flags is None:
                    check_numbers(self.name, column, [count for _, count in here])
                else:
                    flags.append(torch.isnan(column))
            log_normalizers.append(values)
            # Frees the block before the next one is computed.
            del logits
            start = 0
            for k, group in groupby(k for k, _ in here):
                own = [count for _, count in here[start:][: len(list(group))]]
                kept[k].extend(
                    read_chunks[k].deliver(own, logps[start:][: len(own)], pruned=pruned)
                )
                start += len(own)
            del logps
        return kept, torch.cat(log_normalizers).split([len(c.positions) for c in read_chunks])

    @contextmanager
    def _naming_member(self, read_chunks: Sequence[ReadChunk]) -> Iterator[None]:
        """Turn runtime errors of the model and of torch into errors that name the member."""
        try:
            yield
        except MemberError:
            raise
        except RuntimeError as error:
            length = max(chunk.request.session.length for chunk in read_chunks)
            raise MemberError(
                f"member {self.name!r} failed after {length} tokens: {error}"
            ) from error

    def _forward_batch(self, read_chunks: Sequence[ReadChunk], room: int) -> ForwardBatch:
        """The forward pass that reads the chunks."""
        row_caches = [chunk.request.session.state.row_cache for chunk in read_chunks]
        new = [len(chunk.ids) for chunk in read_chunks]
        return RaggedBatch(self._empty_cache, row_caches, new, room)

    def _pruned_subset(self, request: Read) -> VocabSubset | None:
        """The subset to which the LM head is pruned for a request; None for the whole head.

        All requests of a batch have the same subset, and either all or none have a callback.
        """
        subset = request.active_subset
        if request.callback or subset is None or not self._lm_head.can_prune(subset):
            return None
        return subset

    def _logits(
        self, read_chunks: Sequence[ReadChunk], batch: ForwardBatch, subset: VocabSubset | None
    ) -> Iterator[Tensor]:
        """The logits at the positions of the chunks, in their order, in blocks `[P, columns]`."""
        ids = [list(chunk.ids) for chunk in read_chunks]
        inputs = batch.inputs(ids, self.device, positions=self._takes_positions)
        inputs[self._cache_name] = batch.cache
        flat = [
            index
            for k, chunk in enumerate(read_chunks)
            for index in batch.flat_positions(k, chunk.positions)
        ]
        observed = any(chunk.request.callback for chunk in read_chunks)
        if observed and len(flat) > self._block_positions and self._lm_head.separable:
            body, hidden = self._lm_head.body(upload(flat, self.device, torch.long))
            self._run(body, inputs)
            for block in hidden().split(self._block_positions):
                yield self._logits_of(block)
            return
        if self._lm_head.replaceable:
            yield self._selected_logits(batch, inputs, flat, subset)
            return
        width = batch.width
        rows, columns = [index // width for index in flat], [index % width for index in flat]
        if self._takes_logits_to_keep:
            inputs["logits_to_keep"] = width - min(columns, default=width - 1)
        logits = self._run(self.model, inputs)
        cut = width - logits.shape[1]
        yield logits[rows, [column - cut for column in columns]]

    def _selected_logits(
        self,
        batch: ForwardBatch,
        inputs: dict[str, Any],
        flat: list[int],
        subset: VocabSubset | None,
    ) -> Tensor:
        """The logits `[P, columns]` at flat positions of the batch, and at no others."""
        twin = self._lm_head.select(upload(flat, self.device, torch.long), subset)
        return self._run(twin, inputs)[0]

    def _run(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Logits of the model, or of a twin of it."""
        with self._fast_kernels():
            logits: Tensor = model(**inputs).logits
        return logits

    def _logits_of(self, hidden: Tensor) -> Tensor:
        """Logits `[P, columns]` of hidden states `[P, H]`."""
        with self._fast_kernels():
            return self._lm_head.logits(hidden)

    @contextmanager
    def _fast_kernels(self) -> Iterator[None]:
        """On processors: linear layers by oneDNN, and attention without copies of the KV cache."""
        if self.device.type != "cpu":
            yield
            return
        with grouped_attention(), OneDNNLinear() if self._uses_onednn else nullcontext():
            yield

    @property
    def _can_skip_logits(self) -> bool:
        """Whether logits can be computed at some positions only."""
        return self._takes_logits_to_keep or self._lm_head.replaceable

    def _normalized(
        self, logits: Tensor, subset: VocabSubset | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities `[P, columns]`, those of one token, and log-normalizers `[P]`, nats.

        Args:
            logits: `[P, columns]`, or `[P, n]` for a subset of n tokens.
            subset: Tokens of which there are logits; None for all.

        Raises:
            MemberError: for another number of logits than expected.
        """
        expected = self.vocabulary.columns if subset is None else len(subset.ids)
        if logits.shape[-1] != expected:
            raise MemberError(
                f"member {self.name!r} gives {logits.shape[-1]} logits, not {expected}",
                hint="model and tokenizer do not belong together",
            )
        logits = logits.float()
        if subset is not None:
            logps, first = subset.spread(logits), subset.first
        else:
            logps, first = whole_logps(logits, self.vocabulary.size), 0
        return logps, logps[:, first], logits[:, 0] - logps[:, first]

    def fixed_steps_hindrance(self) -> str | None:
        """Why steps of this member cannot run in tensors of fixed shape; None if they can."""
        devices = sorted({str(parameter.device) for parameter in self.model.parameters()})
        if len(devices) > 1:
            return f"its model is spread over {', '.join(devices)}"
        if not self._lm_head.replaceable:
            return "its LM head cannot be replaced"
        if not self._takes_positions:
            return f"{type(self.model).__name__} does not take position_ids"
        return unsupported_reason(self._empty_cache, self.model.config)
