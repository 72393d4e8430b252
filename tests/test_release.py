"""The packages can be released: one version, valid forms and workflows, a command line that starts
without the large libraries. `dev/release.py` builds and installs them.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import packfuse

ROOT = Path(__file__).parents[1]
MOST_MODULES = 600
"""Modules that `packfuse --help` may import; torch alone needs twice as many."""


def program() -> Any:
    """The module dev/release.py."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "dev" / "release.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = program()


def project(package: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / package / "pyproject.toml").read_text(encoding="utf-8"))


def test_help_needs_none_of_the_large_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", release.HELP], capture_output=True, text=True, check=True
    )
    count, heavy = json.loads(done.stdout)
    assert heavy == []
    assert count < MOST_MODULES


def test_the_version_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = packfuse.__version__
    assert release.version() == own
    assert release.problems(own, f"v{own}") == []
    assert release.problems(own, "v9.9") == [f"the tag is v9.9, not v{own}"]
    monkeypatch.setattr(release, "ROOT", tmp_path)
    (tmp_path / "CITATION.cff").write_text("version: 9.9\n")
    (tmp_path / "CHANGELOG.md").write_text("## [Unreleased]\n")
    assert len(release.problems(own, None)) == 2


@pytest.mark.parametrize("package", release.TOGETHER)
def test_packages_take_the_version_from_the_source(package: str) -> None:
    found = project(package)
    assert found["project"]["dynamic"] == ["version"]
    source = ROOT / package / found["tool"]["hatch"]["version"]["path"]
    assert source.resolve() == Path(packfuse.__file__).resolve()


def test_packages_accept_each_other() -> None:
    versions = {
        project(package)["project"]["name"]: Version(
            project(package)["project"].get("version", packfuse.__version__)
        )
        for package in release.PACKAGES
    }
    needed = [
        text for one in release.PACKAGES for text in project(one)["project"].get("dependencies", ())
    ]
    needed += project(".")["project"]["optional-dependencies"]["expert"]
    among = [own for own in map(Requirement, needed) if own.name in versions]
    assert len(among) == 3
    assert [own for own in among if not own.specifier.contains(versions[own.name])] == []


def test_forms_and_workflows_are_yaml() -> None:
    files = [ROOT / "CITATION.cff", *sorted((ROOT / ".github").rglob("*.yml"))]
    assert len(files) > 4
    for file in files:
        assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict), file


def test_every_package_is_published_once_that_is_switched_on() -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    publish = flow["jobs"]["publish"]
    assert "vars.PUBLISH == 'true'" in publish["if"]
    assert publish["permissions"] == {"id-token": "write"}
    names = [project(one)["project"]["name"].replace("-", "_") for one in release.PACKAGES]
    assert sorted(publish["strategy"]["matrix"]["package"]) == sorted(names)


def test_packages_name_one_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert release.address_problems() == []
    monkeypatch.setattr(release, "ROOT", tmp_path)
    for package in release.PACKAGES:
        (tmp_path / package).mkdir(parents=True, exist_ok=True)
        url = "https://example.org/a" if package != "packages/expert" else "https://example.org/b"
        text = f'[project]\nname = "a"\n[project.urls]\nRepository = "{url}"\n'
        (tmp_path / package / "pyproject.toml").write_text(text)
    assert len(release.address_problems()) == 1
