"""`packfuse starter`: make the embedded default pack ready."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from packfuse.cli.screen import Screen
from packfuse.cli.tables import facts_table, size
from packfuse.starter import plan, starter_paths
from packfuse.starter_plan import StarterPlan


def starter(
    screen: Screen,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be fetched, and fetch nothing.")
    ] = False,
) -> None:
    """Fetch and prepare the starter pack, once; its licenses and sizes are said first."""
    found = plan()
    if only_plan or found.ready:
        screen.show(Text(found.notice()))
    else:
        starter_paths()
        found = plan()
    screen.show("", _table(found))
    screen.document(found)


def _table(found: StarterPlan) -> Table:
    table = facts_table(model.name for model in found.models)
    rows = {
        "license": [f"{model.license} ({model.license_url})" for model in found.models],
        "download": [size(model.download_bytes) for model in found.models],
        "on disk": [size(model.disk_bytes) for model in found.models],
        "folder": [str(model.folder) for model in found.models],
        "ready": ["yes" if model.ready else "not yet" for model in found.models],
    }
    for fact, values in rows.items():
        table.add_row(fact, *map(Text, values))
    return table
