"""`packfuse cache`: what is kept in the user's cache folder, and its removal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from packfuse.cli.kept import KINDS, Kept, kept, remove
from packfuse.cli.screen import Screen
from packfuse.cli.tables import plain_table, size
from packfuse.errors import ConfigError
from packfuse.paths import CACHE_VARIABLE, cache_root


def cache(
    screen: Screen,
    kinds: Annotated[
        list[str] | None,
        typer.Argument(metavar="KIND", help=f"Kinds: {', '.join(KINDS)}; all if omitted."),
    ] = None,
    remove_them: Annotated[
        bool, typer.Option("--remove", help="Remove what is kept of the kinds that are named.")
    ] = False,
    remove_all: Annotated[bool, typer.Option("--remove-all", help="Remove all of it.")] = False,
) -> None:
    """Show what packfuse keeps on disk, and remove it.

    With kinds, every file or folder of them is listed. Nothing is lost for ever: what is missing is
    downloaded or computed again. Models of the hub are in the cache of Hugging Face (`hf cache`).
    """
    if remove_them and not kinds:
        raise ConfigError(
            "--remove needs the kinds to remove",
            hint=f"name some of {', '.join(KINDS)}; or --remove-all",
        )
    if remove_all and kinds:
        raise ConfigError("--remove-all names all kinds", hint="write --remove, or name none")
    found = kept(kinds or [])
    screen.show(*(_listed(found) if kinds else _summed(found)))
    if remove_them or remove_all:
        remove(found)
        screen.note(f"removed {_total(found)}")
    screen.document(
        {
            "folder": str(cache_root()),
            "kept": [one.model_dump(mode="json") for one in found],
            "removed": remove_them or remove_all,
        }
    )


def _summed(found: Sequence[Kept]) -> list[Table | Text]:
    """One line per kind."""
    table = plain_table("kind", "number", "size", "what it is")
    for kind, meaning in KINDS.items():
        own = [one for one in found if one.kind == kind]
        if own:
            table.add_row(kind, f"{len(own)}", size(sum(one.nbytes for one in own)), meaning)
    where = f"{_total(found)} in {cache_root()} ({CACHE_VARIABLE} sets another folder)"
    return [*([table] if found else []), Text(where, "dim")]


def _listed(found: Sequence[Kept]) -> list[Table | Text]:
    """One line for each thing that is kept."""
    table = plain_table("kind", "size", "changed", "path")
    for one in found:
        day = datetime.fromtimestamp(one.changed).strftime("%Y-%m-%d %H:%M")
        path = one.path.relative_to(cache_root())
        of = f" of {one.source}" if one.source else ""
        table.add_row(one.kind, size(one.nbytes), day, f"{path}{of}")
    return [*([table] if found else []), Text(_total(found), "dim")]


def _total(found: Sequence[Kept]) -> str:
    return size(sum(one.nbytes for one in found))
