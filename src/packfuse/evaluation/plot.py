"""An evaluation as a picture: accuracy with intervals, and loss against weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packfuse.errors import ConfigError
from packfuse.evaluation.report import Evaluation, ReportRow

_COLORS = {"member": "#444444", "pack": "#1f77b4"}
_ROW_INCHES = 0.24


def draw(found: Evaluation, path: Path) -> None:
    """Write a PNG or SVG.

    Left, each system's accuracy (loss, where nothing can be wrong) with its interval; right, loss
    against the weight of a member where settings have fixed weights.

    Raises:
        ConfigError: without matplotlib.
    """
    pyplot = drawing()
    curves = _curves(found)
    name = "accuracy" if any(row.accuracy for row in found.rows) else "bits_per_byte"
    shown = [row for row in found.rows if getattr(row, name) and not _share(found, row)]
    height = max(3.0, 1.2 + _ROW_INCHES * len(shown))
    figure, axes = pyplot.subplots(
        1, 2 if curves else 1, figsize=(13 if curves else 8, height), squeeze=False
    )
    _intervals(axes[0][0], shown, name, found)
    if curves:
        _weights(axes[0][1], curves, found)
    figure.suptitle(f"{found.source.rpartition('/')[2]}, {found.questions} questions")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def drawing() -> Any:
    """Matplotlib's pyplot, without a window.

    Raises:
        ConfigError: without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("plots need matplotlib", hint="pip install 'packfuse[eval]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _intervals(axes: Any, rows: Sequence[ReportRow], name: str, found: Evaluation) -> None:
    for at, row in enumerate(reversed(rows)):
        figure = getattr(row, name)
        color = _COLORS["member" if row.member else "pack"]
        axes.plot([figure.low, figure.high], [at, at], color=color, linewidth=1.5)
        axes.plot([figure.value], [at], "o", color=color, markersize=4)
    if name in found.best:
        best = getattr(found.row(found.best[name]), name).value
        axes.axvline(best, color=_COLORS["member"], linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)], fontsize=7)
    axes.set_xlabel("bits per byte" if name == "bits_per_byte" else found.verdict)


def _weights(axes: Any, curves: dict[str, list[tuple[float, float]]], found: Evaluation) -> None:
    for label, points in curves.items():
        shares, losses = zip(*sorted(points), strict=True)
        axes.plot(shares, losses, "o-", label=label, markersize=3)
    for row in found.rows:
        if row.member and row.bits_per_byte:
            axes.axhline(
                row.bits_per_byte.value, color=_COLORS["member"], linestyle=":", linewidth=1
            )
            axes.annotate(row.label, (0.02, row.bits_per_byte.value), fontsize=7, va="bottom")
    axes.set_xlabel("weight")
    axes.set_ylabel("bits per byte")
    axes.legend(fontsize=7)


def _curves(found: Evaluation) -> dict[str, list[tuple[float, float]]]:
    """Loss by weight of a member, for each rule and reference with fixed weights."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in found.packs:
        share = _share(found, row)
        if share and row.setting and row.bits_per_byte:
            name, weight = share
            label = f"{row.setting['fusion']['name']}, {name}, in {row.setting['reference']}"
            curves[label].append((weight, row.bits_per_byte.value))
    return {label: points for label, points in curves.items() if len(points) > 1}


def _share(found: Evaluation, row: ReportRow) -> tuple[str, float] | None:
    """The member whose weight a setting fixes: the one that differs from the others."""
    weighting = (row.setting or {}).get("weighting", {})
    if weighting.get("name") != "fixed" or not isinstance(weighting.get("weights"), dict):
        return None
    weights: dict[str, float] = weighting["weights"]
    names = found.members
    pair = 2
    if len(names) == pair:
        return names[-1], weights[names[-1]]
    odd = [n for n in names if sum(abs(weights[n] - weights[o]) < 1e-9 for o in names) == 1]
    return (odd[0], weights[odd[0]]) if odd else None
