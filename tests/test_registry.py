"""Parts are found, made, named and refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import packfuse.fusion.rules
from packfuse.errors import ConfigError
from packfuse.fusion.rules import rules
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.unite import UniTE
from packfuse.registry import Registry
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
        *[{"name": name} for name in [*rules().parts, *weightings().parts] if name != "fixed"],
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
    assert list(weightings().parts) == ["exact", "fixed", "opt", "sim", "top1", "uniform"]
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
