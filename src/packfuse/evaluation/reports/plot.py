"""Plots of an evaluation: accuracy with intervals, and loss by weight."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packfuse.errors import ConfigError
from packfuse.evaluation.reports.report import Evaluation, ReportRow
from packfuse.extras import install_command
from packfuse.paths import write_bytes

_COLORS = {"member": "#444444", "pack": "#1f77b4"}
_ROW_INCHES = 0.24


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write a PNG or SVG.

    The left plot shows each system's accuracy (for plain text: its loss in bits per byte) with the
    interval; the right plot shows the loss by the weight of a member for settings with fixed
    weights.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    pyplot = load_pyplot()
    curves = _curves(evaluation)
    name = "accuracy" if any(row.accuracy for row in evaluation.rows) else "bits_per_byte"
    shown = [row for row in evaluation.rows if getattr(row, name) and not _share(evaluation, row)]
    height = max(3.0, 1.2 + _ROW_INCHES * len(shown))
    figure, axes = pyplot.subplots(
        1, 2 if curves else 1, figsize=(13 if curves else 8, height), squeeze=False
    )
    _intervals(axes[0][0], shown, name, evaluation)
    if curves:
        _weights(axes[0][1], curves, evaluation)
    figure.suptitle(f"{evaluation.source.rpartition('/')[2]}, {evaluation.questions} questions")
    figure.tight_layout()
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format=path.suffix[1:])
    pyplot.close(figure)
    write_bytes(path, image.getvalue())


def load_pyplot() -> Any:
    """Matplotlib's pyplot with a backend that opens no window.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("plots need matplotlib", hint=install_command("eval")) from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _intervals(axes: Any, rows: Sequence[ReportRow], name: str, evaluation: Evaluation) -> None:
    for at, row in enumerate(reversed(rows)):
        figure = getattr(row, name)
        color = _COLORS["member" if row.member else "pack"]
        axes.plot([figure.low, figure.high], [at, at], color=color, linewidth=1.5)
        axes.plot([figure.value], [at], "o", color=color, markersize=4)
    if name in evaluation.best:
        best = getattr(evaluation.row(evaluation.best[name]), name).value
        axes.axvline(best, color=_COLORS["member"], linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)], fontsize=7)
    axes.set_xlabel("bits per byte" if name == "bits_per_byte" else evaluation.verdict)


def _weights(
    axes: Any, curves: dict[str, list[tuple[float, float]]], evaluation: Evaluation
) -> None:
    for label, points in curves.items():
        shares, losses = zip(*sorted(points), strict=True)
        axes.plot(shares, losses, "o-", label=label, markersize=3)
    for row in evaluation.rows:
        if row.member and row.bits_per_byte:
            axes.axhline(
                row.bits_per_byte.value, color=_COLORS["member"], linestyle=":", linewidth=1
            )
            axes.annotate(row.label, (0.02, row.bits_per_byte.value), fontsize=7, va="bottom")
    axes.set_xlabel("weight")
    axes.set_ylabel("bits per byte")
    axes.legend(fontsize=7)


def _curves(evaluation: Evaluation) -> dict[str, list[tuple[float, float]]]:
    """Points (weight of a member, loss in bits per byte) by rule and reference."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in evaluation.packs:
        share = _share(evaluation, row)
        if share and row.setting and row.bits_per_byte:
            name, weight = share
            label = f"{row.setting['fusion']['name']}, {name}, in {row.setting['reference']}"
            curves[label].append((weight, row.bits_per_byte.value))
    return {label: points for label, points in curves.items() if len(points) > 1}


def _share(evaluation: Evaluation, row: ReportRow) -> tuple[str, float] | None:
    """The member whose fixed weight differs from the others, and that weight."""
    weighting = (row.setting or {}).get("weighting", {})
    if weighting.get("name") != "fixed" or not isinstance(weighting.get("weights"), dict):
        return None
    weights: dict[str, float] = weighting["weights"]
    names = evaluation.members
    pair = 2
    if len(names) == pair:
        return names[-1], weights[names[-1]]
    odd = [n for n in names if sum(abs(weights[n] - weights[o]) < 1e-9 for o in names) == 1]
    return (odd[0], weights[odd[0]]) if odd else None
