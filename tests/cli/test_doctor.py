"""`packfuse doctor` says what is installed and what is here, and finds what has to be mended."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from packfuse import __version__
from packfuse.cli import app
from packfuse.models.devices import has_bfloat16
from packfuse.paths import CACHE_VARIABLE


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an installation of packfuse with other requirements before the real one."""

    def install(*requirements: str) -> None:
        notes = tmp_path / "site" / "packfuse-9.9.dist-info"
        notes.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", "Name: packfuse", "Version: 9.9"]
        lines += [f"Requires-Dist: {text}" for text in requirements]
        extras = {text.partition("extra == '")[2].rstrip("'") for text in requirements} - {""}
        lines += [f"Provides-Extra: {name}" for name in sorted(extras)]
        (notes / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(notes.parent))

    return install


def doctor() -> tuple[int, dict[str, dict[str, str]]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    return result.exit_code, {one["topic"]: one for one in json.loads(result.stdout)}


def test_the_table_has_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, found = doctor()
    assert found["packfuse"]["found"].startswith(__version__)
    assert found["torch"]["found"] == version("torch")
    assert f"{psutil.cpu_count(logical=False)} cores" in found["processor"]["found"]
    assert found["bfloat16"]["state"] == ("ok" if has_bfloat16() else "slow")
    assert (found["GPU"]["found"] == "none") <= (not torch.cuda.is_available())
    assert found["starter pack"]["found"] == "not yet downloaded"
    assert found["hub"]["found"] == "HF_HUB_OFFLINE is set"
    assert not (tmp_path / "none").exists()
    shown = " ".join(CliRunner().invoke(app, ["doctor"]).stdout.split())
    assert all(f"{one['topic']} " in shown for one in found.values())


def test_versions_out_of_range_and_missing_packages_are_problems(installed: Any) -> None:
    installed("torch>=99", "no-such-package>=1", "numpy>=1", "psutil>=1; python_version < '3'")
    status, found = doctor()
    assert status == 1
    assert (found["torch"]["state"], found["torch"]["advice"]) == (
        "problem",
        "pip install 'torch>=99'",
    )
    assert found["torch"]["found"] == version("torch")
    missing = found["no-such-package"]
    assert (missing["found"], missing["state"]) == ("not installed", "problem")
    assert "numpy" not in found
    assert "psutil" not in found


def test_extras_are_complete_or_name_the_command(installed: Any) -> None:
    installed(
        "torch>=2",
        "numpy>=1; extra == 'whole'",
        "numpy>=1; extra == 'half'",
        "no-such-package; extra == 'half'",
        "numpy>=99; extra == 'old'",
        "packfuse[half]; extra == 'both'",
        "numpy>=1; extra == 'both'",
        "no-such-tool; extra == 'dev'",
    )
    status, found = doctor()
    assert status == 0
    assert found["extra whole"]["state"] == "ok"
    assert found["extra both"]["found"] == "without no-such-package"
    assert found["extra half"]["found"] == "without no-such-package"
    assert found["extra half"]["advice"] == "pip install 'packfuse[half]'"
    assert found["extra old"]["state"] == "missing"
    assert "extra dev" not in found


def test_few_threads_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64)
    torch.set_num_threads(1)
    try:
        found = doctor()[1]["processor"]
    finally:
        torch.set_num_threads(before)
    assert found["state"] == "slow"
    assert found["advice"] == "members compute with 1 threads: OMP_NUM_THREADS=1"
