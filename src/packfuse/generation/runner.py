"""Runs a request: reads the prompts, fits the weights, generates, and makes the answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.constraint_processor import ConstraintProcessor
from packfuse.causal_lm.drafts.base import Draft
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.causal_lm.stopping import CancelCriteria, RowEnds, StopTextCriteria
from packfuse.errors import PromptError
from packfuse.fusion.room import check_room
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.answer_length import check_length
from packfuse.generation.answers import BatchInfo, make_answer
from packfuse.generation.assistants import skill_of
from packfuse.generation.prepared import PreparedPrompt, ScoreOptions, padded
from packfuse.generation.request import Prompt, Request
from packfuse.generation.result import Answer
from packfuse.generation.runtime import Runtime
from packfuse.generation.streamers import AnswerStreamer, adapted
from packfuse.generation.trace import TraceRecorder
from packfuse.models.heap import trim
from packfuse.text.chats.chat_template import RenderedChat, render_chat
from packfuse.text.continuation import Continuation, bare
from packfuse.text.detokenizer import StreamDetokenizer
from packfuse.text.prompt import MemberPrompt, PackPrompt, from_text
from packfuse.weighting.methods.base import Weighting, Weights
from packfuse.weighting.prefill import (
    Fit,
    finish,
    fit_weights,
    needs_fit_positions,
    read_prompt,
)

_SCORE_BLOCK = 32
"""Number of tokens of a continuation that are scored in one pass."""


class Runner:
    """Runs one request on one pack. The caller holds the pack's lock."""

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
        self.runtime, self.request = runtime, request
        self.cancels = list(cancels or [threading.Event() for _ in request.prompts])
        self._started = time.time()
        self._looked_at_models = False

    def run(self, streamer: BaseStreamer | None = None) -> list[Answer]:
        """Answer every prompt; prompts with the same reference and stop strings form a batch.

        Args:
            streamer: Called with the generated ids; for a single prompt.

        Raises:
            CancelledError: if all prompts were cancelled before they were read.
        """
        if all(cancel.is_set() for cancel in self.cancels):
            raise CancelledError
        self._started = time.time()
        prepared = [self.prepare(i, prompt) for i, prompt in enumerate(self.request.prompts)]
        answers: dict[int, list[Answer]] = {}
        for key in dict.fromkeys((item.reference, item.stop) for item, _ in prepared):
            batch = [pair for pair in prepared if (pair[0].reference, pair[0].stop) == key]
            answers.update(self._generate(key[0], batch, streamer))
        trim()
        return [answer for index in sorted(answers) for answer in answers[index]]

    def score(self, continuation: str) -> float:
        """See `Pack.score`."""
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

    def prepare(self, index: int, prompt: Prompt) -> tuple[PreparedPrompt, Fit]:
        """Read a prompt and fit its weights."""
        call, runtime = self.request.call, self.runtime
        engine = runtime.model(self._first_reference).engine
        positions = needs_fit_positions(call.weighting, engine, call.rule.pool)
        weights = self._fixed_weights
        item = self.read(index, prompt, ScoreOptions(call.weighting.limits, positions, weights))
        item.started = time.perf_counter()
        if weights is None:
            weights = self.fit(item, call.weighting)
        return item, self.finish(item, weights)

    def fit(self, item: PreparedPrompt, weighting: Weighting) -> Weights:
        """The weights `[K]` of a prompt that has been read, under a weighting that fits them."""
        item.skill = None
        if item.chat and weighting.needs_skill and len(self.runtime.members) > 1:
            item.skill = skill_of(self.runtime)
        return fit_weights(item.reading, weighting, self.request.call.rule.pool, item.skill)

    @property
    def _fixed_weights(self) -> Weights | None:
        """Weights `[K]` that do not depend on a prompt; None if they do."""
        return self.request.call.weighting.for_members(self.runtime.names)

    @property
    def _first_reference(self) -> int:
        """The reference in whose tokens a prompt is read first."""
        if self.request.pins:
            return self.runtime.default_reference
        return self.runtime.reference_under(self.request.call.weighting)

    def finish(self, item: PreparedPrompt, weights: Weights) -> Fit:
        """Set the weights of a prompt and fuse the position after it."""
        marks = item.chat.stop(weights.tolist()) if item.chat else ()
        item.stop = tuple(dict.fromkeys((*self.request.stop, *marks)))
        engine = self.runtime.model(item.reference).engine
        return finish(engine, item.reading, weights, self.request.call, item.started)

    def read(self, index: int, prompt: Prompt, options: ScoreOptions) -> PreparedPrompt:
        """Read a prompt with every member; with `reference="auto"`, choose its reference."""
        reference = self._first_reference
        if not self._looked_at_models:
            self.runtime.model(reference).engine.refresh()
            self._looked_at_models = True
        if (assistant := self._best_assistant(prompt)) is not None:
            return self._read(index, prompt, assistant, options, may_change=False)
        item = self._read(index, prompt, reference, options)
        better = self._better_reference(item)
        if better == reference:
            return item
        # Tokens that the first reading added to the prefix cache do not count as cached.
        cached = item.reading.cached_tokens
        del item  # frees its KV caches before the second reading
        found = self._read(index, prompt, better, options)
        found.reading.cached_tokens = cached
        return found

    def _read(
        self,
        index: int,
        prompt: Prompt,
        reference: int,
        options: ScoreOptions,
        *,
        may_change: bool = True,
    ) -> PreparedPrompt:
        """Read a prompt with every member, in the tokens of a given reference.

        With `may_change`, the scores are kept for other references, too.
        """
        runtime, vocabularies = self.runtime, self.runtime.vocabularies
        model = runtime.model(reference)
        chat: RenderedChat | None = None
        if isinstance(prompt, str):
            whole = from_text(prompt, vocabularies, reference)
            ids = list(whole.stream)
        else:
            chat = self._rendered(prompt, reference, options.weights)
            whole, ids = chat.prompt, chat.ids
        check_length(self.request.arguments, len(ids))
        own_tokens = runtime.parts.alignment.reading is runtime.parts.alignment
        able = self._possible_references(whole) if own_tokens and may_change else []
        reading = read_prompt(
            model.engine,
            whole,
            self.request.call,
            fit_positions=options.fit_positions,
            limits=options.limits,
            others={k: partial(runtime.view, k) for k in able if k != reference},
            prefixes=runtime.prefixes,
            weights=options.weights,
        )
        reading.sequence.offset = len(ids) - len(reading.sequence.ids)
        return PreparedPrompt(
            index, reference, ids, whole, chat, reading, started=time.perf_counter()
        )

    def _rendered(
        self, chat: Sequence[Any], reference: int, weights: Weights | None
    ) -> RenderedChat:
        """A chat for the members that read it; the others get an empty prompt."""
        vocabularies = self.runtime.vocabularies
        reading = [
            k for k in range(len(vocabularies)) if weights is None or weights[k] or k == reference
        ]
        own = [vocabularies[k] for k in reading]
        rendered = render_chat(
            chat,
            own,
            reading.index(reference),
            self.request.template,
            continue_final_message=self.request.continue_final_message,
        )
        members = [MemberPrompt(())] * len(vocabularies)
        marks: list[tuple[str, ...]] = [()] * len(vocabularies)
        for k, prompt, own_marks in zip(
            reading, rendered.prompt.members, rendered.marks, strict=True
        ):
            members[k], marks[k] = prompt, own_marks
        whole = replace(rendered.prompt, members=tuple(members))
        return replace(rendered, prompt=whole, marks=tuple(marks))

    def _better_reference(self, item: PreparedPrompt) -> int:
        """With `reference="auto"`: the possible reference with the lowest prompt loss."""
        able = self._possible_references(item.prompt)
        if not able or item.reading.losses is None or (losses := self._own_losses(item)) is None:
            return item.reference
        return min(able, key=lambda k: float(losses[k]))

    def _best_assistant(self, prompt: Prompt) -> int | None:
        """With `reference="auto"` in a chat: the most skilled member with a chat template."""
        runtime, call = self.runtime, self.request.call
        chooses = runtime.settings.reference == "auto" and not self.request.pins
        if isinstance(prompt, str) or not chooses:
            return None
        able = [
            k
            for k in runtime.with_weight(call.weighting)
            if runtime.members[k].tokenizer.chat_template
        ]
        if len(able) < 2:
            return None
        weights = skill_of(runtime).weights
        return max(able, key=lambda k: float(weights[k]))

    def _possible_references(self, prompt: PackPrompt) -> list[int]:
        """With `reference="auto"`: the members that can predict the end of a turn.

        Only the default reference is possible for a call with token ids, which are its ids.
        """
        if self.runtime.settings.reference != "auto" or self.request.pins:
            return []
        able = self.runtime.with_weight(self.request.call.weighting)
        return [k for k in able if prompt.members[k].ends_turns]

    def _own_losses(self, item: PreparedPrompt) -> Weights | None:
        """The members' losses on the prompt `[K]`, computed in each member's own tokens."""
        engine = self.runtime.own_tokens_engine(item.reference)
        own = engine is self.runtime.model(item.reference).engine
        if own or len(self.runtime.members) == 1 or not item.prompt.fresh:
            return item.reading.losses
        reading = read_prompt(
            engine,
            item.prompt,
            self.request.call,
            prefixes=self.runtime.prefixes,
            weights=self._fixed_weights,
        )
        return reading.losses

    def _generate(
        self,
        reference: int,
        batch: list[tuple[PreparedPrompt, Fit]],
        streamer: BaseStreamer | None,
    ) -> dict[int, list[Answer]]:
        """Generate the answers of one batch, by index of the prompt in the request."""
        model, request = self.runtime.model(reference), self.request
        items = [item for item, _ in batch]
        recorder = self._recorder(model)
        cache = FusedCache(
            self._call(recorder),
            [item.sequence for item in items],
            use_cache=request.arguments.get("use_cache") is not False,
        )
        cache.seed, cache.prepared = request.seed, True
        ids, mask = padded([item.ids for item in items], model)
        cancelled = CancelCriteria([self.cancels[item.index] for item in items])
        ends = RowEnds()
        arguments = self._arguments(model, items[0].stop, cancelled, ends, ids.shape[1])
        given = arguments.pop("streamer", None)
        streamer = streamer or adapted(given)
        if isinstance(streamer, AnswerStreamer):
            detokenizer = StreamDetokenizer(model.engine.reference, items[0].stop)
            streamer.begin(detokenizer, recorder)
        started = time.perf_counter()
        sequences: Tensor = model.generate(
            ids, attention_mask=mask, cache=cache, streamer=streamer, **arguments
        )
        seconds = time.perf_counter() - started
        each = len(sequences) // len(batch)
        info = BatchInfo(
            runtime=self.runtime,
            request=request,
            recorder=recorder,
            drafts=cache.draft_stats,
            ends=ends,
            notes=[*self._draft_notes, *self._pin_notes],
            seconds=seconds,
        )
        answers: dict[int, list[Answer]] = {}
        for row, tokens in enumerate(sequences.tolist()):
            item, fit = batch[row // each]
            new = tokens[ids.shape[1] : cancelled.lengths.get(row // each, info.length(row))]
            stopped = self.cancels[item.index].is_set()
            full = cache.window.full(row // each, new) if cache.window else None
            answer = make_answer(info, item, fit, new, row, cancelled=stopped, full=full)
            answers.setdefault(item.index, []).append(answer)
        return answers

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
        if self._draft is not None:
            # This argument selects the loop of transformers that verifies drafts. The drafter is
            # that of the call (`FusedForCausalLM.own_candidate_generator`).
            arguments["prompt_lookup_num_tokens"] = self._draft.max_draft_tokens
        return {**arguments, "stopping_criteria": criteria, "logits_processor": processors}

    def _call(self, recorder: TraceRecorder | None) -> CallSettings:
        """The settings of the call with its recorder; without a draft where none is used."""
        return replace(self.request.call, observer=recorder, draft=self._draft)

    def _recorder(self, model: FusedForCausalLM) -> TraceRecorder | None:
        if not self.request.one_row_each:
            return None
        drafted = self._draft.max_draft_tokens if self._draft else 0
        return TraceRecorder(model.engine, self.request.trace, drafted, self.request.top_logprobs)

    @property
    def _draft(self) -> Draft | None:
        """The draft method, which is used for a single answer only: a batch is faster without."""
        request = self.request
        return request.call.draft if request.takes_drafts else None

    @property
    def _draft_notes(self) -> list[str]:
        """Notes for a request with a draft method that is not used."""
        if self._draft is self.request.call.draft:
            return []
        return [
            "no drafts: they are used for one prompt at a time, without beams or several sequences"
        ]

    @property
    def _pin_notes(self) -> list[str]:
        """The note for a call with token ids, where prompts would choose the reference."""
        request, names = self.request, self.runtime.names
        if not request.pins or self.runtime.settings.reference != "auto" or len(names) == 1:
            return []
        name, pins = names[self.runtime.default_reference], ", ".join(request.pins)
        return [f"the reference is {name!r}, the default, whose token ids these are: {pins}"]
