"""The class: its metadata, settings and copies, and errors of its arguments."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.llms.packfuse import PackFuse
from pydantic import ValidationError

from packfuse.errors import ConfigError, LoadError, WeightsError
from packfuse.fusion.rules import rules
from packfuse.weighting.methods import weightings
from tests.support import pico


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Two tiny models on disk."""
    folder = tmp_path_factory.mktemp("models")
    return [
        str(pico.save_tiny(folder / name, name, seed=seed))
        for seed, name in enumerate(("deepseek", "mistral"))
    ]


def test_class():
    names = [base.__name__ for base in PackFuse.__mro__]
    assert BaseLLM.__name__ in names
    assert CustomLLM.__name__ in names
    assert FunctionCallingLLM.__name__ in names
    assert PackFuse.class_name() == "PackFuse"


def test_no_method_of_custom_llm_blocks_the_loop():
    for name in ("chat", "complete", "stream_chat", "stream_complete"):
        for method in (name, f"a{name}"):
            assert getattr(PackFuse, method).__module__.startswith("llama_index.llms.packfuse")


def test_metadata(llm, pack):
    metadata = llm.metadata
    assert metadata.context_window == pack.context_window
    assert metadata.num_output == 8
    assert metadata.is_chat_model
    assert metadata.is_function_calling_model
    assert metadata.model_name == "deepseek+mistral"


def test_the_window_is_the_smallest_members():
    from tests.support import packs

    windows = [
        packs.HFMember(name, pico.tiny_pair(name, context=size)[0], packs.vocabulary(name))
        for name, size in (("deepseek", 4096), ("mistral", 300))
    ]
    pack = packs.tiny_pack(windows)
    assert PackFuse(pack=pack).metadata.context_window == 300
    assert PackFuse(pack=pack, context_window=200).metadata.context_window == 200


def test_the_length_of_answers_is_known_under_any_name(pack):
    llm = PackFuse(pack=pack, generate_kwargs={"max_tokens": 5})
    assert llm.metadata.num_output == 5


def test_flags_are_settings(pack):
    llm = PackFuse(pack=pack, is_chat_model=False, is_function_calling_model=False)
    assert not llm.metadata.is_chat_model
    assert not llm.metadata.is_function_calling_model


def test_round_trip_of_settings_loads_the_same_models(folders):
    models = [folders[0], {"model": folders[1], "name": "second"}]
    settings = {
        "fusion": {"name": "unite", "k": 5},
        "weighting": "sim",
        "alignment": "prefix",
        "reference": "second",
        "temperature": 0.5,
        "max_new_tokens": 6,
        "generate_kwargs": {"seed": 3, "stop": ["\n\n"]},
        "system_prompt": "Be brief.",
        "is_chat_model": False,
    }
    llm = PackFuse(models, load_kwargs={"progress": False}, **settings)
    data = json.loads(json.dumps(llm.to_dict()))
    again = PackFuse.from_dict(data)
    assert again.to_dict() == llm.to_dict()
    assert {name: again.to_dict()[name] for name in settings} == settings
    assert again.pack is not llm.pack
    assert again.pack.names == ["deepseek", "second"]
    answers = [one.complete("Once upon") for one in (llm, again)]
    assert answers[0].text == answers[1].text
    assert answers[0].raw["fusion"]["fusion"] == {"name": "unite", "k": 5}
    assert answers[0].raw["fusion"]["reference"] == "second"


def test_round_trip_with_a_pack_needs_the_pack(llm, pack):
    data = llm.to_dict()
    assert "pack" not in data
    with pytest.raises(ConfigError, match="pack_file is needed, got none"):
        PackFuse.from_dict(data)
    assert PackFuse.from_dict(data, pack=pack).to_dict() == data


def test_rules_and_weightings_may_be_objects(pack):
    rule, weighting = rules().make({"name": "unite", "k": 3}), weightings().make("uniform")
    llm = PackFuse(pack=pack, fusion=rule, weighting=weighting)
    data = json.loads(json.dumps(llm.to_dict()))
    assert data["fusion"] == {"name": "unite", "k": 3}
    again = PackFuse.from_dict(data, pack=pack)
    record = again.complete("Once", max_tokens=2).raw["fusion"]
    assert record["weights"] == {"deepseek": 0.5, "mistral": 0.5}
    assert record["fusion"]["k"] == 3


