"""What the storage of a starter model loses: bits per byte as stored, and as in its GGUF file.

    python benchmarks/storage.py --gguf FILE [--member NAME] [--each 4] [--save]

The GGUF file is expanded to float32 by transformers; the stored folder is computed in float32 and
in the type that it ships in. About ten minutes on two cores for Qwen2.5-Coder-0.5B-Instruct. The
last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import MEASURED, machine, progress
from passages import passages
from transformers import AutoModelForCausalLM, AutoTokenizer

from packfuse.evaluation.reports.intervals import difference
from packfuse.paths import cache_root

SEED = 0
TOKENS = 384


def nats(model: torch.nn.Module, texts: Sequence[torch.Tensor], name: str) -> list[float]:
    """The loss of each text after its first token, nats."""
    step = progress(name)
    found = []
    for number, ids in enumerate(texts, 1):
        with torch.inference_mode():
            logps = model(ids).logits.float().log_softmax(-1)[0, :-1]
        found.append(-float(logps.gather(1, ids[0, 1:, None]).double().sum()))
        step(number, len(texts))
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gguf", type=Path, required=True, help="the file that was converted")
    parser.add_argument("--member", default="Qwen2.5-Coder-0.5B-Instruct", help="a starter model")
    parser.add_argument("--each", type=int, default=4, help="passages of a kind")
    parser.add_argument("--data", type=Path, help="a folder of question files")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args()
    home = cache_root() / "starter" / options.member
    tokenizer = AutoTokenizer.from_pretrained(home)
    texts = [passage.text for passage in passages(SEED, options.each, options.data)]
    ids = [tokenizer(text, return_tensors="pt").input_ids[:, :TOKENS] for text in texts]
    size = [len(tokenizer.decode(own[0, 1:]).encode()) for own in ids]
    losses: dict[str, list[float]] = {}
    for name, (where, more) in {
        "gguf in float32": (options.gguf.parent, {"gguf_file": options.gguf.name}),
        "stored, in float32": (home, {}),
        "stored, as shipped": (home, {"dtype": "auto"}),
    }.items():
        model = AutoModelForCausalLM.from_pretrained(where, **{"dtype": torch.float32, **more})
        losses[name] = nats(model, ids, name)
        del model
    bits = {name: np.array(own) / math.log(2) for name, own in losses.items()}
    base = next(iter(bits.values()))
    results = {
        "machine": machine(),
        "member": options.member,
        "texts": len(ids),
        "bytes": sum(size),
        "bits_per_byte": {name: float(own.sum() / sum(size)) for name, own in bits.items()},
        "against": {
            name: difference(own.tolist(), base.tolist(), [float(n) for n in size], 0).model_dump()
            for name, own in bits.items()
            if own is not base
        },
    }
    if options.save:
        text = json.dumps(results, indent=1) + "\n"
        (MEASURED / "storage.json").write_text(text, encoding="utf-8")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
