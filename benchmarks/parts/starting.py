"""What comes before the first token, and what it all takes: loading, alignment, memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from packfuse import Pack
from packfuse.starter.prepare import starter_paths

from .bench import Bench
from .clock import interleave, seconds
from .rows import Part, Row, Target, compare

_FOLDER = Path(__file__).parents[1]


def measure(bench: Bench) -> Part:
    """Loading in this process; alignment and memory by their own scripts, in fresh ones."""
    rows = [_loading(bench), _alignment(), _memory(bench)]
    about = (
        "Loading: files read before, alignment in the cache. Alignment: `vocabularies.py`, in a "
        "cache of its own. Memory: `memory.py`, resident memory of fresh processes, sampled while "
        "they load nothing more and generate."
    )
    return Part(title="Loading, alignment, memory", about=about, rows=rows)


def _loading(bench: Bench) -> Row:
    def members(_: int) -> float:
        return _once(lambda: [_member(folder) for folder in starter_paths(progress=False).values()])

    def pack(_: int) -> float:
        return _once(lambda: Pack.starter(progress=False, reference=bench.reference))

    times = interleave({"pack": pack, "members": members}, bench.rounds)
    return compare("loading", "the members alone", times["pack"], times["members"])


def _member(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model, AutoTokenizer.from_pretrained(folder)


def _once(load: Any) -> float:
    gc.collect()
    return seconds(load)


def _alignment() -> Row:
    # The other direction is there as soon as this one is.
    row = _script("vocabularies.py", "--alignment", "bytes")["seconds"][0]
    what = f"aligning into {row['reference']}, from the cache"
    return compare(what, "from nothing", [row["again"]], [row["first"]])


def _memory(bench: Bench) -> Row:
    context = max(bench.contexts)
    found = _script("memory.py", "--context", str(context), "--tokens", "16")["bytes"]
    ours, members = ([found[name] / 2**20] for name in ("pack", "members"))
    what = f"peak memory, context {context:,}"
    bound = Target(value=1.1)
    return compare(what, "the members alone", ours, members, unit="MiB", target=bound)


def _script(name: str, *arguments: str) -> Any:
    """What another benchmark's last line says."""
    run = subprocess.run(  # noqa: S603 - a file beside this one
        [sys.executable, str(_FOLDER / name), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])
