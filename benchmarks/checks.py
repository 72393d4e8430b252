"""The papers' own checks, at the size of the starter pack.

- Does the member that reads a prompt better answer better? (PackLLM, section 3)
- How far are `opt` and `exact` from exhaustive search, and how long do they take?
- How good is MinED's map as vocabularies overlap less? (PackLLM, FuseLLM)

    python benchmarks/checks.py --data FOLDER [--work FOLDER] [--only perplexity|search|mined]

Results go to the work folder as JSON, for benchmarks/evidence.py; the last line of the output is
one JSON document.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from passages import passages
from pydantic import PrivateAttr
from rich.console import Console
from rich.progress import track
from scipy.stats import spearmanr

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.alignment.base import Alignment
from packfuse.evaluation import Journal, Setting, read_questions
from packfuse.evaluation.run import ask
from packfuse.evaluation.systems import Scored, alone
from packfuse.evaluation.tasks import tasks
from packfuse.fusion.engine import Engine
from packfuse.fusion.rules import rules
from packfuse.models.hf_member import HFMember
from packfuse.models.loading import wrap
from packfuse.text.prompt import from_text
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Evidence, Weighting, Weights, equal
from packfuse.weighting.methods.losses import PromptLoss, prompt_loss
from packfuse.weighting.prefill import prefill

STEP = 0.05
NOISES = (0.1, 0.2, 0.3, 0.5)


def noisy(member: HFMember, share: float, seed: int) -> HFMember:
    """The member with Gaussian noise on every matrix, `share` of the matrix's own spread."""
    model = copy.deepcopy(member.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter) * (share * parameter.std()))
    return wrap(f"{member.name} + {share:g} noise", model, member.tokenizer)


def perplexity(members: Sequence[HFMember], options: argparse.Namespace) -> dict[str, Any]:
    """Prompt loss against accuracy, by model: members, and one of them made worse by degrees."""
    path = sorted(options.data.glob("piqa*.jsonl"))[0]
    task = tasks().make("choice")
    asked = read_questions(path, task, options.questions, options.seed)
    rows = []
    with Journal(options.work / "checks.jsonl") as journal:
        for make in _models(members, options.seed):
            member = make()
            own = alone(member)
            system = Scored(own, {member.name: Setting.of(own)})
            system.identity["noise"] = member.name
            found = ask(system, task, asked.questions, journal).outcomes[member.name]
            bits = [sum((o.prompt_bits or {}).values()) for o in found.values()]
            right = [bool(o.right) for o in found.values()]
            rows.append(
                {
                    "model": member.name,
                    "prompt_bits_per_byte": float(np.mean(bits)),
                    "accuracy": float(np.mean(right)),
                }
            )
    loss = [row["prompt_bits_per_byte"] for row in rows]
    found_ = spearmanr(loss, [row["accuracy"] for row in rows])
    return {
        "source": path.name,
        "questions": len(asked.questions),
        "models": rows,
        "spearman": float(found_.statistic),
        "p": float(found_.pvalue),
    }


def _models(members: Sequence[HFMember], seed: int) -> Iterator[Any]:
    for member in members:
        yield lambda member=member: member
    for share in NOISES:
        yield lambda share=share: noisy(members[0], share, seed)


