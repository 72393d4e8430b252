"""Settings of the front ends: whatever is accepted has an effect, by any of its names."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse
from pydantic import BaseModel

from packfuse import Pack
from packfuse.errors import ConfigError, UnsupportedError
from packfuse.tools.arguments import call_arguments
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")

KINDS: list[Any] = [PackFuseLLM, ChatPackFuse, PackFuse]
TYPOS = {
    "max_new_token": "max_new_tokens",
    "max_tokenz": "max_tokens",
    "temprature": "temperature",
    "repetition_penality": "repetition_penalty",
    "do_samples": "do_sample",
    "num_beam": "num_beams",
    "wieghts": "weights",
    "guidence_scale": "guidance_scale",
    "top_logprob": "top_logprobs",
}


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE, prefix_cache=0)


def record_of(model: Any, **call: Any) -> dict[str, Any]:
    """The fusion record of one answer."""
    found: Any
    if isinstance(model, PackFuse):
        found = model.chat([ChatMessage("hello")], **call).raw
        return dict(found["fusion"])
    result = (
        model.generate(["hello"], **call)
        if isinstance(model, PackFuseLLM)
        else model.generate([[HumanMessage("hello")]], **call)
    )
    found = result.generations[0][0]
    info = found.message.response_metadata if hasattr(found, "message") else found.generation_info
    return dict(info["fusion"])


EFFECTS: list[tuple[dict[str, Any], Any, Any]] = [
    ({"max_new_tokens": 3}, lambda r: r["usage"]["completion_tokens"], 3),
    ({"max_tokens": 3}, lambda r: r["usage"]["completion_tokens"], 3),
    ({"seed": 7, "temperature": 1.0}, lambda r: r["seed"], 7),
    ({"weights": {"long": 0.25, "short": 0.75}}, lambda r: r["weights"]["short"], 0.75),
    ({"fusion": "unite"}, lambda r: r["fusion"]["name"], "unite"),
    ({"gate": "safe"}, lambda r: r["gate"]["name"], "safe"),
    ({"trace": True, "max_new_tokens": 2}, lambda r: r["trace"] and len(r["trace"]), 2),
    ({"num_beams": 2}, lambda r: r["agreed"], None),
    ({"stop": "e", "max_new_tokens": 100}, lambda r: r["stop"], "e"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "view", "value"), EFFECTS, ids=["-".join(settings) for settings, *_ in EFFECTS]
)
def test_every_argument_of_a_call_works_everywhere(
    pack: Pack, kind: Any, settings: dict[str, Any], view: Any, value: Any
) -> None:
    plain = kind(pack=pack)
    further = "generate_kwargs" if kind is PackFuse else "model_kwargs"
    if not {"max_tokens", "max_new_tokens"} & settings.keys():
        settings = {**settings, "max_new_tokens": 5}
    ways = [
        record_of(kind(pack=pack, **settings)),
        record_of(kind(pack=pack, **{further: settings})),
        record_of(plain, **settings),
    ]
    if kind is not PackFuse:
        assert isinstance(plain, BaseLanguageModel)
        ways.append(record_of(plain, model_kwargs=settings))
    assert [view(record) for record in ways] == [value] * len(ways)
    assert view(record_of(plain, max_tokens=5)) != value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("typo", TYPOS)
def test_an_unknown_name_is_refused_with_the_nearest(pack: Pack, kind: Any, typo: str) -> None:
    near = rf"'{typo}'.*{TYPOS[typo]}"
    further = "generate_kwargs" if kind is PackFuse else "model_kwargs"
    model = kind(pack=pack)
    calls: list[Any] = [
        lambda: kind(pack=pack, **{typo: 1}),
        lambda: kind(pack=pack, **{further: {typo: 1}}),
    ]
    if kind is PackFuse:
        chat = [ChatMessage("hello")]
        calls += [
            lambda: model.complete("hello", **{typo: 1}),
            lambda: list(model.stream_complete("hello", **{typo: 1})),
            lambda: model.chat(chat, **{typo: 1}),
            lambda: list(model.stream_chat(chat, **{typo: 1})),
            lambda: asyncio.run(model.achat(chat, **{typo: 1})),
        ]
    else:
        calls += [
            lambda: model.invoke("hello", **{typo: 1}),
            lambda: model.batch(["hello"], **{typo: 1}),
            lambda: list(model.stream("hello", **{typo: 1})),
            lambda: asyncio.run(model.ainvoke("hello", **{typo: 1})),
            lambda: model.bind(**{typo: 1}).invoke("hello"),
            lambda: model.invoke("hello", model_kwargs={typo: 1}),
        ]
    if kind is ChatPackFuse:

        class Fact(BaseModel):
            """A fact."""

            subject: str

        calls += [
            lambda: model.with_structured_output(Fact, **{typo: 1}),
            lambda: model.with_structured_output(Fact, method="function_calling", **{typo: 1}),
            lambda: model.bind_tools([], **{typo: 1}).invoke("hello"),
        ]
    for call in calls:
        with pytest.raises(ConfigError, match=near):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_two_values_of_one_setting_are_an_error(pack: Pack, kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"two values.*3.*4"):
        kind(pack=pack, max_tokens=3, max_new_tokens=4)
    with pytest.raises(ConfigError, match="same setting"):
        record_of(kind(pack=pack), max_tokens=3, max_new_tokens=4)
    assert record_of(kind(pack=pack, max_tokens=3, max_new_tokens=3))["usage"]


@pytest.mark.parametrize("kind", [PackFuseLLM, ChatPackFuse])
def test_fields_of_further_arguments_are_one_setting(pack: Pack, kind: Any) -> None:
    with pytest.raises(ConfigError, match="two values"):
        kind(pack=pack, temperature=0.5, model_kwargs={"temperature": 0.7})
    model = kind(pack=pack, max_new_tokens=9, num_beams=2)
    assert (model.max_tokens, model.model_kwargs) == (9, {"num_beams": 2})
    flexible = model.configurable_fields(max_tokens=ConfigurableField(id="length"))
    text = flexible.invoke("hello", config={"configurable": {"length": 1}})
    assert str(getattr(text, "content", text)) == str(
        getattr(short := model.invoke("hello", max_tokens=1), "content", short)
    )


@pytest.mark.parametrize("name", ["tools", "response_format", "strict", "stream", "streaming"])
def test_a_completion_has_no_settings_of_chats(pack: Pack, name: str) -> None:
    for call in (
        lambda: PackFuseLLM(pack=pack, **{name: True}),  # type: ignore[arg-type]
        lambda: PackFuseLLM(pack=pack).invoke("hello", **{name: True}),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=name):
            call()


def test_strict_needs_something_to_be_strict_about(pack: Pack) -> None:
    with pytest.raises(ConfigError, match="strict"):
        ChatPackFuse(pack=pack).invoke("hello", strict=True)


def test_settings_for_remote_models_say_that_they_do_nothing(
    pack: Pack, caplog: pytest.LogCaptureFixture
) -> None:
    ChatPackFuse(pack=pack, api_key="x", max_retries=2)
    assert "api_key has no effect" in caplog.text
    assert "max_retries has no effect" in caplog.text


def test_ones_own_tokenizer_counts(pack: Pack) -> None:
    model = ChatPackFuse(pack=pack, custom_get_token_ids=lambda text: [0] * len(text))
    assert model.get_num_tokens("hello") == 5


def test_the_known_names_are_those_of_generate() -> None:
    known = call_arguments()
    assert {"max_new_tokens", "num_beams", "logits_processor", "fusion", "n", "streamer"} <= known
    assert {"continue_final_message", "generation_config"} <= known
    assert not known & {"self", "kwargs"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["output_scores", "return_dict_in_generate", "input_ids"])
def test_what_a_pack_does_not_honor_is_refused_with_the_reason(
    pack: Pack, kind: Any, name: str
) -> None:
    value: Any = [[1]] if name == "input_ids" else True
    for call in (lambda: kind(pack=pack, **{name: value}),
                 lambda: record_of(kind(pack=pack), **{name: value})):  # fmt: skip
        with pytest.raises(UnsupportedError, match=name):
            call()
