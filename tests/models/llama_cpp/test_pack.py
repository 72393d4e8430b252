"""Packs of members under llama.cpp do all that packs do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_packfuse import ChatPackFuse, PackFuseLLM

from packfuse import Pack
from packfuse.models.llama_cpp import LlamaCppMember

PROMPTS = [f"number {index} of the llamas" for index in range(8)]
CHAT = [{"role": "user", "content": "Hello"}]


def pack_of(*members: Any, **settings: Any) -> Pack:
    return Pack.from_pretrained(list(members), progress=False, **settings)


@pytest.fixture(scope="module")
def pack(gguf: Path, other: Path) -> Pack:
    """Two members under llama.cpp."""
    found = pack_of(str(gguf), str(other), reference="other")
    assert all(isinstance(member, LlamaCppMember) for member in found.members)
    return found


@pytest.fixture(scope="module")
def expanded_pack(gguf: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The same under transformers."""
    entries = [{"model": str(path), "engine": "transformers"} for path in (gguf, other)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return pack_of(*entries, reference="other")


def test_a_pack_of_one_writes_the_text_that_llama_cpp_writes(gguf: Path) -> None:
    from llama_cpp import Llama

    own = Llama(str(gguf), n_ctx=256, n_threads=1, verbose=False)
    pack = pack_of(str(gguf))
    for prompt in PROMPTS[:3]:
        ids = pack.members[0].vocabulary.encode(prompt)
        theirs = []
        for token in own.generate(ids, temp=0.0, top_k=1):
            theirs.append(token)
            if len(theirs) == 24 or token in pack.members[0].vocabulary.end_ids:
                break
        answer = pack.generate(prompt, max_new_tokens=24)
        assert list(answer.token_ids) == theirs[: len(answer.token_ids)]
        assert len(answer.token_ids) >= len(theirs) - 1
    own.close()


def test_answers_are_those_of_the_expanded_weights(pack: Pack, expanded_pack: Pack) -> None:
    for prompt in (*PROMPTS[:4], CHAT):
        one, two = (one.generate(prompt, max_new_tokens=12) for one in (pack, expanded_pack))
        assert one.token_ids == two.token_ids
        assert one.record.weights == pytest.approx(two.record.weights, abs=0.02)
    assert pack.score("the true", " lo") == pytest.approx(
        expanded_pack.score("the true", " lo"), abs=0.05
    )


def test_streams_batches_drafts_and_prefixes_change_nothing(pack: Pack, gguf: Path) -> None:
    alone = [pack.generate(prompt, max_new_tokens=10).text for prompt in PROMPTS]
    assert [answer.text for answer in pack.generate(PROMPTS, max_new_tokens=10)] == alone
    assert "".join(chunk.text for chunk in pack.stream(PROMPTS[0], max_new_tokens=10)) == alone[0]
    drafted = pack.generate(PROMPTS[0], max_new_tokens=10, draft="lookup")
    assert drafted.text == alone[0]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda prompt: pack.generate(prompt, max_new_tokens=10).text, PROMPTS)
        )
    assert found == alone
    beams = pack.generate(PROMPTS[0], max_new_tokens=6, num_beams=3)
    assert beams.text


def test_a_pack_with_a_member_of_transformers(gguf: Path, other: Path, pack: Pack) -> None:
    mixed = pack_of({"model": str(gguf), "engine": "transformers"}, str(other), reference="other")
    assert [member.model is None for member in mixed.members] == [False, True]
    for prompt in PROMPTS[:3]:
        one, two = (one.generate(prompt, max_new_tokens=10) for one in (mixed, pack))
        assert one.token_ids == two.token_ids


def test_langchain_and_llama_index(pack: Pack) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.packfuse import PackFuse

    expected = pack.generate(CHAT, max_new_tokens=8).text
    chat = ChatPackFuse(pack=pack, max_tokens=8)
    assert chat.invoke("Hello").content == expected
    assert "".join(str(part.content) for part in chat.stream("Hello")) == expected
    text = pack.generate(PROMPTS[0], max_new_tokens=8).text
    assert PackFuseLLM(pack=pack, max_tokens=8).invoke(PROMPTS[0]) == text
    index = PackFuse(pack=pack, max_tokens=8)
    assert index.chat([ChatMessage(content="Hello")]).message.content == expected
    assert index.complete(PROMPTS[0]).text == text