def test_a_pack_file_names_a_pack(tmp_path, folders):
    file = tmp_path / "pack.yaml"
    PackFuse(folders, weighting="sim", load_kwargs={"progress": False}).pack.save_config(file)
    llm = PackFuse(pack_file=str(file), fusion="unite", load_kwargs={"progress": False})
    assert PackFuse.from_dict(llm.to_dict()).to_dict() == llm.to_dict()
    record = llm.complete("Once", max_tokens=2).raw["fusion"]
    assert (record["fusion"]["name"], record["weighting"]["name"]) == ("unite", "sim")


def test_loaded_models_make_a_pack():
    llm = PackFuse(
        [pico.tiny_pair("deepseek"), pico.tiny_pair("mistral")], load_kwargs={"progress": False}
    )
    assert llm.models is None
    assert llm.complete("Once", max_tokens=2).text


def test_from_pack(pack):
    assert PackFuse.from_pack(pack, temperature=0.3).temperature == 0.3
    assert PackFuse.from_pack(pack).pack is pack


def test_copies_share_the_pack(llm):
    deep = copy.deepcopy(llm)
    assert deep is not llm
    assert deep.pack is llm.pack
    deep.generate_kwargs["seed"] = 1
    assert llm.generate_kwargs == {}
    assert llm.model_copy().pack is llm.pack


def test_pickles_load_models_again(folders):
    llm = PackFuse(folders, load_kwargs={"progress": False}, max_new_tokens=4)
    again = pickle.loads(pickle.dumps(llm))  # noqa: S301
    assert again.pack is not llm.pack
    assert again.complete("Once").text == llm.complete("Once").text


def test_pickles_hold_no_pack(llm):
    data = pickle.dumps(llm)
    assert len(data) < 10_000
    assert llm.complete("Once").text
    with pytest.raises(ConfigError, match="without its pack"):
        pickle.loads(data).complete("Once")  # noqa: S301


def test_payload_is_plain_and_has_metadata_only(pack):
    llm = PackFuse(pack=pack, generate_kwargs={"seed": 1})
    payload = json.loads(json.dumps(llm.to_payload()))
    assert payload["class_name"] == "PackFuse"
    assert payload["model_name"] == "deepseek+mistral"
    assert set(payload) == {"class_name", *type(llm.metadata).model_fields}


def test_tokenizer_counts_as_the_pack_does(llm, pack):
    for text in ("", "Hello, world!", "naïve 北京\n"):
        assert len(llm.tokenize(text)) == pack.count_tokens(text)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({}, ConfigError, "pack_file is needed, got none"),
        ({"models": "org/model"}, ConfigError, "`models` is a list"),
        ({"models": ["/no/such/model"]}, LoadError, "/no/such/model"),
        ({"models": ["a"], "fusion": "packlm"}, ConfigError, "did you mean 'packllm'"),
        ({"models": ["a"], "wieghting": "sim"}, ConfigError, "did you mean 'weighting'"),
        ({"models": ["a"], "max_new_tokens": 0}, ValidationError, "max_new_tokens"),
    ],
)
def test_bad_settings(settings, error, words):
    with pytest.raises(error, match=words):
        PackFuse(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"models": ["org/model"]}, ConfigError, "got pack and models"),
        ({"alignment": "prefix"}, ConfigError, "takes no alignment"),
        ({"reference": "mistral"}, ConfigError, "takes no reference"),
        ({"load_kwargs": {"dtype": "auto"}}, ConfigError, "takes no dtype"),
        ({"weighting": {"absent": 1.0}}, WeightsError, "absent"),
        ({"generate_kwargs": {"stop": [""]}}, ConfigError, "stop string"),
        ({"generate_kwargs": {"fusion": "packlm"}}, ConfigError, "did you mean 'packllm'"),
    ],
)
def test_bad_settings_with_a_pack(pack, settings, error, words):
    with pytest.raises(error, match=words):
        PackFuse(pack=pack, **settings)


def test_a_pack_is_a_pack():
    with pytest.raises(ConfigError, match="is not a pack"):
        PackFuse(pack="starter")
