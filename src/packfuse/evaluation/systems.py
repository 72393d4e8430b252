"""What is compared: each member alone, and the pack under settings."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packfuse.alignment.base import Alignment
from packfuse.errors import ConfigError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.scorer import Method, Scorer, Scores
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.tasks.base import Likelihoods, Task
from packfuse.models.hf_member import HFMember
from packfuse.pack import Pack
from packfuse.settings import PackConfig, PackSettings

BATCH = 8
"""Answers that are written side by side."""


class System(ABC):
    """Answers questions in one or several ways at once.

    Attributes:
        labels: What tables call these ways.
        identity: Everything that its answers depend on besides the question, as plain JSON.
        batch: How many questions it takes at a time.
    """

    labels: list[str]
    identity: dict[str, Any]
    batch: int = 1

    @property
    def key(self) -> str:
        """Its identity as text."""
        return json.dumps(self.identity, sort_keys=True)

    @abstractmethod
    def run(self, task: Task, questions: Sequence[Question]) -> list[dict[str, Outcome]]:
        """What each way makes of each question, by label.

        Raises:
            PackError: if a question cannot be read, or a member fails.
        """


class Scored(System):
    """Scores options; settings that share an alignment share the members' readings."""

    def __init__(self, pack: Pack, settings: Mapping[str, Setting]) -> None:
        """`settings` by label; all with one alignment.

        Raises:
            ConfigError: for several alignments.
        """
        kinds = list(dict.fromkeys(setting.alignment for setting in settings.values()))
        if len(kinds) != 1:
            raise ConfigError("settings that are scored together share one alignment")
        self.pack, self.settings, self.alignment = pack, dict(settings), kinds[0]
        self.labels = list(settings)
        dumped = {label: setting.dump() for label, setting in settings.items()}
        self.identity = {
            "members": pack.identity["members"],
            "scored": dumped,
            "heads": pack.settings.heads,
        }
        methods = {
            name: Method(own.rule, own.weighting, own.gate) for name, own in settings.items()
        }
        # Settings that differ in their references alone are combined once.
        self._methods: list[Method] = []
        self._methods += (m for m in methods.values() if m not in self._methods)
        self._at = {name: self._methods.index(method) for name, method in methods.items()}
        self._scorers: dict[tuple[int, Alignment], Scorer] = {}

    def run(self, task: Task, questions: Sequence[Question]) -> list[dict[str, Outcome]]:
        """Score the options of each question."""
        return [self._answer(task, question) for question in questions]

    def _answer(self, task: Task, question: Question) -> dict[str, Outcome]:
        readings = self.readings(question.prompt, question.options)
        answers: dict[str, Outcome] = {}
        for label, setting in self.settings.items():
            reading = readings.under(setting)
            outcome = self._outcome(task, question, self._at[label], reading.scores)
            answers[label] = outcome.model_copy(
                update={
                    "seconds": reading.seconds,
                    "reference": self.pack.names[reading.reference],
                }
            )
        return answers

    def readings(self, prompt: str, options: Sequence[str]) -> Readings:
        """A prompt with its options, read in the tokens of whichever reference is asked for."""
        return Readings(self, prompt, options)

    def scorer(self, reference: int, alignment: Alignment | None = None) -> Scorer:
        """Scores under all settings in the tokens of member number `reference`."""
        key = reference, alignment or self.alignment
        if key not in self._scorers:
            heads = self.pack.settings.heads
            self._scorers[key] = Scorer(self.pack.members, *key, self._methods, heads=heads)
        return self._scorers[key]

    def _outcome(self, task: Task, question: Question, at: int, scores: Scores) -> Outcome:
        found = Likelihoods(
            logps=scores.logps[at].tolist(),
            sizes=scores.sizes,
            exact=scores.exact,
            impossible=scores.impossible[at].tolist(),
            first=scores.first[at].decode(errors="replace"),
        )
        bits = scores.fit.bits_per_byte
        names = self.pack.names
        return task.judge(question, found).model_copy(
            update={
                "tokens": scores.tokens,
                "fused": float(scores.fused[at, question.gold]),
                "weights": dict(zip(names, scores.weights[at].tolist(), strict=True)),
                "prompt_bits": None
                if bits is None
                else dict(zip(names, bits.tolist(), strict=True)),
            }
        )


@dataclass(slots=True)
class Reading:
    """A prompt with its options, read in one reference's tokens; seconds are those it took."""

    reference: int
    scores: Scores
    seconds: float


