"""Options that several commands share, as dataclasses that `command` spreads out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packfuse.cli.command import PARTS
from packfuse.cli.screen import Screen
from packfuse.errors import ConfigError
from packfuse.registry import parse_spec
from packfuse.settings import HEADS

if TYPE_CHECKING:
    from packfuse.pack import Pack


def _names(option: str) -> Callable[[str], list[str]]:
    """Shell completion from what the package holds."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in PARTS[option]().parts if name.startswith(incomplete)]

    return complete


_PACK: dict[str, Any] = {"rich_help_panel": "The pack"}
_TEXT = {"rich_help_panel": "Generation"}


def _part(option: str, metavar: str, text: str) -> Any:
    """An option that takes the name of a part, completed from what the package holds."""
    return typer.Option(metavar=metavar, help=text, autocompletion=_names(option), **_PACK)


@dataclass(frozen=True)
class PackOptions:
    """Which models, and how they are fused. Without any, the starter pack."""

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
    expert: Annotated[
        bool,
        typer.Option("--expert", help="Add the small expert to the starter pack.", **_PACK),
    ] = False
    fusion: Annotated[
        str | None,
        _part(
            "fusion",
            "RULE",
            "How distributions are combined; parameters follow a colon: unite:k=5.",
        ),
    ] = None
    weighting: Annotated[
        str | None,
        _part("weighting", "NAME", "Who is trusted; parameters as above: sim:tau=0.5."),
    ] = None
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            "-w",
            metavar="MEMBER=SHARE",
            help="Fixed weights that sum to one. Repeat it for each member.",
            **_PACK,
        ),
    ] = None
    alignment: Annotated[
        str | None,
        _part("alignment", "NAME", "How vocabularies are compared."),
    ] = None
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MEMBER",
            help="In whose tokens the pack speaks; auto: who reads the prompt best.",
            **_PACK,
        ),
    ] = None
    gate: Annotated[
        str | None,
        _part("gate", "NAME", "Where members are fused; elsewhere the reference speaks alone."),
    ] = None
    draft: Annotated[
        str | None,
        _part(
            "draft",
            "NAME",
            "Draft ahead and check several tokens at once: faster, the same answers.",
        ),
    ] = None
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="full|pruned",
            help="pruned: work out only what the alignment reads; faster, a little less exact.",
            autocompletion=lambda: list(HEADS),
            **_PACK,
        ),
    ] = None
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compiled/--no-compiled",
            help="Compile the members' steps; loading then takes minutes at first.",
            show_default=False,
            **_PACK,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="auto, float32, bfloat16, ...", **_PACK),
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="auto, cpu, cuda, ..., as in transformers.", **_PACK),
    ] = None
    prefix_cache: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Memory for prompts that later ones may begin with; auto: 6 % of the models'; "
            "0: none.",
            **_PACK,
        ),
    ] = None

    def settings(self) -> dict[str, Any]:
        """What was asked for, by the names of `Pack.from_pretrained`; checked, nothing is loaded.

        Raises:
            ConfigError: for options that contradict each other or name what is not there.
        """
        if self.pack and self.model:
            raise ConfigError("--pack and --model exclude each other", hint="give one of them")
        if self.expert and (self.pack or self.model):
            raise ConfigError(
                f"--expert and {'--pack' if self.pack else '--model'} exclude each other",
                hint="it joins the starter pack; `packfuse starter` names its folder for --model",
            )
        if self.weight and self.weighting:
            raise ConfigError("--weight and --weighting exclude each other", hint="give one")
        found: dict[str, Any] = {}
        for option, registry in PARTS.items():
            value = getattr(self, option)
            if value is not None:
                found[option] = parse_spec(value)
                registry().make(found[option])
        if self.weight:
            found["weighting"] = {"name": "fixed", "weights": dict(map(_share, self.weight))}
        if self.prefix_cache is not None:
            found["prefix_cache"] = _size(self.prefix_cache)
        names = ("reference", "heads", "compiled", "dtype", "device_map")
        plain = {name: getattr(self, name) for name in names}
        return found | {name: value for name, value in plain.items() if value is not None}

    def load(self, screen: Screen) -> Pack:
        """Load the pack.

        Raises:
            PackError: if it cannot be loaded.
        """
        settings = self.settings()
        screen.wait("Loading the pack ...")
        from packfuse.pack import Pack

        quiet(screen)
        if self.pack:
            return Pack.from_config(self.pack, **settings)
        if self.model:
            return Pack.from_pretrained(self.model, **settings)
        return Pack.starter(expert=self.expert, **settings)


@dataclass(frozen=True)
class TextOptions:
    """How an answer is generated."""

    max_tokens: Annotated[
        int,
        typer.Option("--max-tokens", "-n", min=1, help="Longest answer, in tokens.", **_TEXT),
    ] = 256
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sample; 0 and no option are greedy.", **_TEXT)
    ] = None
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Sample from this much mass.", **_TEXT)
    ] = None
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from this many tokens.", **_TEXT)
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(min=0.01, help="Above 1, say things less often.", **_TEXT)
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.", **_TEXT)] = (
        None
    )
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text. Repeat it for several.", **_TEXT),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """For `Pack.generate`, under its names."""
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


def _size(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise ConfigError(f"{text!r} is no size", hint="write a number of bytes, 0, or auto")
    return text if text == "auto" else int(text)


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no weight", hint="write MEMBER=0.5") from error


def quiet(screen: Screen) -> None:
    """Keep the libraries' own chatter down; downloads show their bars where somebody watches."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if screen.err.is_terminal and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        enable_progress_bars()
