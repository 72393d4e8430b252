"""What comes before the first token: loading, alignment, memory."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.starter.prepare import starter_paths
from packfuse.text.vocabulary import Vocabulary

from .bench import Bench
from .clock import interleave, seconds
from .rows import Part, Row, Target, compare

_MEMORY = Path(__file__).parents[1] / "memory.py"


def measure(bench: Bench) -> Part:
    """Loading and alignment in this process; memory by its own script, in fresh ones."""
    rows = [_loading(bench), *_alignment(bench), _memory(bench)]
    about = (
        "Loading: files in the page cache, alignment in the disk cache. Alignment: in an empty "
        "cache folder. Memory: `memory.py`, peak resident memory of fresh processes."
    )
    return Part(title="Loading, alignment, memory", about=about, rows=rows)


def _loading(bench: Bench) -> Row:
    folders = list(starter_paths("small", progress=False).values())

    def members(_: int) -> float:
        return _once(lambda: [load_alone(folder) for folder in folders])

    def pack(_: int) -> float:
        return _once(lambda: Pack.starter("small", progress=False, reference=bench.reference))

    times = interleave({"pack": pack, "members": members}, bench.rounds)
    return compare("loading", "the members alone", times["pack"], times["members"])


def load_alone(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer, as transformers loads them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model, AutoTokenizer.from_pretrained(folder)


def _once(load: Callable[[], Any]) -> float:
    gc.collect()
    return seconds(load)


def _alignment(bench: Bench) -> Iterator[Row]:
    """Two vocabularies, from nothing and from the cache, by bytes and by edit distance."""
    vocabularies = {
        name: Vocabulary(AutoTokenizer.from_pretrained(folder))
        for name, folder in starter_paths("small", progress=False).items()
    }
    reference = vocabularies.pop(bench.reference)
    (member,) = vocabularies.values()
    with _empty_cache():
        for name in ("bytes", "mined"):
            alignment = alignments().make(name)
            pair = partial(alignment.pair, member, reference)
            first, again = seconds(pair), seconds(pair)
            what = f"`{name}` alignment into {bench.reference}, from the cache"
            yield compare(what, "from nothing", [again], [first])


@contextmanager
def _empty_cache() -> Iterator[None]:
    """The cache of alignments in an empty folder, as long as the block runs."""
    before = os.environ.get("PACKFUSE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PACKFUSE_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["PACKFUSE_CACHE"]
            else:
                os.environ["PACKFUSE_CACHE"] = before


def _memory(bench: Bench) -> Row:
    context = max(bench.contexts)
    command = [sys.executable, str(_MEMORY), "--context", str(context)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    found = json.loads(run.stdout.splitlines()[-1])["bytes"]
    ours, members = ([found[name] / 2**20] for name in ("pack", "members"))
    what = f"peak memory, context {context:,}"
    bound = Target(value=1.1)
    return compare(what, "the members alone", ours, members, unit="MiB", target=bound)
