"""A member behind `packfuse member`: what its hop costs, and a step of a pack with it.

    python benchmarks/peers.py [--small] [--save]

SmolLM2, the reference, is in this process, and Qwen in a server on this machine. Everything is
measured in turn, over several rounds. The last line of the output is one JSON document.

    hop    milliseconds of a read of one token through the server, less those of the same read in
           this process with as many threads; bytes of the answer; by what is sent; beside it an
           empty HTTP request to the same server. Least of all rounds, of a tiny model with Qwen's
           vocabulary, whose own time is short
    step   seconds a token of the pack, over those of the pack in one process: medians. The server
           and the reference compute at the same time, with half of the threads each; requests a
           token
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from common import MEASURED, machine

from packfuse import Pack
from packfuse.fusion.engine import read_subset
from packfuse.models.loading import load_member
from packfuse.models.member import Member, Read, Session
from packfuse.models.remote.client import Client
from packfuse.settings import LoadSettings, MemberSettings
from packfuse.starter import starter_paths

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.member_server import member_process
from tests.support.pico import tiny_model
from tests.support.small import small_pack

PROMPT = (
    "The Rhine rises in the Swiss Alps and flows through Germany and the Netherlands to the North "
    "Sea. For two thousand years it has carried goods between the south and the north of Europe."
)
TRANSFERS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"transfer_dtype": "float16"},
    "256 tokens": {"candidates": 256},
}


class Counted:
    """Counts requests, and the bytes of their answers."""

    def __init__(self) -> None:
        """Count from now on."""
        self.requests = self.bytes = 0
        parts = Client.parts

        def counted(client: Client, path: str, opened: Any) -> Any:
            self.requests += 1
            for part in parts(client, path, opened):
                self.bytes += len(part)
                yield part

        Client.parts = counted  # type: ignore[method-assign]


def reader(member: Member, ids: Sequence[int], subset: Any = None) -> Callable[[], None]:
    """Reads one more token at each call."""
    session: Session = member.open()
    member.read([Read(session, list(ids), subset=subset)])
    return lambda: member.read([Read(session, [ids[0]], subset=subset)]) and None


def least(calls: dict[str, Callable[[], None]], rounds: int, each: int) -> dict[str, float]:
    """Seconds of a call of each, called in turn; the least of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(each):
                call()
            times[name].append((time.perf_counter() - started) / each)
    return {name: min(own) for name, own in times.items()}


def hops(url: str, local: Pack, counted: Counted, rounds: int, each: int) -> list[dict[str, Any]]:
    """One line for each kind of answer; the server has as many threads as this process."""
    own, engine = local.members[1], local.model.engine
    ids = own.vocabulary.encode(PROMPT)
    peers = {
        name: load_member("served", MemberSettings(url=url, **how), LoadSettings())
        for name, how in TRANSFERS.items()
    }
    readers = {"here": reader(own, ids)}
    readers |= {name: reader(peer, ids) for name, peer in peers.items()}
    subset = read_subset(engine.pairings[1], own.vocabulary)
    if subset is not None:
        readers["here, columns of the alignment"] = reader(own, ids, subset)
        readers["columns of the alignment"] = reader(peers["float32"], ids, subset)
    with httpx.Client() as http:
        readers["empty request"] = lambda: http.get(f"{url}/health") and None
        found, sizes = least(readers, rounds, each), dict[str, int]()
    del readers["empty request"]
    for name, call in readers.items():
        before = counted.bytes
        call()
        sizes[name] = counted.bytes - before
    lines = []
    for name in (*TRANSFERS, "columns of the alignment"):
        if name in found:
            here = found["here, columns of the alignment" if "columns" in name else "here"]
            lines.append(
                {
                    "sent": name,
                    "bytes": sizes[name],
                    "here_ms": 1000 * here,
                    "there_ms": 1000 * found[name],
                    "hop_ms": 1000 * (found[name] - here),
                    "empty_request_ms": 1000 * found["empty request"],
                }
            )
            print(json.dumps(lines[-1]), file=sys.stderr)
    return lines


def step(
    url: str, local: Pack, counted: Counted, tokens: int, rounds: int, threads: int
) -> dict[str, Any]:
    """The pack with a served member, over the pack in one process."""
    peer = load_member(local.names[1], MemberSettings(url=url), LoadSettings())
    mixed = Pack([local.members[0], peer], progress=False, reference=local.names[0])
    times: dict[str, list[float]] = {"local": [], "served": []}
    answers, before = {}, counted.requests
    for _ in range(rounds):
        for name, pack, own in (("local", local, threads), ("served", mixed, max(1, threads // 2))):
            torch.set_num_threads(own)
            answers[name] = pack.generate(
                PROMPT, weighting="uniform", max_new_tokens=tokens, min_new_tokens=tokens
            )
            times[name].append(answers[name].record.timings.decode_seconds / tokens)
    torch.set_num_threads(threads)
    found = {name: statistics.median(own) for name, own in times.items()}
    same = answers["local"].token_ids == answers["served"].token_ids
    return {
        **found,
        "ratio": found["served"] / found["local"],
        "same_tokens": same,
        "requests_a_token": (counted.requests - before) / (rounds * tokens),
        "threads": {"local": threads, "reference": max(1, threads // 2),
                    "server": max(1, threads // 2)},
    }  # fmt: skip


def paths_of(folder: Path, *, small: bool) -> list[str]:
    """The reference and the other member; with `small`, tiny ones in a folder."""
    if not small:
        found = starter_paths(progress=False)
        return [
            str(next(path for name, path in found.items() if name.startswith(begin)))
            for begin in ("SmolLM2", "Qwen")
        ]
    for one in small_pack().members:
        one.model.save_pretrained(folder / one.name)
        one.tokenizer.save_pretrained(folder / one.name)
    return [str(folder / name) for name in ("long", "short")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="tiny models, to check that it runs")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args(arguments)
    tokens, rounds, each = (4, 1, 2) if options.small else (options.tokens, options.rounds, 16)
    counted = Counted()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as made:
        reference, served = paths_of(Path(made), small=options.small)
        local = Pack.from_pretrained([reference, served], progress=False, prefix_cache=0)
        local = Pack(local.members, progress=False, reference=local.names[0], prefix_cache=0)
        half = str(max(1, threads // 2))
        results: dict[str, Any] = {"machine": machine(), "members": local.names}
        with member_process(served, "--threads", half) as server:
            results["step"] = step(server.url, local, counted, tokens, rounds, threads)
        tiny = Path(made, "tiny")
        tokenizer = local.members[1].tokenizer
        tiny_model(tokenizer).save_pretrained(tiny)
        tokenizer.save_pretrained(tiny)
        small = Pack.from_pretrained([reference, str(tiny)], progress=False, prefix_cache=0)
        small = Pack(small.members, progress=False, reference=small.names[0], prefix_cache=0)
        torch.set_num_threads(int(half))
        with member_process(str(tiny), "--threads", half) as server:
            results["hop"] = hops(server.url, small, counted, 4 * rounds, each)
    if options.save and not options.small:
        text = json.dumps(results, indent=1) + "\n"
        (MEASURED / "peers.json").write_text(text, encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
