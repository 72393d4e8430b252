"""The systems of an evaluation: each member alone, and the pack under each setting."""

from __future__ import annotations

from collections.abc import Sequence

from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.base import System
from packfuse.evaluation.systems.scored import ScoringSystem, check_scored
from packfuse.evaluation.systems.written import GeneratingSystem
from packfuse.evaluation.tasks.base import Task
from packfuse.models.member import Member
from packfuse.pack import Pack
from packfuse.settings import PackConfig, PackSettings


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
    check_scored(settings)
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
