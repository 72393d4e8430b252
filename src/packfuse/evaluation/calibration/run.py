"""Calibrates a pack on questions: collects, fits, predicts the gain, and decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packfuse.errors import ConfigError, PromptError
from packfuse.evaluation.calibration.answers import AnswerScores, collect
from packfuse.evaluation.calibration.fit import Calibration, fit
from packfuse.evaluation.calibration.report import CalibrationReport, Decision
from packfuse.evaluation.calibration.validation import (
    AS_IT_IS,
    CALIBRATED,
    Asked,
    Validation,
    cross_validate,
)
from packfuse.evaluation.journal import Journal, digest
from packfuse.evaluation.question import Question
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.choice import singles
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.fusion.gates.every import Every
from packfuse.generation.runtime import Parts
from packfuse.pack import Pack
from packfuse.progress import ProgressCallback
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.exact import Exact
from packfuse.weighting.prefill import Fit

LEAST = 20
"""Fewest distinct questions that a calibration is fitted to."""


def check_setting(parts: Parts) -> Exact:
    """The weighting that a calibration starts from.

    Raises:
        ConfigError: if the setting cannot be calibrated.
    """
    if parts.rule.pool != "logit":
        raise ConfigError(
            f"the pool of {parts.rule.name} is not calibrated, because its loss is not convex",
            hint='calibrate with "packllm", or not at all (--no-calibrate)',
        )
    if type(parts.weighting) is not Exact:
        raise ConfigError(
            f"the weighting {parts.weighting.name} is not calibrated",
            hint='calibrate with "exact", or not at all (--no-calibrate)',
        )
    if not isinstance(parts.gate, Every):
        raise ConfigError(
            f"a pack with the gate {parts.gate.name} is not calibrated",
            hint='calibrate with "every", or not at all (--no-calibrate)',
        )
    return parts.weighting


class Calibrator:
    """Fits the weighting `calibrated` of one pack, whose rule and weighting it starts from."""

    def __init__(self, pack: Pack, journal: Journal, seed: int = 0) -> None:
        """Prepare the systems that score answers.

        Args:
            pack: Two members or more; its rule has a logit pool, its weighting is `exact`.
            journal: Keeps what the members say; known questions are not read again.
            seed: Seed of the intervals.

        Raises:
            ConfigError: for a pack of one member, or a setting that cannot be calibrated.
        """
        self.pack, self.journal, self.seed = pack, journal, seed
        self.setting = Setting.of(pack)
        if len(pack.members) == 1:
            raise ConfigError("a pack of one member has nothing to calibrate")
        self.own = check_setting(pack.runtime.parts)
        self._system = _system(pack, self.setting)
        self._alone = [_system(own, Setting.of(own)) for own in singles(pack)]

    def run(
        self, questions: Sequence[Question], progress: ProgressCallback | None = None
    ) -> CalibrationReport:
        """Calibrate on questions, each counted once.

        Args:
            questions: The questions, in random order.
            progress: Called with (questions done, questions in total).

        Raises:
            MemberError: if a member fails.
        """
        notes: list[str] = []
        asked: list[Asked] = []
        for done, question in enumerate(questions):
            try:
                asked.append(self.ask(question))
            except PromptError as error:
                notes.append(f"left out: {question.where}: {error}")
            if progress:
                progress(done + 1, len(questions))
        return self.decide(asked, notes)

    def decide(self, asked: Sequence[Asked], notes: Sequence[str] = ()) -> CalibrationReport:
        """Fit to questions that the members have read, predict the gain, and decide.

        Args:
            asked: The questions, in random order.
            notes: Notes for the report.
        """
        reason = self._refusal(asked)
        if reason:
            return CalibrationReport(
                decision="refused",
                questions=len(asked),
                advice=f"{reason}. The pack stays as it is.",
                notes=list(notes),
            )
        found = cross_validate(asked, self.seed)
        calibration = fit([one.scores.of_answer(one.gold) for one in asked])
        return self._report(asked, found, calibration, notes)

    def ask(self, question: Question) -> Asked:
        """What the members say about one question; from the journal if it is there.

        Raises:
            PromptError: if the question is too long for a member.
            MemberError: if a member fails.
        """
        answers, key = self._answers(question), self._key(question)
        known = self.journal.get(key)
        if known is None:
            read = [own.scorer(0).score(question.prompt, answers) for own in self._alone]
            reference = self._reference([single.fit for single in read])
            scores = collect(self._system, reference, question.prompt, answers)
            sizes = np.array(scores.sizes)
            alone = [(one.logps[0] * sizes / np.array(one.sizes)).tolist() for one in read]
            known = {"scores": scores.dump(), "alone": alone}
            self.journal.add(key, known)
        return Asked(
            AnswerScores.load(known["scores"]),
            np.array(known["alone"]),
            question.gold,
            [len(answer.encode()) for answer in answers],
        )

    def _reference(self, fits: Sequence[Fit]) -> int:
        """The reference by the members' losses on the prompt, which each has read alone.

        With "auto" it is the member with the lowest loss, as in the pack, which scores only a part
        of a long prompt.
        """
        runtime = self.pack.runtime
        losses = [fit.bits_per_byte[0] for fit in fits if fit.bits_per_byte is not None]
        if self.setting.reference != "auto" or len(losses) < len(fits):
            return runtime.default_reference
        return int(np.argmin(losses))

    def knows(self, question: Question) -> bool:
        """Whether the journal has what the members say about a question."""
        return self.journal.get(self._key(question)) is not None

    @staticmethod
    def _answers(question: Question) -> Sequence[str]:
        return question.options or (question.solution,)

    def _key(self, question: Question) -> str:
        answers = self._answers(question)
        return digest(self._system.key, "calibration", question.key, *answers)

    def _refusal(self, asked: Sequence[Asked]) -> str:
        """Why nothing is fitted; empty if it is."""
        if len(asked) < LEAST:
            return f"{len(asked)} questions are too few to calibrate, {LEAST} are the least"
        choices = all(len(one.bytes) > 1 for one in asked)
        if choices and not any(one.right(own) for one in asked for own in one.alone):
            return "no member answers any of the questions right, so there is nothing to fit to"
        return ""

    def _report(
        self,
        asked: Sequence[Asked],
        found: Validation,
        calibration: Calibration,
        notes: Sequence[str],
    ) -> CalibrationReport:
        """Decide by the figures, and say why."""
        names, count = self.pack.names, len(asked)
        best = names[found.best]
        fitted = calibration.weighting(names, self.own, count)
        only = Calibration.alone(found.best, len(names)).weighting(names, self.own, count)
        better = [name for name in (CALIBRATED, AS_IT_IS) if found.is_better(name)]
        chosen = min(better, key=lambda name: found.bits[name], default=None)
        decision, weighting, advice = _DECISIONS[chosen]
        taken = {"fitted": fitted, "alone": only, None: None}[weighting]
        return CalibrationReport(
            decision=decision,
            questions=count,
            best=best,
            bits_per_byte={**dict(zip(names, found.members, strict=True)), **found.bits},
            gain=found.gain,
            accuracy=found.accuracy,
            fitted=weightings().dump(fitted),
            weighting=weightings().dump(taken) if taken else None,
            advice=advice.format(best=best),
            notes=list(notes),
        )


def _system(pack: Pack, setting: Setting) -> ScoringSystem:
    # Questions often begin alike: with the same few-shot examples.
    return ScoringSystem(pack, {setting.label: setting}, reuse_prefixes=True)


_DECISIONS: dict[str | None, tuple[Decision, str | None, str]] = {
    CALIBRATED: ("calibrated", "fitted", "calibrated, the pack is better than {best} alone."),
    AS_IT_IS: (
        "kept",
        None,
        "as it is, the pack is better than {best} alone; calibrating it gains nothing.",
    ),
    None: (
        "alone",
        "alone",
        "the pack is not better than {best} alone beyond noise. {best} gets all the weight: load "
        "it alone, which needs less memory, or give more questions.",
    ),
}
"""By the better system: the decision, the weighting, the advice."""
