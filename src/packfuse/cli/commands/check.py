"""`packfuse check`: whether models can form a pack, without loading them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from packfuse.cli.options import quiet
from packfuse.cli.screen import Screen
from packfuse.cli.tables import count, facts_table, size
from packfuse.errors import ConfigError
from packfuse.settings import PackConfig
from packfuse.starter import is_ready, starter_paths

if TYPE_CHECKING:
    from packfuse.models.inspection import AnswerMemory, ModelReport, PackReport


def check(
    screen: Screen,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Hub ids, folders or GGUF files."),
    ] = None,
    pack: Annotated[
        Path | None, typer.Option("--pack", "-p", metavar="FILE", help="A pack.yaml.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="Type of the weights, to compute memory.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens of a prompt with its answer: compute the memory of KV caches, too.",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Answers at the same time, for --context (1)."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")
    ] = False,
) -> None:
    """Check models without loading them: memory, context windows, shared vocabulary.

    For models on the hub, only the configuration, the tokenizer and the headers of the weights are
    fetched. Without models, the starter pack is checked. Exit status 1 if a model cannot be a
    member of a pack.
    """
    # A check accepts no pickled weights, whatever a file says: it says that there are some.
    given: dict[str, Any] = {"trust_remote_code": trust_remote_code, "unsafe_weights": False}
    config = _config(models or [], pack, given | ({"dtype": dtype} if dtype else {}))
    screen.wait("Checking the models ...")
    from packfuse.models.inspection import inspect_model, report

    quiet(screen)
    wanted = context is not None
    if rows and not wanted:
        raise ConfigError("--rows has no effect without --context", hint="add --context TOKENS")
    seen = [inspect_model(member, config, caches=wanted) for member in config.members]
    found = report(seen, context, rows or 1)
    screen.document(found)
    screen.show(_models(found.models), *_conclusions(found))
    if not found.ok:
        raise typer.Exit(1)


def _config(models: list[str], pack: Path | None, given: dict[str, Any]) -> PackConfig:
    if models and pack:
        raise ConfigError("models and --pack exclude each other", hint="give one of them")
    if pack:
        return PackConfig.read(pack, **given)
    if models:
        return PackConfig.check({"members": models, **given})
    if not is_ready():
        raise ConfigError("no models to check", hint="name some, or run `packfuse starter` first")
    return PackConfig.check({"members": [str(p) for p in starter_paths().values()], **given})


def _models(models: list[ModelReport]) -> Table:
    table = facts_table(model.name for model in models)
    rows = {
        "architecture": [model.architecture or "?" for model in models],
        "engine": [model.engine or "?" for model in models],
        "causal LM": [_yes(model.causal) for model in models],
        "parameters": [count(model.parameters) for model in models],
        "memory": ["on its server" if _served(m) else size(m.memory_bytes) for m in models],
        "context window": [_tokens(model.context_window) for model in models],
        "vocabulary": [_tokens(model.vocabulary_size) for model in models],
        "fast tokenizer": [_yes(model.fast_tokenizer) for model in models],
        "chat template": [_yes(model.chat_template) for model in models],
    }
    if any(model.cache for model in models):
        sizes = [size(model.cache.per_token) if model.cache else "?" for model in models]
        rows["KV cache, a token"] = sizes
    if any(model.candidates for model in models):
        named = [model.candidates for model in models]
        rows["tokens named"] = ["all" if number is None else f"{number:,}" for number in named]
    if any(model.scored_places for model in models):
        places = [model.scored_places for model in models]
        rows["places scored"] = ["all" if number is None else f"{number:,}" for number in places]
    if any(model.static_steps is False for model in models):
        rows["steps on CUDA"] = [_steps(model) for model in models]
    for fact, values in rows.items():
        table.add_row(fact, *map(Text, values))
    return table


def _conclusions(found: PackReport) -> list[Text]:
    lines = [Text()]
    for model in found.models:
        lines += [Text(f"{model.model}: {problem}", "red") for problem in model.problems]
    for pair in found.pairs:
        one, other = pair.models
        lines.append(
            Text(
                f"{one} and {other} share {pair.overlap:.1%} of all their tokens; "
                f"{pair.twins[one]:.1%} of the first's have a twin in the second, "
                f"{pair.twins[other]:.1%} the other way."
            )
        )
    lines.append(Text(_memory(found)))
    if found.answers:
        lines.append(Text(_answers(found, found.answers)))
    style = "bold green" if found.ok else "bold red"
    return [*lines, *(Text(text, style) for text in found.verdicts)]


def _memory(found: PackReport) -> str:
    if all(map(_served, found.models)):
        return "All weights are on servers, and take no memory here."
    unknown = [model.name for model in found.models if model.memory_bytes is None]
    served = [model.name for model in found.models if _served(model)]
    rest = [f"without {', '.join(unknown)}, whose size is unknown"] if unknown else []
    rest += [f"without {', '.join(served)}, on a server"] if served else []
    return ", ".join([f"Memory for all weights: {size(found.memory_bytes or None)}", *rest]) + "."


def _served(model: ModelReport) -> bool:
    """Whether the weights are in a server."""
    return model.memory_bytes == 0


def _answers(found: PackReport, answers: AnswerMemory) -> str:
    """Memory of the KV caches, and of everything together."""
    from packfuse.weighting.prefix_cache import SHARE

    weights = found.memory_bytes or 0
    prefix = int(SHARE * weights)
    each = f"{answers.context:,} tokens"
    of = f"an answer of {each}" if answers.rows == 1 else f"{answers.rows:,} answers of {each} each"
    rest = f", without {', '.join(answers.unknown)}, whose cache is unknown"
    return (
        f"KV caches of {of}: {size(answers.cache_bytes)}{rest if answers.unknown else ''}. "
        f"With the weights and at most {size(prefix)} of prefix cache: "
        f"{size(weights + answers.cache_bytes + prefix)}."
    )


def _steps(model: ModelReport) -> str:
    if model.static_steps is None:
        return "?"
    return "captured" if model.static_steps else f"eager: {model.eager_reason}"


def _yes(value: bool | None) -> str:
    return "?" if value is None else "yes" if value else "no"


def _tokens(value: int | None) -> str:
    return "?" if value is None else f"{value:,} tokens"
