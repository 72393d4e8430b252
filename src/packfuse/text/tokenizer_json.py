"""The parts of tokenizer.json, and a copy of a tokenizer that encodes text without changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase

from packfuse.errors import TokenizerError

_REWRITES = {"NFC", "NFKC", "NFD", "NFKD", "Precompiled", "Lowercase", "StripAccents", "Strip"}
"""Normalizers that change the text, so that its bytes are lost."""

_UNKNOWN = ("unk_token", "fuse_unk")
"""Settings of a model for text that it has no tokens for, which does not occur."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The split that a ByteLevel pre-tokenizer has built in."""

METASPACE = "▁"
"""How SentencePiece-style vocabularies spell a space."""


def pipeline(backend: Tokenizer) -> dict[str, Any]:
    """The normalizer, pre-tokenizer and decoder as tokenizer.json has them, without the model.

    The model's vocabulary and merges are nearly all of tokenizer.json and slow to parse. Padding,
    truncation and templates are settings of single calls, so they are left out.
    """
    shell = Tokenizer(BPE())
    shell.normalizer = backend.normalizer
    shell.pre_tokenizer = backend.pre_tokenizer
    shell.decoder = backend.decoder
    spec: dict[str, Any] = json.loads(shell.to_str())
    return spec


def component_types(node: Any) -> set[str]:
    """Every `type` in a part of tokenizer.json.

    Example:
        >>> sorted(component_types({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}))
        ['ByteLevel', 'Sequence']
    """
    if isinstance(node, list):
        return set().union(*map(component_types, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    here = {node["type"]} if isinstance(node.get("type"), str) else set()
    return here.union(*map(component_types, node.values()))


def dummy_prefix(spec: dict[str, Any]) -> bytes:
    """The bytes that the tokenizer puts before a text (the dummy space of Llama 2), often none."""
    steps = _steps(spec["normalizer"], "normalizers")
    prepends = any(step["type"] == "Prepend" for step in steps)
    pre = _steps(spec["pre_tokenizer"], "pretokenizers")
    metaspace = any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in pre
    )
    level = any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in pre)
    return b" " if prepends or metaspace or level else b""


def always_prepends(spec: dict[str, Any]) -> bool:
    """Whether the dummy prefix is put before every text, also before one that has a space there."""
    return any(step["type"] == "Prepend" for step in _steps(spec["normalizer"], "normalizers"))


def added_tokens(backend: Tokenizer) -> dict[int, AddedToken]:
    """The tokens that were added to the model's own, by id, ascending."""
    return dict(sorted(backend.get_added_tokens_decoder().items(), key=lambda item: item[0]))


def text_tokenizer(backend: Tokenizer, control_ids: Collection[int]) -> Tokenizer:
    """A copy that encodes text only: no templates, no rewriting, no dummy space.

    Every control token is flagged as special, so that `encode_special_tokens` encodes its spelling
    as text. No control token is left out, because that would renumber the others. The model is
    shared, not copied.

    Args:
        backend: The tokenizer.
        control_ids: Ids of its tokens that are not text.
    """
    spec = pipeline(backend)
    changed = {
        "normalizer": _without_rewrites(spec["normalizer"]),
        "pre_tokenizer": _without_dummy_space(spec["pre_tokenizer"]),
    }
    made = Tokenizer.from_str(json.dumps({**spec, **changed}))
    made.model = backend.model
    made.add_tokens(
        [
            _without_stripping(token, special=index in control_ids)
            for index, token in added_tokens(backend).items()
        ]
    )
    made.encode_special_tokens = True
    return made


def rules_digest(text_tokenizer: Tokenizer, added: Mapping[int, AddedToken]) -> str:
    """Digest of everything that turns text into ids, but for the bytes of the tokens.

    Args:
        text_tokenizer: See `text_tokenizer`.
        added: Added tokens that are text, by id.
    """
    spec = pipeline(text_tokenizer)
    splits = plain_splits(spec["pre_tokenizer"])
    return digest(spec["normalizer"], splits, added_digest(added), model_digest(text_tokenizer))


