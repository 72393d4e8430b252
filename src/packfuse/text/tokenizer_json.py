"""A tokenizer's specification (the content of tokenizer.json), and how to make it faithful."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

_REWRITES = {"NFC", "NFKC", "NFD", "NFKD", "Precompiled", "Lowercase", "StripAccents", "Strip"}
"""Normalizers that change the text, and so lose bytes."""

METASPACE = "▁"
"""What SentencePiece-style vocabularies write for a space."""


def steps_around(backend: Tokenizer) -> dict[str, Any]:
    """The specification of what comes before and after a tokenizer's model, and of that alone.

    The model's words and merges are nearly all of tokenizer.json, and slow to parse. Padding,
    truncation and templates are settings of single calls: they play no part.
    """
    shell = Tokenizer(BPE())
    shell.normalizer = backend.normalizer
    shell.pre_tokenizer = backend.pre_tokenizer
    shell.decoder = backend.decoder
    spec: dict[str, Any] = json.loads(shell.to_str())
    return spec


def kinds(node: Any) -> set[str]:
    """Every `type` in a part of a specification."""
    if isinstance(node, list):
        return set().union(*map(kinds, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    here = {node["type"]} if isinstance(node.get("type"), str) else set()
    return here.union(*map(kinds, node.values()))


def dummy_prefix(spec: dict[str, Any]) -> bytes:
    """The bytes that the tokenizer puts before a text (the dummy space of Llama 2)."""
    steps = _steps(spec["normalizer"], "normalizers")
    prepends = any(step["type"] == "Prepend" for step in steps)
    pre = _steps(spec["pre_tokenizer"], "pretokenizers")
    metaspace = any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in pre
    )
    level = any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in pre)
    return b" " if prepends or metaspace or level else b""


def added_tokens(backend: Tokenizer) -> dict[int, AddedToken]:
    """Tokens beside the model's, by id, ascending."""
    return dict(sorted(backend.get_added_tokens_decoder().items(), key=lambda item: item[0]))


def plain(backend: Tokenizer, control_ids: Collection[int]) -> Tokenizer:
    """A tokenizer that writes text only: no templates, no rewriting, nothing before it.

    Every control token is marked special, so that `encode_special_tokens` makes its spelling text;
    none is left out, since that would renumber the others. The model is shared, not copied.

    Args:
        backend: The tokenizer itself.
        control_ids: Its tokens that are no text.
    """
    steps = steps_around(backend)
    faithful = {
        "normalizer": _faithful(steps["normalizer"]),
        "pre_tokenizer": _without_prefix(steps["pre_tokenizer"]),
    }
    made = Tokenizer.from_str(json.dumps({**steps, **faithful}))
    made.model = backend.model
    made.add_tokens(
        [
            _bare(token, special=index in control_ids)
            for index, token in added_tokens(backend).items()
        ]
    )
    made.encode_special_tokens = True
    return made


def model_digest(backend: Tokenizer) -> str:
    """Of a tokenizer's model alone: its words, merges and settings."""
    return hashlib.sha256(Tokenizer(backend.model).to_str().encode()).hexdigest()


def added_digest(added: Mapping[int, AddedToken]) -> str:
    """Of added tokens and of how each is found in a text."""
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return digest(*([i, *(getattr(token, name) for name in names)] for i, token in added.items()))


def digest(*parts: Any) -> str:
    """Of what can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _bare(token: AddedToken, *, special: bool) -> AddedToken:
    """The token without the white space that it would take from the text around it."""
    return AddedToken(
        token.content, single_word=token.single_word, normalized=token.normalized, special=special
    )


def _steps(node: Any, key: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node[key]) if node["type"] == "Sequence" else [node]


def _faithful(node: Any) -> Any:
    drop = _REWRITES | {"Prepend"}
    steps = [step for step in _steps(node, "normalizers") if step["type"] not in drop]
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _without_prefix(node: Any) -> Any:
    """The pre-tokenizer without a dummy space at the front."""
    changes: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    steps = [{**step, **changes.get(step["type"], {})} for step in _steps(node, "pretokenizers")]
    return {"type": "Sequence", "pretokenizers": steps} if steps else None
