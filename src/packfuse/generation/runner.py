"""Runs a request: prompts are read and weighted, tokens generated, answers made with records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.constraint_processor import ConstraintProcessor
from packfuse.causal_lm.drafts.base import Draft
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.causal_lm.stopping import CancelCriteria, StopTextCriteria
from packfuse.errors import PromptError
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.prepared import PreparedPrompt, Wanted
from packfuse.generation.request import Prompt, Request
from packfuse.generation.result import Answer
from packfuse.generation.runtime import Runtime
from packfuse.generation.trace import TraceRecorder
from packfuse.generation.written import Written, written_answer
from packfuse.text.chat_template import render_chat
from packfuse.text.continuation import Continuation, bare
from packfuse.text.detokenizer import StreamDetokenizer
from packfuse.text.prompt import PackPrompt, from_text
from packfuse.weighting.methods.base import Weights
from packfuse.weighting.prefill import (
    Fit,
    finish,
    fit_weights,
    needs_fit_positions,
    read_prompt,
)

_SCORED = 32
"""Tokens of a continuation that are scored in one pass."""


class Runner:
    """One request on one pack. The caller holds the pack's lock."""

    def __init__(
        self,
        runtime: Runtime,
        request: Request,
        cancels: Sequence[threading.Event] | None = None,
    ) -> None:
        """Nothing runs yet. Setting one of `cancels` ends that prompt's answer within one step."""
        self.runtime, self.request = runtime, request
        self.cancels = list(cancels or [threading.Event() for _ in request.prompts])

    def run(self, streamer: BaseStreamer | None = None) -> list[Answer]:
        """Answer every prompt; those with the same reference and stop strings run as one batch.

        Raises:
            CancelledError: if every prompt was cancelled before it was read.
        """
        if all(cancel.is_set() for cancel in self.cancels):
            raise CancelledError
        with self._seeded():
            prepared = [self.prepare(i, prompt) for i, prompt in enumerate(self.request.prompts)]
            answers: dict[int, list[Answer]] = {}
            for kind in dict.fromkeys((item.reference, item.stop) for item, _ in prepared):
                group = [pair for pair in prepared if (pair[0].reference, pair[0].stop) == kind]
                answers.update(self._generate(kind[0], group, streamer))
        return [answer for index in sorted(answers) for answer in answers[index]]

    def score(self, continuation: str) -> float:
        """See `Pack.score`."""
        prompt = self.request.prompts[0]
        if not isinstance(prompt, str):
            raise PromptError("only text can be scored", hint="render the chat first")
        item, _ = self.prepare(0, bare(prompt))
        model = self.runtime.model(item.reference)
        asked = Continuation.of(model.engine.reference, prompt, continuation)
        return self._sum(model, item.sequence, asked.new)

    def _sum(self, model: FusedForCausalLM, sequence: PackSequence, new: Sequence[int]) -> float:
        first = sequence.fused_logps
        total = float(first[new[0]]) if first is not None else 0.0
        for start in range(0, len(new) - 1, _SCORED):
            part = list(new[start : min(start + _SCORED, len(new) - 1)])
            logps = model.engine.advance([sequence], [part], self.request.call, len(part))[0]
            following = torch.tensor(new[start + 1 : start + 1 + len(part)], device=logps.device)
            total += float(logps.gather(1, following[:, None]).sum())
        return total

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Random numbers of the request's own, if it has a seed."""
        seed = self.request.seed
        with torch.random.fork_rng() if seed is not None else nullcontext():
            if seed is not None:
                torch.manual_seed(seed)
            yield

    def prepare(self, index: int, prompt: Prompt) -> tuple[PreparedPrompt, Fit]:
        """Read and weight a prompt under its reference."""
        call, runtime = self.request.call, self.runtime
        engine = runtime.model(runtime.default_reference).engine
        positions = needs_fit_positions(call.weighting, engine, call.rule.pool)
        item = self.read(index, prompt, Wanted(call.weighting.limits, positions))
        given = call.weighting.for_members(runtime.names)
        item.began = time.perf_counter()
        if given is None:
            given = fit_weights(item.reading, call.weighting, call.rule.pool)
        return item, self.finish(item, given)

    def finish(self, item: PreparedPrompt, weights: Weights) -> Fit:
        """Set the weights of a prompt and fuse the position after it."""
        engine = self.runtime.model(item.reference).engine
        return finish(engine, item.reading, weights, self.request.call, item.began)

    def read(self, index: int, prompt: Prompt, wanted: Wanted) -> PreparedPrompt:
        """Read a prompt with every member, in the tokens of its reference."""
        reference = self.runtime.default_reference
        item = self._read(index, prompt, reference, wanted)
        better = self._better_reference(item)
        if better == reference:
            return item
        # Tokens that the first reading put into the prefix cache do not count as cached.
        cached = item.reading.cached_tokens
        del item  # its KV caches are not needed beside those of the second reading
        found = self._read(index, prompt, better, wanted)
        found.reading.cached_tokens = cached
        return found

    def _read(self, index: int, prompt: Prompt, reference: int, wanted: Wanted) -> PreparedPrompt:
        runtime, vocabularies = self.runtime, self.runtime.vocabularies
        model = runtime.model(reference)
        stop = self.request.stop
        if isinstance(prompt, str):
            whole = from_text(prompt, vocabularies, reference)
            ids = list(whole.stream)
        else:
            rendered = render_chat(prompt, vocabularies, reference, self.request.template)
            whole, ids, stop = rendered.prompt, rendered.ids, (*stop, *rendered.stop)
        alike = runtime.parts.alignment.reading is runtime.parts.alignment
        able = self._possible_references(whole) if alike else []
        reading = read_prompt(
            model.engine,
            whole,
            self.request.call,
            fit_positions=wanted.fit_positions,
            limits=wanted.limits,
            others={k: partial(runtime.view, k) for k in able if k != reference},
            prefixes=runtime.prefixes,
        )
        reading.sequence.offset = len(ids) - len(reading.sequence.ids)
        return PreparedPrompt(
            index, reference, ids, whole, stop, reading, began=time.perf_counter()
        )

    def _better_reference(self, item: PreparedPrompt) -> int:
        """With `reference="auto"`: the member with the lowest prompt loss, if it can be one."""
        able = self._possible_references(item.prompt)
        if not able or item.reading.losses is None or (losses := self._own_losses(item)) is None:
            return item.reference
        return min(able, key=lambda k: float(losses[k]))

    def _possible_references(self, prompt: PackPrompt) -> list[int]:
        """With `reference="auto"`: the members that can end a turn of this prompt."""
        if self.runtime.settings.reference != "auto":
            return []
        return [k for k, member in enumerate(prompt.members) if member.ends_turns]

    def _own_losses(self, item: PreparedPrompt) -> Weights | None:
        """The members' losses on the prompt, each in its own tokens."""
        engine = self.runtime.own_tokens_engine(item.reference)
        own = engine is self.runtime.model(item.reference).engine
        if own or len(self.runtime.members) == 1 or not item.prompt.stream:
            return item.reading.losses
        reading = read_prompt(
            engine, item.prompt, self.request.call, prefixes=self.runtime.prefixes
        )
        return reading.losses

    def _generate(
        self,
        reference: int,
        group: list[tuple[PreparedPrompt, Fit]],
        streamer: BaseStreamer | None,
    ) -> dict[int, list[Answer]]:
        model, request = self.runtime.model(reference), self.request
        items = [item for item, _ in group]
        recorder = self._recorder(model)
        cache = FusedCache(
            self._call(recorder),
            [item.sequence for item in items],
            keep=request.arguments.get("use_cache") is not False,
        )
        ids, mask = _padded([item.ids for item in items], model)
        cancelled = CancelCriteria([self.cancels[item.index] for item in items])
        arguments = self._arguments(model, items[0].stop, cancelled, ids.shape[1])
        if isinstance(streamer, AnswerStreamer):
            streamer.begin(StreamDetokenizer(model.engine.reference, items[0].stop))
        started = time.perf_counter()
        sequences = model.generate(
            ids, attention_mask=mask, cache=cache, streamer=streamer, **arguments
        )
        seconds = time.perf_counter() - started
        if not isinstance(sequences, Tensor):
            sequences = sequences.sequences
        each = len(sequences) // len(group)
        written = Written(
            runtime=self.runtime,
            request=request,
            recorder=recorder,
            drafts=cache.draft_stats,
            notes=self._draft_notes,
            seconds=seconds,
        )
        answers: dict[int, list[Answer]] = {}
        for row, tokens in enumerate(sequences.tolist()):
            item, fit = group[row // each]
            new = tokens[ids.shape[1] : cancelled.lengths.get(row // each)]
            stopped = self.cancels[item.index].is_set()
            answer = written_answer(written, item, fit, new, row, cancelled=stopped)
            answers.setdefault(item.index, []).append(answer)
        return answers

    def _arguments(
        self,
        model: FusedForCausalLM,
        stop: tuple[str, ...],
        cancelled: CancelCriteria,
        prompt_length: int,
    ) -> dict[str, Any]:
        """The arguments of transformers' `generate` besides the prompts."""
        arguments, reference = dict(self.request.arguments), model.engine.reference
        criteria = StoppingCriteriaList(arguments.pop("stopping_criteria", None) or [])
        criteria.append(cancelled)
        if stop:
            criteria.append(StopTextCriteria(reference, stop, prompt_length))
        processors = LogitsProcessorList(arguments.pop("logits_processor", None) or [])
        if self.request.constraint is not None:
            processors.append(
                ConstraintProcessor(reference, self.request.constraint, prompt_length)
            )
        if self._draft is not None:
            # This asks for transformers' loop that verifies drafts; the call's own drafter serves
            # it (`FusedForCausalLM._get_candidate_generator`).
            arguments["prompt_lookup_num_tokens"] = self._draft.most
        return {**arguments, "stopping_criteria": criteria, "logits_processor": processors}

    def _call(self, recorder: TraceRecorder | None) -> CallSettings:
        return replace(self.request.call, observer=recorder, draft=self._draft)

    def _recorder(self, model: FusedForCausalLM) -> TraceRecorder | None:
        if not self.request.observable:
            return None
        drafted = self._draft.most if self._draft else 0
        return TraceRecorder(model.engine, self.request.trace, drafted)

    @property
    def _draft(self) -> Draft | None:
        """How tokens are drafted: only for one answer at a time, where it is faster."""
        request = self.request
        return request.call.draft if request.observable and len(request.prompts) == 1 else None

    @property
    def _draft_notes(self) -> list[str]:
        """Why nothing is drafted though the request asks for it."""
        if self._draft is self.request.call.draft:
            return []
        return ["no drafts: they serve one prompt at a time, without beams or several sequences"]


class AnswerStreamer(BaseStreamer):
    """Passes the ids of one answer on as they are generated."""

    def begin(self, detokenizer: StreamDetokenizer) -> None:
        """Called with what turns the ids into text, before the first of them."""
        raise NotImplementedError


def _padded(rows: Sequence[Sequence[int]], model: FusedForCausalLM) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their mask, `[B, longest]`."""
    longest = max(map(len, rows))
    pad = model.config.pad_token_id or 0
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)
