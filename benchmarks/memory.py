"""Peak memory of a pack over that of its members, a 2,048-token prompt included.

    python benchmarks/memory.py [--context 2048] [--tokens 16]

Two fresh processes do the same work: one runs each member alone, one runs the pack. The peak is of
resident memory while they work. The last line of the output is one JSON document. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from common import machine
from parts.clock import exactly
from parts.starting import load_alone
from parts.texts import prose

from packfuse import Pack
from packfuse.starter.prepare import starter_paths
from packfuse.text.vocabulary import Vocabulary


def peak(work: Callable[[], object]) -> int:
    """The highest resident memory of this process while it works, in bytes (Linux)."""
    gc.collect()
    # 5 sets the process's highest mark back to what is resident now, see proc_pid_clear_refs(5).
    Path("/proc/self/clear_refs").write_text("5")
    work()
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index("VmHWM:") + 1])


def members_alone(context: int, tokens: int) -> int:
    """Peak of both members, loaded by transformers, each generating by itself."""
    loaded = [load_alone(folder) for folder in starter_paths("small", progress=False).values()]
    prompt = prose(Vocabulary(loaded[0][1]), context)

    def generate() -> None:
        for model, tokenizer in loaded:
            model.generate(**tokenizer(prompt, return_tensors="pt"), **exactly(tokens))

    return peak(generate)


def pack_peak(context: int, tokens: int) -> int:
    """Peak of the pack at the same work."""
    pack = Pack.starter("small", progress=False)
    prompt = prose(pack.members[0].vocabulary, context)
    return peak(lambda: pack.generate(prompt, **exactly(tokens)))


def main() -> None:
    """Measure in two processes and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--only", choices=("members", "pack"))
    options = parser.parse_args()
    if options.only:
        measure = members_alone if options.only == "members" else pack_peak
        print(measure(options.context, options.tokens))
        return
    found: dict[str, int] = {}
    for name in ("members", "pack"):
        command = [sys.executable, __file__, "--only", name, "--context", str(options.context)]
        run = subprocess.run(  # noqa: S603 - this very file
            [*command, "--tokens", str(options.tokens)], capture_output=True, text=True, check=True
        )
        found[name] = int(run.stdout.split()[-1])
        print(f"{name}: {found[name] / 2**20:,.0f} MiB at most")
    ratio = found["pack"] / found["members"]
    print(f"pack / members: {ratio:.3f}")
    document = {"machine": machine(), "bytes": found, "ratio": ratio, "context": options.context}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
