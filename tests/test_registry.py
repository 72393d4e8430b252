"""Parts are found, made, named and refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import packfuse.fusion.rules
from packfuse.cli import app
from packfuse.errors import ConfigError
from packfuse.fusion.rules import rules
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.unite import UniTE
from packfuse.registry import Registry
from packfuse.settings import PackConfig
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.fixed import Fixed

NEW_RULE = '''
from typing import ClassVar

from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.mixture import Mixture


class Loudest(Rule):
    """The member with the highest probability of anything."""

    name: ClassVar[str] = "loudest"
    source: ClassVar[str] = "nowhere"
    pool: ClassVar[str] = "linear"
    volume: int = 11

    def fuse(self, logps, weights):
        return logps[logps.amax((1, 2)).argmax()]


class Unfinished(Rule):
    """Still abstract, and so not offered."""

    name: ClassVar[str] = "unfinished"
'''


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        rules().make("packlm")
    assert caught.value.message == "unknown fusion rule 'packlm'"
    assert caught.value.hint == "known: mixture, packllm, unite; did you mean 'packllm'?"


@pytest.mark.parametrize(
    "spec", [{}, {"k": 3}, {"name": None}, {"name": ["unite"]}, 7, None, ["x"]]
)
def test_a_spec_without_a_usable_name_lists_the_known_ones(spec):
    with pytest.raises(ConfigError, match="known: mixture, packllm, unite"):
        rules().make(spec)


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"name": "unite", "k": 0}, "k"),
        ({"name": "unite", "k": "many"}, "k"),
        ({"name": "unite", "top": 3}, "top"),
    ],
)
def test_a_bad_parameter_is_named(spec, named):
    with pytest.raises(ConfigError, match=f"fusion rule 'unite': {named}: .*its parameters: k"):
        rules().make(spec)


def test_a_spec_is_not_used_up():
    spec = {"name": "unite", "k": 3}
    assert rules().make(spec) == rules().make(spec) == UniTE(k=3)


def test_a_part_passes_through():
    rule = UniTE(k=4)
    assert rules().make(rule) is rule


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "unite", "k": 5},
        {"name": "sim", "tau": 0.1, "normalize": "own"},
        {"name": "opt", "step": 0.1, "early_stop": False, "shrinkage": 0},
        {"name": "fixed", "weights": {"a": 0.25, "b": 0.75}},
        {"name": "fixed", "weights": [0.25, 0.75]},
        {"name": "calibrated", "members": {"a": {"prior": 1.0, "temperature": 2.0}}},
        *[
            {"name": name}
            for name in [*rules().parts, *weightings().parts]
            if name not in ("fixed", "calibrated")
        ],
    ],
    ids=json.dumps,
)
def test_what_is_dumped_is_made_again(spec):
    registry = rules() if spec["name"] in rules().parts else weightings()
    part = registry.make(spec)
    dumped = registry.dump(part)
    assert dumped.items() >= spec.items()
    assert registry.make(json.loads(json.dumps(dumped))) == part


def test_weightings_are_all_there():
    names = ["calibrated", "exact", "fixed", "opt", "sim", "top1", "uniform"]
    assert list(weightings().parts) == names
    assert weightings().parts["fixed"] is Fixed


def test_a_new_rule_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loudest.py").write_text(NEW_RULE)
    monkeypatch.setattr(
        packfuse.fusion.rules, "__path__", [*packfuse.fusion.rules.__path__, str(tmp_path)]
    )
    monkeypatch.delitem(sys.modules, "packfuse.fusion.rules.loudest", raising=False)
    registry = Registry[Any]("fusion rule", "packfuse.rules", "packfuse.fusion.rules", Rule)
    try:
        assert list(registry.parts) == ["loudest", "mixture", "packllm", "unite"]
        rule = registry.make({"name": "loudest", "volume": 3})
        assert registry.dump(rule) == {"name": "loudest", "volume": 3}
        logps = torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log()
        assert torch.equal(rule.fuse(logps, torch.full((1, 2), 0.5)), logps[1])
    finally:
        sys.modules.pop("packfuse.fusion.rules.loudest", None)
        vars(packfuse.fusion.rules).pop("loudest", None)


PLUGIN = """
from typing import ClassVar

from packfuse.fusion.rules.mixture import Mixture


class Own(Mixture):
    name: ClassVar[str] = "own"


class Plain:
    name = "plain"


class Misnamed(Mixture):
    name: ClassVar[str] = "other"
"""


def installed(folder: Path, **entries: str) -> None:
    """A distribution with entry points for rules, as pip would have installed it."""
    (folder / "other_package.py").write_text(PLUGIN)
    info = folder / "other_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[packfuse.rules]", *lines]))


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    rules.cache_clear()
    yield tmp_path
    rules.cache_clear()
    sys.modules.pop("other_package", None)


def test_a_rule_of_another_package_is_named_like_any_other(plugins: Path) -> None:
    installed(plugins, own="other_package:Own")
    assert rules().make("own").name == "own"
    assert rules().dump(rules().make("own")) == {"name": "own"}
    config = PackConfig.check({"members": ["a"], "fusion": "own"})
    config.write(plugins / "pack.yaml")
    read = PackConfig.read(plugins / "pack.yaml")
    assert type(rules().make(read.fusion)).__name__ == "Own"
    result = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "400"})
    assert "Known: mixture, own, packllm, unite." in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("mixture", "other_package:Own", "packfuse has a fusion rule of that name"),
        ("gone", "other_package:Gone", "AttributeError"),
        ("absent", "no_such_package:Rule", "ModuleNotFoundError"),
        ("plain", "other_package:Plain", "no subclass of packfuse.fusion.rules.base.Rule"),
        ("mine", "other_package:Misnamed", "with name = 'mine'"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_left_out_with_the_reason(
    plugins: Path, name: str, value: str, reason: str
) -> None:
    installed(plugins, **{name: value})
    with pytest.warns(RuntimeWarning, match=f"{name!r}.*{reason}"):
        known = rules().parts
    assert sorted(known) == ["mixture", "packllm", "unite"]
