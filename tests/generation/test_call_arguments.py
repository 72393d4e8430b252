"""The arguments of a call: all are honored or refused by name, before anything is read."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.llms.packfuse import PackFuse
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    TextStreamer,
    WatermarkingConfig,
)
from transformers.generation.streamers import BaseStreamer

from packfuse import Pack
from packfuse.causal_lm.arguments import IN_ONE_VOCABULARY, GenerationArguments, transformers_names
from packfuse.errors import ConfigError, PackError, PromptError, UnsupportedError
from packfuse.generation.call_arguments import OWN, SETTINGS
from packfuse.models.hf_member import HFMember
from tests.support.small import small_pack

NEW = 6
PROMPTS = ["Hello there", "the true", "日本 lo", "x = {", "12 of them", "he said so", "lo lo lo"]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack()


@pytest.fixture(scope="module")
def auto() -> Pack:
    """Prompts choose the reference; the default one is "long"."""
    return small_pack(reference="auto")


@pytest.fixture(scope="module")
def prompt(auto: Pack) -> str:
    """A prompt that chooses the other reference, and generates more than ends."""
    for text in PROMPTS:
        answer = auto.generate(text, max_new_tokens=NEW)
        if answer.record.reference == "short" and len(answer.token_ids) == NEW:
            return text
    raise AssertionError("no prompt chooses the reference 'short'")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The members that read something, in order."""
    found: list[str] = []
    read = HFMember.read

    def counted(self: HFMember, requests: Any) -> Any:
        found.append(self.name)
        return read(self, requests)

    monkeypatch.setattr(HFMember, "read", counted)
    return found


# Ids belong to one vocabulary.


