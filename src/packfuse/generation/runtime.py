"""What all calls of a pack share: members, parts, engines by reference, caches and the lock."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from packfuse.alignment import alignments
from packfuse.alignment.base import Alignment, ReferenceView
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.config import fused_generation_config
from packfuse.causal_lm.drafts import drafts
from packfuse.causal_lm.drafts.base import Draft
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.errors import ConfigError, ExperimentalWarning
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates import gates
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.rules import rules
from packfuse.fusion.rules.base import Rule
from packfuse.generation.roles import in_roles
from packfuse.models.compiled import Compiled, compile_steps
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member
from packfuse.models.static_member import CompiledStaticMember, StaticMember, static_hindrance
from packfuse.process import PackLock
from packfuse.progress import alignment_progress, compile_progress
from packfuse.settings import PackSettings
from packfuse.text.chats.chat_template import render_chat
from packfuse.text.reply_tags import Reasoning
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Weighting, Weights
from packfuse.weighting.prefix_cache import PrefixCache, prefix_limit

_TEMPLATE_TAIL = 16
"""Number of tokens at the end of a rendered chat in which a mark of reasoning is searched for."""

_ON_PROCESSORS = {
    "parallel": "it was measured to be slower than one member after the other",
    "compiled": "steps without drafts were measured to take 0.85 of the time, steps with drafts "
    "gained nothing, and compiling took minutes",
}
"""Experimental settings, and what was measured on processors (dev/log.md)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that a pack's settings name.

    Attributes:
        rule: The fusion rule.
        weighting: The weighting.
        alignment: The alignment.
        draft: The draft method; None to decode token by token.
        gate: The gate.
    """

    rule: Rule
    weighting: Weighting
    alignment: Alignment
    draft: Draft | None
    gate: Gate

    @classmethod
    def of(cls, settings: PackSettings) -> Parts:
        """Create the parts.

        Raises:
            ConfigError: for an unknown name or an unusable parameter.
        """
        return cls(
            rules().make(settings.fusion),
            weightings().make(settings.weighting),
            alignments().make(settings.alignment),
            None if settings.draft is None else drafts().make(settings.draft),
            gates().make(settings.gate),
        )


class Runtime:
    """The state of a pack that all calls share. Nothing here belongs to a single call.

    Attributes:
        members: The members, in order.
        names: Their names.
        settings: The pack's settings.
        parts: The parts that the settings name.
        prefixes: The prefix cache; None if it is off.
        default_reference: Index of the reference where no prompt decides; see `reference_of`.
        progress: Whether progress bars are shown for what takes long.
        lock: Held while members compute.
    """

    def __init__(
        self, members: Sequence[Member], settings: PackSettings, *, progress: bool = True
    ) -> None:
        """Create the parts. Engines are created when they are needed.

        Args:
            members: The members, in order.
            settings: The pack's settings.
            progress: Whether to show progress bars for what takes long.

        Raises:
            ConfigError: for no members, unknown parts, a reference that is not a member, or roles
                that the members cannot have.
            WeightsError: for fixed weights that do not fit the members.

        Warns:
            ExperimentalWarning: for settings that gain nothing on processors.
        """
        if not members:
            raise ConfigError("a pack needs at least one member")
        _warn_experimental(members, settings)
        self.members, self._eager = _with_steps(members, settings)
        self.names = [member.name for member in members]
        self.settings, self.parts = settings, Parts.of(settings)
        self.parts.weighting.for_members(self.names)
        reference = settings.reference
        if reference != "auto" and reference not in self.names:
            known = ", ".join(self.names)
            raise ConfigError(f"no member is called {reference!r}", hint=f"members: auto, {known}")
        self.lock = PackLock()
        size = sum(member.facts.nbytes for member in self.members)
        limit = prefix_limit(settings.prefix_cache, size)
        self.prefixes = PrefixCache(self.members, limit) if limit else None
        self.progress = progress
        # Roles that the members cannot have are an error before anything is aligned.
        self.default_reference = self.reference_of(self.call)
        self._models: dict[int, FusedForCausalLM] = {}
        self._own_tokens: dict[int, Engine] = {}

    @cached_property
    def named_settings(self) -> PackSettings:
        """The settings with every part as an object, which has all its parameters."""
        parts = self.parts
        return self.settings.replace(
            fusion=parts.rule,
            weighting=parts.weighting,
            alignment=parts.alignment,
            draft=parts.draft,
            gate=parts.gate,
        )

    @property
    def vocabularies(self) -> list[Vocabulary]:
        """The members' vocabularies."""
        return [member.vocabulary for member in self.members]

    @property
    def compiled(self) -> bool:
        """Whether any member runs compiled steps."""
        compiled = (Compiled, CompiledStaticMember)
        return any(isinstance(m, compiled) and m.refused is None for m in self.members)

    @property
    def eager_members(self) -> dict[str, str]:
        """Why members decode eagerly whose steps were to be static, by name."""
        refused = {m.name: m.refused for m in self.members if isinstance(m, StaticMember)}
        return self._eager | {name: reason for name, reason in refused.items() if reason}

    def scores_prompt(self, weights: Weights | None) -> bool:
        """Whether a prompt is scored: for the weights, or for the record where it costs little.

        Args:
            weights: `[K]`, where they do not depend on the prompt; else None.
        """
        return weights is None or all(
            member.max_scored_places is None or not weight
            for member, weight in zip(self.members, weights, strict=True)
        )

    def reference_of(self, call: CallSettings) -> int:
        """Index of the reference of a call where no prompt decides: a gate's leader, if it has one.

        For other gates see `reference_under`.
        """
        roles = call.gate.roles(self.names)
        return self.reference_under(call.weighting) if roles is None else roles.leader

    def reference_under(self, weighting: Weighting) -> int:
        """Index of the named reference; with "auto", of the first member with a chat template.

        With "auto", a member that has weight 0 on every prompt is no reference.
        """
        if self.settings.reference != "auto":
            return self.names.index(self.settings.reference)
        able = self.with_weight(weighting)
        templates = (k for k in able if self.members[k].tokenizer.chat_template)
        return next(templates, able[0])

    def with_weight(self, weighting: Weighting) -> list[int]:
        """The members that may have weight on a prompt: all, unless the weights are fixed."""
        given = weighting.for_members(self.names)
        return [k for k in range(len(self.names)) if given is None or given[k] > 0]

    @cached_property
    def opens_reasoning(self) -> Reasoning | None:
        """The mark of reasoning with which the default reference's chat template ends, if any."""
        vocabulary = self.members[self.default_reference].vocabulary
        rendered = render_chat([{"role": "user", "content": "?"}], [vocabulary], 0)
        tail = "".join(vocabulary.spell(index) for index in rendered.ids[-_TEMPLATE_TAIL:])
        marks = vocabulary.reasoning_marks
        return next((mark for mark in marks if tail.rstrip().endswith(mark.opening)), None)

    @cached_property
    def call(self) -> CallSettings:
        """The settings of a call without settings of its own, and without a draft method."""
        return in_roles(self._call, self.members, self.settings.reference)

    @cached_property
    def call_with_draft(self) -> CallSettings:
        """What the arguments of a call change, before a gate gives roles.

        It has the pack's draft method, which `FusedForCausalLM.generate` does not use.
        """
        return replace(self._call, draft=self.parts.draft)

    @property
    def _call(self) -> CallSettings:
        parts = self.parts
        return CallSettings(rule=parts.rule, gate=parts.gate, weighting=parts.weighting)

    def model(self, reference: int) -> FusedForCausalLM:
        """The pack as a transformers model over the vocabulary of a member; created once.

        Args:
            reference: Index of the member.
        """
        # A call that is only checked does not wait for one that runs.
        if reference in self._models:
            return self._models[reference]
        with self.lock:
            if reference not in self._models:
                with alignment_progress(self.progress) as progress:
                    engine = Engine(
                        self.members,
                        reference,
                        self.parts.alignment,
                        progress,
                        heads=self.settings.heads,
                        parallel=self.settings.parallel,
                        lock=self.lock,
                    )
                with compile_progress(self.progress) as progress:
                    engine.compile_ahead(self.call, progress)
                if self.parts.draft is not None:
                    # Measured here, so that the first answer does not wait for it.
                    _ = engine.step_times
                self._models[reference] = FusedForCausalLM(engine, self.call, self.prefixes)
            return self._models[reference]

    def generation_settings(self, reference: int) -> dict[str, Any]:
        """The defaults of transformers' `generate` where member `reference` is the reference."""
        model = self._models.get(reference)
        own = model.generation_config if model else None
        settings = (own or fused_generation_config(self.members[reference])).to_dict()
        return {name: value for name, value in settings.items() if name != "transformers_version"}

    def view(self, reference: int) -> ReferenceView:
        """The view of member `reference`: how distributions are carried to it."""
        return self.model(reference).engine.view

    def own_tokens_engine(self, reference: int) -> Engine:
        """An engine in which every member reads its own tokens; created once.

        The members' losses are comparable only if each member reads its own tokens. With some
        alignments members read the reference's tokens instead (`Alignment.reading`).
        """
        alignment = self.parts.alignment.reading
        if alignment is self.parts.alignment:
            return self.model(reference).engine
        if reference not in self._own_tokens:
            self._own_tokens[reference] = Engine(self.members, reference, alignment, lock=self.lock)
        return self._own_tokens[reference]


