"""A member in a server: what it costs that it names fewer tokens, and what a step costs.

    python benchmarks/servers.py --model qwen.gguf [--reference MODEL] [--small] [--save]
    python benchmarks/servers.py --model MODEL --url http://127.0.0.1:8000 [--reference MODEL]

The pack is a model in this process, the reference, and the model behind a server: llama.cpp's own
(of the package xllamacpp), which is started here, or one that runs already. It is compared with
the pack of the same two models in this process, where a GGUF file is expanded to float32: equal
weights, teacher-forced on documentation, code and prose. The last line of the output is one JSON
document.

    candidates  by number of named tokens: bits per byte over those of the local pack, divergence
                from its distributions (nats a place), share of equal first choices, and the
                probability outside; once with that probability spread evenly, once placed by the
                reference's belief
    step        seconds a token of the pack, over those of the server's own generation plus those of
                the reference alone
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from common import MEASURED, machine
from passages import passages

from packfuse import Pack
from packfuse.models.remote.protocols import Candidates
from packfuse.models.remote.remote_member import CANDIDATES, RemoteMember
from packfuse.starter import starter_paths

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.llama_server import llama_server
from tests.support.starter_files import write_gguf

COUNTS = (20, 50, 100, 256, 1000)
TAILS = ("evenly", "belief")
"""Where the probability goes that a server leaves, in the order of `RemoteMember.names_few`."""
PROMPT = "The Rhine rises in the Swiss Alps and flows through Germany to the North Sea."


def logps(pack: Pack, ids: list[int]) -> torch.Tensor:
    """Fused log-probabilities after every token, with equal weights."""
    with torch.no_grad():
        found: torch.Tensor = pack.model(torch.tensor([ids])).logits[0]
    return found


def bits(found: torch.Tensor, ids: list[int]) -> float:
    """Bits of the tokens after the first one."""
    following = torch.tensor(ids[1:])
    return float(-found[:-1].gather(1, following[:, None]).sum()) / 0.6931471805599453


@dataclass
class Remembered:
    """What a server named, asked once: fewer candidates are the first of these.

    Attributes:
        member: The member that asks for the most.
        known: The answers by the tokens before the place.
    """

    member: RemoteMember
    known: dict[tuple[int, ...], Candidates] = field(default_factory=dict)

    def naming(self, count: int, *, few: bool) -> RemoteMember:
        """A member that names so many tokens of the remembered ones."""
        member = self.member
        found = RemoteMember(member.name, self.member.protocol, member.vocabulary, count)
        found._named = self._named(count)  # type: ignore[method-assign]
        found.names_few = few
        return found

    def _named(self, count: int) -> Callable[[list[int], list[int]], list[Candidates]]:
        def named(ids: list[int], counts: list[int]) -> list[Candidates]:
            missing = [at for at in counts if tuple(ids[:at]) not in self.known]
            for at, one in zip(missing, self.member._named(ids, missing), strict=True):
                self.known[tuple(ids[:at])] = one
            return [_first(self.known[tuple(ids[:at])], count) for at in counts]

        return named


def _first(found: Candidates, count: int) -> Candidates:
    return replace(found, ids=found.ids[:count], logps=found.logps[:count])


def divergence(whole: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of distributions from the whole ones `[n]`, nats."""
    return (whole.exp() * (whole - found)).nan_to_num(posinf=0).sum(-1)


def candidates(local: Pack, member: RemoteMember, texts: Sequence[str]) -> list[dict[str, Any]]:
    """One line for each number of named tokens and each place of the others."""
    reference = local.members[0]
    ids = [reference.vocabulary.encode(text) for text in texts]
    size = sum(len(text.encode()) for text in texts)
    whole = [logps(local, own) for own in ids]
    most = member.candidates
    remembered = Remembered(member)
    lines = []
    all_named = most == member.vocabulary.size
    for count in [own for own in COUNTS if own <= most or all_named]:
        for few, tail in enumerate(TAILS):
            naming = remembered.naming(count, few=bool(few))
            pack = Pack([reference, naming], progress=False, reference=reference.name)
            found = [logps(pack, own) for own in ids]
            more = sum(
                bits(one, own) - bits(other, own)
                for one, other, own in zip(found, whole, ids, strict=True)
            )
            same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(found, whole, strict=True)]
            apart = [divergence(a, b) for a, b in zip(whole, found, strict=True)]
            named = [one.logps[:count] for one in remembered.known.values()]
            lines.append(
                {
                    "candidates": count,
                    "tail": tail,
                    "more_bits_per_byte": more / size,
                    "divergence": float(torch.cat(apart).mean()),
                    "same_first_choice": float(torch.cat(same).float().mean()),
                    "outside": 1 - statistics.mean(float(np.exp(one).sum()) for one in named),
                    "places": sum(map(len, ids)),
                }
            )
            print(json.dumps(lines[-1]), file=sys.stderr)
    return lines


