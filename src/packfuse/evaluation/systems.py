"""What is compared: each member alone, and the pack under settings."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packfuse.alignments.base import Alignment
from packfuse.errors import ConfigError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.scorer import Method, Scorer, Scores
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.tasks.base import Likelihoods, Task
from packfuse.local import LocalMember
from packfuse.pack import Pack

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
        self.identity = {"members": pack.identity["members"], "scored": dumped}
        methods = {name: (own.rule, own.weighting) for name, own in settings.items()}
        # Settings that differ in their references alone are combined once.
        self._methods: list[Method] = []
        self._methods += (m for m in methods.values() if m not in self._methods)
        self._at = {name: self._methods.index(method) for name, method in methods.items()}
        self._scorers: dict[tuple[int, Alignment], Scorer] = {}

    def run(self, task: Task, questions: Sequence[Question]) -> list[dict[str, Outcome]]:
        """Score the options of each question."""
        return [self._answer(task, question) for question in questions]

    def _answer(self, task: Task, question: Question) -> dict[str, Outcome]:
        found: dict[int, tuple[Scores, float]] = {}

        def scores(reference: int) -> tuple[Scores, float]:
            if reference not in found:
                started = time.perf_counter()
                scored = self._scorer(reference).score(question.prompt, question.options)
                found[reference] = scored, time.perf_counter() - started
            return found[reference]

        answers: dict[str, Outcome] = {}
        for label, setting in self.settings.items():
            reference = self._reference(setting, question, scores)
            scored, seconds = scores(reference)
            answers[label] = self._outcome(task, question, self._at[label], scored).model_copy(
                update={"seconds": seconds, "reference": self.pack.names[reference]}
            )
        return answers

    def _reference(self, setting: Setting, question: Question, scores: Any) -> int:
        """In whose tokens; for "auto" the member that reads the prompt best, as `Pack` does."""
        names = self.pack.names
        if setting.reference != "auto":
            return names.index(setting.reference)
        default = self.pack.default_reference
        if len(names) == 1:
            return 0
        if self.alignment.reading is self.alignment:
            fit = scores(default)[0].fit
        else:
            fit = self._scorer(default, self.alignment.reading).weigh(question.prompt)
        return default if fit.losses is None else int(np.argmin(fit.losses))

    def _scorer(self, reference: int, alignment: Alignment | None = None) -> Scorer:
        key = reference, alignment or self.alignment
        if key not in self._scorers:
            self._scorers[key] = Scorer(self.pack.members, *key, self._methods)
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
                "weights": dict(zip(names, scores.weights[at].tolist(), strict=True)),
                "prompt_bits": None
                if bits is None
                else dict(zip(names, bits.tolist(), strict=True)),
            }
        )


class Written(System):
    """Writes answers, under one setting."""

    batch = BATCH

    def __init__(self, pack: Pack, label: str, **arguments: Any) -> None:
        """`arguments` are for `Pack.generate`."""
        self.pack, self.labels, self.arguments = pack, [label], arguments
        self.identity = {
            "members": pack.identity["members"],
            "written": Setting.of(pack).dump(),
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
                    "reference": record.reference,
                    "weights": record.weights,
                    "prompt_bits": record.bits_per_byte,
                }
            )
            found.append({self.labels[0]: marked})
        return found


def alone(member: LocalMember) -> Pack:
    """One member as a pack of its own: the same code, and exactly its own distribution."""
    return Pack([member], weighting="uniform", progress=False)


def systems(pack: Pack, task: Task, settings: Sequence[Setting]) -> list[System]:
    """Each member alone, then the pack under `settings`."""
    labels = {setting.label: setting for setting in settings}
    if task.generates:
        return [
            *(Written(alone(member), member.name) for member in pack.members),
            *(Written(_as(pack, setting), label) for label, setting in labels.items()),
        ]
    single = [alone(member) for member in pack.members]
    kinds = dict.fromkeys(setting.alignment for setting in settings)
    return [
        *(Scored(own, {own.names[0]: Setting.of(own)}) for own in single),
        *(
            Scored(pack, {name: own for name, own in labels.items() if own.alignment == kind})
            for kind in kinds
        ),
    ]


def _as(pack: Pack, setting: Setting) -> Pack:
    """The same members under another setting."""
    return Pack(
        pack.members,
        fusion=setting.rule,
        weighting=setting.weighting,
        alignment=setting.alignment,
        reference=setting.reference,
        progress=False,
    )
