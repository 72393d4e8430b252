"""Soak: random calls of all kinds on one tiny pack, in this process and over HTTP.

    python benchmarks/soak.py [--seconds 900] [--threads 6] [--save]

Calls come in rounds, from several threads. After each round nothing runs, and resident memory (as
it is, and after the C library has returned what it holds without using it), live objects, threads
and open files are measured. What grows with the number of calls is a leak. The exit code is 1 if
something grows, or if a call fails that was not meant to. The last line of the output is one JSON
document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from common import MEASURED, machine

from packfuse import Pack, aio
from packfuse.errors import PromptError

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support import pico
from tests.support.scripted import TEMPLATE
from tests.support.serving import served_pack
from tests.support.steps import settle

WORDS = (
    "the", "harbour", "of", "Trondheim", "was", "founded", "in", "997", "by", "Olaf;", "its",
    "cathedral,", "x", "=", "f(y),", "日本", "und", "so",
)  # fmt: skip
TOKENIZERS = ("mistral", "deepseek")
RULES = ("packllm", "mixture", "unite")
WEIGHTINGS: tuple[Any, ...] = ("exact", "opt", "sim", "top1", "uniform")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
ALLOWED_GROWTH = {"memory": 1.05, "objects": 1.02, "threads": 1.2, "files": 1.1}
"""Largest ratio of the last third of the rounds to the second."""


def text(rng: random.Random, most: int = 120) -> str:
    """A random text of up to that many words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def schema(rng: random.Random) -> dict[str, Any]:
    """A JSON schema that other calls do not have."""
    name = f"field_{rng.randrange(1000)}"
    return {**SCHEMA, "properties": {name: {"type": "integer"}}, "required": [name]}


def settings(rng: random.Random) -> dict[str, Any]:
    """Settings of one call."""
    return {
        "fusion": rng.choice(RULES),
        "weighting": rng.choice(WEIGHTINGS),
        "max_new_tokens": rng.randint(1, 12),
    }


