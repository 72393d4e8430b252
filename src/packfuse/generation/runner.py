"""Runs a request: reads its prompts, and decodes the answers by `generate` or as rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.constraint_processor import ConstraintProcessor
from packfuse.causal_lm.drafts.base import Draft
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.causal_lm.stopping import CancelCriteria, RowEnds, StopTextCriteria
from packfuse.errors import PromptError
from packfuse.fusion.room import check_room
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.answers import BatchInfo, make_answer
from packfuse.generation.output.result import Answer
from packfuse.generation.output.streamers import AnswerStreamer, adapted
from packfuse.generation.output.trace import TraceRecorder
from packfuse.generation.prepared import PreparedPrompt, padded
from packfuse.generation.reader import PromptReader
from packfuse.generation.request import Request
from packfuse.generation.row import Row
from packfuse.generation.runtime import Runtime
from packfuse.models.batching import NO_PAUSE
from packfuse.models.compute.heap import trim
from packfuse.models.member import Pause
from packfuse.text.continuation import Continuation, bare
from packfuse.text.detokenizer import StreamDetokenizer
from packfuse.weighting.prefill import Fit

_SCORE_BLOCK = 32
"""Number of tokens of a continuation that are scored in one pass."""


@dataclass(slots=True)
class _Decoding:
    """What belongs to one decoding of a batch of prompts, besides the prompts.

    Attributes:
        model: The pack over the vocabulary of the reference.
        recorder: The records of every step; None if steps cannot be recorded.
        cancelled: Ends cancelled rows.
        ends: Which rows were ended by criteria.
        arguments: The other arguments of transformers' `generate`.
    """

    model: FusedForCausalLM
    recorder: TraceRecorder | None
    cancelled: CancelCriteria
    ends: RowEnds
    arguments: dict[str, Any]


class Runner(PromptReader):
    """Runs one request on one pack, in one thread."""

    def __init__(
        self,
        runtime: Runtime,
        request: Request,
        cancels: Sequence[threading.Event] | None = None,
    ) -> None:
        """Prepare to run; nothing runs yet.

        Args:
            runtime: The pack.
            request: The request.
            cancels: One event per prompt; setting it stops the prompt's answer within one step.
        """
        super().__init__(runtime, request)
        self.cancels = list(cancels or [threading.Event() for _ in request.prompts])
        self._started = time.time()
        self._between = NO_PAUSE.call

    def run(self, streamer: BaseStreamer | None = None, pause: Pause = NO_PAUSE) -> list[Answer]:
        """Answer every prompt by transformers' `generate`.

        Prompts with the same reference and stop strings form a batch.

        Args:
            streamer: Called with the generated ids; for a single prompt.
            pause: Interrupts reading and decoding.

        Raises:
            CancelledError: if all prompts were cancelled before they were read.
        """
        self._begin(pause, self.cancels)
        prepared: list[tuple[PreparedPrompt, Fit]] = []
        for index, prompt in enumerate(self.request.prompts):
            if prepared and self.pause:
                self.pause.call()  # a prompt may be too short for a pause while it is read
            prepared.append(self.prepare(index, prompt))
        answers: dict[int, list[Answer]] = {}
        for key in dict.fromkeys((item.reference, item.stop) for item, _ in prepared):
            batch = [pair for pair in prepared if (pair[0].reference, pair[0].stop) == key]
            answers.update(self._generate(batch, streamer))
        trim()
        return [answer for index in sorted(answers) for answer in answers[index]]

    def _begin(self, pause: Pause, cancels: Sequence[threading.Event]) -> None:
        """Begin to read, with pauses in which reading ends if all is cancelled."""
        self._started, self._between = time.time(), pause.call

        def check() -> None:
            if all(cancel.is_set() for cancel in cancels):
                raise CancelledError

        def interrupt() -> None:
            check()
            pause.call()

        check()
        self.pause = Pause(pause.tokens, interrupt)

    def rows(
        self, index: int, streamers: Sequence[BaseStreamer] = (), pause: Pause = NO_PAUSE
    ) -> list[Row]:
        """Read one prompt; its answers as rows, which a loop decodes together with others.

        Args:
            index: Index of the prompt in the request, for which `Request.decodes_in_rows` is true.
            streamers: One for each answer, called with its ids; none to stream nothing.
            pause: Interrupts reading.

        Raises:
            CancelledError: if the prompt was cancelled before it was read.
        """
        self._begin(pause, [self.cancels[index]])
        item, fit = self.prepare(index, self.request.prompts[index])
        count = self.request.answers_each
        forks = [item.sequence.fork() for _ in range(count - 1)]
        return [
            self._row(item, fit, number, sequence, streamers[number] if streamers else None)
            for number, sequence in enumerate([item.sequence, *forks])
        ]

    def _row(
        self,
        item: PreparedPrompt,
        fit: Fit,
        number: int,
        sequence: PackSequence,
        streamer: BaseStreamer | None,
    ) -> Row:
        decoding = self._decoding([item], None)
        model, cache = decoding.model, self._cache(decoding, [sequence], None)
        cache.number = number
        ids, _ = padded([item.ids], model)
        streamer = self._begun(streamer, decoding, item)
        cancel, started = self.cancels[item.index], time.perf_counter()

        def answer(new: list[int]) -> Answer:
            info = self._info(decoding, None, time.perf_counter() - started)
            full = cache.window.full(0, new) if cache.window else None
            return make_answer(
                info, item, fit, new, 0, sequence, cancelled=cancel.is_set(), full=full
            )

        return Row(model, sequence, cache, ids, decoding.arguments, streamer, answer, self._drops)

    def score(self, continuation: str) -> float:
        """See `Pack.score`."""
        self._drops = False  # no record would say that the score is one of other members
        prompt = self.request.prompts[0]
        if not isinstance(prompt, str):
            raise PromptError("only text can be scored", hint="render the chat first")
        item, _ = self.prepare(0, bare(prompt))
        model = self.runtime.model(item.reference)
        scored = Continuation.of(model.engine.reference, prompt, continuation)
        check_room(item.sequence, scored.new[:-1])
        return self._sum_logps(model, item.sequence, scored.new)

    def _sum_logps(
        self, model: FusedForCausalLM, sequence: PackSequence, new: Sequence[int]
    ) -> float:
        """Sum of the fused log-probabilities of `new` tokens after a sequence, nats."""
        first = sequence.fused_logps
        total = float(first[new[0]]) if first is not None else 0.0
        for start in range(0, len(new) - 1, _SCORE_BLOCK):
            part = list(new[start : min(start + _SCORE_BLOCK, len(new) - 1)])
            logps = model.engine.advance([sequence], [part], self.request.call, len(part))[0]
            following = torch.tensor(new[start + 1 : start + 1 + len(part)], device=logps.device)
            total += float(logps.gather(1, following[:, None]).sum())
        return total

    def _generate(
        self, batch: list[tuple[PreparedPrompt, Fit]], streamer: BaseStreamer | None
    ) -> dict[int, list[Answer]]:
        """Generate the answers of one batch, by index of the prompt in the request."""
        items = [item for item, _ in batch]
        decoding = self._decoding(items, self._draft)
        model = decoding.model
        cache = self._cache(decoding, [item.sequence for item in items], self._draft)
        cache.pause = self._between
        ids, mask = padded([item.ids for item in items], model)
        streamer = self._begun(streamer, decoding, items[0])
        started = time.perf_counter()
        sequences: Tensor = model.generate(
            ids, attention_mask=mask, cache=cache, streamer=streamer, **decoding.arguments
        )
        each = len(sequences) // len(batch)
        info = self._info(decoding, cache, time.perf_counter() - started)
        lengths = decoding.cancelled.lengths
        answers: dict[int, list[Answer]] = {}
        for row, tokens in enumerate(sequences.tolist()):
            item, fit = batch[row // each]
            new = tokens[ids.shape[1] : lengths.get(row // each, info.length(row))]
            stopped = self.cancels[item.index].is_set()
            full = cache.window.full(row // each, new) if cache.window else None
            answer = make_answer(
                info, item, fit, new, row, item.sequence, cancelled=stopped, full=full
            )
            answers.setdefault(item.index, []).append(answer)
        return answers

    def _decoding(self, items: Sequence[PreparedPrompt], draft: Draft | None) -> _Decoding:
        """What belongs to the decoding of prompts with one reference and the same stop strings."""
        request, model = self.request, self.runtime.model(items[0].reference)
        recorder = None
        if request.records_steps:
            drafted = draft.max_draft_tokens if draft else 0
            roles = request.call.gate.roles(self.runtime.names)
            recorder = TraceRecorder(
                model.engine, request.trace, drafted, request.top_logprobs, roles
            )
        cancelled, ends = CancelCriteria([self.cancels[item.index] for item in items]), RowEnds()
        length = max(len(item.ids) for item in items)
        arguments = self._arguments(model, items[0].stop, cancelled, ends, length)
        if draft is not None:
            # This argument selects the loop of transformers that verifies drafts. The drafter is
            # that of the call (`FusedForCausalLM.own_candidate_generator`).
            arguments["prompt_lookup_num_tokens"] = draft.max_draft_tokens
        return _Decoding(model, recorder, cancelled, ends, arguments)

    def _cache(
        self, decoding: _Decoding, sequences: Sequence[PackSequence], draft: Draft | None
    ) -> FusedCache:
        """The cache of a decoding, which starts from prompts that have been read."""
        cache = FusedCache(
            replace(self.request.call, observer=decoding.recorder, draft=draft),
            sequences,
            use_cache=self.request.arguments.get("use_cache") is not False,
        )
        cache.seed, cache.prepared = self.request.seed, True
        if decoding.recorder is not None and decoding.recorder.tracing:
            cache.proposals = decoding.recorder.proposals
        return cache

    def _begun(
        self, streamer: BaseStreamer | None, decoding: _Decoding, item: PreparedPrompt
    ) -> BaseStreamer | None:
        """The streamer, or that of the request, which is ready for the answer to a prompt."""
        given = decoding.arguments.pop("streamer", None)
        streamer = streamer or adapted(given)
        if isinstance(streamer, AnswerStreamer):
            detokenizer = StreamDetokenizer(decoding.model.engine.reference, item.stop)
            streamer.begin(detokenizer, decoding.recorder)
        return streamer

    def _info(self, decoding: _Decoding, cache: FusedCache | None, seconds: float) -> BatchInfo:
        """What the answers of a decoding share; `cache` is that of `generate`."""
        return BatchInfo(
            runtime=self.runtime,
            request=self.request,
            recorder=decoding.recorder,
            drafts=cache.draft_stats if cache else None,
            ends=decoding.ends,
            notes=[*self._draft_notes(self._draft if cache else None), *self._pin_notes],
            seconds=seconds,
        )

    def _arguments(
        self,
        model: FusedForCausalLM,
        stop: tuple[str, ...],
        cancelled: CancelCriteria,
        ends: RowEnds,
        prompt_length: int,
    ) -> dict[str, Any]:
        """The arguments of transformers' `generate` besides the prompts."""
        arguments, reference = dict(self.request.arguments), model.engine.reference
        own = arguments.pop("stopping_criteria", None) or []
        criteria = StoppingCriteriaList([ends.watch(one, "criteria") for one in own])
        criteria.append(cancelled)
        if self.request.max_time is not None:
            timer = MaxTimeCriteria(self.request.max_time, initial_timestamp=self._started)
            criteria.append(ends.watch(timer, "time"))
        if stop:
            criteria.append(StopTextCriteria(reference, stop, prompt_length))
        processors = LogitsProcessorList(arguments.pop("logits_processor", None) or [])
        if self.request.constraint is not None:
            processors.append(
                ConstraintProcessor(reference, self.request.constraint, prompt_length)
            )
        return {**arguments, "stopping_criteria": criteria, "logits_processor": processors}

    @property
    def _draft(self) -> Draft | None:
        """The draft method of `generate`, which is used for a single answer only."""
        request = self.request
        return request.call.draft if request.takes_drafts else None

    def _draft_notes(self, used: Draft | None) -> list[str]:
        """The note for a request with a draft method that is not used."""
        if used is self.request.call.draft:
            return []
        if self._drops:
            return ["no drafts: on_member_failure='drop' may leave members out between tokens"]
        return ["no drafts: they are used for one answer at a time, without beams"]

    @property
    def _pin_notes(self) -> list[str]:
        """The note for a call with token ids, where prompts would choose the reference."""
        request, names = self.request, self.runtime.names
        named = self.runtime.settings.reference != "auto" or request.call.gate.roles(names)
        if not request.pins or named or len(names) == 1:
            return []
        name, pins = names[self.runtime.default_reference], ", ".join(request.pins)
        return [f"the reference is {name!r}, the default, whose token ids these are: {pins}"]
