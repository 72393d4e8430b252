"""What carrying a distribution costs, and what fusing wins: bits per byte on real text.

Every passage is cut in two. Weights are fitted on the first half; the second half is predicted by
each member in its own tokens, by each member carried into the reference's tokens, and by the pack
under every rule and weighting, with either member as reference. All figures are over the same
bytes.

    python benchmarks/alignment.py [--data FOLDER] [--each 4] [--seed 7]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from common import machine
from passages import Passage, passages
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.alignment.base import Alignment
from packfuse.fusion.engine import Engine
from packfuse.fusion.rules import rules
from packfuse.fusion.sequence import PackSequence
from packfuse.models.hf_member import HFMember
from packfuse.text.prompt import from_ids
from packfuse.weighting.methods import weightings
from packfuse.weighting.prompt_scores import PromptScores

RULES = ("packllm", "mixture", "unite")
WEIGHTINGS = ("uniform", "top1", "sim", "opt", "exact")
GRID = (0.3, 0.5, 0.7)
NO_MASS = -math.log(1e-6)

Sums = dict[str, float]


class Ruler:
    """Measures one reference under one alignment, passage by passage."""

    def __init__(self, members: list[HFMember], reference: int, alignment: Alignment) -> None:
        """Pair the members."""
        self.members, self.reference = members, reference
        self.engine = Engine(members, reference, alignment, rules().make("packllm"))
        self.rules = {name: rules().make(name) for name in RULES}
        self.sums: Sums = defaultdict(float)
        self.hits: Sums = defaultdict(float)
        self.tokens = self.shared_tokens = self.bytes = 0

    def measure(self, passage: Passage) -> None:
        """Add one passage."""
        text = passage.text.encode()
        vocabularies = [member.vocabulary for member in self.members]
        ids = [v.encode_bytes(v.text_prefix + text) for v in vocabularies]
        ends = [_ends(v, row) for v, row in zip(vocabularies, ids, strict=True)]
        half = min(e for e in set.intersection(*map(set, ends)) if e >= len(text) // 2)
        own = self.engine.reference
        cut = ends[self.reference].index(half) + 1
        stream = ids[self.reference]
        prompt = from_ids([*own.prefix_ids, *stream[:cut]], vocabularies, self.reference)
        row = self.engine.open(prompt)
        row.feed(prompt.stream)
        read = [reader.ids(row.text_ids, row.text) for reader in row.streams if reader]
        scoring = PromptScores(vocabularies, self.reference, read, prompt.texts, fit=True)
        self.engine.prefill(row, scoring.callbacks())
        weights = self._weights(scoring)
        row.weights = torch.full((len(self.members),), 1 / len(self.members))
        self.engine.settle([row])
        self._own(ids, ends, half)
        shared = set.intersection(*map(set, ends))
        self._follow(row, stream[cut:], ends[self.reference][cut - 1 :], shared, weights)
        self.bytes += len(text) - half

    def _weights(self, scoring: PromptScores) -> dict[str, dict[str, Tensor]]:
        evidence = scoring.evidence("reference", self.engine.pairings, fit=True)
        table: dict[str, dict[str, Tensor]] = {}
        for rule in RULES:
            pool = self.rules[rule].pool
            table[rule] = {
                name: torch.tensor(weightings().make(name).fit(evidence, pool), dtype=torch.float32)
                for name in WEIGHTINGS
            }
            for share in GRID if len(self.members) == 2 else ():
                mine = [1 - share, share] if self.reference == 0 else [share, 1 - share]
                table[rule][f"{share:g} on the other"] = torch.tensor(mine)
        return table

    def _own(self, ids: list[list[int]], ends: list[list[int]], half: int) -> None:
        for member, row, stops in zip(self.members, ids, ends, strict=True):
            before = list(member.vocabulary.prefix_ids)
            with torch.no_grad():
                logits = member.model(torch.tensor([before + row])).logits[0]
            logps = logits.float().log_softmax(-1)
            first = stops.index(half) + 1
            places = torch.arange(first, len(row)) + len(before)
            self.sums[f"own {member.name}"] -= float(
                logps[places - 1, torch.tensor(row[first:])].double().sum()
            )

    def _follow(
        self,
        row: PackSequence,
        rest: list[int],
        starts: list[int],
        shared: set[int],
        weights: dict[str, dict[str, Tensor]],
    ) -> None:
        """Go through the second half one reference token at a time."""
        logps = _heard(row)
        for index, token in enumerate(rest):
            both = starts[index] in shared
            self._count(logps, token, both, weights)
            if index + 1 < len(rest):
                self.engine.advance([row], [[token]])
                logps = _heard(row)

    def _count(
        self, logps: Tensor, token: int, both: bool, weights: dict[str, dict[str, Tensor]]
    ) -> None:
        self.tokens += 1
        self.shared_tokens += both
        for k, member in enumerate(self.members):
            self._add(f"carried {member.name}", logps[k], token, both)
        for rule, table in weights.items():
            stacked = torch.stack(list(table.values()))
            fused = self.rules[rule].fuse(logps[:, None].expand(-1, len(stacked), -1), stacked)
            for name, row in zip(table, fused, strict=True):
                self._add(f"{rule} {name}", row, token, both)

    def _add(self, name: str, logps: Tensor, token: int, both: bool) -> None:
        # UniTE leaves tokens outside its union without mass; 1e-6 stands for that.
        loss = -float(logps[token])
        loss = NO_MASS if math.isinf(loss) else loss
        self.sums[name] += loss
        if both:
            self.sums[f"shared {name}"] += loss
            self.hits[name] += int(logps.argmax()) == token

    def result(self) -> dict[str, Any]:
        """Bits per byte by setting, and the same where boundaries coincide, in nats per token."""
        bits = {n: s / math.log(2) / self.bytes for n, s in self.sums.items() if "shared" not in n}
        nats = {n: self.sums[f"shared {n}"] / self.shared_tokens for n in self.hits}
        right = {n: hits / self.shared_tokens for n, hits in self.hits.items()}
        others = [m.name for k, m in enumerate(self.members) if k != self.reference]
        return {
            "bits_per_byte": bits,
            "nats_where_boundaries_coincide": nats,
            "accuracy_where_boundaries_coincide": right,
            "alignment_loss": {n: bits[f"carried {n}"] / bits[f"own {n}"] - 1 for n in others},
            "tokens": self.tokens,
            "shared_tokens": self.shared_tokens,
            "bytes": self.bytes,
        }


def _heard(row: PackSequence) -> Tensor:
    if row.member_logps is None:
        raise RuntimeError("nothing was fused in this row")
    return row.member_logps


def _ends(vocabulary: Any, ids: list[int]) -> list[int]:
    found, end = [], -len(vocabulary.text_prefix)
    for index in ids:
        end += len(vocabulary.token_bytes[index] or b"")
        found.append(end)
    return found


def show(console: Console, name: str, result: dict[str, Any]) -> None:
    """A table for people."""
    table = Table(title=name)
    for column in ("setting", "bits per byte", "nats/token*", "next-token accuracy*"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    nats = result["nats_where_boundaries_coincide"]
    right = result["accuracy_where_boundaries_coincide"]
    for setting, bits in sorted(result["bits_per_byte"].items(), key=lambda item: item[1]):
        extra = (f"{nats[setting]:.3f}", f"{right[setting]:.1%}") if setting in nats else ("", "")
        table.add_row(setting, f"{bits:.4f}", *extra)
    console.print(table)
    losses = ", ".join(f"{n} {loss:+.1%}" for n, loss in result["alignment_loss"].items())
    console.print(f"alignment loss (carried over own): {losses}; * where boundaries coincide\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of question files in JSON lines")
    parser.add_argument("--each", type=int, default=4, help="passages of every kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--alignment", action="append", help="name or JSON; repeatable")
    parser.add_argument("--reference", action="append", type=int, help="member number; repeatable")
    options = parser.parse_args()
    console = Console()
    members = Pack.starter().members
    texts = passages(options.seed, options.each, options.data)
    started = time.time()
    results: dict[str, Any] = {}
    for spec in options.alignment or ["bytes"]:
        alignment = alignments().make(json.loads(spec) if spec.startswith("{") else spec)
        for reference in options.reference or range(len(members)):
            ruler = Ruler(members, reference, alignment)
            for passage in track(texts, f"{spec} into {members[reference].name}", transient=True):
                ruler.measure(passage)
            name = f"{spec}, reference {members[reference].name}"
            results[name] = ruler.result()
            show(console, name, results[name])
    summary = _summary(results, [member.name for member in members])
    document = {
        "machine": machine(),
        "seconds": time.time() - started,
        **summary,
        "results": results,
    }
    print(json.dumps(document))


def _summary(results: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The best setting against the best member's own figure."""
    best_own = min(next(iter(results.values()))["bits_per_byte"][f"own {name}"] for name in names)
    settings = {
        f"{run}: {setting}": bits
        for run, result in results.items()
        for setting, bits in result["bits_per_byte"].items()
        if setting.split()[0] in RULES
    }
    best = min(settings, key=lambda name: settings[name])
    return {
        "best_member_own": best_own,
        "best_setting": best,
        "best_setting_bits_per_byte": settings[best],
        "gain": 1 - settings[best] / best_own,
    }


if __name__ == "__main__":
    main()
