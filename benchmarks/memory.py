"""Peak memory of a pack over that of its members, a 2,048-token prompt included.

    python benchmarks/memory.py [--context 2048] [--tokens 16]

Two fresh processes do the same work: one runs each member alone, one runs the pack. The peak is of
resident memory, sampled while they work. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from common import machine
from parts.clock import alone, exactly
from parts.texts import prose

from packfuse import Pack
from packfuse.models.loading import load_member
from packfuse.settings import MemberSettings, PackConfig
from packfuse.starter.prepare import starter_paths


def resident() -> int:
    """Bytes of this process that are in memory."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


class Peak:
    """The highest `resident` while the block runs."""

    def __enter__(self) -> Peak:
        """Start sampling."""
        gc.collect()
        self.highest, self._going = resident(), True
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while self._going:
            self.highest = max(self.highest, resident())
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        """Stop sampling."""
        self._going = False
        self._thread.join()


def members_alone(context: int, tokens: int) -> int:
    """Peak of both members loaded, each generating by itself."""
    folders = starter_paths(progress=False)
    config = PackConfig(members=[MemberSettings(model=str(f)) for f in folders.values()])
    members = [
        load_member(name, entry, config)
        for name, entry in zip(folders, config.members, strict=True)
    ]
    prompt = prose(members[0].vocabulary, context)
    with Peak() as peak:
        for member in members:
            alone(member, [prompt], tokens)
    return peak.highest


def pack_peak(context: int, tokens: int) -> int:
    """Peak of the pack at the same work."""
    pack = Pack.starter(progress=False)
    prompt = prose(pack.members[0].vocabulary, context)
    with Peak() as peak:
        pack.generate(prompt, **exactly(tokens))
    return peak.highest


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
    print(
        json.dumps(
            {"machine": machine(), "bytes": found, "ratio": ratio, "context": options.context}
        )
    )


if __name__ == "__main__":
    main()
