"""What `packfuse doctor` says of this machine: versions, devices, and what will be fast here."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from pydantic import BaseModel, ConfigDict

from packfuse import __version__
from packfuse.cli.tables import size
from packfuse.extras import install_command
from packfuse.paths import cache_root, free_bytes

State = Literal["ok", "slow", "missing", "problem"]
"""How a finding is: `slow` and `missing` cost something, `problem` has to be mended."""

_NAME = "packfuse"
_SHOWN = ("torch", "transformers", "tokenizers", "llguidance")
"""Packages that are named in any case; others only if something is wrong with them."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Finding(BaseModel):
    """One line of the table.

    Attributes:
        topic: What it is about.
        found: What there is.
        state: How that is.
        advice: What it means, or what to do about it; may be empty.
    """

    model_config = ConfigDict(frozen=True)

    topic: str
    found: str
    state: State = "ok"
    advice: str = ""


def findings() -> list[Finding]:
    """All of them; nothing is downloaded, and no server is asked."""
    return [*_versions(), *_extras(), *_processor(), *_accelerators(), *_engines(), *_disk()]


def _requirements(extra: str = "") -> Iterator[Requirement]:
    """What the installed package or one of its extras requires; nothing if it is not installed.

    Args:
        extra: Its name; empty for what is required in any case.
    """
    try:
        texts = requires(_NAME) or ()
    except PackageNotFoundError:
        return
    for needed in map(Requirement, texts):
        marker = needed.marker
        always = marker is None or marker.evaluate({"extra": ""})
        here = marker is None or marker.evaluate({"extra": extra})
        wanted = here and (not extra or not always)
        if wanted and needed.name == _NAME:
            for other in needed.extras:
                yield from _requirements(other)
        elif wanted:
            yield needed


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_met(needed: Requirement) -> bool:
    """Whether a package is installed in a version that is asked for."""
    found = _installed(needed.name)
    return found is not None and needed.specifier.contains(found, prereleases=True)


def _versions() -> Iterator[Finding]:
    yield Finding(topic="packfuse", found=f"{__version__}, Python {platform.python_version()}")
    for needed in _requirements():
        found = _installed(needed.name)
        if not _is_met(needed):
            yield Finding(
                topic=needed.name,
                found=found or "not installed",
                state="problem",
                advice=f"pip install '{needed}'",
            )
        elif found and needed.name in _SHOWN:
            yield Finding(topic=needed.name, found=found, advice=f"supported: {needed.specifier}")


def _extras() -> Iterator[Finding]:
    """Which extras are complete; that for development is left out."""
    try:
        names = metadata(_NAME).get_all("Provides-Extra") or ()
    except PackageNotFoundError:
        return
    for name in names:
        if name == "dev":
            continue
        missing = [one.name for one in _requirements(name) if not _is_met(one)]
        yield Finding(
            topic=f"extra {name}",
            found=f"without {', '.join(missing)}" if missing else "installed",
            state="missing" if missing else "ok",
            advice=install_command(name) if missing else "",
        )


def _processor() -> Iterator[Finding]:
    import torch

    from packfuse.models.compute.onednn import ENABLED
    from packfuse.models.devices import has_bfloat16

    cores, threads = psutil.cpu_count(logical=False) or 1, torch.get_num_threads()
    limits = [f"{name}={os.environ[name]}" for name in _THREADS if os.environ.get(name)]
    few = threads < cores
    yield Finding(
        topic="processor",
        found=f"{cores} cores ({torch.backends.cpu.get_cpu_capability()}), {threads} threads",
        state="slow" if few else "ok",
        advice=f"members compute with {threads} threads: {', '.join(limits) or 'torch is set so'}"
        if few
        else "",
    )
    fast = has_bfloat16()
    yield Finding(
        topic="bfloat16",
        found="in hardware" if fast else "not in hardware",
        state="ok" if fast else "slow",
        advice="" if fast else "on the processor, dtype: float32 is faster",
    )
    yield Finding(
        topic="oneDNN",
        found="there" if ENABLED else "not in this torch",
        state="ok" if ENABLED else "slow",
        advice="" if ENABLED else "single tokens of float32 members take longer",
    )
    memory = psutil.virtual_memory()
    yield Finding(
        topic="memory",
        found=f"{size(memory.available)} of {size(memory.total)} free",
        advice="packfuse check says what a pack needs",
    )


def _accelerators() -> Iterator[Finding]:
    import torch

    found = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts: Any = torch.cuda.get_device_properties(index)
            found.append(f"{facts.name} ({size(facts.total_memory)})")
    elif torch.backends.mps.is_available():
        found.append("Apple GPU (mps)")
    if found:
        yield Finding(topic="GPU", found=", ".join(found), advice="device_map: auto uses it")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            topic="GPU",
            found=f"not usable by torch {torch.__version__}",
            state="slow",
            advice="there is a driver of NVIDIA: install a torch with CUDA",
        )
    else:
        yield Finding(topic="GPU", found="none", advice="small and quantized members suit this")


def _engines() -> Iterator[Finding]:
    from packfuse.errors import LoadError
    from packfuse.models.llama_cpp.library import is_installed, library

    topic = "GGUF files"
    if not is_installed():
        yield Finding(
            topic=topic,
            found="run by transformers",
            state="slow",
            advice="expanded to floats: 4 to 8 times their size, and slower; the extra llama-cpp "
            "runs them as they are",
        )
        return
    try:
        on_gpus = bool(library().llama_supports_gpu_offload())
    except LoadError as error:
        yield Finding(topic=topic, found=error.message, state="problem", advice=error.hint)
        return
    yield Finding(topic=topic, found=f"run by llama.cpp, {'with' if on_gpus else 'no'} GPUs")


def _disk() -> Iterator[Finding]:
    from packfuse.starter import is_ready

    root = cache_root()
    free = free_bytes(root)
    yield Finding(topic="cache", found=f"{root}, {size(free)} free", advice="packfuse cache")
    yield Finding(
        topic="starter pack",
        found="ready" if is_ready() else "not yet downloaded",
        advice="" if is_ready() else "the first use downloads it; packfuse starter --plan",
    )
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        yield Finding(topic="hub", found="HF_HUB_OFFLINE is set", advice="only what was downloaded")
