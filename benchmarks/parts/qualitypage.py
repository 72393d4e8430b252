"""The section of docs/speed.md on what gates cost in quality."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from packfuse.evaluation.intervals import Figure

from .gold import EVERY, GATES
from .quality import Quality, Scored, TextSet, Written
from .working import ENOUGH

_HEAD = """## Quality of gates

What it costs not to fuse everywhere, on development questions, with the starter pack's defaults
but for `gate=` (`python benchmarks/gates.py --data FOLDER --save`):

{machine}.

Bits per byte of right answers after their questions, and of the second halves of passages; less is
better. Fusing at every token has the figure itself; the others the difference to it, with a 95 %
interval (paired bootstrap over texts, **bold where it excludes zero**), and the share of tokens at
which the members were fused. All gates look at one reading by the members.
"""

_WRITING = """### Answers worked out under a gate

{title}; {questions} questions, greedy, all ways in turn.

Bits/byte: what each member alone gives the answers. Repeated: runs of four words that stood in the
same answer before. Same: answers equal to those of `every`. Empty: answers that end at once. Time
and work: wall and processor time per token, the prompt having been read, over those of `every`
without drafts (medians over the questions to which both wrote {least} tokens or more).
"""

Rows = list[tuple[str, ...]]
"""A table: its heads, then its lines."""


def section(found: Quality, machine: str) -> Iterator[str]:
    """The lines of the section."""
    yield _HEAD.format(machine=machine)
    for reference, rows in text_rows(found).items():
        yield f"### `reference={reference!r}`\n"
        yield from _table(rows)
        yield ""
    if found.writing:
        writing = found.writing
        yield _WRITING.format(title=writing.title, questions=writing.questions, least=ENOUGH)
        yield from _table(writing_rows(found))
        yield ""
    yield "### What follows\n"
    yield from _decision(found)


def text_rows(found: Quality) -> dict[str, Rows]:
    """By reference, a table of gates by sets."""
    sets = list(found.texts.values())
    return {
        reference: [
            ("", *(_title(own, reference) for own in sets)),
            *(
                (_code(rows[0].label), *map(_cell, rows))
                for rows in zip(*(own.rows[reference] for own in sets), strict=True)
            ),
        ]
        for reference in (sets[0].rows if sets else ())
    }


def writing_rows(found: Quality) -> Rows:
    """A table of ways by what was made of their answers; empty if nothing was written."""
    if not found.writing:
        return []
    rows, count = found.writing.rows, found.writing.questions
    members = list(rows[0].bits)
    heads = ("", "right", *(f"bits/byte by {name}" for name in members))
    heads += ("repeated", "tokens", "fused", "same", "empty", "time", "work")
    return [heads, *(_line(row, members, count) for row in rows)]


def _line(row: Written, members: Sequence[str], count: int) -> tuple[str, ...]:
    return (
        _code(row.label),
        f"{row.right * count:.0f} of {count}",
        *(f"{row.bits[name]:.3f}" for name in members),
        f"{row.repeated:.0%}",
        f"{row.tokens:.0f}",
        "" if row.fused is None else f"{row.fused:.0%}",
        f"{row.same} of {count}",
        f"{row.empty}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in (row.time, row.work)),
    )


def _title(own: TextSet, reference: str) -> str:
    title = f"{own.title} ({own.texts} texts of {own.length:.0f} bytes"
    if reference != "auto":
        return f"{title})"
    said = (f"{count} by {name}" for name, count in own.references.items())
    return f"{title}; {', '.join(said)})"


def _code(label: str) -> str:
    """A label; gates look like what people write."""
    gate = next((name for name in GATES if label == name or label.startswith(f"{name},")), "")
    return f"`{gate}`{label.removeprefix(gate)}" if gate else label


def _cell(row: Scored) -> str:
    if row.label == EVERY:
        return f"{row.bits.value:.4f}"
    return f"{_signed(row.against)}, {row.member or f'{row.fused:.0%} fused'}"


def _signed(figure: Figure) -> str:
    shown = f"{figure.value:+.4f}"
    shown = f"**{shown}**" if figure.excludes_zero else shown
    return f"{shown} ({figure.low:+.4f} to {figure.high:+.4f})"


def _table(rows: Rows) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if not number:
            yield f"|{'---|' * len(row)}"


def _decision(found: Quality) -> Iterator[str]:
    """What each gate costs under `reference="auto"`, and whether the default stands."""
    found_better = []
    for place, name in enumerate(GATES):
        if name == EVERY:
            continue
        against = {own.title: own.rows["auto"][place].against for own in found.texts.values()}
        worse = [title for title, figure in against.items() if figure.low > 0]
        better = [title for title, figure in against.items() if figure.high < 0]
        open_ = [title for title in against if title not in (*worse, *better)]
        said = (("worse than `every` on", worse), ("better on", better), ("undecided on", open_))
        yield f"- `{name}`: {'; '.join(f'{what} {_list(own)}' for what, own in said if own)}."
        if better and not worse:
            found_better.append(f"`{name}`")
    yield from _times(found)
    if found_better:
        yield f"- Better somewhere and worse nowhere, against the default: {_list(found_better)}."
    else:
        yield "- No gate is better anywhere without being worse elsewhere: `every` stays."


def _times(found: Quality) -> Iterator[str]:
    rows = found.writing.rows if found.writing else []
    said = [
        f"{_code(row.label)} {row.work:.2f}" for row in rows if row.work and "draft" in row.label
    ]
    if said:
        yield f"- Processor time per token over that of `every` without drafts: {'; '.join(said)}."


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
