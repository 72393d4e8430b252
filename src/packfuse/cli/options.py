"""Options that several commands share, as dataclasses; `command` makes an option of each field.

The options of a pack are generated from the fields of its settings; the docstrings are the help.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packfuse.cli.command import PARTS
from packfuse.cli.screen import Screen
from packfuse.errors import ConfigError
from packfuse.registry import parse_spec
from packfuse.settings import HEADS, SCHEDULING, STEPS, LoadSettings, PackConfig, PackSettings
from packfuse.starter.sources import DEFAULT, LINEUPS, sources_of

if TYPE_CHECKING:
    from packfuse.pack import Pack

_PACK: dict[str, Any] = {"rich_help_panel": "The pack"}
_SCHEDULING: dict[str, Any] = {"rich_help_panel": "Many at once"}
_TEXT = {"rich_help_panel": "Generation"}
_METAVARS = {
    "fusion": "RULE",
    "reference": "MEMBER",
    "heads": "|".join(HEADS),
    "steps": "|".join(STEPS),
    "on_member_failure": "raise|drop",
    "prefix_cache": "BYTES",
    "dtype": "DTYPE",
    "device_map": "DEVICE",
    "offload_folder": "FOLDER",
    "cache_dir": "FOLDER",
}
_CHOICES = {"heads": HEADS, "steps": STEPS}
_EXAMPLES = {"fusion": "unite:k=5", "weighting": "sim:tau=0.5"}
_FIELDS = {**PackSettings.model_fields, **LoadSettings.model_fields}
_NO_OPTIONS = ("quantization", "max_memory", "token", *SCHEDULING)
"""Settings that no option sets: mappings, the token, which others could read in a command (the
environment variable HF_TOKEN sets it), and those that have an effect on many calls only."""


def _names(option: str) -> Callable[[str], list[str]]:
    """Shell completion with the names of the known parts."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in PARTS[option]().parts if name.startswith(incomplete)]

    return complete


def _option(name: str) -> tuple[str, Any, Any]:
    """The field of a dataclass for one setting: its name, type and default."""
    info = _FIELDS[name]
    text = " ".join((info.description or "").split())
    given: dict[str, Any] = {**_PACK, "help": text, "show_default": False}
    # Experimental settings are documented, but not listed in the help.
    given["hidden"] = text.startswith("Experimental")
    kind: Any = bool if info.annotation is bool else str
    if kind is str:
        given["metavar"] = _METAVARS.get(name, "NAME")
    if name in PARTS:
        given["autocompletion"] = _names(name)
        if name in _EXAMPLES:
            given["help"] += f" Parameters follow a colon, as in {_EXAMPLES[name]}."
    elif name in _CHOICES:
        given["autocompletion"] = lambda: list(_CHOICES[name])
    return name, Annotated[kind | None, typer.Option(**given)], field(default=None)


@dataclass(frozen=True)
class _Models:
    """The members of the pack."""

    pack: Annotated[
        Path | None,
        typer.Option("--pack", "-p", metavar="FILE", help="A pack.yaml.", **_PACK),
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A member: hub id, folder or GGUF file. Repeat it for each.",
            **_PACK,
        ),
    ] = None
    starter: Annotated[
        str | None,
        typer.Option(
            "--starter",
            metavar="NAME",
            help=f"A starter pack: {', '.join(LINEUPS)}; without it, {DEFAULT}.",
            autocompletion=lambda: list(LINEUPS),
            **_PACK,
        ),
    ] = None
    expert: Annotated[
        bool,
        typer.Option("--expert", help="Add the small expert model to the starter pack.", **_PACK),
    ] = False
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            "-w",
            metavar="MEMBER=WEIGHT",
            help="Fixed weights that sum to one. Repeat it for each member.",
            **_PACK,
        ),
    ] = None


if TYPE_CHECKING:

    @dataclass(frozen=True)
    class _Settings(_Models):
        weighting: str | None = None
        draft: str | None = None
        prefix_cache: str | None = None

else:
    _Settings = make_dataclass(
        "_Settings",
        [_option(name) for name in _FIELDS if name not in _NO_OPTIONS],
        bases=(_Models,),
        frozen=True,
    )


