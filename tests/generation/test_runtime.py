"""Experimental settings warn where measurements showed little or no gain."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from packfuse.errors import ExperimentalWarning
from packfuse.generation.runtime import Runtime
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member
from packfuse.settings import PackSettings
from tests.support.small import small_pack

SWITCHES = pytest.mark.parametrize("name", ["parallel", "compiled"])
MEASURED = {"parallel": "slower than one member after the other", "compiled": "0.85 of the time"}


@pytest.fixture(scope="module")
def members() -> list[Member]:
    return small_pack().members


def runtime(members: list[Member], **settings: Any) -> Runtime:
    """A runtime without engines, so that nothing is compiled."""
    return Runtime(members, PackSettings(**settings), progress=False)


@SWITCHES
@pytest.mark.filterwarnings("ignore:member .* is not compiled:RuntimeWarning")
def test_experimental_settings_warn_on_processors(members: list[Member], name: str) -> None:
    with pytest.warns(ExperimentalWarning, match=f"{name}=True .*{MEASURED[name]}") as caught:
        runtime(members, **{name: True})
    assert [one.category for one in caught].count(ExperimentalWarning) == 1


def test_other_settings_do_not_warn(members: list[Member]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime(members)
        runtime(members, parallel=False, compiled=False, heads="pruned", draft="lookup")


@SWITCHES
@pytest.mark.filterwarnings("ignore:member .* is not compiled:RuntimeWarning")
def test_experimental_settings_do_not_warn_on_other_devices(
    members: list[Member], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HFMember, "device", property(lambda _: torch.device("cuda")))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExperimentalWarning)
        runtime(members, **{name: True})
