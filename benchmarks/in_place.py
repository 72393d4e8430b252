"""GGUF files under llama.cpp, over the same files with their weights expanded to floats.

    python benchmarks/in_place.py ONE.gguf TWO.gguf [--tokens 24] [--rounds 3] [--save FILE]

Each file alone, and the pack of both, under both engines. Memory is what a fresh process holds
beyond one that has imported packfuse, at its highest while it reads a prompt of about 500 tokens
and answers: resident, files mapped into it included. The time is that of a step, the least of the
rounds' medians; the engines take turns in one process. The last line of the output is one JSON
document. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from common import machine
from parts.clock import exactly, fused, interleave

from packfuse import Pack

ENGINES = ("transformers", "llama.cpp")
PROMPT = (
    "A pack of language models reads one prompt. Each of them has a vocabulary of its own, so "
    "the next bytes are what they have in common. The first lesson of this is that"
)
LONG = "--\n".join([PROMPT] * 12)


def pack_of(files: list[str], engine: str) -> Pack:
    """A pack without drafts and without a prefix cache."""
    entries = [{"model": file, "engine": engine} for file in files]
    return Pack.from_pretrained(entries, progress=False, draft=None, prefix_cache=0)


def resident(files: list[str], engine: str) -> dict[str, float]:
    """Bytes that a pack takes after an answer, and the highest mark since it was imported."""
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again
    pack = pack_of(files, engine)
    loaded = peak() - before
    Path("/proc/self/clear_refs").write_text("5")
    with pack:
        pack.generate(LONG, **exactly(16))
        highest = peak() - before
    gc.collect()
    after = psutil.Process().memory_info().rss - before
    return {"after": after, "working": highest, "loading": loaded}


def peak() -> int:
    """The highest resident memory of this process since its mark was set back, in bytes."""
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index("VmHWM:") + 1])


def steps(files: list[str], tokens: int, rounds: int) -> dict[str, float]:
    """By engine, the seconds of a step: the least of the rounds' medians."""
    packs = {engine: pack_of(files, engine) for engine in ENGINES}
    for pack in packs.values():
        pack.generate(PROMPT, **exactly(4))
    runs = {
        engine: lambda _, pack=pack: fused(pack, [PROMPT], tokens).step
        for engine, pack in packs.items()
    }
    return {engine: min(values) for engine, values in interleave(runs, rounds).items()}


def fresh(files: list[str], engine: str) -> dict[str, float]:
    """`resident` in a process of its own."""
    command = [sys.executable, __file__, *files, "--memory", engine]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    return dict(json.loads(run.stdout.splitlines()[-1]))


def measured(files: list[str], tokens: int, rounds: int) -> dict[str, Any]:
    """Memory and time under both engines, and the ratios."""
    memory = {engine: fresh(files, engine) for engine in ENGINES}
    times = steps(files, tokens, rounds)
    old, new = ENGINES
    return {
        "files": [Path(file).name for file in files],
        "bytes": memory,
        "step_seconds": times,
        "memory_ratio": memory[new]["working"] / memory[old]["working"],
        "after_ratio": memory[new]["after"] / memory[old]["after"],
        "step_ratio": times[new] / times[old],
    }


def main() -> None:
    """Measure, and print one line of JSON, from which benchmarks/tables.py makes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pair", action="store_true", help="only the pack of all files")
    parser.add_argument("--memory", choices=ENGINES)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(resident(options.files, options.memory)))
        return
    alone = [] if options.pair else [[file] for file in options.files if len(options.files) > 1]
    sets = [*alone, options.files]
    cases = [measured(files, options.tokens, options.rounds) for files in sets]
    document = json.dumps({"machine": machine(), "cases": cases})
    if options.save:
        options.save.write_text(document + "\n")
    print(document)


if __name__ == "__main__":
    main()
