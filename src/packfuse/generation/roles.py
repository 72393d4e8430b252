"""Calls under a gate that gives members roles: a leader, which is the reference, and a nudger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from packfuse.causal_lm.call import CallSettings
from packfuse.errors import ConfigError
from packfuse.models.member import Member
from packfuse.weighting.methods.fixed import Fixed

_WITHOUT_EFFECT = ("fusion", "weighting", "weights")
"""Arguments of a call that have no effect under a gate with roles."""


def in_roles(call: CallSettings, members: Sequence[Member], reference: str) -> CallSettings:
    """The settings of a call; under a gate with roles, its two members read and no others do.

    Args:
        call: The settings.
        members: The members, in the pack's order.
        reference: The pack's setting: a member's name, or "auto".

    Raises:
        ConfigError: for a role of no member, another reference than the leader, or a member that
            cannot end an answer.
    """
    names = [member.name for member in members]
    roles = call.gate.roles(names)
    if roles is None:
        return call
    leader, gate = names[roles.leader], call.gate
    if reference not in ("auto", leader):
        raise ConfigError(
            f"gate {gate.name!r}: the leader is {leader!r}, and the reference {reference!r}",
            hint=f"set the reference to auto, or the leader to {reference!r}",
        )
    named = {role: names[k] for role, k in roles._asdict().items()}
    for role, k in roles._asdict().items():
        if not members[k].vocabulary.end_ids:
            raise ConfigError(
                f"gate {gate.name!r}: the {role} {names[k]!r} has no end token, so no answer could "
                "end",
                hint="give its tokenizer an eos_token, or choose another member",
            )
    # The two weights have no other effect than that these members read.
    reading = Fixed(weights={name: 1 / len(named) for name in named.values()})
    return replace(call, gate=gate.model_copy(update=named), weighting=reading)


def check_in_roles(
    call: CallSettings,
    arguments: Mapping[str, Any],
    names: Sequence[str],
    pins: Sequence[str],
    default_reference: int,
) -> None:
    """Refuse arguments of a call that have no effect under a gate with roles.

    Args:
        call: The settings of the call.
        arguments: Its arguments.
        names: The members, in the pack's order.
        pins: Arguments that hold token ids of the pack's default reference.
        default_reference: Index of that.

    Raises:
        ConfigError: naming the argument.
    """
    roles = call.gate.roles(names)
    if roles is None:
        return
    for name in _WITHOUT_EFFECT:
        if arguments.get(name) is not None:
            raise ConfigError(
                f"{name} has no effect under the gate {call.gate.name!r}, by which one member "
                "writes at a time",
                hint=f"leave out {name}, or set the gate to 'every'",
            )
    if pins and roles.leader != default_reference:
        raise ConfigError(
            f"{', '.join(pins)}: these are token ids of {names[default_reference]!r}, and "
            f"{names[roles.leader]!r} leads",
            hint="load the pack with this gate",
        )
