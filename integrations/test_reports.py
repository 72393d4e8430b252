"""Public bug reports of peers, replayed on a pack: each by its source, with what was wanted.

A report that is found belongs here with a test that fails where the fault is.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse
from pydantic import BaseModel
from transformers import GenerationConfig

from packfuse import Pack
from packfuse.errors import ConfigError
from tests.support import pico
from tests.support.scripted import TEMPLATE, scripted_pack
from tests.support.small import scripted_small, small_pack

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")

CHAT = [{"role": "user", "content": "hello the"}]


class Fact(BaseModel):
    """A fact."""

    subject: str
    count: int


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE)


@pytest.fixture
def fresh() -> Iterator[Pack]:
    """A pack whose members may be altered."""
    members = [copy.deepcopy(member.model) for member in small_pack(template=TEMPLATE).members]
    own = small_pack(template=TEMPLATE)
    yield Pack.from_pretrained(
        [(model, member.tokenizer) for model, member in zip(members, own.members, strict=True)],
        progress=False,
        weighting="uniform",
    )


def test_one_model_in_several_threads(pack: Pack) -> None:
    """xorbitsai/inference#54: `generate` of one model from several threads mixed the answers."""
    rows = [torch.tensor([pack.tokenizer(text).input_ids]) for text in ("hello", "true", "he lo")]

    def answer(row: torch.Tensor) -> Any:
        return pack.model.generate(row, max_new_tokens=6, do_sample=False).tolist()

    alone = [answer(row) for row in rows]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(answer, rows * 6)) == alone * 6


def test_a_cached_prompt_after_the_weights_changed(fresh: Pack) -> None:
    """ggml-org/llama.cpp#26207: a cached prompt was used again under another adapter."""
    prompt = "hello the hello the true hello long the"
    before = fresh.score(prompt, " the")
    with torch.no_grad():
        fresh.members[1].model.lm_head.weight.mul_(-1.0)
    after = fresh.score(prompt, " the")
    fresh.forget()
    assert after == pytest.approx(fresh.score(prompt, " the"), abs=1e-4)
    assert after != pytest.approx(before, abs=1e-2)


def test_banned_words_when_the_prompt_picks_the_vocabulary() -> None:
    """huggingface/transformers#14206: words in `bad_words_ids` were generated all the same."""
    pack = small_pack(template=TEMPLATE, reference="auto")
    ids = pack.tokenizer("the ").input_ids
    for prompt in ("hello", "日本", "he lo"):
        answer = pack.generate(prompt, max_new_tokens=12, bad_words_ids=[ids])
        assert answer.record.reference == pack.names[pack.default_reference]
        assert ids[0] not in answer.token_ids


def test_several_answers_to_several_prompts(pack: Pack) -> None:
    """huggingface/transformers#17372: several prompts with several answers lost all but one."""
    llm = PackFuseLLM(pack=pack, max_tokens=4, temperature=1.5)
    result = llm.generate(["hello", "true the"], num_return_sequences=2)
    assert [len(answers) for answers in result.generations] == [2, 2]
    with pytest.raises(ConfigError, match="num_return_sequences"):
        llm.batch(["hello", "true the"], num_return_sequences=2)


def test_a_configuration_that_samples(pack: Pack) -> None:
    """huggingface/transformers#35372: `do_sample` of a configuration and of a call disagreed."""
    config = GenerationConfig(do_sample=True, temperature=1.7, max_new_tokens=8)
    by_name = pack.generate("he", do_sample=True, temperature=1.7, max_new_tokens=8, seed=3)
    by_config = pack.generate("he", generation_config=config, seed=3)
    assert by_config.token_ids == by_name.token_ids
    greedy = pack.generate("he", generation_config=config, do_sample=False)
    assert greedy.token_ids == pack.generate("he", max_new_tokens=8).token_ids


def test_the_length_that_was_set(pack: Pack) -> None:
    """langchain-ai/langchain#25219: `max_new_tokens` never reached the model."""
    answer = ChatPackFuse(pack=pack, max_new_tokens=3).invoke("hello")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= 3
    with pytest.raises((ConfigError, ValueError), match="max_new_token"):
        ChatPackFuse(pack=pack, max_new_token=3)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_that_was_cut(method: Any) -> None:
    """langchain-ai/langchain#30158: truncated output was reported as a missing field, or None."""
    text = json.dumps({"subject": "the long the long", "count": 3})
    scripted = scripted_small(lambda _: text)
    model = ChatPackFuse(pack=scripted, max_tokens=4)
    with pytest.raises(OutputParserException, match=r"length|cut off"):
        model.with_structured_output(Fact, method=method).invoke("go")
    raw = model.with_structured_output(Fact, method=method, include_raw=True).invoke("go")
    assert raw["parsed"] is None  # type: ignore[index,call-overload]
    assert re.search("length|cut off", str(raw["parsing_error"]))  # type: ignore[index,call-overload]


def test_an_answer_that_goes_on_with_the_users_turn() -> None:
    """langchain-ai/langchain#19770: a chat model wrote the next turns of the dialogue, too."""
    scripted = scripted_pack(lambda _: "Rome.\n[user] And of France?\n[assistant] Paris.")
    answer = scripted.generate([{"role": "user", "content": "Capital of Italy?"}])
    assert answer.text == "Rome."
    assert answer.record.finish_reason == "stop"


