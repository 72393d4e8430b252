"""Batches over many workers, by Ray Data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import ray.data

from packfuse.batch.lines import BatchLine
from packfuse.batch.worker import Worker
from packfuse.pack import Pack
from packfuse.ray.cluster import check_cluster, wanted
from packfuse.ray.placed import PlacedPacks
from packfuse.settings import PackConfig, RayPlace

Load = Callable[[], AbstractContextManager[Mapping[str, Pack]]]
"""Loads packs by name in a worker; the context ends with the worker."""


class PackWorker:
    """A worker of a pipeline: packs, and the answers to blocks of lines."""

    def __init__(self, load: Load) -> None:
        """Load the packs."""
        self._open = ExitStack()
        self._worker = Worker(self._open.enter_context(load()))

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[str]]:
        """The answers to a block of lines, in their order.

        A block that is answered again, because its worker was killed, has to give as many rows in
        the same order: Ray takes up its output where it was.
        """
        lines = [BatchLine(**json.loads(text)) for text in block["line"]]
        found = {answer["custom_id"]: answer for answer in self._worker.stream(lines)}
        return {"answer": [json.dumps(found[line.custom_id]) for line in lines]}


def answered_by_workers(
    load: Load,
    lines: Sequence[BatchLine],
    *,
    workers: int,
    block: int,
    place: RayPlace | None = None,
) -> Generator[dict[str, Any]]:
    """The answers to lines, block by block as they are complete.

    A worker that is killed is started again, and its block is answered again.

    Args:
        load: Loads the packs of a worker.
        lines: The lines.
        workers: Number of workers.
        block: Lines that a worker gets at a time.
        place: What a worker takes, besides members that have places of their own.
    """
    place = place or RayPlace()
    blocks = math.ceil(len(lines) / block)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"line": json.dumps(asdict(line))} for line in lines]
    answers = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
        PackWorker,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=min(workers, blocks), max_tasks_in_flight_per_actor=1
        ),
        fn_constructor_args=(load,),
        num_cpus=place.num_cpus,
        num_gpus=place.num_gpus or None,
        resources=place.resources or None,
    )
    for row in answers.iter_rows():
        yield json.loads(row["answer"])


def answered_on(
    configs: Mapping[str, PackConfig],
    lines: Sequence[BatchLine],
    *,
    workers: int = 1,
    place: RayPlace | None = None,
    load_seconds: float = 600.0,
) -> Generator[dict[str, Any]]:
    """The answers of packs to lines, by workers of the cluster this process is connected to.

    Args:
        configs: The packs by name; each worker has them all.
        lines: The lines.
        workers: Number of workers.
        place: What a worker takes, besides members that have places of their own.
        load_seconds: Longest time until a member is placed and loaded.

    Raises:
        ConfigError: if the cluster has not what the workers ask for; nothing is started then.
    """
    place = place or RayPlace()
    check_cluster(wanted(configs, place.amounts), workers)
    rows = max(config.max_rows for config in configs.values())
    block = min(4 * rows, math.ceil(len(lines) / workers))
    load = partial(_placed, configs, load_seconds)
    yield from answered_by_workers(load, lines, workers=workers, block=block, place=place)


@contextmanager
def _placed(configs: Mapping[str, PackConfig], load_seconds: float) -> Iterator[Mapping[str, Pack]]:
    with PlacedPacks(configs, load_seconds) as placed:
        yield placed.packs
