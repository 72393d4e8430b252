"""Whether the weights in a checkpoint were those of the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from packfuse.errors import LoadError

_SHOWN = 5
_LANGUAGE_MODELS = {"language_model", "text_model"}
"""Names of the language model in a model of several media."""


def check_loaded(model: nn.Module, info: Mapping[str, Any], *, composite: bool = False) -> None:
    """Refuse a model in which random numbers are in the place of weights.

    Tied weights count as there; buffers are computed.

    Args:
        model: The model.
        info: What `from_pretrained` reports of loading: `missing_keys`, `unexpected_keys`,
            `mismatched_keys` (name, shape in the file, shape of the model) and `error_msgs`.
        composite: Whether the checkpoint is of a model of several media, of which this may be the
            language model.

    Raises:
        LoadError: naming weights that are missing, of another shape, or of no use to the model.

    Warns:
        RuntimeWarning: for buffers that are not in the checkpoint.
    """
    missing, buffers = _missing(model, info["missing_keys"])
    mismatched = [
        f"{name} ({tuple(there)}, not {tuple(here)})"
        for name, there, here in sorted(info["mismatched_keys"], key=lambda item: str(item[0]))
    ]
    unexpected = sorted(info["unexpected_keys"])
    if composite:
        unexpected = [name for name in unexpected if _is_language(name, model)]
    found = {
        "are missing": missing,
        "have other shapes": mismatched,
        "are not of this model": unexpected,
        "cannot be loaded": sorted(info.get("error_msgs") or ()),
    }
    problems = [f"{_listed(names)} {what}" for what, names in found.items() if names]
    if problems:
        raise LoadError(
            f"the weights are not those of a {type(model).__name__}: {'; '.join(problems)}",
            hint="download or convert it again; config.json and weights must belong together",
        )
    if buffers:
        warnings.warn(
            f"{type(model).__name__}: not in the checkpoint, so computed: {_listed(buffers)}",
            RuntimeWarning,
            stacklevel=2,
        )


def _missing(model: nn.Module, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names of parameters, and those of buffers."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    names = sorted(names)
    return [n for n in names if n not in buffers], [n for n in names if n in buffers]


def _is_language(name: str, model: nn.Module) -> bool:
    """Whether a tensor of a composite checkpoint belongs to its language model."""
    parts = name.split(".")
    if _LANGUAGE_MODELS & set(parts):
        return True
    # A module two levels deep, such as `model.layers`: `model` alone holds all media.
    modules = {path for path, _ in model.named_modules() if path.count(".") == 1}
    heads = {path for path, _ in model.named_children() if "." not in path} - {parts[0]}
    return ".".join(parts[:2]) in modules or (parts[0] in heads and len(parts) == 2)


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
