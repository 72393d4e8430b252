"""What pruned output heads save and what they lose, on text of many kinds.

    python benchmarks/heads.py [--each 3] [--tokens 96] [--writes 1 --writes 2]

For each way to prune: how much of the vocabulary is left, the time of the head for one token, bits
per byte of the pack, and how far its distribution is from the one with full heads (KL divergence
in nats a token, and how often the likeliest token is another). The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import machine
from passages import LENGTH, Passage, passages
from rich.console import Console
from rich.table import Table
from torch import Tensor

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.fusion.engine import Engine
from packfuse.fusion.rules import rules
from packfuse.models.hf_member import HFMember
from packfuse.models.vocab_subset import VocabSubset, read_subset
from packfuse.text.prompt import from_ids

FOREIGN = (
    "Der Fluss trat im Frühjahr über die Ufer, und die Bewohner des Dorfes brachten ihre Vorräte "
    "in die oberen Stockwerke. Erst nach zwei Wochen ging das Wasser zurück; die Felder lagen "
    "unter einer dicken Schicht Schlamm, auf der im Sommer besonders viel Korn wuchs.",
    "Le train part à huit heures du matin et arrive dans la capitale avant midi. Pendant le "
    "voyage, les passagers peuvent lire, dormir ou regarder les collines couvertes de vignes qui "
    "défilent lentement derrière les vitres.",
    "La biblioteca abre todos los días menos el lunes. Los estudiantes pueden llevarse hasta cinco "
    "libros durante tres semanas, y quien los devuelve tarde paga una pequeña multa que se usa "
    "para comprar libros nuevos.",
    "Зимой озеро замерзает, и дети катаются по льду на коньках до самого вечера. Старики говорят, "
    "что раньше лёд был толще и по нему ездили даже тяжёлые грузовики.",
    "这座城市的地铁每天运送三百万乘客。早上七点到九点之间, 车厢里几乎没有空位, "
    "很多人选择骑自行车上班。",
)


def texts(each: int) -> list[Passage]:
    """English prose, code and licences; this project's own Markdown; other languages."""
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    starts = [readme.find("\n", len(readme) * k // (each + 1)) + 1 for k in range(1, each + 1)]
    markdown = [Passage("markdown", readme[start : start + LENGTH]) for start in starts]
    return [*passages(7, each, None), *markdown, *(Passage("foreign", t) for t in FOREIGN)]


def columns_of(member: HFMember, reference: HFMember, writes: int, most: int) -> Tensor:
    """The default, and what the reference writes in `writes` tokens or fewer, ids below `most`."""
    some = read_subset(
        alignments().make("bytes").pair(member.vocabulary, reference.vocabulary), member.vocabulary
    )
    if some is None:
        raise SystemExit("nothing is pruned with this reference")
    own = list(member.vocabulary.ids_of.items())
    written = reference.vocabulary.encode_batch([t.decode(errors="replace") for t, _ in own])
    more = [
        index
        for (_, ids), path in zip(own, written, strict=True)
        for index in ids
        if len(path) <= writes and index < most
    ]
    return torch.cat([some.ids, torch.tensor(more, dtype=torch.long)]).unique()


class Heads:
    """One way to prune the head of the member that is not the reference."""

    def __init__(
        self, members: list[HFMember], reference: int, columns: VocabSubset | None
    ) -> None:
        """None for a full head."""
        self.columns = columns
        self.engine = Engine(
            members, reference, alignments().make("bytes"), rules().make("packllm")
        )
        self.engine._columns = [None if k == reference else columns for k in range(len(members))]

    def says(self, text: str, tokens: int) -> tuple[Tensor, list[int]]:
        """Fused log-probabilities `[n, V]` of the last `tokens` tokens, and those tokens."""
        vocabularies = [member.vocabulary for member in self.engine.members]
        own = self.engine.reference
        ids = own.encode(text)
        first = max(1, len(ids) - tokens)
        prompt = from_ids(
            [*own.prefix_ids, *ids[:first]], vocabularies, self.engine.reference_index
        )
        row = self.engine.open(prompt)
        row.feed(prompt.stream)
        self.engine.prefill(row, [None] * len(vocabularies))
        self.engine.settle([row])
        rest = ids[first:]
        found = [row.fused_logps[None]] if row.fused_logps is not None else []
        for start in range(0, len(rest) - 1, 16):
            part = rest[start : min(start + 16, len(rest) - 1)]
            found.append(self.engine.advance([row], [part], len(part))[0])
        return torch.cat(found), rest


def head_time(member: HFMember, columns: VocabSubset | None) -> float:
    """Median milliseconds of the head for one token."""
    own: Any = member.model.get_output_embeddings()
    weight = own.weight if columns is None else own.weight[columns.ids]
    hidden, times = torch.randn(1, weight.shape[1]), []
    for _ in range(20):
        started = time.perf_counter()
        torch.nn.functional.linear(hidden, weight)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


@torch.no_grad()
def measure(
    members: list[HFMember], reference: int, ways: list[VocabSubset | None], each: int, tokens: int
) -> list[dict[str, Any]]:
    """All ways on all texts; the first is the one that the others are compared with."""
    engines = [Heads(members, reference, columns) for columns in ways]
    found: list[dict[str, list[tuple[float, float, bool, int]]]] = [{} for _ in ways]
    for passage in texts(each):
        plain: Tensor | None = None
        for heads, sums in zip(engines, found, strict=True):
            logps, rest = heads.says(passage.text, tokens)
            plain = logps if plain is None else plain
            size = sum(len(heads.engine.reference.token_bytes[i] or b"") for i in rest)
            chosen = logps.gather(1, torch.tensor(rest)[:, None])[:, 0]
            away = torch.nn.functional.kl_div(logps, plain, log_target=True, reduction="none")
            other = logps.argmax(-1) != plain.argmax(-1)
            rows = sums.setdefault(passage.kind, [])
            for place in range(len(rest)):
                rows.append((float(chosen[place]), float(away[place].sum()), bool(other[place]), 0))
            rows.append((0.0, 0.0, False, size))
    other = members[1 - reference]
    return [
        {
            "columns": other.vocabulary.columns if way is None else len(way.ids),
            "head_ms": head_time(other, way),
            "kinds": {kind: _summary(rows) for kind, rows in sums.items()},
            "all": _summary([row for rows in sums.values() for row in rows]),
        }
        for way, sums in zip(ways, found, strict=True)
    ]


def _summary(rows: list[tuple[float, float, bool, int]]) -> dict[str, float]:
    places = sum(row[3] == 0 for row in rows)
    size = sum(row[3] for row in rows)
    return {
        "bits_per_byte": -sum(row[0] for row in rows) / math.log(2) / size,
        "kl": sum(row[1] for row in rows) / places,
        "other_choice": sum(row[2] for row in rows) / places,
        "tokens": places,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--each", type=int, default=3, help="passages of every kind")
    parser.add_argument("--tokens", type=int, default=96, help="of each passage, its last")
    parser.add_argument(
        "--more", action="append", default=[], metavar="N[:ID]", help="also keep tokens that the "
        "reference writes in up to N tokens, with ids below ID; repeatable"
    )  # fmt: skip
    parser.add_argument("--reference", type=int, default=0)
    options = parser.parse_args()
    members = Pack.starter(progress=False).members
    mine, other = members[options.reference], members[1 - options.reference]
    names, ways = ["full", "pruned"], [None, columns_of(other, mine, 0, 0)]
    for spec in options.more:
        writes, _, most = spec.partition(":")
        names.append(f"and in {spec}")
        ways.append(columns_of(other, mine, int(writes), int(most or other.vocabulary.columns)))
    counted = [None if ids is None else VocabSubset(ids, other.vocabulary.columns) for ids in ways]
    rows = measure(members, options.reference, counted, options.each, options.tokens)
    table = Table(title=f"Heads of {other.name}, reference {mine.name}")
    for column in ("head", "columns", "ms", "text", "bits per byte", "KL, nats", "other choice"):
        table.add_column(column, justify="right")
    for name, row in zip(names, rows, strict=True):
        for kind, sums in [*row["kinds"].items(), ("all", row["all"])]:
            table.add_row(
                name, str(row["columns"]), f"{row['head_ms']:.1f}", kind,
                f"{sums['bits_per_byte']:.4f}", f"{sums['kl']:.4f}", f"{sums['other_choice']:.1%}",
            )  # fmt: skip
    Console().print(table)
    print(json.dumps({"machine": machine(), "heads": dict(zip(names, rows, strict=True))}))


if __name__ == "__main__":
    main()
