"""What a GGUF file is now, so that nothing computed from another one is used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from packfuse.errors import MemberError

_SAMPLES, _SAMPLE_BYTES = 256, 4096
_BLOCK = 2**24


@dataclass(slots=True)
class GGUFFile:
    """A GGUF file, or all parts of a split one.

    Attributes:
        paths: The file, or the parts in order.
        sampled: Digest of the size, the beginning and samples of each.
    """

    paths: Sequence[Path]
    sampled: str = ""
    _stats: tuple[tuple[int, ...], ...] = ()
    _digest: str = field(default="")

    def __post_init__(self) -> None:
        self._stats = self._state()
        self.sampled = self._sample()

    def _state(self) -> tuple[tuple[int, ...], ...]:
        stats = [path.stat() for path in self.paths]
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)

    def check(self, name: str) -> None:
        """Refuse a file that has changed, or is not there any more.

        Args:
            name: Name of the member.

        Raises:
            MemberError: naming the member and the file.
        """
        try:
            changed = self._state() != self._stats
        except OSError:
            changed = True
        if changed:
            raise MemberError(
                f"member {name!r}: {self.paths[0]} has changed since it was loaded",
                hint="load the pack again; put a new file beside an old one, not in its place",
            )

    def digest(self, name: str) -> str:
        """Digest of the content; it is read once.

        Args:
            name: Name of the member.

        Raises:
            MemberError: if the file has changed since it was opened.
        """
        if not self._digest:
            self.check(name)
            found = xxhash.xxh3_128()
            for path in self.paths:
                with path.open("rb") as file:
                    while block := file.read(_BLOCK):
                        found.update(block)
            self._digest = found.hexdigest()
        return self._digest

    def _sample(self) -> str:
        found = xxhash.xxh3_128()
        for path in self.paths:
            size = path.stat().st_size
            found.update(str(size).encode())
            with path.open("rb") as file:
                for number in range(_SAMPLES):
                    file.seek(number * max(0, size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                    found.update(file.read(_SAMPLE_BYTES))
        return found.hexdigest()