def model_digest(backend: Tokenizer) -> str:
    """Digest of a tokenizer's model: its merges and settings, and how it scores tokens if it does.

    The vocabulary of a BPE model is left out. It may hold control tokens or not, which are never
    merged; the bytes of the tokens are known anyhow.
    """
    spec = Tokenizer(backend.model).to_str()
    head, found, rest = spec.partition('"vocab":{')
    _, ends, merges = rest.rpartition('},"merges":[')
    if found and ends:
        settings = json.loads(f"{head.rstrip(',')}}}}}")["model"]
        spec = json.dumps({k: v for k, v in settings.items() if v and k not in _UNKNOWN}) + merges
    return hashlib.sha256(spec.encode()).hexdigest()


def plain_splits(node: Any) -> Any:
    """A pre-tokenizer with one spelling for each way to split text.

    Example:
        >>> plain_splits({"type": "ByteLevel", "use_regex": False, "trim_offsets": True})
        [{'type': 'ByteLevel', 'use_regex': False}]
    """
    found: list[dict[str, Any]] = []
    for step in _steps(node, "pretokenizers"):
        plain = {name: value for name, value in step.items() if name != "trim_offsets"}
        if step["type"] == "ByteLevel" and step.get("use_regex", True):
            found += [_split(_GPT2), {**plain, "use_regex": False}]
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append(_split(r"\p{N}"))
        elif step["type"] == "Split" and "Regex" in step["pattern"]:
            found.append({**plain, "pattern": {"Regex": _escaped(step["pattern"]["Regex"])}})
        else:
            found.append(plain)
    return found


def _escaped(pattern: str) -> str:
    """A pattern in which line ends are written as escapes."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


def _split(pattern: str) -> dict[str, Any]:
    isolated = {"behavior": "Isolated", "invert": False}
    return {"type": "Split", "pattern": {"Regex": pattern}, **isolated}


def added_digest(added: Mapping[int, AddedToken]) -> str:
    """Digest of the added tokens and of how each is matched in a text."""
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return digest(*([i, *(getattr(token, name) for name in names)] for i, token in added.items()))


def digest(*parts: Any) -> str:
    """SHA-256 of values that JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _without_stripping(token: AddedToken, *, special: bool) -> AddedToken:
    """The token without `lstrip` and `rstrip`, which remove white space from the text around it."""
    return AddedToken(
        token.content, single_word=token.single_word, normalized=token.normalized, special=special
    )


def _steps(node: Any, key: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node[key]) if node["type"] == "Sequence" else [node]


def _without_rewrites(node: Any) -> Any:
    """The normalizer without the steps that change the text."""
    drop = _REWRITES | {"Prepend"}
    steps = [step for step in _steps(node, "normalizers") if step["type"] not in drop]
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _without_dummy_space(node: Any) -> Any:
    """The pre-tokenizer without a dummy space before the text."""
    changes: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    steps = [{**step, **changes.get(step["type"], {})} for step in _steps(node, "pretokenizers")]
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def fast_backend(tokenizer: PreTrainedTokenizerBase, columns: int | None) -> Tokenizer:
    """The tokenizer of the tokenizers library inside a tokenizer of transformers.

    Args:
        tokenizer: The tokenizer.
        columns: Width of the model's logits; None if it is not known.

    Raises:
        TokenizerError: if there is none, or if tokens of text have no logits.
    """
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    name, kind = tokenizer.name_or_path, type(tokenizer).__name__
    if backend is None:
        hint = "save it as tokenizer.json with the tokenizers library"
        if "MistralCommon" in kind:
            hint = "load it by AutoTokenizer.from_pretrained(..., mistral_format=False)"
        raise TokenizerError(f"{name!r}: {kind} has no fast backend", hint=hint)
    if columns is None or backend.get_vocab_size(with_added_tokens=False) <= columns:
        return backend
    added = added_tokens(backend)  # those without logits are controls
    last = max((i for i in backend.get_vocab(False).values() if i not in added), default=-1)
    if last >= columns:
        raise TokenizerError(
            f"{name!r} has {last + 1} tokens, and the model has logits of {columns}",
            hint="model and tokenizer do not belong together",
        )
    return backend
