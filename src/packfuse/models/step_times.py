"""How long a member's steps take, measured: what speculative decoding pays for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from packfuse.models.member import Member, Read

WIDTHS = (1, 2, 4, 8, 16)
"""Numbers of new tokens that are measured; the time of others is that of the next one."""

_CONTEXT = 64
"""Tokens before the steps that are measured."""

_REPEATS = 3

StepTimes = tuple[float, ...]
"""Seconds of a step with each of `WIDTHS` new tokens."""


def step_times(member: Member, clock: Callable[[], float] = time.perf_counter) -> StepTimes:
    """Measure the steps of one row.

    Args:
        member: The member.
        clock: The time, in seconds.
    """
    token = member.vocabulary.encode(" the")[:1] or [0]
    length = min(_CONTEXT, member.context_window - 2 * WIDTHS[-1])
    session = member.open()
    member.read([Read(session, token * max(1, length))])

    def seconds(width: int) -> float:
        member.rollback(session, max(1, length))
        _wait_for(member.device)
        started = clock()
        member.read([Read(session, token * width, keep=width)])
        _wait_for(member.device)
        return clock() - started

    def measured(width: int) -> float:
        seconds(width)  # the first step of a kind is captured
        return min(seconds(width) for _ in range(_REPEATS))

    return tuple(measured(width) for width in WIDTHS if width <= member.context_window - length)


def step_costs(times: Sequence[StepTimes]) -> tuple[float, ...]:
    """What a step of a pack costs with 1, 2, 3, ... new tokens, in steps with one.

    Args:
        times: Of each member, which run one after the other.

    Example:
        >>> step_costs([(1.0, 1.0, 1.5, 2.0, 4.0), (1.0, 1.0, 1.5, 2.0, 4.0)])[:6]
        (1.0, 1.0, 1.5, 1.5, 2.0, 2.0)
    """
    count = min(map(len, times))
    total = [sum(own[at] for own in times) for at in range(count)]
    widths = WIDTHS[:count]
    return tuple(
        total[next(at for at, most in enumerate(widths) if width <= most)] / total[0]
        for width in range(1, widths[-1] + 1)
    )


def _wait_for(device: torch.device) -> None:
    backend: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "synchronize"):
        backend.synchronize(device)
