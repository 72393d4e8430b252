"""The systems of an evaluation: each member alone, and the pack under each setting."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packfuse.alignment.base import Alignment
from packfuse.errors import ConfigError, PromptError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.scorer import Method, Scorer, Scores
from packfuse.evaluation.setting import Samples, Setting
from packfuse.evaluation.tasks.base import Likelihoods, Task
from packfuse.generation.output.result import Answer
from packfuse.models.member import Member
from packfuse.pack import Pack
from packfuse.scheduler.task import Task as WorkTask
from packfuse.settings import PackConfig, PackSettings
from packfuse.weighting.prefill import Fit

BATCH = 64
"""Questions whose answers are generated together: as many at a time as the pack's `max_rows`."""


class System(ABC):
    """A pack or a member under one or several settings, each with a label.

    Attributes:
        labels: Names of the settings in tables.
        identity: Everything that the outcomes depend on besides the question, as plain JSON.
        batch: Questions per call of `run`.
    """

    labels: list[str]
    identity: dict[str, Any]
    batch: int = 1

    @property
    def key(self) -> str:
        """The identity as text."""
        return json.dumps(self.identity, sort_keys=True)

    @abstractmethod
    def run(
        self, task: Task, questions: Sequence[Question]
    ) -> Iterator[dict[str, Outcome] | PromptError]:
        """Outcomes by label for each question, in order, as they are known.

        Yields:
            The outcomes; for a question that is too long for a member, that error.

        Raises:
            MemberError: if a member fails.
        """


class ScoringSystem(System):
    """Scores options; all settings share the members' forward passes."""

    def __init__(
        self, pack: Pack, settings: Mapping[str, Setting], *, reuse_prefixes: bool = False
    ) -> None:
        """`settings` by label; all with one alignment.

        With `reuse_prefixes`, what prompts have in common is read once, by the pack's prefix cache;
        `Outcome.seconds` does not have that time then.

        Raises:
            ConfigError: for several alignments.
        """
        kinds = list(dict.fromkeys(setting.alignment for setting in settings.values()))
        if len(kinds) != 1:
            raise ConfigError("settings that are scored together share one alignment")
        self.pack, self.settings, self.alignment = pack, dict(settings), kinds[0]
        self._prefixes = pack.runtime.prefixes if reuse_prefixes else None
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
        # Settings that differ only in their references share one method.
        self._methods: list[Method] = []
        self._methods += (m for m in methods.values() if m not in self._methods)
        self._at = {name: self._methods.index(method) for name, method in methods.items()}
        self._scorers: dict[tuple[int, Alignment], Scorer] = {}

    def run(
        self, task: Task, questions: Sequence[Question]
    ) -> Iterator[dict[str, Outcome] | PromptError]:
        """Score the options of each question; see `System.run`."""
        for question in questions:
            try:
                yield self._score(task, question)
            except PromptError as error:
                yield error

    def _score(self, task: Task, question: Question) -> dict[str, Outcome]:
        prompts = self.scored_prompts(question.prompt, question.options)
        outcomes: dict[str, Outcome] = {}
        for label, setting in self.settings.items():
            prompt = prompts.under(setting)
            outcome = self._outcome(task, question, self._at[label], prompt.scores)
            outcomes[label] = outcome.model_copy(
                update={
                    "seconds": prompt.seconds,
                    "reference": self.pack.names[prompt.reference],
                }
            )
        return outcomes

    def scored_prompts(self, prompt: str, options: Sequence[str]) -> ScoredPrompts:
        """A prompt with its options, to be scored in the vocabulary of any reference."""
        return ScoredPrompts(self, prompt, options)

    def scorer(self, reference: int, alignment: Alignment | None = None) -> Scorer:
        """The scorer of all settings in the vocabulary of member number `reference`.

        Raises:
            ConfigError: for a gate that is for written answers.
        """
        _check_scored(self.settings.values())
        key = reference, alignment or self.alignment
        if key not in self._scorers:
            own = self.pack.settings
            self._scorers[key] = Scorer(
                self.pack.members,
                *key,
                self._methods,
                heads=own.heads,
                parallel=own.parallel,
                prefixes=self._prefixes,
            )
        return self._scorers[key]

    def _outcome(self, task: Task, question: Question, at: int, scores: Scores) -> Outcome:
        """The outcome under method number `at`."""
        likelihoods = Likelihoods(
            logps=scores.logps[at].tolist(),
            sizes=scores.sizes,
            exact=scores.exact,
            impossible=scores.impossible[at].tolist(),
            first=scores.first[at].decode(errors="replace"),
        )
        bits = scores.fit.bits_per_byte
        names = self.pack.names
        return task.score_options(question, likelihoods).model_copy(
            update={
                "tokens": scores.tokens,
                "member_tokens": scores.tokens * len(self.pack.members),
                "fused": float(scores.fused[at, question.gold]),
                "weights": dict(zip(names, scores.weights[at].tolist(), strict=True)),
                "prompt_bits": None
                if bits is None
                else dict(zip(names, bits.tolist(), strict=True)),
            }
        )


