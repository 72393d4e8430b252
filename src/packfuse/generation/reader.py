"""Reads the prompts of a request with the members, and fits the weights to them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from packfuse.errors import ServerError
from packfuse.generation.assistants import skill_of
from packfuse.generation.output.answer_length import check_length
from packfuse.generation.prepared import PreparedPrompt, ScoreOptions
from packfuse.generation.request import Prompt, Request
from packfuse.generation.runtime import Runtime
from packfuse.models.member import Pause
from packfuse.text.chats.chat_template import RenderedChat, render_chat
from packfuse.text.prompt import MemberPrompt, PackPrompt, from_text
from packfuse.weighting.methods.base import Weighting, Weights, equal
from packfuse.weighting.prefill import (
    Fit,
    finish,
    fit_weights,
    needs_fit_positions,
    read_prompt,
)


class PromptReader:
    """Reads the prompts of one request, one after the other."""

    def __init__(self, runtime: Runtime, request: Request) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            runtime: The pack.
            request: The request.
        """
        self.runtime, self.request = runtime, request
        self.pause: Pause | None = None
        """Interrupts the members while they read; None to read without a pause."""
        self._drops = runtime.settings.on_member_failure == "drop"
        self._looked_at_models = False
        self._left_out: set[int] = set()

    def prepare(self, index: int, prompt: Prompt) -> tuple[PreparedPrompt, Fit]:
        """Read a prompt and fit its weights.

        Raises:
            PromptError: if it is too long for a member that reads it.
            MemberError: if a member fails that cannot be left out.
        """
        while True:
            try:
                item, fit = self._prepare(index, prompt)
            except ServerError as error:
                k = self.runtime.names.index(error.member)
                if not self._drops or k in self._left_out or k == self._first_reference:
                    raise
                self._left_out.add(k)
            else:
                names = (self.runtime.names[k] for k in self._left_out)
                item.sequence.left_out = dict.fromkeys(names, 0)
                return item, fit

    def _prepare(self, index: int, prompt: Prompt) -> tuple[PreparedPrompt, Fit]:
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
            item.skill = skill_of(self.runtime, self.pause)
        return fit_weights(item.reading, weighting, self.request.call.rule.pool, item.skill)

    @property
    def _fixed_weights(self) -> Weights | None:
        """Weights `[K]` that do not depend on a prompt; None if they do.

        Once a member was left out, the others have their fixed weights, or else equal ones.
        """
        found = self.request.call.weighting.for_members(self.runtime.names)
        if not self._left_out:
            return found
        rest = equal(len(self.runtime.members)) if found is None else np.array(found)
        rest[list(self._left_out)] = 0
        return rest / rest.sum() if rest.sum() else None

    @property
    def _first_reference(self) -> int:
        """The reference in whose tokens a prompt is read first."""
        if self.request.pins:
            return self.runtime.default_reference
        return self.runtime.reference_of(self.request.call)

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
            self.runtime.model(reference).engine.refresh(self._left_out)
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
            score=runtime.scores_prompt(options.weights),
            fit_positions=options.fit_positions,
            limits=options.limits,
            others={k: partial(runtime.view, k) for k in able if k != reference},
            prefixes=runtime.prefixes,
            weights=options.weights,
            pause=self.pause,
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
        if isinstance(prompt, str) or not self._chooses_reference or self._left_out:
            return None
        able = [
            k
            for k in runtime.with_weight(call.weighting)
            if runtime.members[k].tokenizer.chat_template
        ]
        if len(able) < 2:
            return None
        weights = skill_of(runtime, self.pause).weights
        return max(able, key=lambda k: float(weights[k]))

    @property
    def _chooses_reference(self) -> bool:
        """Whether the prompt decides: not if the reference is named, pinned or has a role."""
        runtime, call = self.runtime, self.request.call
        named = runtime.settings.reference != "auto" or self.request.pins
        return not named and call.gate.roles(runtime.names) is None

    def _possible_references(self, prompt: PackPrompt) -> list[int]:
        """With `reference="auto"`: the members that can predict the end of a turn.

        Only the default reference is possible for a call with token ids, which are its ids.
        """
        if not self._chooses_reference:
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
            pause=self.pause,
        )
        return reading.losses
