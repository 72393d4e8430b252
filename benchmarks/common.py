"""What all benchmarks share: the folder of results, the machine, progress."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

MEASURED = Path(__file__).parent / "measured"
"""The last results that were kept (`--save`); docs/ cites them."""


def machine() -> dict[str, str | int]:
    """The processor, the threads and the versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def progress(name: str) -> Callable[[int, int], None]:
    """A callback that prints every twentieth part of a run to standard error."""
    printed = 0

    def step(done: int, total: int) -> None:
        nonlocal printed
        if done * 20 // total > printed:
            printed = done * 20 // total
            print(f"{time.strftime('%H:%M:%S')} {name} {done}/{total}", file=sys.stderr)

    return step
