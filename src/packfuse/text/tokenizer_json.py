"""The parts of tokenizer.json, and a copy of a tokenizer that encodes text without changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

_REWRITES = {"NFC", "NFKC", "NFD", "NFKD", "Precompiled", "Lowercase", "StripAccents", "Strip"}
"""Normalizers that change the text, so that its bytes are lost."""

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


def model_digest(backend: Tokenizer) -> str:
    """Digest of a tokenizer's model: its vocabulary, merges and settings."""
    return hashlib.sha256(Tokenizer(backend.model).to_str().encode()).hexdigest()


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
