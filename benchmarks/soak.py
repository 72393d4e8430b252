"""Soak: random calls of all kinds on one tiny pack, from several threads; memory over time.

    python benchmarks/soak.py --seconds 100

Prints resident memory, what of it the C library holds without using it, and the number of live
objects. Both should level off: what grows with the number of calls is a leak.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packfuse import Pack
from packfuse.models.heap import free_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support import pico

WORDS = (
    "the", "harbour", "of", "Trondheim", "was", "founded", "in", "997", "by", "Olaf;", "its",
    "cathedral,", "x", "=", "f(y),", "日本", "und", "so",
)  # fmt: skip
TOKENIZERS = ("mistral", "deepseek")
RULES = ("packllm", "mixture", "unite")
WEIGHTINGS: tuple[Any, ...] = ("exact", "opt", "sim", "top1", "uniform")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def text(rng: random.Random, most: int = 120) -> str:
    """A random text of up to that many words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def settings(rng: random.Random) -> dict[str, Any]:
    """Settings of one call."""
    return {
        "fusion": rng.choice(RULES),
        "weighting": rng.choice(WEIGHTINGS),
        "max_new_tokens": rng.randint(1, 12),
    }


def generate(pack: Pack, rng: random.Random) -> None:
    """One answer."""
    pack.generate(text(rng), **settings(rng))


def sampled(pack: Pack, rng: random.Random) -> None:
    """One sampled answer with a seed."""
    pack.generate(text(rng), temperature=1.0, seed=rng.randrange(99), **settings(rng))


def batch(pack: Pack, rng: random.Random) -> None:
    """Several answers at once."""
    pack.generate([text(rng, 40) for _ in range(rng.randint(2, 6))], **settings(rng))


def beams(pack: Pack, rng: random.Random) -> None:
    """Beam search."""
    pack.generate(text(rng), num_beams=rng.randint(2, 3), **settings(rng))


def drafted(pack: Pack, rng: random.Random) -> None:
    """Speculative decoding."""
    pack.generate(text(rng), draft=rng.choice(["lookup", "auto"]), **settings(rng))


def constrained(pack: Pack, rng: random.Random) -> None:
    """An answer that fits a schema of its own."""
    name = f"field_{rng.randrange(1000)}"
    schema = {**SCHEMA, "properties": {name: {"type": "integer"}}, "required": [name]}
    pack.generate(text(rng, 20), constraint=schema, max_new_tokens=8)


def streamed(pack: Pack, rng: random.Random) -> None:
    """A stream that is broken off, or not."""
    left = rng.randint(1, 12)
    stream = pack.stream(text(rng), **settings(rng))
    for _ in stream:
        left -= 1
        if not left:
            break
    stream.close()  # type: ignore[attr-defined]


def scored(pack: Pack, rng: random.Random) -> None:
    """A likelihood."""
    pack.score(text(rng), text(rng, 10))


def weighed(pack: Pack, rng: random.Random) -> None:
    """All weightings on one prompt."""
    pack.weigh(text(rng))


KINDS: tuple[Callable[[Pack, random.Random], None], ...] = (
    generate, sampled, batch, beams, drafted, constrained, streamed, scored, weighed
)  # fmt: skip


def report(started: float, calls: int) -> None:
    """Print one line."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    print(
        f"{time.perf_counter() - started:6.0f} s  {calls:5d} calls"
        f"  resident {resident / 1e6:6.0f} MB"
        f"  of it free {free_bytes() / 1e6:6.0f} MB  objects {len(gc.get_objects()):8d}"
        f"  threads {threading.active_count()}",
        flush=True,
    )


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--kinds", nargs="*", default=[kind.__name__ for kind in KINDS])
    given = parser.parse_args()
    kinds = [kind for kind in KINDS if kind.__name__ in given.kinds]
    with tempfile.TemporaryDirectory() as folder:
        folders = [
            pico.save_tiny(Path(folder) / name, name, seed=k) for k, name in enumerate(TOKENIZERS)
        ]
        pack = Pack.from_pretrained(folders, progress=False)
    started, counted = time.perf_counter(), Counter[str]()
    end = started + given.seconds

    def work(seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311 (nothing is secret)
        while time.perf_counter() < end:
            kind = rng.choice(kinds)
            kind(pack, rng)
            counted[kind.__name__] += 1

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(given.threads)]
    before = Counter(type(one).__name__ for one in gc.get_objects())
    report(started, 0)
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        time.sleep(10)
        report(started, counted.total())
    grown = Counter(type(one).__name__ for one in gc.get_objects()) - before
    print("grown:", ", ".join(f"{name} {count}" for name, count in grown.most_common(12)))
    print("calls:", dict(counted))


if __name__ == "__main__":
    main()
