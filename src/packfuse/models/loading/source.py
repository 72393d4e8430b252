"""Where the files of a member are: a folder, a repository of the hub, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packfuse.errors import ConfigError, LoadError
from packfuse.hf_compat.models import hub_file
from packfuse.settings import LoadSettings, MemberSettings


@dataclass(frozen=True, slots=True)
class Source:
    """Where the files of a member are.

    Attributes:
        place: Hub id or folder.
        gguf: Name of the GGUF file in it; None for other formats.
        hub: Arguments of transformers that find a file in a repository: `revision`, `token`,
            `cache_dir` and `subfolder`, where they are set.
        trusted: Whether code in the repository may run.
    """

    place: str
    gguf: str | None
    hub: dict[str, Any]
    trusted: bool = False

    @classmethod
    def of(cls, member: MemberSettings, pack: LoadSettings) -> Source:
        """The source of a member.

        Raises:
            ConfigError: for no name.
            LoadError: for a name that cannot be a path.
        """
        if not member.model:
            raise ConfigError("a member needs a model, or the url of a server")
        place, gguf = split_gguf(member.model)
        named = {
            "revision": member.revision,
            "subfolder": member.subfolder,
            "token": member.token if member.token is not None else pack.token,
            "cache_dir": member.cache_dir or pack.cache_dir,
        }
        hub = {name: value for name, value in named.items() if value is not None}
        found = cls(place, gguf, hub, pack.trust_remote_code)
        found.check()
        return found

    def at(self, place: str) -> Source:
        """Another folder or repository, as a whole, with the same access."""
        hub = {name: value for name, value in self.hub.items() if name in ("token", "cache_dir")}
        found = Source(place, None, hub, self.trusted)
        found.check()
        return found

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        gguf = {"gguf_file": self.gguf} if self.gguf else {}
        return {**self.hub, **gguf, "trust_remote_code": self.trusted}

    @property
    def folder(self) -> Path | None:
        """The local folder of the model; None for a repository of the hub."""
        folder = Path(self.place, self.hub.get("subfolder", ""))
        return folder if Path(self.place).is_dir() else None

    def file(self, name: str) -> Path | None:
        """A file of the model, downloaded if it has to be; None if it is not to be had."""
        if self.folder:
            path = self.folder / name
            return path if path.is_file() else None
        found = hub_file(self.place, name, **self.hub)
        return Path(found) if found else None

    def check(self) -> None:
        """Look whether the place can be one.

        Raises:
            LoadError: if the operating system has no such path, or there is no such GGUF file.
        """
        path = Path(self.place, self.gguf or "")
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if self.gguf:  # any other name may be one on the hub
                raise LoadError(f"there is no file {str(path)!r}", hint="check the path") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LoadError(f"{shortened(str(path))!r} cannot be read: {reason}") from error


def split_gguf(model: str) -> tuple[str, str | None]:
    """The folder and the file name of a GGUF path; any other model and None."""
    if model.endswith(".gguf"):
        path = Path(model)
        return str(path.parent), path.name
    return model, None


def shortened(text: str, limit: int = 200) -> str:
    """A text in one line, cut off after `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."
