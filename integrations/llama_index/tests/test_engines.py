"""LlamaIndex's engines over the real starter pack."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Document, MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.selectors import PydanticSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.llms.packfuse import PackFuse, attach_fusion, collect_fusion

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deleted before being closed:ResourceWarning"),
    pytest.mark.usefixtures("swept"),
]

DOCUMENTS = [
    Document(text="The secret word of the club is 'banana'."),
    Document(text="The club meets on Tuesday."),
]


@pytest.fixture
def llm(starter) -> PackFuse:
    """The starter pack, with short answers."""
    return PackFuse(pack=starter, max_new_tokens=16)


@pytest.fixture
def index(settings) -> VectorStoreIndex:
    """Two documents, both of which are always retrieved."""
    Settings.embed_model = MockEmbedding(embed_dim=4)
    return VectorStoreIndex.from_documents(DOCUMENTS)


@pytest.fixture
def tools(index) -> list[QueryEngineTool]:
    """Two query engines as tools."""
    return [
        QueryEngineTool.from_defaults(index.as_query_engine(), name=name, description=description)
        for name, description in (("club", "About the club."), ("weather", "About the weather."))
    ]


def weights(fusion) -> list[float]:
    """The sum of the weights of every call."""
    return [pytest.approx(1) == sum(record["weights"].values()) for record in fusion.records]


def test_retriever_query_engine(index):
    engine = index.as_query_engine()
    with collect_fusion() as fusion:
        response = engine.query("What is the secret word?")
    assert "banana" in response.response
    assert len(response.source_nodes) == 2
    assert [call.kind for call in fusion.calls] == ["chat"]
    assert weights(fusion) == [True]
    assert attach_fusion(response, fusion).metadata["fusion"] == fusion.records


def test_retriever_query_engine_streams_the_same_answer(index):
    whole = index.as_query_engine().query("What is the secret word?").response
    streamed = index.as_query_engine(streaming=True).query("What is the secret word?")
    assert "".join(streamed.response_gen) == whole
    assert asyncio.run(index.as_query_engine().aquery("What is the secret word?")).response == whole


@pytest.mark.slow
def test_condense_plus_context_chat_engine(index):
    engine = index.as_chat_engine(chat_mode="condense_plus_context")
    with collect_fusion() as fusion:
        first = engine.chat("What is the secret word?")
        second = "".join(engine.stream_chat("When does the club meet?").response_gen)
    assert "banana" in first.response
    assert "Tuesday" in second
    assert [call.kind for call in fusion.calls] == ["chat", "completion", "chat"]
    assert weights(fusion) == [True] * 3
    assert [message.role.value for message in engine.chat_history] == ["user", "assistant"] * 2


@pytest.mark.slow
def test_router_query_engine(tools, llm):
    selector = PydanticSingleSelector.from_defaults(llm=PackFuse(pack=llm.pack, max_new_tokens=96))
    with collect_fusion() as fusion:
        response = RouterQueryEngine.from_defaults(tools, selector=selector).query(
            "What is the secret word?"
        )
    assert "banana" in response.response
    assert response.metadata["selector_result"].ind in (0, 1)
    assert len(fusion.records) == 2


@pytest.mark.slow
def test_sub_question_query_engine(tools, llm):
    question = {
        "type": "object",
        "properties": {
            "sub_question": {"type": "string", "maxLength": 40},
            "tool_name": {"enum": ["club"]},
        },
        "required": ["sub_question", "tool_name"],
    }
    form = {"type": "array", "items": question, "minItems": 1, "maxItems": 1}
    asking = PackFuse(pack=llm.pack, max_new_tokens=64, generate_kwargs={"constraint": form})
    engine = SubQuestionQueryEngine.from_defaults(
        tools, question_gen=LLMQuestionGenerator.from_defaults(llm=asking), use_async=False
    )
    with collect_fusion() as fusion:
        response = engine.query("What is the secret word of the club?")
    assert response.response
    assert len(fusion.records) == 3
