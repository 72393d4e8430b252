"""Asks the systems, and keeps every answer as soon as it is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from packfuse.errors import PromptError
from packfuse.evaluation import Journal, Setting
from packfuse.evaluation.journal import digest
from packfuse.evaluation.question import Outcome
from packfuse.evaluation.setting import Samples
from packfuse.evaluation.systems.base import System
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.evaluation.systems.written import GeneratingSystem, SampledSystem

from ..chats import answer
from .kept import Known, Line
from .sets import SETS, Item
from .systems import SAMPLES, SYSTEMS, TEMPERATURE, Packs

TOGETHER = 16
"""Chats at the same time, which the scheduler answers as batches."""


class Asking:
    """The systems, the journal, and what is asked.

    A line of the journal says everything of one answer, so that figures need no model.
    """

    def __init__(self, packs: Packs, journal: Journal, kept: Known | None = None) -> None:
        """The identity of a system is worked out when it is first asked.

        Args:
            packs: The systems' packs.
            journal: Holds the answers.
            kept: Figures of earlier answers, which are not asked again.
        """
        self.packs, self.journal, self._kept = packs, journal, kept or {}
        self._known: dict[tuple[str, str], str] = {}
        self._clock = 0.0

    def ask(self, name: str, asked: Sequence[Item], systems: Sequence[str]) -> int:
        """Answers that are missing, of systems to the items of a set; returns how many there were.

        Args:
            name: The set.
            asked: Its items, from the first on.
            systems: Names of the systems; one, or several whose options are scored.
        """
        groups = [[s] for s in systems] if SETS[name].written else self.packs.groups(systems, name)
        return sum(self._ask(name, asked, group) for group in groups)

    def answers(self, name: str, system: str, asked: Sequence[Item]) -> list[Line | None]:
        """Known answers by item; of kept ones, the figures."""
        kept = self._kept.get((name, system), {})
        under = self._under(name, system)
        found: list[Line | None] = []
        for item in asked:
            own = kept.get(item.key)
            known = own if own and own["under"] == under else None
            found.append(self.journal.get(self._key(name, system, item)) or known)
        return found

    def _ask(self, name: str, asked: Sequence[Item], group: Sequence[str]) -> int:
        """Ask systems that share their work the items that any of them lacks."""
        known = [self.answers(name, system, asked) for system in group]
        missing = [item for item, *lines in zip(asked, *known, strict=True) if not all(lines)]
        self._clock = time.process_time()
        found = self._chats if SETS[name].task is None else self._outcomes
        for item, line in found(name, missing, group) if missing else ():
            self._keep(name, group, item, line)
        return len(missing)

    def _keep(self, name: str, group: Sequence[str], item: Item, lines: dict[str, Line]) -> None:
        """Keep an answer of every system, each with its share of the time since the last ones."""
        now = time.process_time()
        cpu = round((now - self._clock) / len(group), 3)
        self._clock = now
        for system in group:
            under = self._under(name, system)
            where = {"set": name, "system": system, "item": item.key, "under": under}
            self.journal.add(self._key(name, system, item), {**where, **lines[system], "cpu": cpu})

    def _key(self, name: str, system: str, item: Item) -> str:
        return digest(name, self._identity(name, system), item.key)

    def _under(self, name: str, system: str) -> str:
        """What figures are of: a system and a task."""
        return digest(self._identity(name, system), SETS[name].asking)

    def _identity(self, name: str, system: str) -> str:
        if (name, system) not in self._known:
            self._known[name, system] = digest(self.packs.under(system, name))
        return self._known[name, system]

    def _outcomes(
        self, name: str, asked: Sequence[Item], group: Sequence[str]
    ) -> Iterator[tuple[Item, dict[str, Line]]]:
        """Answers to the questions of a task, as they are known."""
        own = self._system(name, group)
        for start in range(0, len(asked), own.batch):
            batch = asked[start : start + own.batch]
            outcomes = own.run(SETS[name].task, [item.content for item in batch])
            for item, found in zip(batch, outcomes, strict=True):
                if isinstance(found, PromptError):
                    yield item, {system: {"unread": str(found)} for system in group}
                else:
                    yield item, dict(zip(group, map(_plain, found.values()), strict=True))

    def _system(self, name: str, group: Sequence[str]) -> System:
        """The system of `packfuse eval` that answers for a group."""
        packs = [self.packs.of(system, name) for system in group]
        if not SETS[name].task.generates:
            settings = {s: Setting.of(own) for s, own in zip(group, packs, strict=True)}
            return ScoringSystem(packs[0], settings)
        if SYSTEMS[group[0]].sampled:
            return SampledSystem(packs[0], Samples(SAMPLES, TEMPERATURE), 0)
        return GeneratingSystem(packs[0], group[0])

    def _chats(
        self, name: str, asked: Sequence[Item], group: Sequence[str]
    ) -> Iterator[tuple[Item, dict[str, Line]]]:
        """Answers to chats, as they are known."""
        (system,) = group
        pack = self.packs.of(system, name)
        with ThreadPoolExecutor(TOGETHER) as threads:
            waiting = {
                threads.submit(answer, pack, item.content, item.tokens, {}): item for item in asked
            }
            for done in as_completed(waiting):
                try:
                    yield waiting[done], {system: _judged(done.result())}
                except PromptError as error:
                    yield waiting[done], {system: {"unread": str(error)}}


def _plain(outcome: Outcome) -> Line:
    """An outcome without what is not needed."""
    kept = {
        "answer", "right", "raw", "nats", "bytes", "impossible", "member_tokens", "weights"
    }  # fmt: skip
    return outcome.model_dump(mode="json", include=kept, exclude_defaults=True)


def _judged(found: Line) -> Line:
    """An answer in a chat, with the rules that it breaks."""
    wrong = [rule for rule, holds in found["rules"].items() if not holds]
    line = {"answer": found["text"], "right": not wrong, "wrong": wrong}
    return line | {"weights": found["weights"]}