class Catch(Weighting):
    """Keeps the evidence of a prompt."""

    name: ClassVar[str] = "catch"
    source: ClassVar[str] = "not a method"
    _kept: list[Evidence] = PrivateAttr(default_factory=list)

    def needs_scores(self, pool: str) -> bool:
        """Always."""
        return True

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Equal weights; the evidence is kept."""
        self._kept.append(evidence)
        return equal(evidence.members)


def search(members: Sequence[HFMember], options: argparse.Namespace) -> dict[str, Any]:
    """`opt` and `exact` against every point of a grid, for 2 to 4 members and both pools."""
    fourth = noisy(members[0], 0.1, options.seed)
    texts = [p.text[:400] for p in passages(options.seed, 4, options.data)][: options.prompts]
    rows: list[dict[str, Any]] = []
    asked = [*members, fourth][:4]
    for count in range(2, len(asked) + 1):
        pack = asked[:count]
        engine = Engine(pack, 1, alignments().make("bytes"), rules().make("packllm"))
        vocabularies = [member.vocabulary for member in pack]
        gaps: dict[tuple[str, str], list[float]] = {}
        times: dict[tuple[str, str], list[float]] = {}
        for text in track(texts, f"{count} members", console=Console(stderr=True)):
            catch = Catch()
            prefill(engine, from_text(text, vocabularies, 1), catch)
            evidence = catch._kept[-1]
            for pool in ("logit", "linear"):
                loss = prompt_loss(evidence, pool)
                if loss is None:
                    continue
                started = time.perf_counter()
                best = min(loss.value(point) for point in _grid(count))
                times.setdefault(("grid", pool), []).append(time.perf_counter() - started)
                for name in ("opt", "exact"):
                    part = weightings().make({"name": name, "shrinkage": 0})
                    started = time.perf_counter()
                    weights = part.fit(evidence, pool)
                    times.setdefault((name, pool), []).append(time.perf_counter() - started)
                    gaps.setdefault((name, pool), []).append(_gap(loss, weights, best))
        for (name, pool), seconds in times.items():
            own = gaps.get((name, pool), [0.0])
            rows.append(
                {
                    "members": count,
                    "pool": pool,
                    "method": name,
                    "mean_gap": float(np.mean(own)),
                    "worst_gap": float(np.max(own)),
                    "time": float(np.median(seconds) / np.median(times["grid", pool])),
                }
            )
    return {"step": STEP, "prompts": len(texts), "rows": rows, "members": [m.name for m in asked]}


def _grid(count: int) -> Iterator[NDArray[np.float64]]:
    """All weights in steps of `STEP`."""
    steps = round(1 / STEP)
    for cuts in itertools.combinations(range(steps + count - 1), count - 1):
        edges = [-1, *cuts, steps + count - 1]
        yield np.diff(edges).astype(float) / steps - 1 / steps


def _gap(loss: PromptLoss, weights: Weights, best: float) -> float:
    """Nats per position above the best point of the grid; below 0 between its points."""
    return loss.value(weights) - best


def mined(members: Sequence[HFMember], options: argparse.Namespace) -> dict[str, Any]:
    """Where MinED sends tokens, for every pair of real tokenizers, by how much they overlap."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.packaged import real_tokenizer

    vocabularies = {m.name: m.vocabulary for m in members}
    for name in options.tokenizer or ["mistral"]:
        tokenizer = real_tokenizer(name)
        vocabularies[name] = Vocabulary(tokenizer, len(tokenizer))
    alignment = alignments().make("mined")
    text = "\n".join(p.text for p in passages(options.seed, 10, options.data)).encode()
    rows = []
    pairs = list(itertools.permutations(vocabularies, 2))
    for one, other in track(pairs, "MinED", console=Console(stderr=True)):
        rows.append(_mapping(alignment, vocabularies[one], vocabularies[other], text))
        rows[-1].update({"member": one, "reference": other})
        (options.work / "mined.json").write_text(json.dumps({"rows": rows}))
    overlap = [row["overlap"] for row in rows]
    return {
        "rows": rows,
        "spearman": float(spearmanr(overlap, [row["in_text"] for row in rows]).statistic),
    }


def _mapping(
    alignment: Alignment, member: Vocabulary, reference: Vocabulary, text: bytes
) -> dict[str, Any]:
    """How often a reference token's partner is its twin, begins it, or is neither."""
    pairing = alignment.pair(member, reference)
    ids = [i for tokens in reference.ids_of.values() for i in tokens]
    partners = dict(zip(ids, pairing.map_ids(ids), strict=True))
    kinds = {i: _kind(reference.token_bytes[i], member.token_bytes[partners[i]]) for i in ids}
    used = [index for index in reference.encode_bytes(text) if index in kinds]
    twins = sum(token in member.ids_of for token in reference.ids_of) / len(reference.ids_of)
    return {
        "overlap": twins,
        "twin": sum(kind == "twin" for kind in kinds.values()) / len(kinds),
        "begins": sum(kind == "begins" for kind in kinds.values()) / len(kinds),
        "in_text": sum(kinds[i] != "neither" for i in used) / len(used),
        "twin_in_text": sum(kinds[i] == "twin" for i in used) / len(used),
    }


def _kind(token: bytes | None, partner: bytes | None) -> str:
    if token is None or not partner:
        return "neither"
    if token == partner:
        return "twin"
    return "begins" if token.startswith(partner) else "neither"


CHECKS = {"perplexity": perplexity, "search": search, "mined": mined}


def main() -> None:
    """Run the checks that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of question files")
    parser.add_argument("--work", type=Path, default=Path(".evidence"))
    parser.add_argument("--only", choices=CHECKS, action="append")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokenizer",
        action="append",
        help="for MinED: mistral, deepseek, tekken",
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    members = Pack.starter(progress=False).members
    found = {}
    for name in options.only or CHECKS:
        found[name] = CHECKS[name](members, options)
        (options.work / f"{name}.json").write_text(json.dumps(found[name], indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
