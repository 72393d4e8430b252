"""How long two vocabularies take to align, from nothing and from the cache.

    python benchmarks/vocabularies.py [--alignment bytes] [--alignment mined]

Works in a cache folder of its own. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

from common import machine
from transformers import AutoTokenizer

from packfuse.alignment import alignments
from packfuse.starter.prepare import starter_paths
from packfuse.text.vocabulary import Vocabulary


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alignment", action="append")
    options = parser.parse_args()
    folders = starter_paths(progress=False)
    vocabularies = {
        name: Vocabulary(AutoTokenizer.from_pretrained(folder)) for name, folder in folders.items()
    }
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PACKFUSE_CACHE"] = cache
        for kind in options.alignment or ["bytes", "prefix", "mined"]:
            alignment = alignments().make(kind)
            for reference, own in vocabularies.items():
                member = next(v for name, v in vocabularies.items() if name != reference)
                seconds = []
                for _ in range(2):
                    started = time.perf_counter()
                    alignment.pair(member, own)
                    seconds.append(time.perf_counter() - started)
                row = {"alignment": kind, "reference": reference, "first": seconds[0]}
                found.append({**row, "again": seconds[1]})
                print(f"{kind} into {reference}: {seconds[0]:.2f} s, again {seconds[1]:.2f} s")
    print(json.dumps({"machine": machine(), "seconds": found}))


if __name__ == "__main__":
    main()
