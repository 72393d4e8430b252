"""Batches over workers of a cluster: nothing is lost or doubled when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from packfuse import Pack
from packfuse.batch.lines import BatchLine
from packfuse.batch.run import run_batch
from packfuse.errors import ConfigError
from packfuse.settings import PackConfig
from tests.support.small import small_pack

pytest.importorskip("ray", reason="needs Ray: pip install 'packfuse[ray]'; make test-ray")

from packfuse.ray.pipeline import answered_by_workers, answered_on

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


@contextmanager
def slow_pack(folder: str) -> Iterator[Mapping[str, Pack]]:
    """A pack that takes its time, in a process that leaves its id in a folder."""
    pack = small_pack(max_rows=2)
    read = pack.members[0].read

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return read(*arguments)

    pack.members[0].read = slow  # type: ignore[assignment,method-assign]
    Path(folder, str(os.getpid())).touch()
    yield {"tiny": pack}


def write(folder: Path, count: int) -> Path:
    path = folder / "in.jsonl"
    lines = ({"prompt": f"the hello {number}", "max_tokens": 9} for number in range(count))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def texts(path: Path) -> dict[str, str]:
    """The answers in a file by id; each once."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert set(Counter(one["custom_id"] for one in found).values()) == {1}
    return {one["custom_id"]: one["response"]["body"]["choices"][0]["text"] for one in found}


def test_a_worker_that_is_killed_costs_time_only(cluster: Any, tmp_path: Path) -> None:
    del cluster
    pids = tmp_path / "pids"
    pids.mkdir()
    killed: list[int] = []

    def answers(lines: Sequence[BatchLine]) -> Generator[dict[str, Any]]:
        found = answered_by_workers(partial(slow_pack, str(pids)), lines, workers=2, block=4)
        for number, answer in enumerate(found):
            if number == 5:
                killed.append(int(max(pids.iterdir(), key=lambda path: path.name).name))
                os.kill(killed[0], signal.SIGKILL)
            yield answer

    summary = run_batch(write(tmp_path, 40), tmp_path / "out.jsonl", answers, max_tokens=5)
    assert (summary.answered, summary.failed) == (40, 0)
    assert killed
    assert len(list(pids.iterdir())) == 3  # the killed one, the other one, and one in its place
    pack = small_pack()
    found = texts(tmp_path / "out.jsonl")
    for number in range(0, 40, 7):
        alone = pack.generate(f"the hello {number}", max_new_tokens=9).text
        assert found[f"line-{number + 1}"] == alone


@pytest.mark.slow
def test_workers_have_members_on_other_nodes(
    cluster: Any, config: PackConfig, tmp_path: Path
) -> None:
    del cluster
    answers = partial(answered_on, {"mine": config}, workers=2)
    summary = run_batch(write(tmp_path, 6), tmp_path / "out.jsonl", answers, max_tokens=5)
    assert (summary.answered, summary.problems) == (6, [])
    members = [member.replace(ray=None) for member in config.members]
    pack = Pack._load(config.replace(members=members), progress=False)
    found = texts(tmp_path / "out.jsonl")
    for number in range(6):
        alone = pack.generate(f"the hello {number}", max_new_tokens=9).text
        assert found[f"line-{number + 1}"] == alone


def test_more_workers_than_fit_are_refused(
    cluster: Any, config: PackConfig, tmp_path: Path
) -> None:
    del cluster
    answers = partial(answered_on, {"mine": config}, workers=3)
    with pytest.raises(ConfigError, match="3 replicas ask for 3 there, and the cluster has 2"):
        run_batch(write(tmp_path, 1), tmp_path / "out.jsonl", answers, max_tokens=5)
