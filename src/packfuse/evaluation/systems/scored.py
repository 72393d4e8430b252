"""Systems that score the options of questions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from packfuse.alignment.base import Alignment
from packfuse.errors import ConfigError, PromptError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.scorer import Method, Scorer, Scores
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.base import System
from packfuse.evaluation.tasks.base import Likelihoods, Task
from packfuse.pack import Pack
from packfuse.weighting.prefill import Fit


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
        check_scored(self.settings.values())
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


def check_scored(settings: Iterable[Setting]) -> None:
    """Refuse gates under which options cannot be scored all at once."""
    for setting in settings:
        if setting.gate.looks_back:
            raise ConfigError(
                f"gate {setting.gate.name!r} is for written answers, and options are scored",
                hint="choose a task whose answers are written, or another gate: ////every",
            )