class Same(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores


class Silent(BaseStreamer):
    """A streamer of ids."""

    def put(self, value: Any) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


def with_ids(pack: Pack) -> dict[str, Any]:
    """An example of every argument that holds or receives token ids."""
    own = pack.members[0]
    everything = list(range(own.vocabulary.columns))
    return {
        "bad_words_ids": [own.vocabulary.encode("the ")],
        "suppress_tokens": own.vocabulary.encode("e"),
        "begin_suppress_tokens": own.vocabulary.encode("e"),
        "sequence_bias": {tuple(own.vocabulary.encode("the ")): 2.0},
        "forced_bos_token_id": 3,
        "forced_eos_token_id": 3,
        "eos_token_id": 3,
        "pad_token_id": 3,
        "watermarking_config": WatermarkingConfig(bias=1.0),
        "logits_processor": [Same()],
        "stopping_criteria": [lambda ids, scores, **_: False],
        "prefix_allowed_tokens_fn": lambda row, ids: everything,
        "streamer": Silent(),
        "assistant_model": own.model,
    }


@pytest.mark.parametrize("name", IN_ONE_VOCABULARY)
def test_arguments_with_ids_pin_the_default_reference(auto: Pack, prompt: str, name: str) -> None:
    value = with_ids(auto)[name]
    record = auto.generate(prompt, max_new_tokens=NEW, **{name: value}).record
    assert record.reference == "long"
    assert any(name in note and "'long'" in note for note in record.notes)
    if name in transformers_names():
        config = GenerationConfig(**{name: value})
        found = auto.generate(prompt, max_new_tokens=NEW, generation_config=config).record
        assert (found.reference, found.notes) == (record.reference, record.notes)


def test_ids_pin_the_default_reference_even_without_weight(auto: Pack, prompt: str) -> None:
    """Its ids are meant although another member decides alone, and would be the reference."""
    alone = {"weights": {"long": 0.0, "short": 1.0}, "max_new_tokens": NEW}
    assert auto.generate(prompt, **alone).record.reference == "short"
    usual = auto.generate(prompt, pad_token_id=3, **alone)
    assert usual.record.reference == "long"
    banned = auto.generate(prompt, suppress_tokens=list(usual.token_ids), **alone)
    assert not set(usual.token_ids) & set(banned.token_ids)


def test_every_field_with_ids_is_known() -> None:
    """A field of a newer transformers that is in no list is refused, whatever it means."""
    holding = {n for n in transformers_names() if re.search(r"_ids?$|suppress|_bias$|token_id", n)}
    taken = {n for n in holding if n in GenerationArguments.model_fields}
    assert taken <= set(IN_ONE_VOCABULARY)
    assert {"bad_words_ids", "eos_token_id", "sequence_bias"} <= taken
    assert holding - taken == {"bos_token_id", "decoder_start_token_id", "force_words_ids"}


def test_banned_words_do_not_come_out_in_any_front_end(auto: Pack, prompt: str) -> None:
    ban = auto.generate(prompt, max_new_tokens=NEW, pad_token_id=3).token_ids[:2]
    forbidden: dict[str, Any] = {"suppress_tokens": list(ban)}
    expected = auto.generate(prompt, max_new_tokens=NEW, **forbidden)
    assert not set(ban) & set(expected.token_ids)
    llm = PackFuseLLM(pack=auto, max_tokens=NEW)
    assert llm.invoke(prompt, **forbidden) == expected.text
    bound = PackFuseLLM(pack=auto, max_tokens=NEW, model_kwargs=forbidden)
    assert bound.invoke(prompt) == expected.text
    index = PackFuse(pack=auto, max_new_tokens=NEW, generate_kwargs=forbidden)
    assert index.complete(prompt).text == expected.text
    streamed = "".join(chunk.text for chunk in auto.stream(prompt, max_new_tokens=NEW, **forbidden))
    assert streamed == expected.text


def test_ids_outside_the_vocabulary_are_refused(auto: Pack, reads: list[str]) -> None:
    columns = auto.members[0].vocabulary.columns
    for name, outside in {
        "forced_eos_token_id": columns, "forced_bos_token_id": 10**6, "eos_token_id": [3, -1],
        "bad_words_ids": [[3], [columns]], "suppress_tokens": [columns],
        "sequence_bias": {(columns,): 1.0}, "pad_token_id": columns,
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=name):
            auto.generate("x", **{name: outside})
        with pytest.raises(ConfigError, match=name):
            auto.model.generate(torch.tensor([[3]]), **{name: outside})
    assert reads == []


def test_stop_strings_are_text(auto: Pack, prompt: str) -> None:
    """They end the answer whoever is the reference, and a tokenizer is not needed."""
    whole = auto.generate(prompt, max_new_tokens=NEW)
    stop = whole.text[2:4]
    expected = auto.generate(prompt, max_new_tokens=NEW, stop=stop)
    for arguments in (
        {"stop_strings": stop},
        {"stop_strings": [stop], "tokenizer": auto.members[0].tokenizer},
        {"generation_config": GenerationConfig(stop_strings=[stop])},
    ):
        found = auto.generate(prompt, max_new_tokens=NEW, **arguments)
        assert (found.text, found.record.stop) == (expected.text, stop)
        assert found.record.reference == "short"


def test_the_model_takes_the_tokenizer_of_its_reference_only(pack: Pack) -> None:
    ids = torch.tensor([pack.members[0].vocabulary.encode("Hello")])
    with pytest.raises(ConfigError, match="tokenizer="):
        pack.model.generate(ids, stop_strings=["e"], tokenizer=pack.members[1].tokenizer)


# A GenerationConfig counts as its fields.


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.7, "max_new_tokens": NEW},
        {"do_sample": True, "top_k": 5, "max_length": 30},
        {"do_sample": False, "temperature": 1.7, "max_new_tokens": 4},
        {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "length_penalty": 0.5},
        {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 4},
        {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
        {"stop_strings": ["e", "o"]},
        {"max_time": 1e-6},
        {"min_new_tokens": 20, "max_new_tokens": 24},
        {"suppress_tokens": [101, 104, 111], "eos_token_id": 97},
        {"guidance_scale": 2.0, "max_new_tokens": 3},
        {"prompt_lookup_num_tokens": 2, "max_new_tokens": 9},
        {"typical_p": 0.5, "min_p": 0.01},
    ],
    ids="-".join,
)
def test_a_generation_config_counts_as_its_fields(pack: Pack, fields: dict[str, Any]) -> None:
    def outcome(**arguments: Any) -> Any:
        found = pack.generate("Hello the lo", seed=3, **arguments)
        answers = found if isinstance(found, list) else [found]
        timed = {"timings", "usage"}
        return [(a.token_ids, a.text, a.record.model_dump(exclude=timed)) for a in answers]

    assert outcome(generation_config=GenerationConfig(**fields)) == outcome(**fields)


