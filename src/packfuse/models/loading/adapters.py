"""Adapters (LoRA and others) that are published as folders of their own, and added by PEFT."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from packfuse.errors import LoadError
from packfuse.models.loading.loaded_weights import check_loaded
from packfuse.models.loading.source import Source
from packfuse.models.loading.weight_files import check_file

CONFIG = "adapter_config.json"
_SAFE, _PICKLED = "adapter_model.safetensors", "adapter_model.bin"


NO_ADAPTER = {"subfolder": "no-adapter"}
"""`adapter_kwargs` with which transformers finds no adapter beside a model: it would add it without
a report on the weights of the model."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter.

    Attributes:
        source: Where its files are.
        base: Where the model is that it changes.
        weights: Its file of weights.
    """

    source: Source
    base: Source
    weights: Path


def find_adapter(source: Source) -> Adapter | None:
    """The adapter at a source; None if there is a model alone.

    Raises:
        LoadError: if there is one that cannot be loaded.
    """
    path = None if source.gguf else source.file(CONFIG)
    if path is None:
        return None
    settings = _settings(path)
    named = settings.get("base_model_name_or_path")
    # A folder with both is a model with an adapter.
    inside = source.file("config.json") is not None
    if not inside and not named:
        raise LoadError(f"{path} does not name the model that it changes")
    if not inside and str(named).endswith(".gguf"):
        raise LoadError(
            f"{source.place} is an adapter of {named!r}; adapters of GGUF files are not supported",
            hint="name the original model in it, or merge it with llama-export-lora",
        )
    base = source if inside else source.at(_beside(str(named), path))
    if not inside and base.file(CONFIG):
        raise LoadError(
            f"{source.place} is an adapter of {base.place!r}, which has an adapter itself",
            hint="merge the first one into its model, and save that",
        )
    if importlib.util.find_spec("peft") is None:
        raise LoadError(
            f"{source.place} is an adapter of {base.place!r}, for which PEFT is needed",
            hint="`pip install peft`, or save the merged model and name its folder",
        )
    weights = source.file(_SAFE) or source.file(_PICKLED)
    if weights is None:
        raise LoadError(f"{source.place} has no {_SAFE}")
    return Adapter(source, base, weights)


def add_adapter(model: PreTrainedModel, adapter: Adapter, *, unsafe: bool) -> None:
    """Add an adapter to the model that it changes, in place.

    Raises:
        LoadError: for weights that are not the adapter's, pickled, or damaged.
        Exception: what PEFT raises.
    """
    if adapter.weights.name == _PICKLED and not unsafe:
        raise LoadError(
            f"{adapter.source.place} has pickled weights only ({_PICKLED})",
            hint="they can run code; unsafe_weights=True accepts them at your risk",
        )
    check_file(adapter.weights)
    info = model.load_adapter(
        adapter.source.place,
        adapter_kwargs=dict(adapter.source.hub),
        use_safetensors=adapter.weights.name == _SAFE,
    )
    check_loaded(model, info.to_dict())
    model.eval()


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{path} is not the configuration of an adapter")
    return found


def _beside(named: str, path: Path) -> str:
    """A model that the adapter names, found beside its folder where it is there."""
    folder = path.parent / named
    return str(folder.resolve()) if not Path(named).is_absolute() and folder.is_dir() else named