def test_a_prompt_that_was_counted_to_fit(pack: Pack) -> None:
    """run-llama/llama_index#8046: a prompt within the counted window was refused."""
    text = "日本 hello "
    while pack.count_tokens(text + "日") <= pack.context_window:
        text += "日"
    answer = pack.generate(text, max_new_tokens=4)
    assert answer.record.finish_reason in ("length", "stop")
    index = PackFuse(pack=pack, max_new_tokens=4)
    assert index.metadata.context_window == pack.context_window


def test_one_tool_with_a_lookahead() -> None:
    """ggml-org/llama.cpp#14227: one tool with an unsupported schema made all tools fail."""
    schema = {"type": "string", "pattern": r"^(?=.{3,})\S+$"}
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": "A tool.",
                "parameters": {"type": "object", "properties": {"x": kind}, "required": ["x"]},
            },
        }
        for name, kind in (("odd", schema), ("plain", {"type": "integer"}))
    ]
    call = '<tool_call>\n{"name": "plain", "arguments": {"x": 4}}\n</tool_call>'
    model = ChatPackFuse(pack=scripted_small(lambda _: call)).bind_tools(tools)
    message = model.invoke("call plain")
    assert [(c["name"], c["args"]) for c in message.tool_calls] == [("plain", {"x": 4})]


def test_copies_of_a_model(pack: Pack) -> None:
    """ScrapeGraphAI/Scrapegraph-ai#374: `deepcopy` of a chat model failed on a lock."""
    model = ChatPackFuse(pack=pack, max_tokens=3)
    assert copy.deepcopy(model).pack is pack
    assert copy.deepcopy(pack) is pack
    with pytest.raises((ConfigError, NotImplementedError), match="load"):
        pickle.dumps(pack)


def test_tool_arguments_as_a_json_string() -> None:
    """QwenLM/Qwen3#1894: the arguments of a call as JSON text broke templates that need objects."""
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
        "{% for c in m.tool_calls or [] %}"
        "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endfor %}"
        "{% endfor %}[assistant]"
    )
    pack = small_pack(template=template)
    function = {"name": "f", "arguments": '{"city": "Rome"}'}
    chat = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "sunny", "name": "f"},
    ]
    assert pack.count_tokens(chat) > 0
    assert pack.generate(chat, max_new_tokens=2).record.usage.prompt_tokens > 0


def test_content_that_is_none_beside_a_call(pack: Pack) -> None:
    """huggingface/transformers#45419: templates disagreed on `content: None` beside tool calls."""
    messages = [
        HumanMessage("weather?"),
        AIMessage("", tool_calls=[{"name": "f", "args": {"city": "Rome"}, "id": "1"}]),
        ToolMessage("sunny", tool_call_id="1"),
    ]
    assert ChatPackFuse(pack=pack, max_tokens=2).invoke(messages).response_metadata["fusion"]


def test_log_probabilities(pack: Pack) -> None:
    """BerriAI/litellm#223: log-probabilities were not there for local Hugging Face models."""
    model = ChatPackFuse(pack=pack, max_tokens=3)
    message = model.invoke("hello", logprobs=True, top_logprobs=2)
    entries = message.response_metadata["logprobs"]["content"]
    assert len(entries) == 3
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    assert all(entry["logprob"] <= 0 for entry in entries)


def test_an_answer_that_ran_out_of_time(pack: Pack) -> None:
    """h2oai/h2ogpt#290: a limit of time could not be told from a limit of length."""
    answer = pack.generate("hello", max_new_tokens=400, max_time=1e-3)
    assert answer.record.finish_reason == "time"


def test_an_answer_that_is_continued() -> None:
    """huggingface/chat-ui#1368: there was no way to continue an answer."""
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    pack = small_pack(template=template, weighting="uniform")
    chat = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "the true "},
    ]
    continued = pack.generate(chat, continue_final_message=True, max_new_tokens=6)
    by_hand = pack.generate("user: hello;assistant: the true ", max_new_tokens=6)
    assert continued.token_ids == by_hand.token_ids


def test_members_in_a_folder_of_an_adapter(tmp_path: Path) -> None:
    """huggingface/peft#218: a folder with an adapter was not accepted where a model is."""
    pico.save_tiny(tmp_path / "base", "mistral", seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")})
    )
    with pytest.raises(Exception, match="adapter"):
        Pack.from_pretrained([str(folder)], progress=False)


def test_a_stream_gives_every_character(pack: Pack) -> None:
    """huggingface/transformers#22710: a stream printed incomplete characters."""
    text = "".join(chunk.text for chunk in pack.stream("日本", max_new_tokens=12))
    assert text == pack.generate("日本", max_new_tokens=12).text
    index = PackFuse(pack=pack, max_new_tokens=4)
    *_, last = index.stream_chat([ChatMessage(role="user", content="hello")])
    assert (
        last.message.content
        == index.chat([ChatMessage(role="user", content="hello")]).message.content
    )
