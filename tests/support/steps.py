"""Counts the decoding steps of packs, and acts within them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from packfuse import Pack
from packfuse.fusion.engine import Engine


class Steps:
    """Counts steps: the first token needs none of its own, and every further one needs one.

    Attributes:
        sizes: The number of sequences of every step but the first.
    """

    def __init__(self, patch: pytest.MonkeyPatch, act: Callable[[int], Any] = int) -> None:
        """Call `act` with the number of every step, counted from one, before it is computed."""
        self.sizes: list[int] = []
        advance = Engine.advance

        def counted(engine: Engine, sequences: Any, *arguments: Any, **settings: Any) -> Any:
            self.sizes.append(len(sequences))
            act(self.count)
            return advance(engine, sequences, *arguments, **settings)

        patch.setattr(Engine, "advance", counted)

    @property
    def count(self) -> int:
        """Number of steps."""
        return len(self.sizes) + 1 if self.sizes else 0


def settle() -> None:
    """Wait until no pack has work, or a thread for it."""
    for thread in threading.enumerate():
        if thread.name == "packfuse-scheduler":
            thread.join(60)
            assert not thread.is_alive()


def at_once(pack: Pack, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results or errors of calls that all wait before the first of them begins."""
    found: list[Any] = [None] * len(calls)

    def run_call(index: int) -> None:
        try:
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=run_call, args=(index,)) for index in range(len(calls))]
    with pack.lock:
        for thread in threads:
            thread.start()
        while pack.scheduler.waiting < len(calls):
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    return found


@contextmanager
def at_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> Iterator[None]:
    """Acts within one step, counted from one; at least the second."""
    with patch.context() as own:
        Steps(own, lambda count: act() if count == number else None)
        yield
