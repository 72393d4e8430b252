"""Copies share the pack; pickles load it again by its names, or say how."""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_core.runnables import RunnableConfig
from langchain_packfuse import ChatPackFuse, FusionCallbackHandler, PackFuseLLM
from llama_index.llms.packfuse import PackFuse

from packfuse import Pack
from packfuse.errors import ConfigError, UnsupportedError
from tests.support import pico
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")

KINDS: list[Any] = [ChatPackFuse, PackFuseLLM, PackFuse]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A pack that was loaded by name."""
    folder = tmp_path_factory.mktemp("models")
    models = [
        str(pico.save_tiny(folder / name, name, seed=seed))
        for seed, name in enumerate(("deepseek", "mistral"))
    ]
    settings: Any = {"fusion": {"name": "unite", "k": 5}, "weighting": "sim"}
    return Pack.from_pretrained(models, progress=False, **settings)


def ways(original: Any) -> list[Any]:
    """All kinds of copies within a process."""
    return [
        copy.copy(original),
        copy.deepcopy(original),
        copy.deepcopy({"nested": [original]})["nested"][0],
        *(
            [original.model_copy(), original.model_copy(deep=True)]
            if hasattr(original, "model_copy")
            else []
        ),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_share_the_pack(pack: Pack, kind: Any) -> None:
    model = kind(pack=pack, max_tokens=3, callbacks=[FusionCallbackHandler()]) if kind is not (
        PackFuse
    ) else kind(pack=pack, max_tokens=3)  # fmt: skip
    expected = text_of(model)
    for other in ways(model):
        assert other.pack is pack
        assert text_of(other) == expected
    assert all(other is pack for other in ways(pack))


def text_of(model: Any) -> str:
    found = model.complete("hello") if isinstance(model, PackFuse) else model.invoke("hello")
    return str(getattr(found, "text", found))


def test_the_models_of_a_pack_share_the_members(pack: Pack) -> None:
    model = pack.model
    for other in (copy.copy(model), copy.deepcopy(model)):
        other.generation_config.max_new_tokens = 2
        assert other.engine is model.engine
        assert next(iter(other.parameters())) is next(iter(model.parameters()))
    assert model.generation_config.max_new_tokens is None
    with pytest.raises(UnsupportedError, match="pickle the Pack"):
        pickle.dumps(model)


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_load_the_pack_again_by_name(named: Pack, kind: Any) -> None:
    model = kind(pack=named, max_tokens=3)
    data = pickle.dumps(model)
    assert len(data) < 20_000
    again = pickle.loads(data)  # noqa: S301
    assert again.pack is not named
    assert again.pack.identity == named.identity
    assert text_of(again) == text_of(model)


def test_a_pack_is_pickled_by_its_names(named: Pack, tmp_path: Path) -> None:
    again = pickle.loads(pickle.dumps(named))  # noqa: S301
    assert again.identity == named.identity
    named.save_config(tmp_path / "one.yaml")
    again.save_config(tmp_path / "other.yaml")
    assert (tmp_path / "one.yaml").read_text() == (tmp_path / "other.yaml").read_text()


@pytest.mark.parametrize("kind", [lambda pack: pack, *KINDS[:2]])
def test_what_was_handed_over_as_objects_says_how(pack: Pack, kind: Any) -> None:
    given = kind(pack) if kind not in KINDS else kind(pack=pack)
    with pytest.raises(ConfigError, match=r"cannot be pickled.*load it by name"):
        pickle.dumps(given)


def _answer(model: Any) -> str:
    return text_of(model)


def test_another_process_gets_a_model_of_its_own(named: Pack) -> None:
    """Slow, as a process imports torch and loads the members."""
    model = PackFuseLLM(pack=named, max_tokens=3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_answer, (model,)) == text_of(model)


def test_results_are_plain(pack: Pack) -> None:
    answer = pack.generate("hello", max_new_tokens=3, top_logprobs=2)
    chunks = list(pack.stream("hello", max_new_tokens=3, trace=True))
    for item in (answer, answer.record, *chunks, pack.weigh("hello the")):
        for other in (*ways(item), pickle.loads(pickle.dumps(item))):  # noqa: S301
            assert other == item
    assert dataclasses.asdict(answer)["text"] == answer.text
    assert [dataclasses.asdict(chunk)["text"] for chunk in chunks] == [c.text for c in chunks]
    assert json.loads(answer.record.model_dump_json())["trace"]


@pytest.mark.parametrize("kind", KINDS)
def test_dumps_are_plain(pack: Pack, kind: Any) -> None:
    model = kind(pack=pack, max_tokens=3)
    dumped = model.to_dict() if kind is PackFuse else model.model_dump()
    assert "pack" not in dumped
    assert json.loads(json.dumps(dumped, default=str))
    if kind is PackFuse:
        return
    assert dumpd(model)["type"] == "not_implemented"
    assert json.dumps(dumpd(model | str))
    assert model.asdict()["_type"] == model._llm_type
    config = RunnableConfig(tags=["a"], metadata={"b": 1})
    configured = copy.deepcopy(model.with_config(config).bind(stop=["x"]))
    assert text_of(configured) == text_of(model)
