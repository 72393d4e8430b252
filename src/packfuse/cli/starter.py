"""`packfuse starter`: make the embedded default pack ready."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from packfuse.cli.screen import Screen
from packfuse.cli.tables import facts_table, size
from packfuse.starter.plan import StarterPlan
from packfuse.starter.prepare import plan, starter_paths


def starter(
    screen: Screen,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Say what would be fetched, and fetch nothing.")
    ] = False,
) -> None:
    """Fetch and prepare the starter pack, once; its licenses and sizes are said first.

    The last of the models comes with packfuse itself and joins the pack with --expert.
    """
    found = plan()
    if only_plan or found.ready:
        screen.show(Text(found.notice()))
    else:
        starter_paths()
        found = plan()
    screen.show("", _table(found))
    screen.document(found)


def _table(found: StarterPlan) -> Table:
    models = [*found.models, found.expert]
    table = facts_table(model.name for model in models)
    rows = {
        "license": [f"{model.license} ({model.license_url})" for model in models],
        "download": [size(model.download_bytes) if model.files else "none" for model in models],
        "on disk": [size(model.disk_bytes) for model in models],
        "folder": [str(model.folder) for model in models],
        "ready": ["yes" if model.ready else "not yet" for model in models],
        "joins": [*["always"] * len(found.models), "with --expert"],
    }
    for fact, values in rows.items():
        table.add_row(fact, *map(Text, values))
    return table
