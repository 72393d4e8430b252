"""Runs a request: prompts read and weighed, tokens generated, answers with their records."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from packfuse.causal_lm.constraint_processor import ConstraintProcessor
from packfuse.causal_lm.drafts.base import Draft
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.causal_lm.stopping import CancelCriteria, StopTextCriteria
from packfuse.errors import PromptError
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates.every import Every
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.request import Prompt, Request
from packfuse.generation.result import (
    Answer,
    Chunk,
    Drafts,
    FinishReason,
    FusionRecord,
    Timings,
    Usage,
    by_name,
)
from packfuse.generation.trace import RecordedSequence, TraceRecorder
from packfuse.registry import alignments, drafts, gates, rules, weightings
from packfuse.text.chat_template import render_chat
from packfuse.text.continuation import Continuation, bare
from packfuse.text.detokenizer import StreamDetokenizer, detokenize
from packfuse.text.prompt import PackPrompt, from_text
from packfuse.weighting.fit_positions import ReferenceView
from packfuse.weighting.methods.base import Weights
from packfuse.weighting.methods.top1 import Top1
from packfuse.weighting.prefill import Fit, prefill

if TYPE_CHECKING:
    from packfuse.pack import Pack


@dataclass(slots=True)
class _Prepared:
    """A prompt that has been read by every member."""

    place: int
    reference: int
    ids: list[int]
    prompt: PackPrompt
    row: PackSequence
    fit: Fit
    stop: tuple[str, ...]


class Runner:
    """One request on one pack. Whoever runs it holds the pack's lock."""

    def __init__(
        self, pack: Pack, request: Request, cancels: Sequence[threading.Event] | None = None
    ) -> None:
        """Nothing runs yet. Setting one of `cancels` ends that prompt's answer within one step."""
        self.pack, self.request = pack, request
        self.cancels = list(cancels or [threading.Event() for _ in request.prompts])
        self._readings: dict[int, Engine] = {}

    def run(self, streamer: BaseStreamer | None = None) -> list[Answer]:
        """Answer every prompt; those with the same reference and stop strings run as one batch.

        Raises:
            CancelledError: if every prompt was cancelled before it was read.
        """
        if all(cancel.is_set() for cancel in self.cancels):
            raise CancelledError
        with self.settings():
            prepared = [self.prepare(i, prompt) for i, prompt in enumerate(self.request.prompts)]
            answers: dict[int, list[Answer]] = {}
            for kind in dict.fromkeys((item.reference, item.stop) for item in prepared):
                group = [item for item in prepared if (item.reference, item.stop) == kind]
                answers.update(self._generate(kind[0], group, streamer))
        return [answer for place in sorted(answers) for answer in answers[place]]

    def stream(self, lock: threading.RLock) -> Generator[Chunk]:
        """Answer the one prompt, chunk by chunk, from a thread that ends with the iterator."""
        pieces: queue.SimpleQueue[list[int] | StreamDetokenizer | Answer | BaseException] = (
            queue.SimpleQueue()
        )

        def work() -> None:
            try:
                with lock:
                    pieces.put(self.run(_Feed(pieces, self))[0])
            except BaseException as error:
                pieces.put(error)

        thread = threading.Thread(target=work, name="packfuse-stream", daemon=True)
        thread.start()
        emitter: StreamDetokenizer | None = None
        try:
            while True:
                piece = pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                if isinstance(piece, StreamDetokenizer):
                    emitter = piece
                elif isinstance(piece, Answer):
                    yield Chunk(emitter.finish() if emitter else piece.text, piece.record)
                    return
                elif emitter and (text := emitter.push(piece)):
                    yield Chunk(text)
        finally:
            self.cancels[0].set()
            thread.join()

    def score(self, continuation: str) -> float:
        """See `Pack.score`."""
        prompt = self.request.prompts[0]
        if not isinstance(prompt, str):
            raise PromptError("only text can be scored", hint="render the chat first")
        with self.settings():
            item = self.prepare(0, bare(prompt))
            model = self.pack.fused(item.reference)
            asked = Continuation.of(model.engine.reference, prompt, continuation)
            return self._sum(model, item.row, asked.new)

    def _sum(self, model: FusedForCausalLM, row: PackSequence, new: Sequence[int]) -> float:
        total = float(row.last[new[0]]) if row.last is not None else 0.0
        for start in range(0, len(new) - 1, 32):
            part = list(new[start : min(start + 32, len(new) - 1)])
            logits = model.engine.advance([row], [part], len(part))[0]
            following = torch.tensor(new[start + 1 : start + 1 + len(part)], device=logits.device)
            total += float(logits.gather(1, following[:, None]).sum())
        return total

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The request's rule in every engine, and its random numbers, for the time of the call."""
        engines = [model.engine for model in self.pack._models.values()]
        seeded = torch.random.fork_rng() if self.request.seed is not None else nullcontext()
        with seeded:
            if self.request.seed is not None:
                torch.manual_seed(self.request.seed)
            for engine in engines:
                self._set(engine)
            try:
                yield
            finally:
                for model in self.pack._models.values():
                    model.engine.rule = self.pack.rule
                    model.engine.pooling.backed = False
                    model.engine.pooling.gate = Every()

    def _set(self, engine: Engine) -> None:
        engine.rule = self.request.rule
        engine.pooling.gate = self.request.gate
        engine.pooling.backed = self.request.constraint is not None

    def prepare(self, place: int, prompt: Prompt) -> _Prepared:
        """Render and read a prompt under its reference."""
        reference = self.pack.default_reference
        item = self._read(place, prompt, reference)
        better = self._better_reference(item)
        if better == reference:
            return item
        # What the first reading has left behind was not there before this call.
        cached = item.fit.cached_tokens
        del item  # and its caches are not needed beside those of the second
        found = self._read(place, prompt, better)
        found.fit = replace(found.fit, cached_tokens=cached)
        return found

    def _better_reference(self, item: _Prepared) -> int:
        """With `reference="auto"`: the member with the lowest prompt loss that can speak here."""
        able = self._able(item.prompt)
        if not able or item.fit.losses is None or (losses := self._own_losses(item)) is None:
            return item.reference
        return min(able, key=lambda k: float(losses[k]))

    def _able(self, prompt: PackPrompt) -> list[int]:
        """With `reference="auto"`: the members that could speak here."""
        if self.pack.reference != "auto":
            return []
        return [k for k, side in enumerate(prompt.members) if side.ends_turns]

    def _view(self, reference: int) -> ReferenceView:
        return self.pack.fused(reference).engine.view

    def _own_losses(self, item: _Prepared) -> Weights | None:
        """What the members make of the prompt in their own tokens."""
        alignment = self.pack.alignment.reading
        alone = len(self.pack.members) == 1
        if alone or alignment is self.pack.alignment or not item.prompt.stream:
            return item.fit.losses
        if item.reference not in self._readings:
            engine = Engine(
                self.pack.members,
                item.reference,
                alignment,
                self.request.rule,
                prefixes=self.pack.prefixes,
            )
            self._readings[item.reference] = engine
        return prefill(self._readings[item.reference], item.prompt, Top1())[1].losses

    def _read(self, place: int, prompt: Prompt, reference: int) -> _Prepared:
        model = self.pack.fused(reference)
        self._set(model.engine)
        vocabularies = [member.vocabulary for member in self.pack.members]
        stop = self.request.stop
        if isinstance(prompt, str):
            whole = from_text(prompt, vocabularies, reference)
            ids = list(whole.stream)
        else:
            rendered = render_chat(prompt, vocabularies, reference, self.request.template)
            whole, ids, stop = rendered.prompt, rendered.ids, (*stop, *rendered.stop)
        alike = self.pack.alignment.reading is self.pack.alignment
        able = self._able(whole) if alike else []
        others = {k: partial(self._view, k) for k in able if k != reference}
        row, fit = prefill(model.engine, whole, self.request.weighting, others=others)
        return _Prepared(place, reference, ids, whole, row, fit, stop)

    def _generate(
        self, reference: int, group: list[_Prepared], streamer: BaseStreamer | None
    ) -> dict[int, list[Answer]]:
        model = self.pack.fused(reference)
        arguments = dict(self.request.arguments)
        observer = self._observer(model)
        ids, mask = _padded([item.ids for item in group], model)
        criteria = StoppingCriteriaList(arguments.pop("stopping_criteria", None) or [])
        cancelled = CancelCriteria([self.cancels[item.place] for item in group])
        criteria.append(cancelled)
        stop = group[0].stop
        if stop:
            criteria.append(StopTextCriteria(model.engine.reference, stop, ids.shape[1]))
        processors = LogitsProcessorList(arguments.pop("logits_processor", None) or [])
        if self.request.constraint is not None:
            constrained = ConstraintProcessor(
                model.engine.reference, self.request.constraint, ids.shape[1]
            )
            processors.append(constrained)
        if isinstance(streamer, _Feed):
            streamer.begin(StreamDetokenizer(model.engine.reference, stop))
        for item in group:
            model.prefills.add(item.ids, item.row, item.fit)
        model.observer, model.stats = observer, None
        model.draft = self._draft
        if model.draft is not None:
            # What transformers' loop for drafts is asked for; the pack's own drafter takes over.
            arguments["prompt_lookup_num_tokens"] = model.draft.most
        started = time.perf_counter()
        try:
            sequences = model.generate(
                ids,
                attention_mask=mask,
                stopping_criteria=criteria,
                logits_processor=processors,
                streamer=streamer,
                **arguments,
            )
        finally:
            model.observer = model.draft = None
            model.prefills.drop([tuple(item.ids) for item in group])
        seconds = time.perf_counter() - started
        if not isinstance(sequences, Tensor):
            sequences = sequences.sequences
        each = len(sequences) // len(group)
        rows = [
            row[ids.shape[1] : cancelled.lengths.get(index // each)]
            for index, row in enumerate(sequences.tolist())
        ]
        return self._answers(model, group, rows, stop, observer, seconds)

    def _observer(self, model: FusedForCausalLM) -> TraceRecorder | None:
        if not self.request.observable:
            return None
        return TraceRecorder(
            model.engine, self.request.trace, self._draft.most if self._draft else 0
        )

    def _answers(
        self,
        model: FusedForCausalLM,
        group: list[_Prepared],
        sequences: list[list[int]],
        stop: tuple[str, ...],
        observer: TraceRecorder | None,
        seconds: float,
    ) -> dict[int, list[Answer]]:
        each = len(sequences) // len(group)
        answers: dict[int, list[Answer]] = {}
        for index, ids in enumerate(sequences):
            item = group[index // each]
            seen = observer.row(index) if observer else None
            answer = self._answer(model, item, ids, stop, seen, observer, seconds)
            answers.setdefault(item.place, []).append(answer)
        return answers

    def _answer(
        self,
        model: FusedForCausalLM,
        item: _Prepared,
        ids: list[int],
        stop: tuple[str, ...],
        seen: RecordedSequence | None,
        observer: TraceRecorder | None,
        seconds: float,
    ) -> Answer:
        ends = set(model.engine.reference.end_ids)
        end = next((i for i, token in enumerate(ids) if token in ends), None)
        ids = ids if end is None else ids[: end + 1]
        text, stopped = detokenize(ids, model.engine.reference, stop)
        if stopped is not None:
            # In a batch, padding follows.
            while not model.engine.reference.token_bytes[ids[-1]]:
                ids.pop()
        reason: FinishReason = "stop" if stopped is not None or end is not None else "length"
        if reason == "length" and self.cancels[item.place].is_set():
            reason = "cancelled"
        record = self._record(model, item, ids, reason, stopped, observer, seen, seconds)
        return Answer(text, record, tuple(ids))

    def _record(
        self,
        model: FusedForCausalLM,
        item: _Prepared,
        ids: list[int],
        reason: FinishReason,
        stopped: str | None,
        observer: TraceRecorder | None,
        seen: RecordedSequence | None,
        seconds: float,
    ) -> FusionRecord:
        names, fit, request, generated = self.pack.names, item.fit, self.request, len(ids)
        notes = [*item.prompt.notes, *self._undrafted]
        if fit.losses is None:
            notes.append("the prompt is too short to be scored")
        if request.trace and seen is None:
            notes.append("no trace: beams and several return sequences are not traced")
        return FusionRecord(
            members=names,
            reference=names[item.reference],
            fusion=rules().dump(request.rule),
            weighting=weightings().dump(request.weighting),
            alignment=alignments().dump(self.pack.alignment),
            weights=by_name(names, fit.weights) or {},
            prompt_loss=by_name(names, fit.losses),
            bits_per_byte=by_name(names, fit.bits_per_byte),
            scored_tokens=fit.tokens,
            usage=Usage(
                prompt_tokens=len(item.ids),
                completion_tokens=generated,
                total_tokens=len(item.ids) + generated,
                prompt_tokens_by_member=dict(zip(names, fit.prompt_tokens, strict=True)),
                cached_tokens=fit.cached_tokens[item.reference],
                cached_tokens_by_member=dict(zip(names, fit.cached_tokens, strict=True)),
            ),
            finish_reason=reason,
            stop=stopped,
            agreed=seen.share(seen.agreed, generated) if seen else None,
            overruled=seen.share(seen.overruled, generated) if seen else None,
            gate=gates().dump(request.gate),
            fused=seen.share(seen.joined, generated) if seen else None,
            drafts=self._drafts(model),
            timings=Timings(
                prefill_seconds=fit.prefill_seconds,
                weights_seconds=fit.weights_seconds,
                decode_seconds=seconds,
                tokens_per_second=generated / seconds if seconds > 0 else 0.0,
            ),
            seed=request.seed,
            constraint=request.constraint.kind if request.constraint else None,
            notes=notes,
            trace=observer.finish(seen, ids) if request.trace and observer and seen else None,
        )

    @property
    def _draft(self) -> Draft | None:
        """How tokens are really drafted: for one answer at a time, which is where it pays."""
        request = self.request
        return request.draft if request.observable and len(request.prompts) == 1 else None

    @property
    def _undrafted(self) -> list[str]:
        """Why nothing is drafted though the request asks for it."""
        if self._draft is self.request.draft:
            return []
        return ["no drafts: they serve one prompt at a time, without beams or several sequences"]

    def _drafts(self, model: FusedForCausalLM) -> Drafts | None:
        """What became of the drafts of the last answer."""
        if self.request.draft is None or model.stats is None:
            return None
        return Drafts(method=drafts().dump(self.request.draft), **asdict(model.stats))


class _Feed(BaseStreamer):
    """Passes ids from transformers' loop to the stream's reader."""

    def __init__(self, pieces: Any, runner: Runner) -> None:
        self.pieces, self.runner = pieces, runner
        self.prompt_seen = False

    def begin(self, emitter: StreamDetokenizer) -> None:
        """Hand over what turns ids into text."""
        self.pieces.put(emitter)

    def put(self, value: Tensor) -> None:
        """Ids of one step; the first call brings the prompt."""
        if self.prompt_seen:
            self.pieces.put(value.flatten().tolist())
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing: the answer follows."""


def _padded(rows: Sequence[Sequence[int]], model: FusedForCausalLM) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their mask, `[B, longest]`."""
    longest = max(map(len, rows))
    pad = model.config.pad_token_id or 0
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)
