"""The plan of a preparation: sizes, terms, folders."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from packfuse.starter.expert import EXPERT, EXPERT_LICENSE, EXPERT_TERMS, find_expert
from packfuse.starter.sources import Source

_RESERVE = 32_000_000  # bytes, for file system overhead and pip's temporary files


class StarterFile(BaseModel):
    """One wheel to download."""

    model_config = ConfigDict(frozen=True)

    package: str
    version: str
    sha256: str
    size: int


class StarterModel(BaseModel):
    """One starter model: its files, its terms, its folder.

    Attributes:
        work_bytes: Disk space that the conversion needs besides the wheels and the folder.
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
    def expert(cls) -> StarterModel | None:
        """Describe the expert of the installed data package; None if it is not installed."""
        folder = find_expert()
        if folder is None:
            return None
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
    """What remains to be done until the starter pack is ready.

    Attributes:
        folder: The folder of all models.
        models: In the order of the pack's members.
        expert: The optional third member; None if its package is not installed.
        download_bytes: Bytes that remain to be downloaded.
        disk_bytes: Largest disk space needed at any time from now on.
        final_bytes: Disk space of the finished pack.
        free_bytes: Free disk space of the folder.
        ready: Whether nothing remains to be done.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    models: list[StarterModel]
    expert: StarterModel | None
    download_bytes: int
    disk_bytes: int
    final_bytes: int
    free_bytes: int
    ready: bool

    @classmethod
    def of(
        cls, models: list[StarterModel], *, folder: Path, downloaded: int, free: int
    ) -> StarterPlan:
        """Sum up `models`; `downloaded` bytes of their wheels are on disk."""
        missing = [model for model in models if not model.ready]
        peak = done = 0
        # Models are prepared in turn: wheels, GGUF and new folder of one exist at the same time.
        for model in missing:
            peak = max(peak, done + model.download_bytes + model.work_bytes + model.disk_bytes)
            done += model.disk_bytes
        return cls(
            folder=folder,
            models=models,
            expert=StarterModel.expert(),
            download_bytes=max(0, sum(model.download_bytes for model in missing) - downloaded),
            disk_bytes=max(0, peak + _RESERVE - downloaded) if missing else 0,
            final_bytes=sum(model.disk_bytes for model in models),
            free_bytes=free,
            ready=not missing,
        )

    def notice(self) -> str:
        """Text to show before the download: terms, sizes, folder."""
        if self.ready:
            return f"The starter pack is ready in {self.folder}."
        lines = [f"The starter pack: {' and '.join(model.name for model in self.models)}."]
        lines += [f"  {model.terms} {model.license_url}" for model in self.models]
        lines.append(
            f"  To download: {megabytes(self.download_bytes)}. Disk needed in {self.folder}: "
            f"{megabytes(self.disk_bytes)} during preparation, {megabytes(self.final_bytes)} "
            f"afterwards; {megabytes(self.free_bytes)} are free."
        )
        return "\n".join(lines)


def megabytes(size: int) -> str:
    """Bytes as megabytes or gigabytes, by powers of ten.

    Example:
        >>> megabytes(331_000_000), megabytes(1_650_000_000)
        ('331 MB', '1.65 GB')
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
