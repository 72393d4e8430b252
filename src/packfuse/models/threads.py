"""Members that read at the same time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from packfuse.models.member import Member


def device_groups(members: Sequence[Member], reading: Sequence[int]) -> list[list[int]]:
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


def run_parallel(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks at the same time, each in a thread with its share of torch's threads.

    Returns when all are done. What one of them raises is raised then, the first one's first.
    """
    if len(tasks) < 2:
        for task in tasks:
            task()
        return
    share = max(1, torch.get_num_threads() // len(tasks))
    inference = torch.is_inference_mode_enabled()
    futures = [_threads().submit(_run, task, share, inference) for task in tasks]
    try:
        wait(futures)
    except BaseException:
        # Nobody may go on writing after this.
        wait(futures)
        raise
    for future in futures:
        future.result()


def _run(task: Callable[[], None], share: int, inference: bool) -> None:
    """Gradients and inference are settings of threads, and so is OpenMP's number of them.

    The caller's thread keeps the pool of threads that it computes with, and its own setting. One
    more such pool beside it would make all small products slow (dev/log.md).
    """
    if _own.share != share:
        # Torch gives a thread its setting when it is first asked for.
        torch.get_num_threads()
        threadpool_limits(share, user_api="openmp")
        _own.share = share
    with torch.inference_mode(inference), torch.no_grad():
        task()


class _ThreadShare(threading.local):
    """How many threads this one computes with; 0 for as many as torch says."""

    share = 0


_own = _ThreadShare()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="packfuse-lane")


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork.
    os.register_at_fork(after_in_child=_threads.cache_clear)
