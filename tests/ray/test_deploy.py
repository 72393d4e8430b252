"""The endpoint on a cluster: its answers, its streams, its errors, and where its members are."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError
from packfuse.settings import PackConfig, RayPlace

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'packfuse[ray]'; make test-ray")

from ray import serve  # noqa: E402

from packfuse.ray.application import DeployOptions  # noqa: E402
from packfuse.ray.deploying import deploy  # noqa: E402
from packfuse.server.app import Limits  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]
KEY = {"Authorization": "Bearer secret"}
OPTIONS = DeployOptions(
    min_replicas=2, max_replicas=2, place=RayPlace(num_cpus=0.5), limits=Limits(api_key="secret")
)


@pytest.fixture(scope="module")
def url(cluster: Any, config: PackConfig) -> Iterator[str]:
    del cluster
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    deploy({"mine": config}, OPTIONS, name="test", port=port)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def pack(config: PackConfig) -> Pack:
    members = [member.replace(ray=None) for member in config.members]
    return Pack._load(config.replace(members=members), progress=False)


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url + "/v1/completions", json=body, headers=KEY, timeout=60)


def test_answers_are_those_of_the_pack(url: str, pack: Pack) -> None:
    assert httpx.get(url + "/health").json()["status"] == "ready"
    models = httpx.get(url + "/v1/models", headers=KEY).json()["data"]
    assert [(one["id"], one["members"]) for one in models] == [("mine", ["here", "away"])]
    for prompt in ("Once upon", "2 + 2 =", "Dear Sir"):
        found = post(url, prompt=prompt, max_tokens=6).json()
        alone = pack.generate(prompt, max_new_tokens=6)
        assert found["choices"][0]["text"] == alone.text
        assert found["fusion"]["weights"] == pytest.approx(alone.record.weights, abs=1e-6)


def test_a_stream_arrives_in_parts(url: str, pack: Pack) -> None:
    body = {"prompt": "Once upon", "max_tokens": 6, "stream": True}
    with httpx.stream(
        "POST", url + "/v1/completions", json=body, headers=KEY, timeout=60
    ) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    parts = [json.loads(line)["choices"][0]["text"] for line in lines[:-1]]
    assert len(parts) > 3
    assert "".join(parts) == pack.generate("Once upon", max_new_tokens=6).text


def test_a_client_that_leaves_ends_its_answer(url: str) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 400, "stream": True}
    for _ in range(6):  # more than the replicas have places for, if they were not freed
        with httpx.stream(
            "POST", url + "/v1/completions", json=body, headers=KEY, timeout=60
        ) as response:
            next(response.iter_lines())
    assert post(url, prompt="Once upon a time", max_tokens=2).status_code == 200


def test_errors_are_those_of_the_endpoint(url: str) -> None:
    found = post(url, prompt="x", temprature=1)
    assert found.status_code == 400
    assert found.json()["error"]["param"] == "temprature"
    assert httpx.post(url + "/v1/completions", json={"prompt": "x"}).status_code == 401
    assert post(url, prompt="x", model="other").status_code == 404
    assert httpx.get(url + "/none", headers=KEY).status_code == 404


def test_a_prompt_that_begins_alike_finds_its_beginning_read(url: str) -> None:
    beginning = "A long beginning that several prompts have in common. " * 12
    cached = []
    for number in range(6):
        found = post(url, prompt=f"{beginning}{number}", max_tokens=1).json()
        cached.append(found["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0
    assert min(cached[1:]) > 50


def test_members_are_where_they_ask_to_be(url: str, cluster: Any) -> None:
    del url
    handle = serve.get_deployment_handle("packs", "test")
    second = cluster.list_all_nodes()[1].node_id
    assert {tuple(handle.nodes.remote().result().items()) for _ in range(4)} == {
        (("mine/away", second),)
    }


def test_what_cannot_be_deployed_is_refused(url: str, config: PackConfig) -> None:
    del url
    here, there = config.members
    away = config.replace(members=[here, there.replace(ray={"num_gpus": 4})])
    with pytest.raises(ConfigError, match="member 'away' of 'mine' asks for 1 CPU, 4 GPU"):
        deploy({"mine": away}, name="gpus")
    alone = {"mine": config.replace(members=[here])}
    with pytest.raises(ConfigError, match=r"'second' cannot be started: .*Prefix / is being used"):
        deploy(alone, DeployOptions(place=RayPlace(num_cpus=0.1)), name="second")
    assert set(serve.status().applications) == {"test"}


def test_the_reason_of_a_pack_that_cannot_be_loaded_is_told(
    cluster: Any, config: PackConfig, tmp_path: Path
) -> None:
    del cluster
    gone = config.members[0].replace(model=str(tmp_path / "none"))
    serve.shutdown()
    with pytest.raises(LoadError, match=r"^the application 'gone' cannot run: member 'here'"):
        deploy(
            {"mine": config.replace(members=[gone])},
            DeployOptions(place=RayPlace(num_cpus=0.1), load_seconds=120),
            name="gone",
        )
    assert set(serve.status().applications) == set()
    serve.shutdown()
