"""`packfuse plan`: how many replicas a load needs, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from packfuse.cli.screen import Screen
from packfuse.cli.tables import plain_table
from packfuse.errors import ConfigError
from packfuse.registry import parse_spec

if TYPE_CHECKING:
    from packfuse.ray.plan import Outcome

_REPLICAS = "1,2,4,8,16,32,64"


@dataclass(frozen=True)
class PlanOptions:
    """The load, and the links between nodes."""

    rows: Annotated[
        int, typer.Option(min=1, help="Most answers that a replica decodes at the same time.")
    ] = 16
    fuse: Annotated[float, typer.Option(min=0, help="Time of fusing a row, ms.")] = 0.0
    hop: Annotated[
        float, typer.Option(min=0, help="What a read of a member on another node adds, ms.")
    ] = 0.5
    link: Annotated[
        float, typer.Option(min=0.001, help="Speed of the links between nodes, Gbit/s.")
    ] = 10.0
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 200
    answer_tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 200
    requests: Annotated[int, typer.Option(min=1, help="Number of requests.")] = 2048
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests a second; omitted: all at once, as a batch."),
    ] = None


def plan(
    screen: Screen,
    load: PlanOptions,
    member: Annotated[
        list[str],
        typer.Option(
            "--member",
            "-m",
            metavar="NAME:step=MS,...",
            help="A member: step, row and prompt in ms, away=true on a node of its own, columns "
            "that are sent for a row, price an hour. Repeat it for each.",
        ),
    ],
    replicas: Annotated[
        str, typer.Option(metavar="N,...", help="Numbers of replicas.")
    ] = _REPLICAS,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a plot; needs the extra `plot`.")
    ] = None,
) -> None:
    """Simulate replicas of a pack: throughput, time to an answer, and cost.

    Nothing is loaded. docs/scale.md says how to measure the times of a member.
    """
    from packfuse.ray.plan import Plan, outcomes

    settings = {**vars(load), "members": [parse_spec(text) for text in member]}
    found = outcomes(Plan.check(settings, "the plan"), _numbers(replicas))
    if plot is not None:
        _draw(found, plot)
    screen.document([one.model_dump() for one in found])
    table = plain_table("replicas", "tokens/s", "answers/s", "median", "95 %", "efficiency", "cost")
    for one in found:
        table.add_row(
            str(one.replicas),
            f"{one.tokens_per_second:,.0f}",
            f"{one.answers_per_second:.2f}",
            f"{one.median_seconds:.1f} s",
            f"{one.p95_seconds:.1f} s",
            f"{one.efficiency:.0%}",
            f"{one.price_per_million:.2f}",
        )
    screen.show(table, Text("cost of a million tokens of answers", "dim"))


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--replicas {text!r} are not numbers of replicas", hint="write 1,2,4")
    return [int(part) for part in parts]


def _draw(found: list[Outcome], path: Path) -> None:
    """Throughput and cost over the number of replicas."""
    from packfuse.view.picture import Picture, new_figure

    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    counts = [one.replicas for one in found]
    axes.loglog(counts, [one.tokens_per_second for one in found], "o-", label="tokens a second")
    axes.set(xlabel="replicas", ylabel="tokens a second")
    axes.set_xticks(counts, [str(count) for count in counts])
    other = axes.twinx()
    other.plot(counts, [one.price_per_million for one in found], "s--", color="tab:orange")
    other.set(ylabel="cost of a million tokens (dashed)", ylim=(0, None))
    Picture(figure).save(path)
