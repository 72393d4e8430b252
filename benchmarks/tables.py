"""Write the tables of README.md and docs/*.md from benchmarks/measured/*.json.

    python benchmarks/tables.py

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; all other text of a page is
written by hand. Names are those of a file in benchmarks/measured and of a part of it:

    speed PART [TEXT]    rows of a part of speed.json; with TEXT only rows that begin with it
    evidence TABLE       see parts/evidence/rows.py
    first_use
    serving
    servers candidates | step
    in_place
    peers
    cluster
    FILE machine         the machine of a file's results, as one line
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MEASURED = ROOT / "benchmarks" / "measured"

_MARKED = re.compile(r"(<!-- table: ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Rows = list[Sequence[str]]
"""A table: its head, then its lines; columns are aligned right where the head ends in a blank."""


def _part(name: str) -> Any:
    """A module of parts/: this file is a script, and in tests a module of a package."""
    return import_module(f"{__package__}.parts.{name}" if __package__ else f"parts.{name}")


_signed: Callable[[Mapping[str, float] | None, str], str] = _part("shown").signed


def fill(page: str, measured: Path = MEASURED) -> str:
    """The page with its tables written anew.

    Raises:
        KeyError: for a table that no result has.
    """

    def table(found: re.Match[str]) -> str:
        name, _, rest = found[2].partition(" ")
        results = json.loads((measured / f"{name}.json").read_text(encoding="utf-8"))
        if rest == "machine":
            text = machine_line(results[rest])
        else:
            text = markdown(MAKERS[name](results, rest))
        return f"{found[1]}{text}\n{found[3]}"

    return _MARKED.sub(table, page)


def machine_line(machine: Mapping[str, str | int]) -> str:
    """The machine and the versions in one line."""
    return "; ".join(f"{key}: {value}" for key, value in machine.items())


def markdown(rows: Rows) -> str:
    """Rows as a Markdown table."""
    rule = ["---:" if head.endswith(" ") else "---" for head in rows[0]]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in [rows[0], rule, *rows[1:]])


def _cell(text: str) -> str:
    """One line, without what would end a cell."""
    return " ".join(text.split()).replace("|", r"\|")


def speed(results: Mapping[str, Any], name: str) -> Rows:
    """Rows of one part that begin with a text and were measured."""
    part, _, start = name.partition(" ")
    shown = [row for row in results["parts"][part]["rows"] if row["what"].startswith(start)]
    head = ("", "compared with", "packfuse ", "the other ", "ratio ", "notes")
    notes = any(row["note"] for row in shown if row["ratios"])
    lines = [[*cells(row), row["note"]] for row in shown if row["ratios"]]
    return [line if notes else line[:-1] for line in [head, *lines]]


def cells(row: Mapping[str, Any]) -> list[str]:
    """What was measured, against what, both amounts and their ratio."""
    ratio = row["ratio"]
    return [
        row["what"],
        row["against"],
        _amount(row["ours"], row["unit"]),
        _amount(row["other"], row["unit"]),
        "" if ratio is None else _ratio(ratio),
    ]


def _ratio(value: float) -> str:
    """Two digits at least."""
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def evidence(results: Mapping[str, Any], name: str) -> Rows:
    """The tables of the evidence: parts/evidence/rows.py."""
    found: Rows = _part("evidence.rows").rows(results, name)
    return found


def first_use(results: Mapping[str, Any], name: str) -> Rows:
    """Right answers by system and part, foreign turns, loops, and the difference from the best."""
    systems = results["systems"]
    parts = list(next(iter(systems.values()))["parts"])
    asked = [next(iter(systems.values()))["parts"][part][1] for part in parts]
    heads = [f"{part}, {count} " for part, count in zip(parts, asked, strict=True)]
    return [
        ("", *heads, "all ", "minus the best member ", "foreign turns ", "loops "),
        *(
            [
                system,
                *(str(own["parts"][part][0]) for part in parts),
                str(own["right"]),
                _signed_count(own["against"]),
                str(own["turns"]),
                str(own["loops"]),
            ]
            for system, own in systems.items()
        ),
    ]


def _signed_count(against: Mapping[str, Any] | None) -> str:
    """A mean difference with its interval, in percentage points."""
    return "" if against is None else f"{_signed(against, 'accuracy')} points"


SERVING = (
    ("first", "time to the first token beside a 512-token answer", "alone", "beside_seconds",
     "alone_seconds", "ratio", "s"),
    ("streams", "8 streams, tokens per second", "1 stream", "rate_8", "rate_1", "ratio_8", ""),
    ("streams", "16 streams, tokens per second", "1 stream", "rate_16", "rate_1", "ratio_16", ""),
    ("step", "a step of 8 answers", "`generate` on the same batch", "scheduler", "generate",
     "ratio", "s"),
    ("step", "the same with logits processors", "`generate` with them",
     "scheduler_with_processors", "generate_with_processors", "ratio_with_processors", "s"),
    ("load", "32 requests through `packfuse serve`, tokens per second", "one at a time",
     "served_rate", "one_at_a_time_rate", "ratio", ""),
)  # fmt: skip
"""Lines of the table: the part, its two cells of text, the names of its figures, and the unit."""


def serving(results: Mapping[str, Any], name: str) -> Rows:
    """Many calls at once, compared with one; the parts that were measured."""
    del name
    return [
        ("", "compared with", "many ", "one ", "ratio "),
        *(
            [
                text,
                other,
                _amount(results[part][mine], unit),
                _amount(results[part][theirs], unit),
                _ratio(results[part][ratio]),
            ]
            for part, text, other, mine, theirs, ratio, unit in SERVING
            if part in results
        ),
    ]


def servers(results: Mapping[str, Any], name: str) -> Rows:
    """What it costs that a server names few tokens, or what a step costs."""
    if name == "step":
        times = {
            "the pack": "pack",
            "the server alone": "server",
            "the reference alone": "reference",
        }
        lines = [[text, f"{results['step'][key] * 1000:.0f} ms"] for text, key in times.items()]
        return [("a step of", "time "), *lines, ["ratio", _ratio(results["step"]["ratio"])]]
    return [
        ("named ", "the others", "bits per byte ", "divergence ", "same choice ", "outside "),
        *(
            [
                f"{line['candidates']:,}",
                {"evenly": "evenly", "belief": "by the reference"}[line["tail"]],
                f"{line['more_bits_per_byte']:+.4f}",
                f"{line['divergence']:.4f}",
                f"{line['same_first_choice']:.1%}",
                f"{line['outside']:.1%}",
            ]
            for line in results["candidates"]
        ),
    ]


def in_place(results: Mapping[str, Any], _: str) -> Rows:
    """Memory and steps of GGUF files under llama.cpp, over the same files expanded."""
    case = results["cases"][-1]
    engines = ("transformers", "llama.cpp")
    memory = [f"{case['bytes'][name]['working'] / 2**20:,.0f} MiB" for name in engines]
    times = [f"{case['step_seconds'][name] * 1000:.0f} ms" for name in engines]
    return [
        ("two files, one pack", "expanded ", "llama.cpp ", "ratio "),
        [
            "memory, at its highest in an answer to 500 tokens",
            *memory,
            _ratio(case["memory_ratio"]),
        ],
        ["a step", *times, _ratio(case["step_ratio"])],
    ]


_SENT = {
    "float32": "whole, float32",
    "float16": "whole, float16",
    "256 tokens": "256 tokens (`candidates`)",
    "columns of the alignment": 'columns that the alignment reads (`heads="pruned"`)',
}


def peers(results: Mapping[str, Any], _: str) -> Rows:
    """What a read of one token by the member protocol costs, by what is sent."""
    return [
        ("sent for a place", "bytes ", "hop, ms "),
        *(
            [_SENT[line["sent"]], f"{line['bytes']:,}", f"{line['hop_ms']:.1f}"]
            for line in results["hop"]
        ),
    ]


def cluster(results: Mapping[str, Any], _: str) -> Rows:
    """What a read of one token costs on a cluster, over the same read in one process."""
    return [
        ("a read, ms more than in one process", "member protocol ", "call of an actor "),
        *(
            [
                f"{hop['columns']:,} log-probabilities, {place}",
                *(f"{hop[f'{key}_{way}_ms']:.1f}" for way in ("protocol", "actor")),
            ]
            for hop in results["hops"].values()
            for key, place in (("other", "another node"), ("this", "the same node"))
        ),
    ]


MAKERS: dict[str, Callable[[Mapping[str, Any], str], Rows]] = {
    "speed": speed,
    "evidence": evidence,
    "first_use": first_use,
    "serving": serving,
    "servers": servers,
    "in_place": in_place,
    "peers": peers,
    "cluster": cluster,
}


def main() -> None:
    """Write the tables of all pages."""
    for path in (ROOT / "README.md", *DOCS.glob("*.md")):
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
