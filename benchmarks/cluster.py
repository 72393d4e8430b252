"""Packs on a cluster of Ray: two workers over one, hops between nodes, and the plan against both.

    python benchmarks/cluster.py [--only PART] [--small] [--save]

Needs `packfuse[ray]`. The cluster is two nodes on this machine, with an object store each; they are
started and ended here. The last line of the output is one JSON document.

    workers   a batch by two workers over the same by one. Members take a time that is slept, so
              that the work is not bound by the processors of this machine; what `packfuse plan`
              says of the same times stands beside it
    hops      reading one token by the member protocol and by a call of an actor, on this node and
              on the other one, with whole distributions
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
from common import MEASURED, machine
from ray.cluster_utils import Cluster

from packfuse import Pack
from packfuse.batch.lines import TEXT, BatchLine
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member, Read
from packfuse.ray.pipeline import answered_by_workers
from packfuse.ray.placed import PlacedPacks
from packfuse.ray.plan import Plan, outcomes
from packfuse.settings import PackConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import pico
from tests.support.small import WORDS, vocabulary

STEPS = {"long": 60.0, "short": 40.0}
"""Time of a read of a member, ms."""
ROWS, PROMPT, TOKENS = 8, 9, 24
"""Answers at the same time, and about how many tokens prompts and answers have."""


class Sleeping(HFMember):
    """A tiny model that takes the time of a large one, without a processor."""

    def read(self, requests: Sequence[Read]) -> Any:
        """See `Member.read`."""
        time.sleep(STEPS[self.name] / 1000)
        return super().read(requests)


@contextmanager
def sleeping_pack(folder: str, workers: int) -> Iterator[Mapping[str, Pack]]:
    """A pack of sleeping members, when all workers have one."""
    members = []
    for seed, name in enumerate(WORDS):
        own = vocabulary(name)
        members.append(Sleeping(name, pico.tiny_model(own.tokenizer, seed=seed), own))
    pack = Pack(members, progress=False, max_rows=ROWS, reference="long", draft=None)
    Path(folder, str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < workers:
        time.sleep(0.01)
    yield {"sleeping": pack}


def batch(workers: int, count: int) -> float:
    """Tokens a second of a batch, from when all workers are there."""
    exactly = {"max_tokens": TOKENS, "logit_bias": {str(end): -100 for end in ends()}}
    lines = [
        BatchLine(number, f"line-{number}", TEXT, {"prompt": f"the hello {number}", **exactly}, 1)
        for number in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        load = partial(sleeping_pack, folder, workers)
        found = list(answered_by_workers(load, lines, workers=workers, block=ROWS))
        ended = time.time()
        began = max(path.stat().st_mtime for path in Path(folder).iterdir())
    written = sum(one["response"]["body"]["usage"]["completion_tokens"] for one in found)
    if len({one["custom_id"] for one in found}) != count:
        raise RuntimeError("answers were lost or doubled")
    return written / (ended - began)


def ends() -> Sequence[int]:
    """The ids that would end an answer."""
    return sorted(vocabulary("long").end_ids)


def alone() -> dict[str, float]:
    """Times of the pack in this process, as the plan takes them: ms."""
    with tempfile.TemporaryDirectory() as folder, sleeping_pack(folder, 1) as packs:
        pack = packs["sleeping"]

        def seconds(rows: int, tokens: int) -> float:
            prompts = [f"the hello {row}" for row in range(rows)]
            exactly = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            return milliseconds(lambda: pack.generate(prompts, **exactly), 5)

        first, eight = seconds(1, 1), seconds(ROWS, 1)
        step = (seconds(1, 11) - first) / 10
        row = ((seconds(ROWS, 11) - eight) / 10 - step) / (ROWS - 1)
        return {"step": step - row, "row": row, "first": eight / ROWS}


def workers(*, small: bool) -> dict[str, Any]:
    """Two workers over one, and what the plan says."""
    count = 32 if small else 96
    times = alone()
    measured = {number: batch(number, count) for number in (1, 2)}
    prompt = (times["first"] - times["step"]) / PROMPT
    member = {"name": "pack", "step": times["step"], "row": max(0.0, times["row"])}
    plan = Plan.check(
        {
            "members": [{**member, "prompt": max(0.0, prompt)}],
            "rows": ROWS, "prompt_tokens": PROMPT, "answer_tokens": TOKENS, "requests": count,
        }
    )  # fmt: skip
    planned = {one.replicas: one.tokens_per_second for one in outcomes(plan, [1, 2])}
    return {
        "times_ms": times,
        "tokens_per_second": measured,
        "two_over_one": measured[2] / measured[1],
        "planned": planned,
        "planned_two_over_one": planned[2] / planned[1],
        "measured_over_planned": {number: measured[number] / planned[number] for number in (1, 2)},
    }


@ray.remote
class Host:
    """A member in an actor, read by calls."""

    def __init__(self, config: PackConfig) -> None:
        """Load the member, and read 16 tokens."""
        self._member = Pack._load(config, progress=False).members[0]
        self._session = self._member.open()
        self._member.read([Read(self._session, [5] * 16)])

    def read(self, length: int, token: int) -> Any:
        """The distribution after one more token than the first `length`."""
        self._member.rollback(self._session, length)
        return self._member.read([Read(self._session, [token])])[0].numpy()


def milliseconds(act: Callable[[], Any], times: int) -> float:
    """Median time, ms."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        found.append((time.perf_counter() - began) * 1000)
    return statistics.median(found)


