"""Which models belong together: Determine-then-Ensemble, and then the proof by fusing."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Literal

from packfuse.errors import ConfigError, LoadError, PackError
from packfuse.evaluation.determination import Candidate, Determination, DetermineLimits
from packfuse.evaluation.intervals import Figure, difference, in_bits
from packfuse.evaluation.journal import Journal
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.report import losses
from packfuse.evaluation.run import Asked, ask
from packfuse.evaluation.setting import Setting, every_method
from packfuse.evaluation.systems import Scored, System, Written, alone, under
from packfuse.evaluation.tasks.base import Task
from packfuse.models.hf_member import HFMember
from packfuse.models.loading import load_member, short_name, unique_names
from packfuse.pack import Pack
from packfuse.progress import LabeledProgressCallback
from packfuse.settings import PackConfig


class Determiner:
    """Measures candidates one at a time, and packs of those that may join."""

    def __init__(
        self,
        config: PackConfig,
        asked: Asked,
        task: Task,
        *,
        journal: Journal,
        limits: DetermineLimits | None = None,
        seed: int = 0,
        tell: LabeledProgressCallback | None = None,
    ) -> None:
        """Split the questions: every other one is held back.

        Raises:
            ConfigError: for fewer than two models or four questions.
        """
        least = 4
        if len(config.members) == 1:
            raise ConfigError("one model makes no choice", hint="name two or more")
        if len(asked.questions) < least:
            raise ConfigError(
                f"{len(asked.questions)} questions are too few to choose by and to verify",
                hint="give a hundred or more",
            )
        self.config, self.asked, self.task, self.journal = config, asked, task, journal
        self.limits, self.seed, self.tell = limits or DetermineLimits(), seed, tell
        self.development, self.held_back = asked.questions[::2], asked.questions[1::2]
        self.names = unique_names([m.name or short_name(m.model) for m in config.members])
        self._members = dict(zip(self.names, config.members, strict=True))
        self._loaded: dict[str, HFMember] = {}

    def run(self) -> Determination:
        """Measure every candidate, and let in those that make the pack better.

        Raises:
            LoadError: if no candidate can be measured.
        """
        ranked = self._ranked(list(map(self._measured, self.names)))
        if ranked[0].score is None:
            raise LoadError("no candidate could be measured", hint=ranked[0].reason)
        best = ranked[0].model_copy(
            update={"stays": True, "reason": f"best of all by {self._measure}"}
        )
        inside, setting, found = [best.name], self._alone(best.name), [best]
        for candidate in ranked[1:]:
            reason = self._refusal(candidate, best)
            if reason:
                found.append(candidate.model_copy(update={"reason": reason}))
                continue
            joined, better = self._joined(candidate, inside, setting)
            found.append(joined)
            if joined.stays:
                inside, setting = [*inside, candidate.name], better
        self._loaded.clear()
        return Determination(
            source=self.asked.source,
            measure=self._measure,
            development=len(self.development),
            held_back=len(self.held_back),
            candidates=found,
            setting=setting.dump(),
            config=self._config(inside, setting),
        )

    @property
    def _measure(self) -> Literal["accuracy", "bits per byte"]:
        return "bits per byte" if self.task.name == "text" else "accuracy"

    def _measured(self, name: str) -> Candidate:
        """One model alone on the development questions; it is loaded for that and freed."""
        candidate = Candidate(name=name, model=self._members[name].model)
        try:
            own = self._pack([name])
            system = self._system(own, [Setting.of(own)])
            outcomes = self._ask(system, self.development, f"{name} alone")
        except PackError as error:
            return candidate.model_copy(update={"reason": str(error)})
        finally:
            self._loaded.clear()
            gc.collect()
        found = list(next(iter(outcomes.values())).values())
        bits = _bits(found)
        right = [outcome.right for outcome in found if outcome.right is not None]
        accuracy = sum(right) / len(right) if right else None
        return candidate.model_copy(
            update={
                "score": bits if self._measure == "bits per byte" else accuracy,
                "bits_per_byte": bits,
                "length": sum(outcome.length for outcome in found) / len(found)
                if self.task.generates
                else None,
            }
        )

    def _ranked(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Best first; loss breaks ties, and the order in which they were named."""
        sign = 1 if self._measure == "bits per byte" else -1
        return sorted(
            candidates,
            key=lambda c: (c.score is None, sign * (c.score or 0.0), c.bits_per_byte or 0.0),
        )

    def _refusal(self, candidate: Candidate, best: Candidate) -> str:
        """Why a candidate may not join by the paper's two criteria; empty if it may."""
        if candidate.score is None or best.score is None:
            return candidate.reason
        gap = abs(best.score - candidate.score) / max(best.score, 1e-9)
        if gap > self.limits.within:
            return (
                f"{self._measure} {candidate.score:.3f} is {gap:.0%} from the best, "
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

    def _joined(
        self, candidate: Candidate, inside: Sequence[str], setting: Setting
    ) -> tuple[Candidate, Setting]:
        """Whether the pack is better with the candidate, on the held-back questions."""
        names = [*inside, candidate.name]
        try:
            without = self._pack(inside)
            before = self._answers(without, setting, self.held_back, " + ".join(inside))
            pack = self._pack(names)
            fitted = self._fitted(pack)
            after = self._answers(pack, fitted, self.held_back, " + ".join(names))
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

    def _fitted(self, pack: Pack) -> Setting:
        """The setting that is best on the development questions; written answers have no choice."""
        own = Setting.of(pack)
        if self.task.generates:
            return own
        settings = every_method(own)
        system = self._system(pack, settings)
        outcomes = self._ask(system, self.development, f"{' + '.join(pack.names)}, settings")
        losses = {s.label: _bits(list(outcomes[s.label].values())) or 0.0 for s in settings}
        return min(settings, key=lambda s: losses[s.label])

    def _answers(
        self, pack: Pack, setting: Setting, questions: Sequence[Question], what: str
    ) -> dict[Question, Outcome]:
        return self._ask(self._system(pack, [setting]), questions, what)[setting.label]

    def _gain(self, before: dict[Question, Outcome], after: dict[Question, Outcome]) -> Figure:
        """How much better `after` is on the questions that both answered.

        Raises:
            PackError: if there is none.
        """
        both = [question for question in before if question in after]
        if not both:
            raise PackError("no question was answered with it and without it")
        ones, others = [after[q] for q in both], [before[q] for q in both]
        if self.task.generates:
            new, old = ([float(one.right or False) for one in side] for side in (ones, others))
            return difference(new, old, [1.0] * len(both), self.seed)
        pairs = [
            # Where other bytes were scored, their loss stands for as many as before.
            (old.nats or 0.0, (new.nats or 0.0) * old.bytes / max(1, new.bytes))
            for new, old in zip(ones, others, strict=True)
        ]
        olds, news = (in_bits(side) for side in zip(*pairs, strict=True))
        return difference(olds, news, [outcome.bytes for outcome in others], self.seed)

    def _alone(self, name: str) -> Setting:
        return Setting.of(self._pack([name]))

    def _pack(self, names: Sequence[str]) -> Pack:
        """A pack of candidates; those that are not in it are freed."""
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

    def _load(self, name: str) -> HFMember:
        if name not in self._loaded:
            self._loaded[name] = load_member(name, self._members[name], self.config)
        return self._loaded[name]

    def _system(self, pack: Pack, settings: Sequence[Setting]) -> System:
        if self.task.generates:
            (setting,) = settings
            return Written(under(pack, setting), setting.label)
        return Scored(pack, {setting.label: setting for setting in settings})

    def _ask(
        self, system: System, questions: Sequence[Question], what: str
    ) -> dict[str, dict[Question, Outcome]]:
        """Outcomes by label.

        Raises:
            PackError: if a member fails, or nothing could be read.
        """
        tell = self.tell
        found = ask(
            system,
            self.task,
            questions,
            self.journal,
            tell and (lambda done, total: tell(what, done, total)),
        )
        if found.failed:
            raise PackError(found.failed)
        if not all(found.outcomes.values()):
            raise PackError("no question could be read", hint=next(iter(found.unread.values()), ""))
        return found.outcomes

    def _config(self, names: Sequence[str], setting: Setting) -> PackConfig:
        """The pack as it is written down."""
        dumped = setting.dump()
        members = [self._members[name].model_copy(update={"name": name}) for name in names]
        return PackConfig.check({**self.config.model_dump(), **dumped, "members": members})


def _bits(outcomes: Sequence[Outcome]) -> float | None:
    """Loss on the right answers, bits per byte; None where none was scored."""
    bits, sizes = losses(outcomes)
    return sum(bits) / sum(sizes) if sizes else None