def _with_steps(
    members: Sequence[Member], settings: PackSettings
) -> tuple[list[Member], dict[str, str]]:
    """Members that decode as the settings say, and why some do not, by name."""
    eager: dict[str, str] = {}

    def stepping(member: Member) -> Member:
        on_cuda = member.device.type == "cuda"
        static = settings.steps == "static" or (settings.steps == "auto" and on_cuda)
        if not isinstance(member, HFMember):
            return member
        reason = static_hindrance(member) if static else None
        if static and reason is None:
            return CompiledStaticMember(member) if settings.compiled else StaticMember(member)
        if reason is not None:
            eager[member.name] = reason
        if isinstance(member, StaticMember):
            # It comes from another pack.
            member = member.renamed(member.name)
        return compile_steps(member) if settings.compiled else member

    return [stepping(member) for member in members], eager


def _warn_experimental(members: Sequence[Member], settings: PackSettings) -> None:
    """Warn of settings that gain nothing if all members are on processors."""
    if any(member.device.type != "cpu" for member in members):
        return
    for name, measured in _ON_PROCESSORS.items():
        if getattr(settings, name):
            message = f"{name}=True is experimental: with all members on processors {measured}"
            # The caller of `Pack`, which calls `Runtime`.
            warnings.warn(message, ExperimentalWarning, stacklevel=4)
