"""The Python snippets of the documentation run, page by page, on tiny models.

Models are found by their names: what a page calls `Qwen/Qwen3-1.7B` is a folder of that name
where the snippets run. The example of the README runs on the starter pack, in test_readme.py, and
the files of extending.md are tested there as well.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from packfuse import Pack
from packfuse.hf_compat.models import byte_characters
from tests.support.bytelevel import save_small
from tests.support.starter_files import write_gguf
from tests.test_readme import DOCS, PAGES, README, ROOT, blocks, text_of

MODELS = (
    "Qwen/Qwen3-1.7B",
    "HuggingFaceTB/SmolLM3-3B",
    "org/large",
    "org/small",
    "some/base-model",
    "some/small-instruct-model",
)
NOT_RUN = re.compile(r"(?:<!-- not run: \w[^\n]+ -->\n\n)?```python no-run\n")

RUN = [
    page
    for page in PAGES
    if page != README and re.search(r"^```python\n", text_of(page), re.MULTILINE)
]


def end_soon(folder: Path) -> None:
    """Let many tokens end an answer, none of which is ASCII: untrained models write on and on."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = [byte_characters()[byte] for byte in range(0x80, 0xC0)]
    ids: Any = tokenizer.convert_tokens_to_ids(parts)
    ends = [tokenizer.eos_token_id, *ids]
    GenerationConfig(eos_token_id=ends).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model by every name that pages use, and a file of questions."""
    root = tmp_path_factory.mktemp("snippets")
    for seed, name in enumerate(MODELS):
        save_small(root / name, 300 + 20 * seed, seed=seed, context=2048, chats=True)
        end_soon(root / name)
    (root / "models").mkdir()
    write_gguf(root / "models" / "third.gguf", seed=9, context=2048)
    questions = [{"question": f"Is {n} even?", "answer": ["no"]} for n in (1, 3)]
    lines = "\n".join(map(json.dumps, questions))
    (root / "questions.jsonl").write_text(lines, encoding="utf-8")
    return root


@pytest.fixture
def namespace(models: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that pages take for granted, in the folder of the models."""
    monkeypatch.chdir(models)
    monkeypatch.setenv("PACKFUSE_CACHE", str(models / "cache"))

    def starter(*_: Any, expert: bool = False, **settings: Any) -> Pack:
        names = MODELS[:3] if expert else MODELS[:2]
        return Pack.from_pretrained(list(names), progress=False, **settings)

    monkeypatch.setattr(Pack, "starter", starter)
    return {"pack": starter(), "Pack": Pack}


def langchain_names(pack: Pack) -> dict[str, Any]:
    """An agent, which LangChain's own documentation explains."""
    from langchain.agents import create_agent
    from langchain_packfuse import ChatPackFuse

    return {"agent": create_agent(ChatPackFuse(pack=pack, max_tokens=8), [])}


def llama_index_names(pack: Pack) -> dict[str, Any]:
    """A query engine and a tool, which LlamaIndex's own documentation explains."""
    from llama_index.core import Document, MockEmbedding, VectorStoreIndex
    from llama_index.llms.packfuse import PackFuse

    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        return a * b

    index = VectorStoreIndex.from_documents([Document(text="Once.")], embed_model=MockEmbedding(4))
    llm = PackFuse(pack=pack, max_new_tokens=8)
    return {"query_engine": index.as_query_engine(llm=llm), "multiply": multiply}


GIVEN = {
    ROOT / "integrations" / "langchain" / "README.md": langchain_names,
    ROOT / "integrations" / "llama_index" / "README.md": llama_index_names,
}


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Runs coroutines; without a loop to find, LlamaIndex makes one and leaves it open."""
    with asyncio.Runner() as found:
        asyncio.set_event_loop(found.get_loop())
        yield found
    asyncio.set_event_loop(None)


# LlamaIndex uses old names of pydantic.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page: Path, namespace: dict[str, Any], runner: asyncio.Runner) -> None:
    namespace.update(GIVEN.get(page, lambda _: {})(namespace["pack"]))
    snippets = re.findall(r"^```python\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)
    for number, snippet in enumerate(snippets, start=1):
        if re.match(r"# \S+\.py\n", snippet):
            continue  # a file of a package, tested in test_readme.py
        name = f"{page.name}, snippet {number}"
        code = compile(snippet, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        waits = bool(code.co_flags & inspect.CO_COROUTINE)
        result = eval(code, namespace)  # noqa: S307 (the project's own pages)
        if waits:
            runner.run(result)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_does_not_run_says_why(page: Path) -> None:
    assert [found for found in NOT_RUN.findall(text_of(page)) if "not run:" not in found] == []


def test_most_snippets_run() -> None:
    marked = sum(text_of(page).count("```python no-run\n") for page in PAGES)
    assert len(RUN) >= 8
    assert marked <= sum(len(blocks("python", page)) for page in PAGES) / 4
    assert DOCS / "guide.md" in RUN
