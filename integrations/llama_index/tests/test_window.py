"""What LlamaIndex packs into the context window is refused by no member."""

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.packfuse import PackFuse

from tests.support import packs, pico

TEXT = "Schöne Grüße aus 北京, und 12345 Zeilen def f(x): return 🎉\n" * 60
ASK = PromptTemplate("Context:\n{context_str}\n\nQuestion: what is it?\nAnswer: ")


def uneven_pack():
    """Tokenizers that need very different numbers of tokens, and windows of different sizes."""
    members = [
        packs.HFMember(name, pico.tiny_pair(name, context=size)[0], packs.vocabulary(name))
        for name, size in (("deepseek", 400), ("mistral", 600))
    ]
    return packs.tiny_pack(members, prefix_cache=0)


def test_a_prompt_that_the_helper_fills_is_answered():
    pack = uneven_pack()
    llm = PackFuse(pack=pack, max_new_tokens=20)
    helper = PromptHelper.from_llm_metadata(llm.metadata, tokenizer=llm.tokenize)
    (chunk,) = helper.truncate(ASK, [TEXT])
    assert 400 < len(chunk) < len(TEXT)
    prompt = ASK.format(context_str=chunk)
    assert pack.count_tokens(prompt) + 20 <= llm.metadata.context_window
    assert llm.complete(prompt).raw["usage"]["completion_tokens"] <= 20
    for repacked in helper.repack(ASK, [TEXT]):
        llm.complete(ASK.format(context_str=repacked))
        llm.chat([ChatMessage(ASK.format(context_str=repacked))])


@pytest.mark.slow
def test_an_answer_that_fills_the_window_keeps_its_text():
    llm = PackFuse(pack=uneven_pack(), max_new_tokens=2000)
    response = llm.complete(TEXT[:300])
    assert response.text
    assert response.additional_kwargs["finish_reason"] == "length"
    *_, last = llm.stream_complete(TEXT[:300])
    assert last.text == response.text
    assert any("no more room" in note for note in last.raw["fusion"]["notes"])
