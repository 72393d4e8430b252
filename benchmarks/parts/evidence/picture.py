"""The picture of docs/evidence.md: what packs gain over their best member, set by set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packfuse.view.picture import Picture, new_figure

SHOWN = ("default", "calibrated", "uniform", "top1")
AXES = {
    "bits_per_byte": (1, "bits per byte (left of 0: the pack is better)"),
    "accuracy": (100, "points of accuracy (right of 0: the pack is better)"),
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Pack minus best member with its interval, by set and on the mixed workload."""
    figure = new_figure(11, 5)
    areas = figure.subplots(1, len(AXES))
    for axes, (name, (factor, label)) in zip(areas, AXES.items(), strict=True):
        lines = _lines(results, name)
        for shift, system in enumerate(SHOWN):
            found = [(at, line[system]) for at, (_, line) in enumerate(lines) if line.get(system)]
            values = [factor * row["value"] for _, row in found]
            ends = [
                [factor * abs(row[e] - row["value"]) for _, row in found] for e in ("low", "high")
            ]
            places = [at + 0.18 * (1.5 - shift) for at, _ in found]
            title = results["systems"][system]["title"].replace("`", "")
            if found:
                axes.errorbar(
                    values, places, xerr=ends, fmt="o", markersize=4, capsize=2, label=title
                )
        axes.axvline(0, color="#444444", linewidth=1)
        axes.set_yticks(range(len(lines)), [title for title, _ in lines])
        axes.set_xlabel(label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    Picture(figure).save(path, dpi=110)


def _lines(results: Mapping[str, Any], figure: str) -> list[tuple[str, dict[str, Any]]]:
    """From the bottom up: the mixed workload, then the sets; differences by system."""
    mixed = results["mixed"][figure].get("systems", {})
    lines = [("mixed workload", {name: row.get("against") for name, row in mixed.items()})]
    for own in results["sets"].values():
        if figure in own["best"]:
            rows = own["systems"].items()
            lines.append((own["title"], {name: row["against"].get(figure) for name, row in rows}))
    return lines
