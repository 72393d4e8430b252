"""Members that read at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch

from packfuse.member import Member


def lanes(members: Sequence[Member], reading: Sequence[int]) -> list[list[int]]:
    """Which of the members that are reading do it one after the other, by what they compute on.

    Each device is a lane. So is each thread that torch may use on the processors, for there a
    member that reads one token leaves most of them idle; with one thread there is one lane.
    """
    found: dict[str, list[int]] = {}
    threads, processors = torch.get_num_threads(), 0
    for k in reading:
        device = members[k].device
        name = str(device)
        if device.type == "cpu":
            name, processors = f"cpu {processors % threads}", processors + 1
        found.setdefault(name, []).append(k)
    return list(found.values())


def side_by_side(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks at the same time: the first here, the others in threads.

    Returns when all are done. What one of them raises is raised then, the first one's first.
    """
    if not tasks:
        return
    first, *rest = tasks
    inference = torch.is_inference_mode_enabled()
    futures = [_threads().submit(_run, task, inference) for task in rest]
    try:
        first()
    finally:
        wait(futures)
    for future in futures:
        future.result()


def _run(task: Callable[[], None], inference: bool) -> None:
    """Gradients and inference are settings of threads."""
    with torch.inference_mode(inference), torch.no_grad():
        task()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="packfuse-lane")


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork.
    os.register_at_fork(after_in_child=_threads.cache_clear)
