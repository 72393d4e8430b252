"""Members that read in parallel threads: those in other processes, and the setting `parallel`.

The setting is experimental on processors: on two cores it is slower than one member after the
other. It was not measured on several devices.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import torch
from threadpoolctl import (  # type: ignore[import-untyped]
    ThreadpoolController,
    threadpool_limits,
)

from packfuse.models.member import Member

MAX_WAITING = 64
"""Most members of all packs in other processes that are waited for at the same time."""

_SOFT_PAUSE = 1
"""`omp_pause_soft` of OpenMP 5.0: end the threads, keep their settings."""


def device_groups(members: Sequence[Member], reading: Sequence[int]) -> list[list[int]]:
    """Group members by what computes them; groups run in parallel, members of a group in turn.

    Each accelerator has one group. The processors have as many as torch has threads, since a member
    that reads one token leaves most threads idle.

    Args:
        members: All members.
        reading: Indices of those that read.

    Returns:
        Groups of indices from `reading`.
    """
    groups: dict[str, list[int]] = {}
    threads, processors = torch.get_num_threads(), 0
    for k in reading:
        device = members[k].device
        name = str(device)
        if device.type == "cpu":
            name, processors = f"cpu {processors % threads}", processors + 1
        groups.setdefault(name, []).append(k)
    return list(groups.values())


def run_parallel(tasks: Sequence[Callable[[], None]]) -> None:
    """Run tasks in parallel, each in a thread that computes with its share of torch's threads.

    Returns when all tasks have ended. If some raise, the error of the first of them in the order of
    `tasks` is raised then.
    """
    if len(tasks) < 2:
        for task in tasks:
            task()
        return
    share = max(1, torch.get_num_threads() // len(tasks))
    inference = torch.is_inference_mode_enabled()
    futures = [_executor().submit(_run, task, share, inference) for task in tasks]
    try:
        wait(futures)
    except BaseException:
        # No task may still write to its session after this function has ended.
        wait(futures)
        raise
    for future in futures:
        future.result()


def run_beside(tasks: Sequence[Callable[[], None]], own: Callable[[], None]) -> None:
    """Run tasks that wait for other processes, and `own` meanwhile in this thread.

    Returns when all have ended. If some raise, the error of `own`, or else of the first task, is
    raised then.
    """
    futures = [_waiting().submit(task) for task in tasks]
    try:
        own()
    finally:
        # No task may still write to its session after this function has ended.
        wait(futures)
    for future in futures:
        future.result()


def release_openmp_threads() -> None:
    """End the OpenMP threads of this thread, which is about to wait for another one.

    GNU's OpenMP lets idle threads sleep at once, not after a moment, when all pools together have
    more threads than there are processors. Every parallel operation of every pool then has to wake
    them: steps of eight rows took 1.3 times as long (dev/log.md). A pool that is needed again
    starts in less than a millisecond.
    """
    for library in _gnu_openmp():
        library.omp_pause_resource_all(_SOFT_PAUSE)


def find_openmp_again() -> None:
    """Look for copies of OpenMP again, since a library may have brought another one."""
    _gnu_openmp.cache_clear()


@cache
def _gnu_openmp() -> list[Any]:
    """The loaded copies of GNU's OpenMP that can end threads (OpenMP 5.0)."""
    loaded = (one for one in ThreadpoolController().lib_controllers if one.prefix == "libgomp")
    libraries = [one.dynlib for one in loaded]
    return [one for one in libraries if hasattr(one, "omp_pause_resource_all")]


def _run(task: Callable[[], None], share: int, inference: bool) -> None:
    """Run one task with the caller's inference mode, in a worker thread.

    Gradient mode, inference mode and OpenMP's number of threads are settings of each thread. The
    caller's thread does not run tasks, and its OpenMP pool is not used meanwhile: another pool
    beside it would slow down all small matrix products (dev/log.md).
    """
    if _own.share != share:
        # The first call sets torch's own default for this thread; it must come before the limit.
        torch.get_num_threads()
        threadpool_limits(share, user_api="openmp")
        _own.share = share
    with torch.inference_mode(inference), torch.no_grad():
        task()


class _ThreadShare(threading.local):
    """Number of OpenMP threads that a worker thread computes with; 0 if it was not set."""

    share = 0


_own = _ThreadShare()


@cache
def _waiting() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_WAITING, thread_name_prefix="packfuse-waiting")


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="packfuse-member")


if hasattr(os, "register_at_fork"):
    # Threads do not exist in a forked process.
    os.register_at_fork(after_in_child=_executor.cache_clear)
    os.register_at_fork(after_in_child=_waiting.cache_clear)
