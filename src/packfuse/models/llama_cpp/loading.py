"""Opens a GGUF file with llama.cpp, and checks that the tokenizer is the file's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from packfuse.errors import ConfigError, LoadError
from packfuse.models.llama_cpp.gguf_file import GGUFFile
from packfuse.models.llama_cpp.library import library
from packfuse.models.llama_cpp.llama_cpp_member import LlamaCppMember
from packfuse.models.llama_cpp.model import LlamaModel
from packfuse.models.token_check import TEXT, difference
from packfuse.text.vocabulary import Vocabulary


def load_llama_cpp(
    name: str,
    paths: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    gpu_layers: int | None,
) -> LlamaCppMember:
    """A member whose model llama.cpp runs.

    Args:
        name: The member's name.
        paths: The file, or the parts of a split one in order.
        tokenizer: The model's tokenizer.
        ends: Ids that end a turn.
        gpu_layers: How many layers go to GPUs, -1 for all; None for all where there are GPUs.

    Raises:
        ConfigError: for layers on GPUs that llama.cpp was built without.
        LoadError: if llama.cpp is missing or cannot load the file, or for another tokenizer.
        TokenizerError: if the tokens cannot be mapped to bytes.
    """
    layers = _gpu_layers(gpu_layers)
    file = GGUFFile(paths)
    llama = LlamaModel(paths[0], gpu_layers=layers)
    vocabulary = _vocabulary(llama, tokenizer, ends)
    return LlamaCppMember(name, llama, vocabulary, file)


def open_vocabulary(
    path: Path, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> tuple[LlamaModel, Vocabulary]:
    """The same checks without loading the weights.

    Raises:
        LoadError: as `load_llama_cpp`.
        TokenizerError: as `load_llama_cpp`.
    """
    llama = LlamaModel(path, vocabulary_only=True)
    return llama, _vocabulary(llama, tokenizer, ends)


def _gpu_layers(wanted: int | None) -> int:
    supported = bool(library().llama_supports_gpu_offload())
    if wanted and not supported:
        raise ConfigError(
            f"n_gpu_layers={wanted}: llama-cpp-python was built without support for GPUs",
            hint="build it with CMAKE_ARGS=-DGGML_CUDA=on or another backend, or leave it out",
        )
    return wanted if wanted is not None else (-1 if supported else 0)


def _vocabulary(
    llama: LlamaModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> Vocabulary:
    """The vocabulary of a model, whose tokens are those of the tokenizer.

    Raises:
        LoadError: if they are not, with the first difference.
    """
    if not llama.is_causal:
        raise LoadError(
            f"it is a {llama.architecture}, not a causal language model",
            hint="a member generates text after text",
        )
    vocabulary = Vocabulary(tokenizer, llama.columns, list(ends))
    theirs = llama.tokenize(TEXT)
    # Some tokenizers put a space before a text, which a vocabulary leaves out.
    ours = tokenizer.encode(TEXT, add_special_tokens=False)
    if theirs not in (ours, vocabulary.encode(TEXT)):
        raise LoadError(
            f"the tokens of llama.cpp are not those of the tokenizer: "
            f"{difference(ours, theirs, 'in llama.cpp')}",
            hint="set tokenizer to that of the original model, or engine='transformers'",
        )
    return vocabulary
