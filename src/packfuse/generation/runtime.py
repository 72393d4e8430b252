"""What all calls of a pack share: members, parts, engines by reference, caches, the lock."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from packfuse.alignment import alignments
from packfuse.alignment.base import Alignment, ReferenceView
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.drafts import drafts
from packfuse.causal_lm.drafts.base import Draft
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.errors import ConfigError
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates import gates
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.rules import rules
from packfuse.fusion.rules.base import Rule
from packfuse.models.compiled import Compiled, compile_steps
from packfuse.models.hf_member import HFMember
from packfuse.progress import alignment_progress, compile_progress
from packfuse.settings import PackSettings
from packfuse.text.chat_template import render_chat
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Weighting
from packfuse.weighting.prefix_cache import PrefixCache, prefix_limit

_TEMPLATE_TAIL = 16
"""Tokens at the end of a rendered chat that are looked at."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that a pack's settings name."""

    rule: Rule
    weighting: Weighting
    alignment: Alignment
    draft: Draft | None
    gate: Gate

    @classmethod
    def of(cls, settings: PackSettings) -> Parts:
        """Find and make the parts.

        Raises:
            ConfigError: for an unknown name or a bad parameter.
        """
        return cls(
            rules().make(settings.fusion),
            weightings().make(settings.weighting),
            alignments().make(settings.alignment),
            None if settings.draft is None else drafts().make(settings.draft),
            gates().make(settings.gate),
        )


class Runtime:
    """A pack as calls see it. Nothing here belongs to a single call.

    Attributes:
        members: In order.
        names: Their names.
        settings: As given.
        parts: What the settings name.
        prefixes: The prefix cache; None if it is off.
        lock: Held while a call runs.
    """

    def __init__(
        self, members: Sequence[HFMember], settings: PackSettings, *, progress: bool = True
    ) -> None:
        """Make the parts; the engines follow when they are needed.

        Raises:
            ConfigError: for no members, unknown parts, or a reference that is no member.
            WeightsError: for fixed weights that do not fit the members.
        """
        if not members:
            raise ConfigError("a pack needs at least one member")
        self.members = [compile_steps(m) if settings.compiled else m for m in members]
        self.names = [member.name for member in members]
        self.settings, self.parts = settings, Parts.of(settings)
        self.parts.weighting.for_members(self.names)
        reference = settings.reference
        if reference != "auto" and reference not in self.names:
            known = ", ".join(self.names)
            raise ConfigError(f"no member is called {reference!r}", hint=f"members: auto, {known}")
        self.lock = threading.RLock()
        size = sum(p.nbytes for member in self.members for p in member.model.parameters())
        limit = prefix_limit(settings.prefix_cache, size)
        self.prefixes = PrefixCache(self.members, limit) if limit else None
        self._progress = progress
        self._models: dict[int, FusedForCausalLM] = {}
        self._own_tokens: dict[int, Engine] = {}

    @cached_property
    def named_settings(self) -> PackSettings:
        """The settings with every part as an object, so that its parameters are written down."""
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
        """Whether some member runs compiled steps."""
        return any(isinstance(m, Compiled) and m.refused is None for m in self.members)

    @property
    def default_reference(self) -> int:
        """The reference where no prompt decides: the named one, or the first that can chat."""
        if self.settings.reference != "auto":
            return self.names.index(self.settings.reference)
        templates = (k for k, m in enumerate(self.members) if m.tokenizer.chat_template)
        return next(templates, 0)

    @cached_property
    def opens_reasoning(self) -> bool:
        """Whether the default reference's template opens the reasoning with `<think>` by itself."""
        vocabulary = self.members[self.default_reference].vocabulary
        rendered = render_chat([{"role": "user", "content": "?"}], [vocabulary], 0)
        tail = "".join(vocabulary.spell(index) for index in rendered.ids[-_TEMPLATE_TAIL:])
        return tail.rstrip().endswith("<think>")

    @cached_property
    def call(self) -> CallSettings:
        """The settings of a call that says nothing else."""
        return CallSettings(
            rule=self.parts.rule, gate=self.parts.gate, weighting=self.parts.weighting
        )

    @cached_property
    def call_with_draft(self) -> CallSettings:
        """The same with the pack's own draft; transformers' own `generate` drafts only if asked."""
        return replace(self.call, draft=self.parts.draft)

    def model(self, reference: int) -> FusedForCausalLM:
        """The pack as a transformers model over member `reference`'s vocabulary; made once."""
        with self.lock:
            if reference not in self._models:
                with alignment_progress(self._progress) as progress:
                    engine = Engine(
                        self.members,
                        reference,
                        self.parts.alignment,
                        progress,
                        heads=self.settings.heads,
                        parallel=self.settings.parallel,
                    )
                with compile_progress(self._progress) as progress:
                    engine.compile_ahead(self.call, progress)
                self._models[reference] = FusedForCausalLM(engine, self.call, self.prefixes)
            return self._models[reference]

    def view(self, reference: int) -> ReferenceView:
        """How distributions are carried to member `reference`."""
        return self.model(reference).engine.view

    def own_tokens_engine(self, reference: int) -> Engine:
        """An engine in which every member reads the text in its own tokens; made once.

        Losses compare the members' reading of the text only where each reads its own tokens, which
        some alignments do not do (`Alignment.reading`).
        """
        alignment = self.parts.alignment.reading
        if alignment is self.parts.alignment:
            return self.model(reference).engine
        if reference not in self._own_tokens:
            self._own_tokens[reference] = Engine(self.members, reference, alignment)
        return self._own_tokens[reference]
