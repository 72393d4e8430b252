"""Loads the pack of an LLM from its fields."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.fusion.rules import rules
from packfuse.registry import Registry
from packfuse.tools.arguments import TURN_ARGUMENTS, as_fields, check_names
from packfuse.weighting.methods import weightings

FURTHER = (*TURN_ARGUMENTS, "logprobs")
"""Arguments of a call besides those of `Pack.generate`."""
_LOADING = ("alignment", "reference", "load_kwargs")
"""Fields that are used for loading only, and not in calls."""


def plain_settings(settings: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Settings with registered rules, weightings and alignments as data instead of objects.

    Args:
        settings: The arguments of `PackFuse`.
        known: The names of all fields.

    Returns:
        The settings by field; arguments of a call without a field are in `generate_kwargs`.

    Raises:
        ConfigError: for an unknown setting, or two values of one setting.
    """
    fields, rest = as_fields("PackFuse", [settings], set(known), FURTHER)
    further = fields.get("generate_kwargs") or {}
    check_names("generate_kwargs of PackFuse", further, FURTHER)
    if rest:
        _, fields["generate_kwargs"] = as_fields("PackFuse", [rest, further], (), FURTHER)
    registries = {"fusion": rules(), "weighting": weightings(), "alignment": alignments()}
    return {
        name: _plain(registries[name], value) if name in registries else value
        for name, value in fields.items()
    }


def plain_models(models: Any) -> list[str | dict[str, Any]] | None:
    """Models as plain data; None if any of them is a loaded object."""
    if not isinstance(models, list | tuple) or any(isinstance(model, tuple) for model in models):
        return None
    return [dict(m) if isinstance(m, Mapping) else os.fspath(m) for m in models]


def make_pack(pack: Pack | None, models: Any, settings: Mapping[str, Any]) -> Pack:
    """The given pack, or a loaded one, for which `PackConfig` validates the settings.

    Args:
        pack: A loaded pack.
        models: As for `Pack.from_pretrained`.
        settings: The settings of `PackFuse`.

    Raises:
        ConfigError: unless exactly one of pack, models and pack_file is given, or for unusable
            settings.
        LoadError: if a member cannot be loaded.
    """
    names = _LOADING if pack is not None else (*_LOADING, "fusion", "weighting")
    loading = {name: settings[name] for name in names if settings.get(name)}
    loading |= loading.pop("load_kwargs", {})
    return Pack.given(pack=pack, models=models, pack_file=settings.get("pack_file"), **loading)


def _plain(registry: Registry[Any], value: Any) -> Any:
    registered = isinstance(value, registry.base) and registry.parts.get(value.name) is type(value)
    return registry.dump(value) if registered else value
