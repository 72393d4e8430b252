"""Members on other nodes: placed where they ask, equal to local ones, and gone with their pack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError, MemberError, ServerError
from packfuse.settings import PackConfig

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'packfuse[ray]'; make test-ray")

from packfuse.ray.cluster import check_cluster, wanted  # noqa: E402
from packfuse.ray.placed import PlacedPacks  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]
PROMPT = "The capital of Italy is"


def local(config: PackConfig) -> Pack:
    """The same pack, all in this process."""
    members = [member.replace(ray=None) for member in config.members]
    return Pack._load(config.replace(members=members), progress=False)


def away(config: PackConfig, **place: Any) -> PackConfig:
    """The pack with another place of its second member."""
    here, there = config.members
    return config.replace(members=[here, there.replace(ray=place)])


def test_a_placed_member_equals_a_local_one(cluster: Any, config: PackConfig) -> None:
    prompts = [PROMPT, "def add(a, b):"]
    with PlacedPacks({"mine": config}) as placed:
        pack = placed.packs["mine"]
        assert placed.nodes["mine", "away"] != ray.get_runtime_context().get_node_id()
        assert placed.nodes["mine", "away"] == cluster.list_all_nodes()[1].node_id
        found = pack.generate(prompts, max_new_tokens=8)
        alone = local(config).generate(prompts, max_new_tokens=8)
        assert [answer.token_ids for answer in found] == [answer.token_ids for answer in alone]
        for answer, other in zip(found, alone, strict=True):
            assert answer.record.weights == pytest.approx(other.record.weights, abs=1e-6)
            assert 0.0 < answer.record.weights["away"] < 1.0
        placed.check()
    assert not placed._actors


def test_a_member_whose_process_is_killed_is_named(cluster: Any, config: PackConfig) -> None:
    del cluster
    with PlacedPacks({"mine": config}) as placed:
        actor = placed._actors["mine", "away"]
        os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
        with pytest.raises(ServerError, match="member 'away' at http://"):
            placed.packs["mine"].generate(PROMPT, max_new_tokens=4)
        with pytest.raises(MemberError, match="the process of member 'away' is gone"):
            placed.check()


def test_what_no_node_has_is_refused_at_once(cluster: Any, config: PackConfig) -> None:
    del cluster
    for place, message in (
        ({"num_gpus": 1}, r"member 'away' of 'mine' asks for 1 CPU, 1 GPU, and no node"),
        ({"resources": {"elsewhere": 1}}, "1 elsewhere, and no node"),
        ({"num_cpus": 100}, "100 CPU, and no node"),
    ):
        parts = wanted({"mine": away(config, **place)}, {"CPU": 1.0})
        with pytest.raises(ConfigError, match=message):
            check_cluster(parts, 1)
    parts = wanted({"mine": config}, {"CPU": 1.0})
    check_cluster(parts, 2)
    with pytest.raises(ConfigError, match=r"3 replicas ask for 3 there, and the cluster has 2"):
        check_cluster(parts, 3)


@pytest.mark.slow
def test_a_place_that_is_taken_is_waited_for_no_longer_than_said(
    cluster: Any, config: PackConfig
) -> None:
    del cluster
    full = {"mine": away(config, num_cpus=0.1, resources={"there": 2})}
    with PlacedPacks(full), pytest.raises(LoadError, match=r"not placed and loaded within 2 s.*"):
        PlacedPacks(full, seconds=2.0)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_named(
    cluster: Any, config: PackConfig, tmp_path: Path
) -> None:
    del cluster
    here, there = config.members
    broken = config.replace(members=[here, there.replace(model=str(tmp_path / "none"))])
    with pytest.raises(LoadError, match="member 'away' cannot be loaded on its node"):
        PlacedPacks({"mine": broken})


ALONE = """
import sys
from packfuse.ray.member_actor import MemberActor
from packfuse.settings import PackConfig
actor = MemberActor(PackConfig.check({"members": [sys.argv[1]]}), "key")
print(actor.place, flush=True)
"""


def test_the_process_of_a_member_can_end(folders: dict[str, str]) -> None:
    command = [sys.executable, "-c", ALONE, folders["mistral"]]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MemberActor.place" in done.stdout


def test_a_place_is_refused_where_there_is_no_cluster(config: PackConfig) -> None:
    with pytest.raises(ConfigError, match=r"member 'away' is to be loaded by a node of a cluster"):
        Pack._load(config, progress=False)
