"""Many calls at once on one pack: time to the first token, throughput, and the cost of a step.

    python benchmarks/serving.py [--tokens 96] [--only PART] [--small] [--save]

All figures are ratios from one run of the starter pack, greedy, with its defaults; about ten
minutes on two cores. The last line of the output is one JSON document.

    first     time to the first token of a short request that arrives while another answer runs,
              over the same request alone
    streams   tokens per second of 8 and 16 streams over one stream
    step      a step of 8 rows through the scheduler over `generate` on the same batch, with the
              defaults and with logits processors, which rows apply one by one
    drafts    a pass that verifies 4 drafted tokens over a step, for one answer and for 8: a draft
              pays if it gives more tokens a pass than that
    load      32 requests with Poisson arrivals through `packfuse serve`, over one at a time
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import MEASURED, machine

from packfuse import Pack
from packfuse.generation.runner import Runner

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.serving import served_pack

QUESTIONS = (
    "Tell me about the city of Rome.", "Write a story about a fox.", "How does rain form?",
    "What is a computer?", "Describe the sea in winter.", "How do I bake bread?",
    "Who was Napoleon Bonaparte?", "Why is the sky blue?",
)  # fmt: skip


def chat(index: int) -> list[dict[str, str]]:
    """One of the questions as a chat."""
    return [{"role": "user", "content": QUESTIONS[index % len(QUESTIONS)]}]


def exactly(tokens: int) -> dict[str, int]:
    """Arguments for an answer of so many tokens."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens}


def together(count: int, work: Callable[[int], Any]) -> float:
    """Seconds until `count` threads have done their work."""
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def first_token(pack: Pack, index: int) -> float:
    """Seconds to the first text of a stream."""
    started = time.perf_counter()
    stream = pack.stream(chat(index), **exactly(4))
    next(stream)
    found = time.perf_counter() - started
    for _ in stream:
        pass
    return found


def first_tokens(pack: Pack) -> float:
    """The median over four prompts, none of which has been read before."""
    found = []
    for index in range(1, 5):
        if pack.runtime.prefixes:
            pack.runtime.prefixes.clear()
        found.append(first_token(pack, index))
    return statistics.median(found)


def measure_first(pack: Pack, tokens: int) -> dict[str, float]:
    """A short request beside a running answer of 512 tokens, which is ended afterwards."""
    alone = first_tokens(pack)
    long = pack.stream(chat(0), **exactly(512 if tokens > 8 else 60))
    next(long)
    beside = first_tokens(pack)
    long.close()
    return {"alone_seconds": alone, "beside_seconds": beside, "ratio": beside / alone}


def measure_streams(pack: Pack, tokens: int) -> dict[str, float]:
    """Streams of different prompts, all of the same length."""

    def read(index: int) -> None:
        for _ in pack.stream(chat(index), **exactly(tokens)):
            pass

    rates = {count: count * tokens / together(count, read) for count in (1, 8, 16, 1)}
    found = {f"rate_{count}": rate for count, rate in rates.items()}
    return {**found, "ratio_8": rates[8] / rates[1], "ratio_16": rates[16] / rates[1]}


def step_time(pack: Pack, run: Callable[[list[Any]], Any]) -> float:
    """Median time of a step of 8 rows, seconds, between the choices of tokens."""
    times: list[float] = []
    engine = pack.model.engine
    advance = type(engine).advance

    def timed(self: Any, sequences: Any, *arguments: Any, **settings: Any) -> Any:
        if len(sequences) == 8:
            times.append(time.perf_counter())
        return advance(self, sequences, *arguments, **settings)

    type(engine).advance = timed  # type: ignore[method-assign]
    try:
        run([chat(index) for index in range(8)])
    finally:
        type(engine).advance = advance  # type: ignore[method-assign]
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def measure_step(pack: Pack, tokens: int) -> dict[str, float]:
    """The same eight prompts through both loops, in turn: as it ships, and with processors."""

    def whole(prompts: list[Any], **arguments: Any) -> None:
        Runner(pack.runtime, pack.request(prompts, arguments)).run()

    def rows(prompts: list[Any], **arguments: Any) -> None:
        pack.generate(prompts, **arguments)

    ways = {"generate": (whole, 0), "scheduler": (rows, 8)}  # rows join one after the other
    found: dict[str, float] = {}
    for suffix, arguments in (("", {}), ("_with_processors", exactly(tokens))):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(4):
            for name in list(ways)[:: -1 if number % 2 else 1]:
                way, more = ways[name]
                own = {**arguments, "max_new_tokens": tokens + more}
                times[name].append(step_time(pack, partial(way, **own)))
        medians = {name: statistics.median(own) for name, own in times.items()}
        found |= {f"{name}{suffix}": seconds for name, seconds in medians.items()}
        found[f"ratio{suffix}"] = medians["scheduler"] / medians["generate"]
    return found


