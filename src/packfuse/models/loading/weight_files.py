"""The files of weights that transformers would open, checked before it opens them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from packfuse.errors import LoadError
from packfuse.models.loading.source import Source, shortened

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SAFETENSORS = ".safetensors"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


class _Index(BaseModel):
    """An index of weights, which names the file of each tensor."""

    metadata: dict[str, object]
    weight_map: dict[str, str]


def check_weights(source: Source, explicit: str | None, *, unsafe: bool) -> None:
    """Refuse weights that are not what they seem to be, or that cannot be read.

    Args:
        source: The model; of a GGUF file only the access is checked.
        explicit: The file of weights that the model's configuration names; None for the usual.
        unsafe: Whether the caller accepts pickled weights.

    Raises:
        LoadError: for pickled weights that the caller does not accept, for files outside of the
            model's folder, and for files that are missing, unreadable or damaged.
    """
    if source.gguf:
        _check_readable(Path(source.place, source.gguf))
        return
    if source.folder and any(_DISTRIBUTED.fullmatch(path.name) for path in source.folder.iterdir()):
        raise LoadError(
            f"{source.place} holds a distributed checkpoint",
            hint=f"save it as {SAFE} with save_pretrained",
        )
    names = [explicit] if explicit else [SAFE, SAFE_INDEX, *(PICKLED if unsafe else ())]
    for name in names:
        _check_inside(name, "config.json", unsafe)
        if path := source.file(name):
            for file in _files(source, path, unsafe):
                check_file(file)
            return
    raise _none_found(source, names)


def check_file(path: Path) -> None:
    """Read the header of a file in the safetensors format; of others look only at the access.

    Raises:
        LoadError: if the file cannot be read, or is damaged.
    """
    _check_readable(path)
    if path.suffix != _SAFETENSORS:
        return
    try:
        with safe_open(path, framework="pt") as file:
            list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise LoadError(
            f"{path} is damaged or incomplete: {error}", hint="download or copy it again"
        ) from error


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        hint = ""
        if isinstance(error, PermissionError):
            hint = "it belongs to another user; its owner can allow reading with `chmod a+r`"
        raise LoadError(f"{path} cannot be read: {error.strerror}", hint=hint) from error


def _files(source: Source, path: Path, unsafe: bool) -> Iterator[Path]:
    """The files of weights: `path`, or those that it lists if it is an index."""
    if not path.name.endswith(".index.json"):
        yield path
        return
    for name in sorted(set(_index(path).values())):
        _check_inside(name, path.name, unsafe)
        shard = source.file(name)
        if shard is None:
            raise LoadError(
                f"{path} names {name!r}, which is missing", hint="download or copy it again"
            )
        yield shard


def _index(path: Path) -> dict[str, str]:
    """Names of files by names of tensors."""
    _check_readable(path)
    try:
        return _Index.model_validate_json(path.read_bytes()).weight_map
    except ValidationError as error:
        reason = shortened(str(error.errors()[0]["msg"]))
        raise LoadError(f"{path} is not an index of weights: {reason}") from error


def _check_inside(name: str, origin: str, unsafe: bool) -> None:
    """Refuse a name of weights that leaves the folder, or that is not in the safetensors format."""
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    if any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds):
        raise LoadError(
            f"{origin} names weights outside of the model's folder: {name!r}",
            hint="do not load a model that does this, unless you know why",
        )
    if not unsafe and not name.endswith((_SAFETENSORS, f"{_SAFETENSORS}.index.json")):
        raise LoadError(
            f"{origin} names weights that are not safetensors: {name!r}",
            hint="pickled weights can run code; unsafe_weights=True accepts them at your risk",
        )


def _none_found(source: Source, names: list[str]) -> LoadError:
    pickled = next((name for name in PICKLED if name not in names and source.file(name)), None)
    if pickled:
        return LoadError(
            f"{source.place} has pickled weights only ({pickled})",
            hint="they can run code; unsafe_weights=True accepts them at your risk",
        )
    return LoadError(
        f"{source.place} has no weights: no {' and no '.join(names)}",
        hint="check the path; `packfuse check` inspects models without loading them",
    )