def step(local: Pack, member: RemoteMember, tokens: int, rounds: int) -> dict[str, float]:
    """Medians over rounds, all three in turn."""
    exactly: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    both = Pack([local.members[0], member], progress=False, reference=local.names[0])
    alone = Pack([local.members[0]], progress=False)
    times: dict[str, list[float]] = {"pack": [], "server": [], "reference": []}
    for _ in range(rounds):
        for name, pack in (("pack", both), ("reference", alone)):
            record = pack.generate(PROMPT, weighting="uniform", **exactly).record
            times[name].append(record.timings.decode_seconds / tokens)
        times["server"].append(_own_seconds(member, tokens))
    medians = {name: statistics.median(own) for name, own in times.items()}
    return {**medians, "ratio": medians["pack"] / (medians["server"] + medians["reference"])}


def _own_seconds(member: RemoteMember, tokens: int) -> float:
    """Seconds a token of the server's own generation, without those of the prompt."""
    ids = member.vocabulary.encode(PROMPT)

    def generate(count: int) -> float:
        ways = {
            "llama.cpp": ("/completion", {"prompt": ids, "n_predict": count}),
            "vllm": ("/v1/completions", {"prompt": ids, "max_tokens": count}),
            "sglang": (
                "/generate",
                {"input_ids": ids, "sampling_params": {"max_new_tokens": count}},
            ),
        }
        path, body = ways[member.protocol.api]
        more = {"model": member.protocol.facts.model, "temperature": 0, "ignore_eos": True}
        started = time.perf_counter()
        httpx.post(member.protocol.client.url + path, json={**body, **more}, timeout=600)
        return time.perf_counter() - started

    first = generate(1)
    return (generate(tokens + 1) - first) / tokens


def connected(served: dict[str, Any], count: int = CANDIDATES) -> RemoteMember:
    """The member in the server, which names so many candidates, or as many as it can."""
    (member,) = Pack.from_pretrained([served], progress=False).members
    if not isinstance(member, RemoteMember):
        raise TypeError(served)
    most = member.protocol.facts.max_candidates or count
    return RemoteMember(member.name, member.protocol, member.vocabulary, min(most, count))


@contextmanager
def running(options: argparse.Namespace, model: Path) -> Iterator[dict[str, Any]]:
    """The settings of the member in the server, which runs meanwhile."""
    settings = {"tokenizer": str(model), "name": "served"}
    if options.url:
        yield {"url": options.url, **settings}
    else:
        threads = torch.get_num_threads()
        with llama_server(model, context=1024, threads=threads) as server:
            yield {"url": server.url, **settings}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="the model behind the server, as it is here")
    parser.add_argument("--url", help="a server that runs; llama.cpp's is started by default")
    parser.add_argument("--reference", help="the model in this process; SmolLM2 by default")
    parser.add_argument("--only", choices=["candidates", "step"], help="one of the two parts")
    parser.add_argument("--each", type=int, default=2, help="passages of each kind")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tiny model, to check that it runs")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", RuntimeWarning)  # about few candidates
    with tempfile.TemporaryDirectory() as folder:
        model, reference = options.model, options.reference
        if options.small:
            model = reference = Path(folder) / "tiny.gguf"
            write_gguf(model, 0, eot=2, context=512)
        if model is None:
            parser.error("--model names the model behind the server")
        if reference is None:
            reference = starter_paths(progress=False)["SmolLM2-135M-Instruct"]
        tokens, rounds = (4, 1) if options.small else (options.tokens, options.rounds)
        texts = [own.text for own in passages(0, options.each, None)]
        texts = [text[:20] for text in texts[:2]] if options.small else texts
        local = Pack.from_pretrained(
            [
                {"model": str(reference), "name": "reference", "dtype": "float32"},
                {"model": str(model), "name": "served", "dtype": "float32"},
            ],
            progress=False,
            reference="reference",
        )
        with running(options, model) as served:
            results: dict[str, Any] = {"machine": machine()}
            if options.only != "step":
                results["candidates"] = candidates(local, connected(served, COUNTS[-1]), texts)
            if options.only != "candidates":
                results["step"] = step(local, connected(served), tokens, rounds)
    if options.save and not options.small:
        kept = MEASURED / "servers.json"
        before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        kept.write_text(json.dumps(before | results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