@dataclass(frozen=True)
class PackOptions(_Settings):
    """The members of the pack and how they are fused; by default the starter pack."""

    def settings(self) -> dict[str, Any]:
        """The settings that were given, as arguments of `Pack.from_pretrained`; nothing is loaded.

        Raises:
            ConfigError: for options that exclude each other, unknown names, or unusable values.
        """
        self._check_members()
        if self.weight and self.weighting:
            raise ConfigError("--weight and --weighting exclude each other", hint="give one")
        given = {name: getattr(self, name) for name in _FIELDS if name not in _NO_OPTIONS}
        found = {name: value for name, value in given.items() if value is not None}
        for option, registry in PARTS.items():
            if option in found:
                found[option] = parse_spec(found[option])
                if found[option] != {"name": "none"} or option != "draft":
                    registry().make(found[option])
        if self.weight:
            found["weighting"] = {"name": "fixed", "weights": fixed_weights(self.weight)}
        if self.prefix_cache is not None:
            found["prefix_cache"] = size(self.prefix_cache)
        return found

    def _check_members(self) -> None:
        """Refuse options that name the members in two ways."""
        if self.pack and self.model:
            raise ConfigError("--pack and --model exclude each other", hint="give one of them")
        own = "--pack" if self.pack else "--model" if self.model else None
        if self.expert and own:
            raise ConfigError(
                f"--expert and {own} exclude each other",
                hint="the expert is added to the starter pack; `packfuse starter` shows its folder",
            )
        if self.starter and own:
            raise ConfigError(f"--starter and {own} exclude each other", hint="give one of them")
        if self.starter:
            sources_of(self.starter)

    def load(self, screen: Screen, **more: Any) -> Pack:
        """Load the pack.

        Args:
            screen: Shows that it takes a while.
            **more: Further settings.

        Raises:
            PackError: if it cannot be loaded.
        """
        settings = {**self.settings(), **more}
        screen.wait("Loading the pack ...")
        from packfuse.pack import Pack

        quiet(screen)
        if self.pack:
            return Pack.from_config(self.pack, **settings)
        if self.model:
            return Pack.from_pretrained(self.model, **settings)
        return Pack.starter(self.starter or DEFAULT, expert=self.expert, **settings)

    def loader(self, screen: Screen, name: str, **more: Any) -> Callable[[], Mapping[str, Pack]]:
        """Loads the packs by name: those of a file that holds several, or the one, as `name`.

        Args:
            screen: Shows that it takes a while.
            name: The name of a pack that has none.
            **more: Further settings.

        Raises:
            ConfigError: for unusable settings and files; the models are loaded later.
        """
        if self.pack is not None:
            from packfuse.pack import Pack

            several = PackConfig.read_several(self.pack, **self.settings(), **more)
            if several is not None:
                return lambda: Pack.several(several)
        return lambda: {name: self.load(screen, **more)}

    def configs(self, name: str, **more: Any) -> Mapping[str, PackConfig]:
        """The packs of the file by name; a single one is called `name`.

        Args:
            name: The name of a pack that has none.
            **more: Further settings.

        Raises:
            ConfigError: for unusable settings and files, and without a file.
        """
        settings = {**self.settings(), **more}
        if self.pack is None:
            raise ConfigError("a cluster needs the pack as a file", hint="name it with --pack")
        return PackConfig.read_named(self.pack, name, **settings)


@dataclass(frozen=True)
class SchedulingOptions:
    """How many calls are answered at once."""

    max_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Most answers that are decoded at the same time.", **_SCHEDULING),
    ] = None
    max_cache: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES", help="Most bytes of their KV caches, or auto.", **_SCHEDULING
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """The options that were given, as settings of a pack."""
        cache = None if self.max_cache is None else size(self.max_cache)
        given = {"max_rows": self.max_rows, "max_cache": cache}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class TextOptions:
    """How an answer is generated."""

    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", min=1, help="Maximum number of tokens of an answer.", **_TEXT
        ),
    ] = 256
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sampling temperature; greedy if omitted.", **_TEXT),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Nucleus sampling probability.", **_TEXT),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Top-k sampling: number of tokens.", **_TEXT)
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(min=0.01, help="Penalty on repeated tokens (above 1).", **_TEXT)
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed.", **_TEXT)] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Stop string. Repeat it for several.",
            **_TEXT,
        ),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The options that were given, as arguments of `Pack.generate`."""
        given = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "stop": self.stop or None,
        }
        return {name: value for name, value in given.items() if value is not None}


def size(text: str) -> int | str:
    """A number of bytes, or "auto"."""
    if text != "auto" and not text.isdecimal():
        raise ConfigError(f"{text!r} is not a size", hint="write a number of bytes, 0, or auto")
    return text if text == "auto" else int(text)


def fixed_weights(texts: Sequence[str], known: Sequence[str] = ()) -> dict[str, float]:
    """Weights that are written as MEMBER=WEIGHT.

    Args:
        texts: One for each member.
        known: Names of the members; the beginning of a name stands for it.

    Raises:
        ConfigError: if one is no weight.
    """
    found = {}
    for name, weight in map(_weight, texts):
        meant = [one for one in known if one.lower().startswith(name.lower())]
        found[meant[0] if len(meant) == 1 else name] = weight
    return found


def _weight(text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a weight", hint="write MEMBER=0.5") from error


def quiet(screen: Screen) -> None:
    """Turn off messages of the libraries; downloads show progress bars on a terminal."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if screen.err.is_terminal and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        enable_progress_bars()