class Calls:
    """All kinds of calls: every method without an underscore."""

    def __init__(self, pack: Pack, url: str) -> None:
        """Call a pack in this process, and the server that answers with it."""
        self._pack, self._url = pack, f"{url}/v1"

    def generate(self, rng: random.Random) -> None:
        """One answer."""
        self._pack.generate(text(rng), **settings(rng))

    def sampled(self, rng: random.Random) -> None:
        """One sampled answer with a seed."""
        self._pack.generate(text(rng), temperature=1.0, seed=rng.randrange(99), **settings(rng))

    def batch(self, rng: random.Random) -> None:
        """Several answers at once."""
        self._pack.generate([text(rng, 40) for _ in range(rng.randint(2, 6))], **settings(rng))

    def beams(self, rng: random.Random) -> None:
        """Beam search."""
        self._pack.generate(text(rng), num_beams=rng.randint(2, 3), **settings(rng))

    def drafted(self, rng: random.Random) -> None:
        """Speculative decoding."""
        self._pack.generate(text(rng), draft=rng.choice(["lookup", "auto"]), **settings(rng))

    def constrained(self, rng: random.Random) -> None:
        """An answer that fits a schema of its own."""
        self._pack.generate(text(rng, 20), constraint=schema(rng), max_new_tokens=8)

    def streamed(self, rng: random.Random) -> None:
        """A stream that is broken off, or not."""
        left = rng.randint(1, 12)
        stream = self._pack.stream(text(rng), **settings(rng))
        for _ in stream:
            left -= 1
            if not left:
                break
        stream.close()  # type: ignore[attr-defined]

    def canceled(self, rng: random.Random) -> None:
        """An answer for asyncio that is given up after a while."""
        request = self._pack.request(text(rng), {"max_new_tokens": 200})

        async def ask() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rng.random() / 2):
                    await aio.call(lambda cancel: self._pack.answers(request, cancel))

        asyncio.run(ask())

    def failing(self, rng: random.Random) -> None:
        """A call whose processor raises an error at one of its steps."""
        left = rng.randint(1, 4)

        def fail(_: Any, scores: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                raise ZeroDivisionError
            return scores

        with contextlib.suppress(ZeroDivisionError):
            self._pack.generate(text(rng), max_new_tokens=8, logits_processor=[fail])

    def too_long(self, rng: random.Random) -> None:
        """A prompt that is longer than the context windows."""
        with contextlib.suppress(PromptError):
            self._pack.generate(text(rng) + " x" * self._pack.context_window)

    def scored(self, rng: random.Random) -> None:
        """A likelihood."""
        self._pack.score(text(rng), text(rng, 10))

    def weighed(self, rng: random.Random) -> None:
        """All weightings on one prompt."""
        self._pack.weigh(text(rng))

    def _post(self, path: str, expected: int = 200, **fields: Any) -> None:
        with httpx.Client(timeout=120) as client:
            found = client.post(f"{self._url}/{path}", json=fields)
        if found.status_code != expected:
            raise RuntimeError(f"status {found.status_code}: {found.text[:300]}")

    def _chat(self, rng: random.Random, expected: int = 200, **fields: Any) -> None:
        messages = [{"role": "user", "content": text(rng)}]
        fields = {"max_tokens": rng.randint(1, 12), **fields}
        self._post("chat/completions", expected, messages=messages, **fields)

    def http_chat(self, rng: random.Random) -> None:
        """A chat over HTTP."""
        self._chat(rng, logprobs=rng.random() < 0.5)

    def http_sampled(self, rng: random.Random) -> None:
        """Several sampled answers over HTTP, streamed or not."""
        self._chat(rng, n=3, temperature=1.0, seed=rng.randrange(99), stream=rng.random() < 0.5)

    def http_tools(self, rng: random.Random) -> None:
        """A tool call over HTTP, forced or not."""
        self._chat(rng, tools=[TOOL], tool_choice=rng.choice(["auto", "required"]))

    def http_json(self, rng: random.Random) -> None:
        """A structured answer over HTTP."""
        wanted = {"name": "x", "schema": schema(rng)}
        self._chat(rng, response_format={"type": "json_schema", "json_schema": wanted})

    def http_texts(self, rng: random.Random) -> None:
        """Several texts over HTTP."""
        self._post("completions", prompt=[text(rng, 30) for _ in range(3)], max_tokens=6)

    def http_refused(self, rng: random.Random) -> None:
        """A request with a field that is not known."""
        self._chat(rng, 400, unknown_field=text(rng))

    def http_left(self, rng: random.Random) -> None:
        """A client that leaves before the end of a stream, or before its answer."""
        stream = rng.random() < 0.5
        body = {"prompt": text(rng), "max_tokens": 400, "stream": stream}
        left = rng.randint(1, 12)
        with (
            contextlib.suppress(httpx.TimeoutException),
            httpx.Client(timeout=60 if stream else rng.random()) as client,
            client.stream("POST", f"{self._url}/completions", json=body) as found,
        ):
            for _ in found.iter_lines():
                left -= 1
                if not left:
                    break


class Round:
    """Calls from several threads until enough have been made."""

    def __init__(self, calls: Calls, kinds: Sequence[str], count: int) -> None:
        """Nothing runs yet."""
        self._calls, self._kinds, self._left = calls, kinds, count
        self._mutex = threading.Lock()
        self.made: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, threads: int, seed: int) -> None:
        """Make the calls, and wait until nothing runs any more."""
        workers = [
            threading.Thread(target=self._work, args=(random.Random(f"{seed} {n}"),))  # noqa: S311
            for n in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        settle()

    def _work(self, rng: random.Random) -> None:
        while True:
            with self._mutex:
                if not self._left:
                    return
                self._left -= 1
            kind = rng.choice(self._kinds)
            try:
                getattr(self._calls, kind)(rng)
            except Exception as error:
                self.failures.append(f"{kind}: {type(error).__name__}: {error}")
            self.made[kind] += 1


def save(folder: Path, name: str, seed: int) -> Path:
    """Save a tiny chat model with a real tokenizer."""
    model, tokenizer = pico.tiny_pair(name, seed=seed)
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measured(pack: Pack) -> dict[str, int]:
    """What is in use while nothing runs."""
    if (pack.scheduler.running, pack.scheduler.waiting) != (0, 0):
        raise RuntimeError("calls are left in the scheduler")
    gc.collect()
    process = psutil.Process()
    resident = process.memory_info().rss
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return {
        "resident": resident,
        "memory": process.memory_info().rss,
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "files": process.num_fds(),
    }


def growth(rounds: Sequence[dict[str, int]]) -> dict[str, float]:
    """The median of the last third of the rounds over that of the second."""
    third = max(1, len(rounds) // 3)
    return {
        name: statistics.median(r[name] for r in rounds[-third:])
        / statistics.median(r[name] for r in rounds[-2 * third : -third] or rounds)
        for name in ALLOWED_GROWTH
    }


def soak(options: argparse.Namespace, pack: Pack, url: str) -> dict[str, Any]:
    """Run rounds until the time is over."""
    calls = Calls(pack, url)
    kinds = options.kinds or [name for name in dir(calls) if not name.startswith("_")]
    rounds: list[dict[str, int]] = []
    made, failures = Counter[str](), list[str]()
    started = time.perf_counter()
    while len(rounds) < options.rounds or time.perf_counter() - started < options.seconds:
        one = Round(calls, kinds, options.calls)
        one.run(options.threads, len(rounds))
        made, failures = made + one.made, failures + one.failures
        rounds.append(measured(pack))
        print(
            f"{time.perf_counter() - started:6.0f} s  {made.total():6d} calls  "
            + "  ".join(f"{name} {value:,}" for name, value in rounds[-1].items()),
            file=sys.stderr,
            flush=True,
        )
    found = growth(rounds)
    return {
        "machine": machine(),
        "seconds": round(time.perf_counter() - started),
        "calls": dict(sorted(made.items())),
        "failures": failures,
        "first": rounds[0],
        "last": rounds[-1],
        "growth": {name: round(value, 4) for name, value in found.items()},
        "grows": [name for name, most in ALLOWED_GROWTH.items() if found[name] > most],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if something grows or fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--rounds", type=int, default=6, help="least number of rounds")
    parser.add_argument("--calls", type=int, default=150, help="calls of a round")
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--kinds", nargs="*", help="only these kinds of calls")
    parser.add_argument("--small", action="store_true", help="two short rounds, as a check")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args(arguments)
    if options.small:
        options.seconds, options.rounds, options.calls = 0, 2, 12
    with tempfile.TemporaryDirectory() as folder:
        folders = [save(Path(folder) / name, name, k) for k, name in enumerate(TOKENIZERS)]
        pack = Pack.from_pretrained(folders, progress=False)
    with pack, served_pack(pack) as url:
        results = soak(options, pack, url)
    if options.save and not options.small:
        text_out = json.dumps(results, indent=1) + "\n"
        (MEASURED / "soak.json").write_text(text_out, encoding="utf-8")
    for failure in results["failures"]:
        print(failure, file=sys.stderr)
    print(json.dumps(results))
    grows = results["grows"] and not options.small  # two rounds say nothing about growth
    return int(bool(results["failures"] or grows))


if __name__ == "__main__":
    sys.exit(main())
