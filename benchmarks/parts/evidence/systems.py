"""The systems: every member, the packs under their settings, the best member at equal compute."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packfuse import Pack
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.choice import alone
from packfuse.models.member import Member

from ..papers import MINED, PUBLISHED
from .smaller import in_bfloat16

QWEN, SMOLLM2, GEMMA = "Qwen2.5-Coder-0.5B-Instruct", "SmolLM2-135M-Instruct", "gemma-3-270m"
TRIO, PAIR = (QWEN, SMOLLM2, GEMMA), (QWEN, SMOLLM2)
SAMPLES, TEMPERATURE = 3, 0.7
"""Samples of one member's answer that vote: as many as the pack has members."""


@dataclass(frozen=True)
class System:
    """One way to answer.

    Attributes:
        title: What the tables call it.
        members: Names of its members.
        settings: Settings of the pack; what is not named is as shipped.
        sampled: Whether `SAMPLES` answers of its one member vote.
        sets: The sets that it is asked; None for all.
        most: Most questions of a set that it is asked.
        calibrated: Whether its weighting was fitted to questions of the set, which it is not asked.
        first: Whether it is asked a round of all sets before the others.
    """

    title: str
    members: tuple[str, ...] = TRIO
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampled: bool = False
    sets: tuple[str, ...] | None = None
    most: int = 10_000
    calibrated: bool = False
    first: bool = False

    def asked(self, name: str, questions: int) -> int:
        """How many of a set's questions it may be asked."""
        if self.sets is not None and name not in self.sets:
            return 0
        return min(self.most, questions - CALIBRATION * self.calibrated)


SIM = {"name": "sim", "normalize": "own", "pieces": None}
VOTED = ("triviaqa", "gsm8k")
"""Sets whose written answers can be counted."""
WRITTEN = (*VOTED, "first-use", "code")
"""Sets whose answers are written."""
SHORT = ("triviaqa", "arc", "piqa", "mathematics", "trivia")
"""Sets with short prompts: PackLLM-opt keeps whole distributions at every position of a prompt."""
CALIBRATION = 40
"""Questions at the end of a set that calibrations are fitted to."""
SYSTEMS = {
    **{name: System(name, (name,), first=True) for name in TRIO},
    "default": System("pack, as shipped", first=True),
    "calibrated": System("pack, `calibrated`", calibrated=True, first=True),
    "pair": System("pack of two, as shipped", PAIR),
    "uniform": System("`uniform`", settings={"weighting": "uniform"}, first=True),
    "top1": System("`top1`", settings={"weighting": "top1"}, first=True),
    **{
        f"vote {name}": System(
            f"{name}, {SAMPLES} samples, vote", (name,), sampled=True, sets=VOTED
        )
        for name in TRIO
    },
    "nudge": System(
        f"`nudge`: {GEMMA} writes, {QWEN} nudges", (GEMMA, QWEN), {"gate": "nudge"}, sets=WRITTEN
    ),
    "every": System(
        "the same two, every token fused",
        (GEMMA, QWEN),
        sets=WRITTEN,
    ),
    "packllm-sim": System(
        "PackLLM-sim, as published",
        settings={"fusion": "packllm", "alignment": MINED, "weighting": SIM},
        most=300,
    ),
    "packllm-opt": System(
        "PackLLM-opt, as published",
        settings={"fusion": "packllm", "alignment": MINED, "weighting": PUBLISHED},
        sets=SHORT,
        most=300,
    ),
    "unite": System(
        "UniTE, as published",
        settings={"fusion": "unite", "weighting": "uniform", "alignment": "prefix"},
        most=300,
    ),
}
"""The systems, in the order of the tables; members first."""


class Packs:
    """The packs of all systems, over members that are loaded once."""

    def __init__(
        self, members: Sequence[Member], calibrations: Mapping[str, Any] | None = None
    ) -> None:
        """`members` may be fewer than all; `calibrations` are weightings by set."""
        self._members = {member.name: member for member in members}
        self._calibrations = calibrations or {}
        self._packs: dict[tuple[str, str], Pack] = {}

    @classmethod
    def starter(cls, calibrations: Mapping[str, Any], *, bfloat16: bool = False) -> Packs:
        """Those of the starter models, as shipped or in bfloat16."""
        members = Pack.starter("trio", progress=False).members
        if bfloat16:
            in_bfloat16(members)
        return cls(members, calibrations)

    def able(self, system: str, name: str) -> bool:
        """Whether these members can make a system for a set."""
        own = SYSTEMS[system]
        here = set(own.members) <= set(self._members)
        return here and (not own.calibrated or name in self._calibrations)

    def of(self, system: str, name: str) -> Pack:
        """The pack of a system for a set."""
        own = SYSTEMS[system]
        key = system, name if own.calibrated else ""
        if key not in self._packs:
            members = [self._members[member] for member in own.members]
            fitted = {"weighting": self._calibrations[name]} if own.calibrated else {}
            made = Pack(members, progress=False, **own.settings, **fitted)
            self._packs[key] = alone(members[0]) if len(members) == 1 else made
        return self._packs[key]

    def under(self, system: str, name: str) -> str:
        """Everything that a system's answers depend on besides the question, as text."""
        pack = self.of(system, name)
        facts = [
            {key: member[key] for key in ("name", "dtype", "weights", "tokenizer")}
            for member in pack.identity["members"]
        ]
        own = {"members": facts, "setting": Setting.of(pack).dump()}
        samples = SAMPLES if SYSTEMS[system].sampled else 0
        return json.dumps({**own, "samples": samples}, sort_keys=True)

    def groups(self, systems: Sequence[str], name: str) -> list[list[str]]:
        """Systems whose options are scored in the same forward passes."""
        found: dict[Any, list[str]] = {}
        for system in systems:
            alignment = Setting.of(self.of(system, name)).alignment
            alike = SYSTEMS[system].members, alignment
            found.setdefault(alike, []).append(system)
        return list(found.values())