def reads(member: Member) -> Callable[[], Any]:
    """Reads one token after 16 others."""
    session = member.open()
    member.read([Read(session, [5] * 16)])

    def read() -> None:
        member.rollback(session, 16)
        member.read([Read(session, [7])])

    return read


def hops(nodes: Sequence[str], *, small: bool) -> dict[str, Any]:
    """Reads by both ways, less the read of the same member in this process."""
    times, found = (30 if small else 300), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mistral", "deepseek"):
            path = Path(folder, name)
            tokenizer = pico.real_tokenizer(name)
            pico.tiny_model(tokenizer).save_pretrained(path)
            tokenizer.save_pretrained(path)
            config = PackConfig.check({"members": [{"model": str(path)}], "dtype": "float32"})
            member = Pack._load(config, progress=False).members[0]
            here = milliseconds(reads(member), times)
            row: dict[str, float] = {"columns": member.vocabulary.columns, "here_ms": here}
            for node in nodes:
                placed = config.members[0].replace(ray={"num_cpus": 0.1, "resources": {node: 1}})
                with PlacedPacks({"one": config.replace(members=[placed])}) as packs:
                    own = milliseconds(reads(packs.packs["one"].members[0]), times)
                host = Host.options(num_cpus=0.1, resources={node: 1}).remote(config)
                call = partial(host.read.remote, 16, 7)
                ray.get(call())
                actor = milliseconds(lambda call=call: ray.get(call()), times)
                ray.kill(host)
                row[f"{node}_protocol_ms"], row[f"{node}_actor_ms"] = own - here, actor - here
            found[name] = row
    return found


def main() -> None:
    """Run the parts, and print the results as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=["workers", "hops"])
    parser.add_argument("--small", action="store_true", help="A quick run, to see that it works.")
    parser.add_argument("--save", action="store_true", help="Keep the results for docs/.")
    given = parser.parse_args()
    # Nothing of these nodes leaves this machine.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ["OMP_NUM_THREADS"] = "1"
    head = {"num_cpus": 4, "resources": {"this": 4}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=4, resources={"other": 4})
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    try:
        found: dict[str, Any] = {"machine": machine(), "ray": ray.__version__}
        if given.only in (None, "workers"):
            found["workers"] = workers(small=given.small)
        if given.only in (None, "hops"):
            found["hops"] = hops(("this", "other"), small=given.small)
    finally:
        ray.shutdown()
        cluster.shutdown()
    if given.save:
        MEASURED.joinpath("cluster.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
