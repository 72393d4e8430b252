"""Front ends on packs with members in servers give what the same calls of the pack give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse

from packfuse import Pack
from packfuse.models.member import Member
from tests.support import served_calls
from tests.support.replay import replayed
from tests.support.served_calls import BATCH, CHAT, FIXED, PROMPT, THREE

RECORDED = Path(__file__).parents[1] / "tests" / "models" / "remote"
TOKENS = FIXED["max_new_tokens"]

pytestmark = [
    pytest.mark.starter,
    pytest.mark.filterwarnings("ignore:member 'smol' names 20 tokens:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset"),
]


@pytest.fixture(scope="module")
def pack_with(
    tmp_path_factory: pytest.TempPathFactory, default_folders: dict[str, Path]
) -> Iterator[Callable[[str], Pack]]:
    """Makes a pack of a local member and one or two served ones."""
    folder = default_folders["SmolLM2-135M-Instruct"]
    with ExitStack() as stack:
        tiny = stack.enter_context(served_calls.tiny_served(tmp_path_factory.mktemp("served")))

        def smol(file: str) -> Member:
            url = stack.enter_context(replayed(RECORDED / f"{file}.json"))
            return served_calls.load(url, folder)

        makers: dict[str, Callable[[], list[Member]]] = {
            "llama.cpp": lambda: [tiny],
            "vllm": lambda: [smol("vllm_0_32")],
            "sglang": lambda: [smol("sglang_0_5")],
            "both": lambda: [tiny, smol("vllm_0_32")],
        }
        yield lambda kind: served_calls.pack_of(*makers[kind]())


@pytest.fixture(scope="module", params=["llama.cpp", "vllm", "sglang", "both"])
def pack(request: pytest.FixtureRequest, pack_with: Callable[[str], Pack]) -> Pack:
    return pack_with(request.param)


@pytest.fixture(scope="module")
def settings(pack: Pack) -> dict[str, Any]:
    """The weights of the recording."""
    if len(pack.names) > 2:
        return {"weights": THREE["weights"]}
    return {"weights": {"deepseek": 0.1, pack.names[1]: 0.9}}


def test_a_chat(pack: Pack, settings: dict[str, Any]) -> None:
    own = pack.generate(CHAT, max_new_tokens=TOKENS, **settings).text
    assert "".join(c.text for c in pack.stream(CHAT, max_new_tokens=TOKENS, **settings)) == own
    chat = ChatPackFuse(pack=pack, max_tokens=TOKENS)
    assert chat.invoke(CHAT, **settings).content == own
    assert "".join(str(c.content) for c in chat.stream(CHAT, **settings)) == own
    index = PackFuse(pack=pack, max_new_tokens=TOKENS)
    messages = [ChatMessage(one["content"], role=one["role"]) for one in CHAT]
    assert index.chat(messages, **settings).message.content == own
    *_, last = index.stream_chat(messages, **settings)
    assert last.message.content == own


def test_a_batch(pack: Pack, settings: dict[str, Any]) -> None:
    """Eight prompts in LangChain's batch, one after the other in LlamaIndex."""
    own = [answer.text for answer in pack.generate(BATCH, max_new_tokens=TOKENS, **settings)]
    alone = [pack.generate(text, max_new_tokens=TOKENS, **settings).text for text in BATCH]
    assert own == alone
    llm = PackFuseLLM(pack=pack, max_tokens=TOKENS)
    assert llm.batch(BATCH, **settings) == own
    index = PackFuse(pack=pack, max_new_tokens=TOKENS)
    assert [index.complete(text, **settings).text for text in BATCH] == own


@pytest.mark.parametrize("kind", ["llama.cpp", "vllm", "sglang"])
def test_fitted_weights(pack_with: Callable[[str], Pack], kind: str) -> None:
    pack = pack_with(kind)
    own = pack.generate(PROMPT, **served_calls.FITTED)
    llm = PackFuse(pack=pack, max_new_tokens=served_calls.FITTED["max_new_tokens"])
    assert llm.complete(PROMPT).text == own.text