@dataclass(slots=True)
class ScoredPrompt:
    """A prompt with its options, scored in one reference's vocabulary.

    Attributes:
        reference: Index of the reference member.
        scores: Scores of the options under all settings.
        seconds: Wall-clock time, seconds.
    """

    reference: int
    scores: Scores
    seconds: float


class ScoredPrompts:
    """One prompt with its options, scored once for each reference that a setting uses."""

    def __init__(self, system: ScoringSystem, prompt: str, options: Sequence[str]) -> None:
        """Scoring is deferred to the first call of `under`."""
        self.system, self.prompt, self.options = system, prompt, options
        self._by_reference: dict[int, ScoredPrompt] = {}
        self._fit: Fit | None = None

    def under(self, setting: Setting) -> ScoredPrompt:
        """The scores in the vocabulary of the setting's reference.

        Raises:
            PromptError: if the prompt is empty, or too long for a member.
            MemberError: if a member fails.
        """
        if setting.reference != "auto":
            return self._score(self.system.pack.names.index(setting.reference))
        return self._score(self._choose_reference(setting))

    def _score(self, reference: int) -> ScoredPrompt:
        if reference not in self._by_reference:
            started = time.perf_counter()
            scores = self.system.scorer(reference).score(self.prompt, self.options)
            seconds = time.perf_counter() - started
            self._by_reference[reference] = ScoredPrompt(reference, scores, seconds)
        return self._by_reference[reference]

    def _choose_reference(self, setting: Setting) -> int:
        """The member of lowest loss on the prompt in its own tokens, as `Pack` chooses.

        Members whose weight is fixed to 0 are no reference.
        """
        runtime, alignment = self.system.pack.runtime, self.system.alignment
        able, default = runtime.with_weight(setting.weighting), runtime.default_reference
        if self._fit is None:
            if alignment.reading is alignment and default in self._by_reference:
                self._fit = self._by_reference[default].scores.fit
            else:
                self._fit = self.system.scorer(default, alignment.reading).weigh(self.prompt)
        losses = self._fit.losses
        if losses is None:
            return runtime.reference_under(setting.weighting)
        return min(able, key=lambda k: float(losses[k]))


class GeneratingSystem(System):
    """Generates answers under one setting; those of a batch are decoded together."""

    batch = BATCH

    def __init__(self, pack: Pack, label: str, **arguments: Any) -> None:
        """`arguments` are passed to `Pack.generate`."""
        self.pack, self.labels, self.arguments = pack, [label], arguments
        self.identity = {
            "members": pack.identity["members"],
            "written": pack.settings.changes_answers,
            "arguments": {name: str(value) for name, value in arguments.items()},
        }

    def run(
        self, task: Task, questions: Sequence[Question]
    ) -> Iterator[dict[str, Outcome] | PromptError]:
        """Generate the answers to all questions at the same time; see `System.run`."""
        started = time.perf_counter()
        waiting = [self._task(task, question) for question in questions]
        written = [one for one in waiting if not isinstance(one, PromptError)]
        self.pack.scheduler.submit(*written)
        try:
            for question, one in zip(questions, waiting, strict=True):
                answers = one if isinstance(one, PromptError) else _result(one)
                if isinstance(answers, PromptError):
                    yield answers
                    continue
                now = time.perf_counter()
                outcome = self._outcome(task, question, answers)
                yield {self.labels[0]: outcome.model_copy(update={"seconds": now - started})}
                started = now
        finally:
            for rest in written:
                rest.cancel.set()

    def _task(self, task: Task, question: Question) -> WorkTask[list[Answer]] | PromptError:
        """The work of one question."""
        arguments = {"max_new_tokens": task.max_tokens, "stop": task.stop or None, **self.arguments}
        try:
            return self.pack.task(self.pack.request(question.prompt, arguments))
        except PromptError as error:
            return error

    def _outcome(self, task: Task, question: Question, answers: Sequence[Answer]) -> Outcome:
        """The outcome of the answers to one question, without its time."""
        chosen = self._chosen(task, answers)
        record = chosen.record
        usage = record.usage
        read = usage.prompt_tokens_by_member
        encoded = [
            len(member.vocabulary.encode(answer.text))
            for member in self.pack.members
            if read.get(member.name)
            for answer in answers
        ]
        return task.grade_text(question, chosen.text).model_copy(
            update={
                "tokens": usage.prompt_tokens
                + sum(answer.record.usage.completion_tokens for answer in answers),
                "member_tokens": sum(read.values()) + sum(encoded),
                "fused": record.fused,
                "reference": record.reference,
                "weights": record.weights,
                "prompt_bits": record.bits_per_byte,
            }
        )

    def _chosen(self, task: Task, answers: Sequence[Answer]) -> Answer:
        """The answer that is graded."""
        return answers[0]


