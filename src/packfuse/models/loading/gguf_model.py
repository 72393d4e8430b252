"""GGUF files as members: as they are under llama.cpp, or expanded under transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from packfuse.errors import LoadError
from packfuse.extras import install_command
from packfuse.models.llama_cpp import EXTRA, LlamaCppMember, load_llama_cpp
from packfuse.models.loading.gguf.copy import copy_of
from packfuse.models.loading.gguf.fields import GGUFHeader, check_model, gguf_header, gguf_parts
from packfuse.models.loading.gguf.tokenizer import gguf_tokenizer, turn_ends
from packfuse.models.loading.pretrained import load_model, load_tokenizer
from packfuse.models.loading.quantization import unpacked
from packfuse.models.loading.source import Source
from packfuse.settings import MemberSettings


def load_gguf(
    source: Source, how: Mapping[str, Any], other: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file through its copy, which is made the first time.

    Args:
        source: The file.
        how: Arguments of `from_pretrained` for the weights.
        other: Hub id or folder of the tokenizer, where it is not that of the file.

    Raises:
        LoadError: for weights that do not belong to the model, or an unknown kind of tokenizer.
        Exception: what transformers and the reader of the format raise.
    """
    path = Path(source.place, str(source.gguf))
    fields = gguf_header(path).fields
    check_model(fields)
    if len(gguf_parts(path, fields)) > 1:
        raise LoadError(
            "transformers does not read files in several parts",
            hint=f"llama.cpp does: {install_command(EXTRA)}, without settings that need "
            "transformers",
        )

    def load(**how: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        # The tokenizer comes first: it fails fast.
        tokenizer = _tokenizer(source, other, fields)
        plain = {"quantization_config": unpacked()} if unpacked() else {}
        model, _ = load_model(source, {**plain, **how}, unsafe=False)
        ends = turn_ends(fields, tokenizer)
        model.generation_config.eos_token_id = ends or None
        return model, tokenizer

    folder = None
    if "quantization_config" not in how:
        folder = copy_of(path, lambda: as_plain(*load(dtype="float32")), tokenizer=other)
    if folder is None:
        return load(**how)
    copied = source.at(str(folder))
    model, _ = load_model(copied, how, unsafe=False)
    model.name_or_path = str(path)
    return model, load_tokenizer(source if other else copied, other, copied)


def load_in_place(name: str, source: Source, member: MemberSettings) -> LlamaCppMember:
    """A GGUF file that llama.cpp runs as it is.

    Raises:
        ConfigError: for layers on GPUs that are not there.
        LoadError: for a file that llama.cpp cannot run, or another tokenizer.
        Exception: what the libraries raise.
    """
    found = gguf_in_place(source, member.tokenizer)
    return load_llama_cpp(name, found.paths, found.tokenizer, found.ends, member.n_gpu_layers)


class GGUFInPlace(NamedTuple):
    """What is read of a GGUF file that llama.cpp runs.

    Attributes:
        paths: The file, or the parts of a split one in order.
        headers: What stands before the weights of each.
        tokenizer: The tokenizer.
        ends: Ids that end a turn.
    """

    paths: list[Path]
    headers: list[GGUFHeader]
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]


def gguf_in_place(source: Source, other: str | None) -> GGUFInPlace:
    """Read a GGUF file but for its weights.

    Args:
        source: The file.
        other: Where the tokenizer is, if it is not that of the file.

    Raises:
        LoadError: for what is no model, or parts that are missing.
        Exception: what the libraries raise for a tokenizer.
    """
    path = Path(source.place, str(source.gguf))
    header = gguf_header(path)
    fields = header.fields
    check_model(fields)
    parts = gguf_parts(path, fields)
    headers = [header, *map(gguf_header, parts[1:])]
    tokenizer = _tokenizer(source, other, fields)
    return GGUFInPlace(parts, headers, tokenizer, turn_ends(fields, tokenizer))


def _tokenizer(
    source: Source, other: str | None, fields: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """The tokenizer of a file whose fields have been read, or another one."""
    if other:
        return load_tokenizer(source, other, source)
    return gguf_tokenizer(Path(source.place, str(source.gguf)), fields)


def as_plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model from a GGUF file without the traces of its format, which would be saved."""
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer
