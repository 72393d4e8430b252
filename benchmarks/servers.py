"""A member behind llama.cpp's server: what it costs to name fewer tokens, and what a step costs.

    python benchmarks/servers.py --gguf qwen.gguf [--reference MODEL] [--small] [--save]

The pack is a model in this process, the reference, and the GGUF file behind llama.cpp's own server
(of the package xllamacpp). It is compared with the pack of the same two models in this process,
where the GGUF file is expanded to float32: equal weights, teacher-forced on prose and code. The
last line of the output is one JSON document.

    candidates  by number of named tokens: bits per byte, share of equal first choices, probability
                outside
    step        seconds a token of the pack, over those of the server's own generation plus those of
                the reference alone
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from common import MEASURED, machine

from packfuse import Pack
from packfuse.starter import starter_paths

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.llama_server import llama_server
from tests.support.starter_files import write_gguf

TEXTS = (
    "The Rhine rises in the Swiss Alps and flows through Germany and the Netherlands to the North "
    "Sea. For two thousand years it has carried goods between the south and the north of Europe, "
    "and today it is one of the busiest waterways of the world.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n\n\nprint(mean([1, 2, 3]))\n",
)
COUNTS = (20, 50, 100, 256, 1000)


def logps(pack: Pack, ids: list[int]) -> torch.Tensor:
    """Fused log-probabilities after every token, with equal weights."""
    with torch.no_grad():
        found: torch.Tensor = pack.model(torch.tensor([ids])).logits[0]
    return found


def bits_per_byte(found: torch.Tensor, ids: list[int], text: str) -> float:
    """Bits of the tokens after the first one, over the bytes of the text."""
    following = torch.tensor(ids[1:])
    nats = -found[:-1].gather(1, following[:, None]).sum()
    return float(nats) / 0.6931471805599453 / len(text.encode())


def candidates(
    local: Pack, served: dict[str, Any], reference: str, texts: Sequence[str]
) -> list[dict[str, Any]]:
    """One line for each number of named tokens."""
    vocabulary = local.members[0].vocabulary
    ids = [vocabulary.encode(text) for text in texts]
    whole = [logps(local, own) for own in ids]
    lines = []
    for count in COUNTS:
        pack = Pack.from_pretrained(
            [reference, {**served, "candidates": count}], progress=False, reference=local.names[0]
        )
        found = [logps(pack, own) for own in ids]
        bits = [
            bits_per_byte(one, own, text) - bits_per_byte(other, own, text)
            for one, other, own, text in zip(found, whole, ids, texts, strict=True)
        ]
        same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(found, whole, strict=True)])
        lines.append(
            {
                "candidates": count,
                "bits_per_byte": statistics.mean(bits),
                "same_first_choice": float(same.float().mean()),
                "places": len(same),
            }
        )
        print(json.dumps(lines[-1]), file=sys.stderr)
    return lines


def step(served: dict[str, Any], reference: str, tokens: int, rounds: int) -> dict[str, float]:
    """Medians over rounds, all three in turn."""
    exactly: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    both = Pack.from_pretrained([reference, served], progress=False)
    alone = Pack.from_pretrained([reference], progress=False)
    times: dict[str, list[float]] = {"pack": [], "server": [], "reference": []}
    for _ in range(rounds):
        for name, pack in (("pack", both), ("reference", alone)):
            record = pack.generate(TEXTS[0], weighting="uniform", **exactly).record
            times[name].append(record.timings.decode_seconds / tokens)
        body = {"prompt": TEXTS[0], "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        answer = httpx.post(f"{served['url']}/completion", json=body, timeout=600).json()
        times["server"].append(answer["timings"]["predicted_per_token_ms"] / 1000)
    medians = {name: statistics.median(own) for name, own in times.items()}
    return {**medians, "ratio": medians["pack"] / (medians["server"] + medians["reference"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, help="the model behind the server")
    parser.add_argument("--reference", help="the model in this process; SmolLM2 by default")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tiny model, to check that it runs")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", RuntimeWarning)  # about few candidates
    with tempfile.TemporaryDirectory() as folder:
        gguf, reference = options.gguf, options.reference
        if options.small:
            gguf = reference = Path(folder) / "tiny.gguf"
            write_gguf(gguf, 0, eot=2, context=512)
        if gguf is None:
            parser.error("--gguf names the model behind the server")
        if reference is None:
            reference = starter_paths(progress=False)["SmolLM2-135M-Instruct"]
        tokens, rounds = (4, 1) if options.small else (options.tokens, options.rounds)
        texts = [text[:20] for text in TEXTS] if options.small else TEXTS
        local = Pack.from_pretrained(
            [str(reference), {"model": str(gguf), "name": "served", "dtype": "float32"}],
            progress=False,
        )
        local = Pack(local.members, progress=False, reference=local.names[0])
        with llama_server(gguf, context=1024, threads=torch.get_num_threads()) as server:
            served = {"url": server.url, "tokenizer": str(gguf), "name": "served"}
            results = {
                "machine": machine(),
                "candidates": candidates(local, served, str(reference), texts),
                "step": step(served, str(reference), tokens, rounds),
            }
    if options.save and not options.small:
        text = json.dumps(results, indent=1) + "\n"
        (MEASURED / "servers.json").write_text(text, encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