class SampledSystem(GeneratingSystem):
    """Samples several answers of one pack, and takes the one that most of them agree with."""

    def __init__(self, pack: Pack, samples: Samples, seed: int) -> None:
        """`pack` is usually one member alone."""
        label = f"{pack.names[0]} · {samples.count} samples, majority"
        super().__init__(
            pack,
            label,
            do_sample=True,
            temperature=samples.temperature,
            num_return_sequences=samples.count,
            seed=seed,
        )

    def _chosen(self, task: Task, answers: Sequence[Answer]) -> Answer:
        """The first answer of the largest group that says the same."""
        ballots = [task.ballot(answer.text) for answer in answers]
        counts = Counter(filter(None, ballots)) or Counter(ballots)
        return answers[ballots.index(counts.most_common(1)[0][0])]


def _result(work: WorkTask[list[Answer]]) -> list[Answer] | PromptError:
    """The answers, once they are there."""
    try:
        return work.future.result()
    except PromptError as error:
        return error


def alone(
    member: Member, config: PackConfig | None = None, settings: PackSettings | None = None
) -> Pack:
    """One member as a pack of its own: the same code, and exactly the member's distribution.

    Args:
        member: The member.
        config: The configuration it was loaded from; its revision is part of the identity.
        settings: Settings of the whole pack; those that do not concern fusion are kept.
    """
    whole = settings or PackSettings()
    own = PackSettings(
        weighting="uniform",
        draft=whole.draft,
        prefix_cache=whole.prefix_cache,
        steps=whole.steps,
        compiled=whole.compiled,
    )
    return Pack([member], own, progress=False, config=config)


def singles(pack: Pack) -> list[Pack]:
    """Each member of a pack as a pack of its own, in the pack's order."""
    whole = pack._config
    configs: list[PackConfig | None] = [None] * len(pack.members)
    if whole is not None:
        configs = [whole.replace(members=[entry], reference="auto") for entry in whole.members]
    return [
        alone(member, config, pack.settings)
        for member, config in zip(pack.members, configs, strict=True)
    ]


def systems(pack: Pack, task: Task, settings: Sequence[Setting]) -> list[System]:
    """Each member alone, then the pack under `settings`.

    Raises:
        ConfigError: for a gate under which options cannot be scored.
    """
    labels = {setting.label: setting for setting in settings}
    if task.generates:
        return [
            *(GeneratingSystem(own, own.names[0]) for own in singles(pack)),
            *(GeneratingSystem(under(pack, setting), label) for label, setting in labels.items()),
        ]
    _check_scored(settings)
    kinds = dict.fromkeys(setting.alignment for setting in settings)
    return [
        *(ScoringSystem(own, {own.names[0]: Setting.of(own)}) for own in singles(pack)),
        *(
            ScoringSystem(
                pack, {name: own for name, own in labels.items() if own.alignment == kind}
            )
            for kind in kinds
        ),
    ]


def _check_scored(settings: Iterable[Setting]) -> None:
    """Refuse gates under which options cannot be scored all at once."""
    for setting in settings:
        if setting.gate.looks_back:
            raise ConfigError(
                f"gate {setting.gate.name!r} is for written answers, and options are scored",
                hint="choose a task whose answers are written, or another gate: ////every",
            )


def under(pack: Pack, setting: Setting) -> Pack:
    """A pack of the same members under another setting."""
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
