"""The pack behind an LLM: given, or loaded by names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.registry import Registry, alignments, rules, suggest, weightings

_LOADING = ("alignment", "reference", "load_kwargs")
"""Settings that count when members are loaded, and not from call to call."""


def plain_settings(settings: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Settings with rules, weightings and alignments as data, wherever data can name them.

    Raises:
        ConfigError: for a setting that is not known.
    """
    for name in settings:
        if name not in known:
            raise ConfigError(f"PackFuse has no setting {name!r}", hint=suggest(name, known))
    registries = {"fusion": rules(), "weighting": weightings(), "alignment": alignments()}
    return {
        name: _plain(registries[name], value) if name in registries else value
        for name, value in settings.items()
    }


def plain_models(models: Any) -> list[str | dict[str, Any]] | None:
    """Models by name, as they can be written down; None for those that came as objects."""
    if not isinstance(models, list | tuple) or any(isinstance(model, tuple) for model in models):
        return None
    return [dict(m) if isinstance(m, Mapping) else os.fspath(m) for m in models]


def make_pack(pack: Pack | None, models: Any, settings: Mapping[str, Any]) -> Pack:
    """The given pack, or a new one.

    Args:
        pack: A pack that is loaded already.
        models: As for `Pack.from_pretrained`.
        settings: Those of `PackFuse`.

    Raises:
        ConfigError: unless there is exactly one of pack, models and pack_file.
        LoadError: if a member cannot be loaded.
    """
    file = settings.get("pack_file")
    ways = {"pack": pack, "models": models, "pack_file": file}
    names = [name for name, value in ways.items() if value is not None]
    if len(names) != 1:
        raise ConfigError(
            f"one of pack, models and pack_file is needed, got {' and '.join(names) or 'none'}",
            hint="try pack=Pack.starter()",
        )
    given = {name: settings[name] for name in _LOADING if settings.get(name)}
    if pack is not None:
        if not isinstance(pack, Pack):
            raise ConfigError(f"{pack!r} is not a pack", hint="make one with Pack.from_pretrained")
        if given:
            raise ConfigError(
                f"a loaded pack takes no {' and no '.join(given)}", hint="load it with them"
            )
        return pack
    given |= {name: settings[name] for name in ("fusion", "weighting") if settings.get(name)}
    given |= given.pop("load_kwargs", {})
    if file is not None:
        return Pack.from_config(file, **given)
    return Pack.from_pretrained(models, **given)


def _plain(registry: Registry[Any], value: Any) -> Any:
    registered = isinstance(value, registry.base) and registry.parts.get(value.name) is type(value)
    return registry.dump(value) if registered else value
