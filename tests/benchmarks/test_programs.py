"""Benchmarks run from end to end, at the smallest size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.starter


def run(name: str, *arguments: str) -> Any:
    """The document on the last line of a program's output."""
    command = [sys.executable, str(BENCHMARKS / name), "--small", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_speed() -> None:
    (part,) = run("speed.py", "--only", "reuse")["parts"].values()
    assert part["rows"]
    assert all(row["ratio"] > 0 for row in part["rows"])


@pytest.mark.slow
def test_evidence(tmp_path: Path) -> None:
    found = run("evidence.py", "--work", str(tmp_path))
    assert found == run("evidence.py", "--work", str(tmp_path), "--report")
    assert found["machine"]["threads"] > 0
    own = found["sets"]["prose"]
    assert set(own["systems"]) == {"SmolLM2-135M-Instruct", "gemma-3-270m"}
    for row in own["systems"].values():
        assert row["questions"] == 20
        assert row["bits_per_byte"]["value"] > 0
        assert row["cpu"] > 0


def test_gpu() -> None:
    """Without a GPU: the same parts on tiny models, but for what only a GPU can count."""
    names = ["answers", "members", "pack", "batch", "first", "drafts", "counts", "compile"]
    parts = run("gpu.py", "--parts", ",".join(names))["parts"]
    assert list(parts) == names
    rows = [row for part in parts.values() for row in part["rows"]]
    assert {row["what"] for row in rows if row["skipped"]} == {
        "waits of the host a token", "device memory of an answer"
    }  # fmt: skip
    compared = [row for row in rows if row["ratio"] is not None]
    assert len(compared) >= 8 + len(parts["answers"]["rows"])
    assert all(row["ratio"] > 0 for row in compared if "fast token" not in row["what"])
    assert all(row["met"] for row in parts["answers"]["rows"])
    steps = [row["against"] for row in rows if row["what"] == "a step of the pack, one row"]
    assert "members, compiled by transformers" in steps


def test_gpu_keeps_what_it_has_found_when_a_part_fails_or_time_is_over(tmp_path: Path) -> None:
    lines = [
        "import sys, time",
        f"sys.path.insert(0, {str(BENCHMARKS)!r})",
        "import gpu",
        "from parts.rows import Row",
        "def fails(bench): yield Row(what='one', ours=1.0); raise RuntimeError('broken')",
        "def lasts(bench): yield Row(what='two', ours=2.0); time.sleep(600)",
        "gpu.RUN.update(members=fails, pack=lasts)",
        "sys.argv = ['gpu.py', '--small', '--parts', 'members,pack,batch', '--seconds', '3']",
        "sys.exit(gpu.main())",
    ]
    program = tmp_path / "run.py"
    program.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, program], stdout=subprocess.PIPE, text=True, check=False)
    parts = json.loads(done.stdout.splitlines()[-1])["parts"]
    found = {
        name: [(row["what"], row["skipped"]) for row in part["rows"]]
        for name, part in parts.items()
    }
    assert done.returncode == 1
    assert found == {
        "members": [("one", None), ("members", "failed: RuntimeError: broken")],
        "pack": [("two", None), ("pack", "out of time")],
        "batch": [("batch", "out of time")],
    }


def test_soak() -> None:
    found = run("soak.py")
    assert sum(found["calls"].values()) == 24
    assert found["failures"] == []
    assert found["growth"]["files"] == 1


@pytest.mark.slow
def test_servers() -> None:
    found = run("servers.py")
    lines = {(line["candidates"], line["tail"]): line for line in found["candidates"]}
    counts = (20, 50, 100, 256, 1000)
    assert list(lines) == [(count, tail) for count in counts for tail in ("evenly", "belief")]
    last = lines[1000, "evenly"]
    assert last["more_bits_per_byte"] == pytest.approx(0, abs=1e-3)
    assert last["divergence"] == pytest.approx(0, abs=1e-3)
    assert last["same_first_choice"] == 1
    assert lines[20, "evenly"]["divergence"] > last["divergence"]
    assert found["step"]["ratio"] > 0


@pytest.mark.slow
def test_peers() -> None:
    found = run("peers.py")
    assert found["step"]["same_tokens"]
    assert found["step"]["ratio"] > 0
    sizes = {line["sent"]: line["bytes"] for line in found["hop"]}
    assert sizes["float16"] < sizes["float32"]


@pytest.mark.slow
def test_alignment() -> None:
    found = run("alignment.py")
    assert len(found["carrying_loss"]) == 2
    assert found["gain"] < 1
