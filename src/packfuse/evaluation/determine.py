"""Selects the models of a pack: Determine-then-Ensemble (UniTE), then a test of each fused pack."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from packfuse.errors import ConfigError, LoadError, PackError
from packfuse.evaluation.calibration.report import CalibrationReport
from packfuse.evaluation.calibration.run import Calibrator, check_setting
from packfuse.evaluation.determination import Candidate, Determination, DetermineLimits
from packfuse.evaluation.journal import Journal
from packfuse.evaluation.question import Outcome, Question, distinct
from packfuse.evaluation.reports.intervals import Figure, difference, in_bits
from packfuse.evaluation.reports.summary import losses
from packfuse.evaluation.run import QuestionSet, run_system
from packfuse.evaluation.setting import Setting, every_method
from packfuse.evaluation.systems.base import System
from packfuse.evaluation.systems.choice import alone, under
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.evaluation.systems.written import GeneratingSystem
from packfuse.evaluation.tasks.base import Task
from packfuse.generation.runtime import Parts
from packfuse.models.loading import load_member, short_name, unique_names
from packfuse.models.member import Member
from packfuse.pack import Pack
from packfuse.progress import LabeledProgressCallback
from packfuse.settings import PackConfig
from packfuse.weighting.methods import weightings


class Determiner:
    """Measures candidates one at a time, then packs of the candidates that meet the limits.

    The two criteria (score and answer length) are those of UniTE's Determine-then-Ensemble.
    """

    def __init__(
        self,
        config: PackConfig,
        questions: QuestionSet,
        task: Task,
        *,
        journal: Journal,
        limits: DetermineLimits | None = None,
        calibrate: bool = True,
        seed: int = 0,
        progress: LabeledProgressCallback | None = None,
    ) -> None:
        """Split the questions, each counted once: every second one is held back.

        Args:
            config: The candidates, and the setting of the packs.
            questions: The questions.
            task: The task of the questions.
            journal: Keeps the outcomes; known outcomes are not computed again.
            limits: Conditions that a candidate has to meet.
            calibrate: Whether the pack is calibrated on all questions.
            seed: Seed of the bootstrap intervals.
            progress: Called with (step, questions done, questions in total).

        Raises:
            ConfigError: for fewer than two models or four questions, or a setting that cannot be
                calibrated.
        """
        least = 4
        if len(config.members) == 1:
            raise ConfigError("one model makes no choice", hint="name two or more")
        asked, repeats = distinct(questions.questions)
        if len(asked) < least:
            raise ConfigError(
                f"{len(asked)} questions are too few to select models and to verify",
                hint="give a hundred or more",
            )
        self.config, self.task, self.journal = config, task, journal
        self.calibrate = calibrate
        if calibrate:
            check_setting(Parts.of(config))
        self.limits, self.seed, self.progress = limits or DetermineLimits(), seed, progress
        self.source = questions.source
        skipped = [f"{where}: no usable question" for where in questions.skipped]
        self.left_out = [*questions.broken, *skipped, *repeats]
        self.asked, self.development, self.held_back = asked, asked[::2], asked[1::2]
        self.names = unique_names([m.name or short_name(m.model) for m in config.members])
        self._members = dict(zip(self.names, config.members, strict=True))
        self._loaded: dict[str, Member] = {}

    def run(self) -> Determination:
        """Measure every candidate, add those that make the pack better, and calibrate the pack.

        Raises:
            LoadError: if no candidate can be measured.
            PackError: if a member fails while the pack is calibrated.
        """
        names, setting, candidates = self._select() if self.limits.select else self._take_all()
        report = None
        if self.calibrate and len(names) > 1:
            report = self._calibrate(names, setting)
            if report.weighting:
                setting = replace(setting, weighting=weightings().make(report.weighting))
        self._loaded.clear()
        return Determination(
            source=self.source,
            measure=self._metric,
            development=len(self.development),
            held_back=len(self.held_back),
            left_out=self.left_out,
            candidates=candidates,
            setting=setting.dump(),
            config=self._config(names, setting),
            calibration=report,
        )

    def _take_all(self) -> tuple[list[str], Setting, list[Candidate]]:
        """All candidates, unmeasured, under the setting of the configuration."""
        candidates = [
            Candidate(name=name, model=own.model, stays=True, reason="not measured: all stay")
            for name, own in self._members.items()
        ]
        return self.names, Setting.of(self._pack(self.names)), candidates

    def _calibrate(self, names: Sequence[str], setting: Setting) -> CalibrationReport:
        calibrator = Calibrator(under(self._pack(names), setting), self.journal, self.seed)
        progress = self.progress
        return calibrator.run(
            self.asked, progress and (lambda done, total: progress("calibration", done, total))
        )

    def _select(self) -> tuple[list[str], Setting, list[Candidate]]:
        """The names of those that make the pack better, its setting, and all candidates."""
        ranked = self._rank(list(map(self._measure, self.names)))
        if ranked[0].score is None:
            raise LoadError("no candidate could be measured", hint=ranked[0].reason)
        best = ranked[0].model_copy(
            update={"stays": True, "reason": f"best of all by {self._metric}"}
        )
        names, setting, candidates = [best.name], self._setting_alone(best.name), [best]
        for candidate in ranked[1:]:
            reason = self._refusal(candidate, best)
            if reason:
                candidates.append(candidate.model_copy(update={"reason": reason}))
                continue
            tested, fitted = self._test(candidate, names, setting)
            candidates.append(tested)
            if tested.stays:
                names, setting = [*names, candidate.name], fitted
        return names, setting, candidates

    @property
    def _metric(self) -> Literal["accuracy", "bits per byte"]:
        return "bits per byte" if self.task.name == "text" else "accuracy"

    def _measure(self, name: str) -> Candidate:
        """Load one model, evaluate it alone on the development questions, and free it."""
        candidate = Candidate(name=name, model=self._members[name].model)
        try:
            own = self._pack([name])
            system = self._system(own, [Setting.of(own)])
            results = self._run(system, self.development, f"{name} alone")
        except PackError as error:
            return candidate.model_copy(update={"reason": str(error)})
        finally:
            self._loaded.clear()
            gc.collect()
        outcomes = list(next(iter(results.values())).values())
        bits = _bits(outcomes)
        right = [outcome.right for outcome in outcomes if outcome.right is not None]
        accuracy = sum(right) / len(right) if right else None
        return candidate.model_copy(
            update={
                "score": bits if self._metric == "bits per byte" else accuracy,
                "bits_per_byte": bits,
                "length": sum(outcome.length for outcome in outcomes) / len(outcomes)
                if self.task.generates
                else None,
            }
        )

    def _rank(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Best first; ties are broken by the loss, then by the order of the configuration."""
        sign = 1 if self._metric == "bits per byte" else -1
        return sorted(
            candidates,
            key=lambda c: (c.score is None, sign * (c.score or 0.0), c.bits_per_byte or 0.0),
        )

    def _refusal(self, candidate: Candidate, best: Candidate) -> str:
        """Why a candidate does not meet the paper's two criteria; empty if it meets both."""
        if candidate.score is None or best.score is None:
            return candidate.reason
        gap = abs(best.score - candidate.score) / max(best.score, 1e-9)
        if gap > self.limits.within:
            return (
                f"{self._metric} {candidate.score:.3f} is {gap:.0%} from the best, "
                f"more than {self.limits.within:.0%}"
            )
        lengths = [candidate.length, best.length]
        if None not in lengths:
            short, long = sorted(max(1.0, length or 0.0) for length in lengths)
            if long / short > self.limits.length_ratio:
                return (
                    f"its answers have {candidate.length:.0f} characters, the best model's "
                    f"{best.length:.0f}: a ratio above {self.limits.length_ratio:g}"
                )
        return ""

    def _test(
        self, candidate: Candidate, names: Sequence[str], setting: Setting
    ) -> tuple[Candidate, Setting]:
        """Compare the pack with and without a candidate on the held-back questions.

        Returns:
            The candidate with its gain, and the setting of the pack with it.
        """
        extended = [*names, candidate.name]
        try:
            without = self._pack(names)
            before = self._evaluate(without, setting, " + ".join(names))
            pack = self._pack(extended)
            fitted = self._fit(pack)
            after = self._evaluate(pack, fitted, " + ".join(extended))
            gain = self._gain(before, after)
        except PackError as error:
            return candidate.model_copy(update={"reason": f"fusing failed: {error}"}), setting
        better = gain.value > 0 and (gain.excludes_zero or not self.limits.certain)
        unit = "accuracy" if self.task.generates else "bits per byte"
        reason = (
            f"the pack with it is {'better' if better else 'not better'} by "
            f"{gain.value:+.4f} {unit} ({gain.low:+.4f} to {gain.high:+.4f}) on held-back questions"
        )
        update = {"gain": gain, "stays": better, "reason": reason}
        return candidate.model_copy(update=update), fitted

    def _fit(self, pack: Pack) -> Setting:
        """The setting of lowest loss on the development questions.

        The pack's own if answers are generated, or if it will be calibrated.
        """
        own = Setting.of(pack)
        if self.task.generates or self.calibrate:
            return own
        settings = every_method(own)
        system = self._system(pack, settings)
        results = self._run(system, self.development, f"{' + '.join(pack.names)}, settings")
        losses = {s.label: _bits(list(results[s.label].values())) or 0.0 for s in settings}
        return min(settings, key=lambda s: losses[s.label])

    def _evaluate(self, pack: Pack, setting: Setting, step: str) -> dict[Question, Outcome]:
        """Outcomes on the held-back questions."""
        return self._run(self._system(pack, [setting]), self.held_back, step)[setting.label]

    def _gain(self, before: dict[Question, Outcome], after: dict[Question, Outcome]) -> Figure:
        """The improvement from `before` to `after`, in accuracy or in bits per byte saved.

        Raises:
            PackError: if no question has both outcomes.
        """
        common = [question for question in before if question in after]
        if not common:
            raise PackError("no question has an outcome both with and without the candidate")
        news, olds = [after[q] for q in common], [before[q] for q in common]
        if self.task.generates:
            new, old = ([float(one.right or False) for one in side] for side in (news, olds))
            return difference(new, old, [1.0] * len(common), self.seed)
        pairs = [
            # If other bytes were scored, the new loss is scaled to the old number of bytes.
            (old.nats or 0.0, (new.nats or 0.0) * old.bytes / max(1, new.bytes))
            for new, old in zip(news, olds, strict=True)
        ]
        old_bits, new_bits = (in_bits(side) for side in zip(*pairs, strict=True))
        return difference(old_bits, new_bits, [outcome.bytes for outcome in olds], self.seed)

    def _setting_alone(self, name: str) -> Setting:
        return Setting.of(self._pack([name]))

    def _pack(self, names: Sequence[str]) -> Pack:
        """A pack of the named candidates; other loaded models are freed."""
        others = set(self._loaded) - set(names)
        for other in others:
            del self._loaded[other]
        if others:
            gc.collect()
        members = [self._load(name) for name in names]
        entries = [self._members[name] for name in names]
        config = self.config.model_copy(update={"members": entries})
        if len(members) == 1:
            return alone(members[0], config)
        return Pack(
            members,
            fusion=self.config.fusion,
            weighting=self.config.weighting,
            alignment=self.config.alignment,
            reference=self.config.reference if self.config.reference in names else "auto",
            progress=False,
            config=config,
        )

    def _load(self, name: str) -> Member:
        if name not in self._loaded:
            self._loaded[name] = load_member(name, self._members[name], self.config)
        return self._loaded[name]

    def _system(self, pack: Pack, settings: Sequence[Setting]) -> System:
        if self.task.generates:
            (setting,) = settings
            return GeneratingSystem(under(pack, setting), setting.label)
        return ScoringSystem(pack, {setting.label: setting for setting in settings})

    def _run(
        self, system: System, questions: Sequence[Question], step: str
    ) -> dict[str, dict[Question, Outcome]]:
        """Outcomes by label.

        Raises:
            PackError: if a member fails, or no question could be read.
        """
        progress = self.progress
        result = run_system(
            system,
            self.task,
            questions,
            self.journal,
            progress and (lambda done, total: progress(step, done, total)),
        )
        if result.failed:
            raise PackError(result.failed)
        if not all(result.outcomes.values()):
            hint = next(iter(result.unread.values()), "")
            raise PackError("no question could be read", hint=hint)
        return result.outcomes

    def _config(self, names: Sequence[str], setting: Setting) -> PackConfig:
        """The configuration of the pack."""
        dumped = setting.dump()
        members = [self._members[name].model_copy(update={"name": name}) for name in names]
        return self.config.replace(**dumped, members=members)


def _bits(outcomes: Sequence[Outcome]) -> float | None:
    """Loss on the right answers, bits per byte; None if none was scored."""
    bits, sizes = losses(outcomes)
    return sum(bits) / sum(sizes) if sizes else None