@pytest.mark.parametrize(
    ("fields", "named", "expected"),
    [
        ({"max_new_tokens": 9}, {"max_new_tokens": 2}, {"max_new_tokens": 2}),
        ({"max_new_tokens": 9}, {"max_length": 15}, {"max_length": 15}),
        ({"max_length": 9}, {"max_new_tokens": 2}, {"max_new_tokens": 2}),
        ({"temperature": 1.5, "do_sample": True}, {"temperature": 0}, {}),
        ({"temperature": 1.5, "do_sample": True}, {"do_sample": False}, {}),
        ({"do_sample": False}, {"temperature": 1.5}, {"temperature": 1.5}),
        ({"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 1}, {}),
        ({"stop_strings": ["e"], "repetition_penalty": 2.0}, {"repetition_penalty": 1.0},
         {"stop_strings": ["e"]}),
    ],
)  # fmt: skip
def test_arguments_by_name_win(
    pack: Pack, fields: dict[str, Any], named: dict[str, Any], expected: dict[str, Any]
) -> None:
    text = "Hello the lo"
    both = pack.generate(text, generation_config=GenerationConfig(**fields), seed=1, **named)
    assert both.token_ids == pack.generate(text, seed=1, **expected).token_ids


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.9, "max_new_tokens": 3}, {"temperature": 0.9, "max_new_tokens": 3}),
        ({"do_sample": False}, {"max_new_tokens": NEW}),
        ({"top_k": 2}, {"temperature": 1.5, "top_k": 2, "max_new_tokens": NEW}),
        ({"max_length": 12}, {"temperature": 1.5, "max_length": 12}),
    ],
)
def test_the_config_of_a_call_wins_over_the_settings_of_a_front_end(
    pack: Pack, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    config, text = GenerationConfig(**fields), "Hello the lo"
    wanted = pack.generate(text, seed=2, **expected).text
    llm = PackFuseLLM(pack=pack, temperature=1.5, max_tokens=NEW, seed=2)
    assert llm.invoke(text, generation_config=config) == wanted
    index = PackFuse(pack=pack, temperature=1.5, max_new_tokens=NEW, generate_kwargs={"seed": 2})
    assert index.complete(text, generation_config=config).text == wanted


# Nothing is accepted that has no effect.

_TYPO = {"max_new_token": 3}
REFUSED: dict[str, Any] = {
    "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True, "return_dict_in_generate": True, "custom_generate": "folder",
    "trust_remote_code": True, "attention_mask": [[1]], "input_ids": [[1]], "inputs_embeds": 1,
    "past_key_values": 1, "negative_prompt_ids": [[1]], "synced_gpus": True, "bos_token_id": 1,
    "decoder_start_token_id": 1, "token_healing": True, "cache_implementation": "static",
    "prefill_chunk_size": 4, "assistant_early_exit": 1, "penalty_alpha": 0.6,
    "num_beam_groups": 2, "force_words_ids": [[1]], "low_memory": True, "compile_config": 1,
    "is_assistant": True, "length_penalty": 2.0, "early_stopping": True, "tokenizer": 5,
    "num_assistant_tokens": 3, "max_matching_ngram_size": 2, **_TYPO, "frequency_penalty": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_effect_is_refused_by_name(pack: Pack, reads: list[str], name: str) -> None:
    argument = {name: REFUSED[name]}
    llm = PackFuseLLM(pack=pack)
    calls: list[Callable[[], Any]] = [
        lambda: pack.generate("x", **argument),
        lambda: list(pack.stream("x", **argument)),
        lambda: pack.score("x", "y", **argument),
        lambda: pack.weigh("x", **argument),
        lambda: llm.invoke("x", **argument),
        lambda: PackFuseLLM(pack=pack, model_kwargs=argument).invoke("x"),
        lambda: ChatPackFuse(pack=pack).invoke("x", **argument),
        lambda: PackFuse(pack=pack).complete("x", **argument),
        lambda: PackFuse(pack=pack, generate_kwargs=argument),
    ]
    for call in calls:
        with pytest.raises(PackError, match=name):
            call()
    assert reads == []


def test_a_typo_gets_the_nearest_name(pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"'max_new_token'.*did you mean 'max_new_tokens'"):
        pack.generate("x", max_new_token=3)
    with pytest.raises(ConfigError, match=r"did you mean 'temperature'"):
        pack.generate("x", generation_config=GenerationConfig(temprature=3))


@pytest.mark.parametrize(
    "argument",
    [{"output_attentions": True}, {"output_hidden_states": True}, {"position_ids": [[0]]},
     {"inputs_embeds": 1}, {"token_healing": True}, {"max_new_token": 3}, {"temperature": -1.0},
     {"do_sample": "yes"}, {"num_beams": 0}, {"generation_config": {}}, {"seed": 1},
     {"generation_config": GenerationConfig(output_attentions=True)}],
    ids=str,
)  # fmt: skip
def test_the_model_honors_or_refuses_as_well(
    pack: Pack, reads: list[str], argument: dict[str, Any]
) -> None:
    with pytest.raises(PackError, match="output_attentions|" + next(iter(argument))):
        pack.model.generate(torch.tensor([[3, 4]]), **argument)
    assert reads == []


def test_every_name_of_transformers_is_honored_or_refused(pack: Pack) -> None:
    """Any value but a default is refused where it is not honored."""
    parameters = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    unknown = {*transformers_names(), *parameters} - set(GenerationArguments.model_fields)
    for name in unknown - {"generation_config", "transformers_version"}:
        with pytest.raises(UnsupportedError, match=name):
            pack.generate("x", **{name: "x"})


def test_defaults_say_nothing_and_are_accepted(pack: Pack) -> None:
    usual = pack.generate("Hello", max_new_tokens=NEW)
    said = {"output_scores": False, "return_dict_in_generate": None, "num_beam_groups": 1,
            "diversity_penalty": 0.0, "length_penalty": 1.0, "use_cache": True,
            "num_return_sequences": 1, "trust_remote_code": False}  # fmt: skip
    assert pack.generate("Hello", max_new_tokens=NEW, **said).token_ids == usual.token_ids


def test_a_call_runs_no_foreign_code(pack: Pack, tmp_path: Any, reads: list[str]) -> None:
    folder = tmp_path / "custom_generate"
    folder.mkdir()
    (folder / "generate.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path)!r}, 'ran').touch()\n"
        "def generate(model, **kwargs):\n    raise SystemExit\n"
    )
    ids = torch.tensor([[3]])
    code = {"custom_generate": str(tmp_path), "trust_remote_code": True}
    for arguments in (code, {**code, "custom_generate": tmp_path}, {"trust_remote_code": True}):
        calls: list[Callable[[], Any]] = [
            lambda given=arguments: pack.generate("x", **given),  # type: ignore[misc]
            lambda given=arguments: pack.model.generate(ids, **given),  # type: ignore[misc]
            lambda given=arguments: ChatPackFuse(pack=pack).invoke("x", **given),  # type: ignore[misc]
            lambda given=arguments: PackFuse(pack=pack).complete("x", **given),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(UnsupportedError, match=r"custom_generate|trust_remote_code"):
                call()
    for old in ({"penalty_alpha": 0.6, "top_k": 4}, {"num_beams": 2, "num_beam_groups": 2}):
        with pytest.raises(PackError):
            pack.model.generate(ids, **old)
    assert not (tmp_path / "ran").exists()
    assert reads == []


# Values are checked first.

IMPOSSIBLE: list[dict[str, Any]] = [
    {"temperature": -1}, {"temperature": math.inf}, {"temperature": math.nan},
    {"temperature": 1e-45}, {"temperature": "1"}, {"temperature": 10**400}, {"top_p": math.nan},
    {"top_p": 1.5}, {"top_k": -1}, {"min_p": -0.1}, {"num_beams": 0}, {"num_beams": 10**9},
    {"num_beams": True}, {"num_return_sequences": 2}, {"max_new_tokens": 0},
    {"max_new_tokens": 2.5}, {"max_time": 0}, {"max_time": math.nan}, {"do_sample": "yes"},
    {"generation_config": {}}, {"assistant_model": "x"}, {"seed": 1.5}, {"seed": 2**64},
    {"seed": True}, {"stop": {"a"}}, {"stop": {"a": 1}}, {"stop": [1]}, {"stop": "\ud800"},
    {"trace": "yes"}, {"chat_template_kwargs": {"tokenize": False}}, {"chat_template_kwargs": 3},
    {"chat_template_kwargs": {3: 4}}, {"streamer": "x"}, {"logits_processor": [3]},
    {"stopping_criteria": 3}, {"prefix_allowed_tokens_fn": 3}, {"repetition_penalty": 0},
    {"repetition_penalty": 1e-300}, {"suppress_tokens": list(range(320))},
    {"exponential_decay_length_penalty": (1, -1.0)}, {"bad_words_ids": []},
    {"bad_words_ids": [[]]}, {"bad_words_ids": [["a"]]}, {"sequence_bias": {"a": 1}},
    {"watermarking_config": {"ratio": 3}}, {"fusion": 3}, {"fusion": {3: 4}}, {"weights": "x"},
    {"weights": {"long": math.nan}}, {"weighting": {1: 2}}, {"gate": object()}, {"draft": 5},
    {"constraint": 5}, {"constraint": {"type": object()}}, {"epsilon_cutoff": 2.0},
    {"typical_p": 0.0}, {"length_penalty": 1e300, "num_beams": 2}, {"guidance_scale": 1e30},
    {"min_new_tokens": 3, "max_new_tokens": 2}, {"min_new_tokens": 257}, {"max_length": 5},
    {"min_length": 9, "max_length": 8}, {"min_length": 8, "max_new_tokens": 2},
    {"min_new_tokens": 3, "max_length": 7},
    {"generation_config": GenerationConfig(min_new_tokens=3, max_new_tokens=2)},
]  # fmt: skip


@pytest.mark.parametrize("arguments", IMPOSSIBLE, ids=lambda a: f"{next(iter(a))}-{str(a)[:30]}")
def test_impossible_values_are_refused_before_anything_is_read(
    pack: Pack, reads: list[str], arguments: dict[str, Any]
) -> None:
    name = next(iter(arguments))
    words = {
        "constraint": "constraint|JSON schema",
        "weighting": "weighting|weights",
        "generation_config": "generation_config|min_new_tokens",
    }
    with pytest.raises(PackError, match=words.get(name, name)):
        pack.generate("Hello", **arguments)
    assert reads == []


class Odd:
    """An object that raises whatever is done with it."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("shown")

    def __bool__(self) -> bool:
        raise RuntimeError("asked")


THINGS: list[Any] = [
    None, True, False, "", "x", "\ud800", "auto", b"x", math.nan, math.inf, -math.inf, 1e-45, -0.0,
    0, 1, 2, -1, 0.5, 1.0, 2**64, 10**30, complex(1, 2), [], [[]], {}, {"a": 1}, {()}, (), (1,),
    [1], [[1]], [None], range(3), object(), Odd(), [Odd()], torch.ones(2), np.float32(0.5),
    np.int64(3), np.ones((2, 2)), GenerationConfig(), float,
]  # fmt: skip
ODD = st.one_of(
    st.sampled_from(THINGS),
    st.integers(-3, 9),
    st.floats(),
    st.lists(st.integers(-1, 400), max_size=3),
)
NAMES = sorted(
    {*GenerationArguments.model_fields, *OWN, *transformers_names(), "generation_config"}
    | set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs", "inputs"}
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arguments=st.dictionaries(st.sampled_from(NAMES), ODD, min_size=1, max_size=2))
def test_any_arguments_work_or_are_refused_before_anything_is_read(
    pack: Pack, reads: list[str], arguments: dict[str, Any]
) -> None:
    reads.clear()
    lengths = [arguments.get(name) for name in ("max_new_tokens", "max_length")]
    # A maximum below the length of the prompt is found when the prompt has been tokenized.
    assume(not any(isinstance(length, int) and length > 40 for length in lengths))
    limit = {"max_new_tokens": 2} if all(length is None for length in lengths) else {}
    try:
        found = pack.generate("Hello", **{**limit, **arguments})
    except PackError:
        assert reads == []
    else:
        for answer in found if isinstance(found, list) else [found]:
            json.loads(json.dumps(answer.record.model_dump(mode="json"), allow_nan=False))


def test_lone_surrogates_are_refused(pack: Pack, reads: list[str]) -> None:
    for call in (
        lambda: pack.generate("a\ud800"),
        lambda: pack.score("a\ud800", "b"),
        lambda: pack.score("a", "b\udfff"),
        lambda: pack.weigh("a\ud800"),
        lambda: pack.count_tokens("a\ud800"),
    ):
        with pytest.raises(PromptError, match="lone surrogate"):
            call()
    assert reads == []


def test_a_streamer_gets_the_tokens_of_the_answer(pack: Pack) -> None:
    class Keep(TextStreamer):
        def __init__(self) -> None:
            super().__init__(pack.tokenizer, skip_prompt=True)
            self.text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text

    keep = Keep()
    answer = pack.generate("Hello", max_new_tokens=NEW, streamer=keep)
    assert keep.text == pack.tokenizer.decode(answer.token_ids)
    for arguments in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        with pytest.raises(ConfigError, match="streamer"):
            pack.generate("Hello", streamer=keep, **arguments)
    with pytest.raises(ConfigError, match="streamer"):
        pack.generate(["Hello", "you"], streamer=keep)
    with pytest.raises(ConfigError, match="streamer"):
        pack.stream("Hello", streamer=keep)


def test_an_own_end_token_ends_the_answer(pack: Pack) -> None:
    """Alone and beside longer rows, whose padding is not part of the answer."""
    usual = pack.generate(["Hello", "you"], max_new_tokens=NEW)
    end = usual[0].token_ids[2]
    alone = pack.generate("Hello", max_new_tokens=NEW, eos_token_id=end)
    both = pack.generate(["Hello", "you"], max_new_tokens=NEW, eos_token_id=end)
    first = usual[0].token_ids.index(end)
    assert alone.token_ids == both[0].token_ids == usual[0].token_ids[: first + 1]
    assert [alone.record.finish_reason, both[0].record.finish_reason] == ["stop", "stop"]


def test_settings_are_those_of_the_pack() -> None:
    assert set(SETTINGS) <= set(OWN)


@pytest.fixture(autouse=True)
def nothing_waits(pack: Pack) -> Iterator[None]:
    yield
    assert pack.scheduler._waiting == []
