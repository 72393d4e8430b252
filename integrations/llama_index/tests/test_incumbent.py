"""Known faults of LlamaIndex's own LLM for local models, which `PackFuse` must not have.

Other tests of such faults: arguments of a call, the same prompt whole and streamed, raw data and
stop strings are in `test_answers.py`; errors and the event loop in `test_async.py`; tools in
`test_tools.py` and `test_agents.py`; token counts of streams in `test_events.py`.
"""

from __future__ import annotations

import pytest
from llama_index.core import Document, ListIndex
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse
from transformers import LogitsProcessor

from packfuse.errors import ConfigError
from tests.support import packs


class Prompt(LogitsProcessor):
    """Keeps the ids that the reference was prompted with."""

    ids: list[int] | None = None

    def __call__(self, input_ids, scores):
        """One step."""
        self.ids = self.ids or input_ids[0].tolist()
        return scores


@pytest.mark.parametrize("kind", ["complete", "chat"])
def test_a_prompt_begins_with_one_bos(kind):
    pack = packs.tiny_pack(packs.tiny_members(["deepseek", "mistral"]), reference="mistral")
    llm = PackFuse(pack=pack, max_new_tokens=2)
    bos, prompt = pack.tokenizer.bos_token_id, Prompt()
    if kind == "complete":
        llm.complete("Hello!", logits_processor=[prompt])
    else:
        llm.chat([ChatMessage("Hello!")], logits_processor=[prompt])
    assert bos is not None
    assert prompt.ids.index(bos) == 0
    assert prompt.ids.count(bos) == 1


def test_no_model_is_loaded_that_was_not_named():
    with pytest.raises(ConfigError, match=r"Pack\.starter"):
        PackFuse()


def test_query_engines_chat_with_it(settings, events):
    index = ListIndex.from_documents([Document(text="The sky is green on Mars.")])
    index.as_query_engine().query("Which color is the sky?")
    assert "LLMChatStartEvent" in events.names()
    assert "LLMCompletionStartEvent" not in events.names()


def test_a_streamed_answer_has_everything_that_a_whole_one_has(llm):
    whole = llm.chat([ChatMessage("Hello!")], trace=True)
    streamed = list(llm.stream_chat([ChatMessage("Hello!")], trace=True))[-1]
    assert streamed.message == whole.message
    assert streamed.logprobs == whole.logprobs
    assert streamed.additional_kwargs == whole.additional_kwargs
    assert streamed.raw["usage"] == whole.raw["usage"]
