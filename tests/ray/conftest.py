"""A cluster of two nodes on this machine, with tiny models that its processes load."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from packfuse.settings import PackConfig
from tests.support import pico

with contextlib.suppress(ImportError), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, when it is imported
    for module in ("ray.data", "ray.serve"):
        importlib.import_module(module)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny models by the names of their tokenizers."""
    made = {}
    for seed, name in enumerate(("mistral", "deepseek")):
        folder = tmp_path_factory.mktemp(name)
        tokenizer = pico.real_tokenizer(name)
        pico.tiny_model(tokenizer, seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[name] = str(folder)
    return made


@pytest.fixture(scope="session")
def config(folders: dict[str, str]) -> PackConfig:
    """A pack of one member in its own process, and one on the second node."""
    there = {"num_cpus": 0.5, "resources": {"there": 1}}
    return PackConfig.check(
        {
            "members": [
                {"model": folders["mistral"], "name": "here"},
                {"model": folders["deepseek"], "name": "away", "ray": there},
            ],
            "dtype": "float32",
            "max_rows": 2,
        }
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes; this process is connected to the first."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'packfuse[ray]'; make test-ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("OMP_NUM_THREADS", "1")
    path = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=4, resources={"there": 2})
    ray.init(nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    patch.undo()
