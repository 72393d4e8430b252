"""Small HTML tables, as notebooks show packs, weights and results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packfuse.view.escaping import escaped


@dataclass(frozen=True, slots=True)
class Share:
    """A cell with a share, 0 to 1, as a bar beside its number."""

    value: float


@dataclass(frozen=True, slots=True)
class Strong:
    """A cell whose text is emphasized."""

    text: str


Cell = str | Share | Strong

_LEFT = 'style="text-align:left"'
_BAR = (
    '<span style="display:inline-block;width:6em;height:.6em;margin-right:.5em;'
    'border:1px solid #888">'
    '<span style="display:block;height:100%;width:{width:.1f}%;background:#3a7ebf"></span></span>'
)


def html_table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[Cell]], notes: Iterable[str] = ()
) -> str:
    """A table; the first cell of each row is its heading.

    Args:
        caption: What it is about.
        heads: Headings of the columns.
        rows: Cells, as texts (nothing of which becomes markup) or shares.
        notes: Lines below it.
    """
    head = "".join(f'<th scope="col" {_LEFT}>{escaped(text)}</th>' for text in heads)
    body = "".join(_row(cells) for cells in rows)
    below = "".join(f"<div>{escaped(note)}</div>" for note in notes)
    return (
        f"<div><table><caption {_LEFT}><b>{escaped(caption)}</b></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}</div>"
    )


def _row(cells: Sequence[Cell]) -> str:
    first, *rest = cells
    others = "".join(f"<td {_LEFT}>{_cell(cell)}</td>" for cell in rest)
    return f'<tr><th scope="row" {_LEFT}>{_cell(first)}</th>{others}</tr>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    if isinstance(cell, Strong):
        return f"<b>{escaped(cell.text)}</b>"
    return _BAR.format(width=100 * min(max(cell.value, 0.0), 1.0)) + f"{cell.value:.3f}"