def measure_drafts(pack: Pack, tokens: int) -> dict[str, float]:
    """Passes of 1 and of 5 tokens, for one sequence and for 8, after the same prompts."""
    runner = Runner(pack.runtime, pack.request([chat(index) for index in range(8)], exactly(2)))
    items = [runner.prepare(index, chat(index))[0] for index in range(8)]
    engine = pack.runtime.model(items[0].reference).engine
    sequences = [item.sequence for item in items if item.reference == items[0].reference]
    ids = [list(item.ids[:5]) for item in items]
    rounds = 3 if tokens <= 8 else 12
    found: dict[str, float] = {}
    for count in (1, len(sequences)):
        times: dict[int, list[float]] = {1: [], 5: []}
        for _ in range(rounds):
            for length, own in times.items():
                new = [one[:length] for one in ids[:count]]
                started = time.perf_counter()
                engine.advance(sequences[:count], new, runner.request.call, length)
                own.append(time.perf_counter() - started)
                for sequence in sequences[:count]:
                    sequence.crop(length)
        medians = {length: statistics.median(own) for length, own in times.items()}
        found[f"step_{count}"], found[f"pass_{count}"] = medians[1], medians[5]
        found[f"ratio_{count}"] = medians[5] / medians[1]
    return found


def measure_load(pack: Pack, tokens: int) -> dict[str, float]:
    """Requests that arrive faster than one at a time can be answered."""
    count = 32 if tokens > 8 else 6
    rng = np.random.default_rng(1)
    lengths = [int(length) for length in rng.integers(tokens // 2, tokens + 1, count)]
    started = time.perf_counter()
    answered = [
        len(pack.generate(chat(index), max_new_tokens=lengths[index]).token_ids)
        for index in range(count // 4)
    ]
    alone = sum(answered) / (time.perf_counter() - started)
    # Sixteen times as many requests as one at a time could answer.
    mean = statistics.mean(answered) / alone / 16
    arrivals = np.cumsum(rng.exponential(mean, count)).tolist()
    waits: list[float] = []
    tokens_served: list[int] = []

    def ask(index: int, url: str, begun: float) -> None:
        time.sleep(max(0.0, arrivals[index] - (time.perf_counter() - begun)))
        sent = time.perf_counter()
        body = {"messages": chat(index), "max_tokens": lengths[index]}
        found = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
        tokens_served.append(found.raise_for_status().json()["usage"]["completion_tokens"])
        waits.append(time.perf_counter() - sent)

    with served_pack(pack) as url, ThreadPoolExecutor(count) as threads:
        begun = time.perf_counter()
        list(threads.map(lambda index: ask(index, url, begun), range(count)))
        seconds = time.perf_counter() - begun
    waits.sort()
    return {
        "one_at_a_time_rate": alone,
        "served_rate": sum(tokens_served) / seconds,
        "ratio": sum(tokens_served) / seconds / alone,
        "p50_seconds": statistics.median(waits),
        "p99_seconds": waits[int(0.99 * (count - 1))],
    }


PARTS: dict[str, Callable[[Pack, int], dict[str, float]]] = {
    "first": measure_first,
    "streams": measure_streams,
    "step": measure_step,
    "drafts": measure_drafts,
    "load": measure_load,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeatable")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check that it runs")
    parser.add_argument(
        "--save", action="store_true", help="keep the results, beside those of other parts"
    )
    options = parser.parse_args(arguments)
    tokens = 6 if options.small else options.tokens
    results: dict[str, Any] = {"machine": machine()}
    with Pack.starter(progress=False) as pack:
        pack.generate(chat(0), max_new_tokens=2)  # the skill of the members is measured once
        for name in options.only or PARTS:
            results[name] = {"tokens": tokens, **PARTS[name](pack, tokens)}
            print(name, json.dumps(results[name]), file=sys.stderr)
    if options.save and not options.small:
        file = MEASURED / "serving.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        text = json.dumps({**kept, **results}, indent=1) + "\n"
        file.write_text(text, encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