class Readings:
    """One prompt, read once in each reference's tokens that some setting wants."""

    def __init__(self, scored: Scored, prompt: str, options: Sequence[str]) -> None:
        """Nothing is read yet."""
        self.scored, self.prompt, self.options = scored, prompt, options
        self._found: dict[int, Reading] = {}
        self._best: int | None = None

    def under(self, setting: Setting) -> Reading:
        """Read in the tokens of the setting's reference."""
        if setting.reference != "auto":
            return self._in(self.scored.pack.names.index(setting.reference))
        if self._best is None:
            self._best = self._auto()
        return self._in(self._best)

    def _in(self, reference: int) -> Reading:
        if reference not in self._found:
            started = time.perf_counter()
            scores = self.scored.scorer(reference).score(self.prompt, self.options)
            seconds = time.perf_counter() - started
            self._found[reference] = Reading(reference, scores, seconds)
        return self._found[reference]

    def _auto(self) -> int:
        """The member that reads the prompt best in its own tokens, as `Pack` chooses."""
        default, alignment = self.scored.pack.default_reference, self.scored.alignment
        if alignment.reading is alignment and default in self._found:
            fit = self._found[default].scores.fit
        else:
            fit = self.scored.scorer(default, alignment.reading).weigh(self.prompt)
        return default if fit.losses is None else int(np.argmin(fit.losses))


class Written(System):
    """Writes answers, under one setting."""

    batch = BATCH

    def __init__(self, pack: Pack, label: str, **arguments: Any) -> None:
        """`arguments` are for `Pack.generate`."""
        self.pack, self.labels, self.arguments = pack, [label], arguments
        self.identity = {
            "members": pack.identity["members"],
            "written": pack.settings.changes_answers,
            "arguments": {name: str(value) for name, value in arguments.items()},
        }

    def run(self, task: Task, questions: Sequence[Question]) -> list[dict[str, Outcome]]:
        """Write an answer to each question, as one batch."""
        started = time.perf_counter()
        answers = self.pack.generate(
            [question.prompt for question in questions],
            **{"max_new_tokens": task.max_tokens, "stop": task.stop or None, **self.arguments},
        )
        seconds = (time.perf_counter() - started) / len(questions)
        found: list[dict[str, Outcome]] = []
        for question, answer in zip(questions, answers, strict=True):
            record = answer.record
            marked = task.mark(question, answer.text).model_copy(
                update={
                    "seconds": seconds,
                    "tokens": record.usage.total_tokens,
                    "fused": record.fused,
                    "reference": record.reference,
                    "weights": record.weights,
                    "prompt_bits": record.bits_per_byte,
                }
            )
            found.append({self.labels[0]: marked})
        return found


def alone(
    member: HFMember, config: PackConfig | None = None, settings: PackSettings | None = None
) -> Pack:
    """One member as a pack of its own: the same code, and exactly its own distribution.

    Args:
        member: Which one.
        config: What it was loaded from, so that its answers are told from another revision's.
        settings: Those of the whole pack, of which the ones that do not fuse count here.
    """
    whole = settings or PackSettings()
    own = PackSettings(
        weighting="uniform",
        draft=whole.draft,
        prefix_cache=whole.prefix_cache,
        compiled=whole.compiled,
    )
    return Pack([member], own, progress=False, config=config)


def singles(pack: Pack) -> list[Pack]:
    """Each member of a pack alone."""
    whole = pack._config
    configs: list[PackConfig | None] = [None] * len(pack.members)
    if whole is not None:
        configs = [whole.replace(members=[entry], reference="auto") for entry in whole.members]
    return [
        alone(member, config, pack.settings)
        for member, config in zip(pack.members, configs, strict=True)
    ]


def systems(pack: Pack, task: Task, settings: Sequence[Setting]) -> list[System]:
    """Each member alone, then the pack under `settings`."""
    labels = {setting.label: setting for setting in settings}
    if task.generates:
        return [
            *(Written(own, own.names[0]) for own in singles(pack)),
            *(Written(under(pack, setting), label) for label, setting in labels.items()),
        ]
    kinds = dict.fromkeys(setting.alignment for setting in settings)
    return [
        *(Scored(own, {own.names[0]: Setting.of(own)}) for own in singles(pack)),
        *(
            Scored(pack, {name: own for name, own in labels.items() if own.alignment == kind})
            for kind in kinds
        ),
    ]


def under(pack: Pack, setting: Setting) -> Pack:
    """The same members under another setting."""
    return Pack(
        pack.members,
        pack.settings,
        fusion=setting.rule,
        weighting=setting.weighting,
        alignment=setting.alignment,
        reference=setting.reference,
        gate=setting.gate,
        progress=False,
        config=pack._config,
    )
