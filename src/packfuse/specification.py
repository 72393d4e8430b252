"""A tokenizer's specification (the content of tokenizer.json), and how to make it faithful."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

_REWRITES = {"NFC", "NFKC", "NFD", "NFKD", "Precompiled", "Lowercase", "StripAccents", "Strip"}
"""Normalizers that change the text, and so lose bytes."""

MARK = "▁"
"""What SentencePiece-style vocabularies write for a space."""


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


def plain(spec: dict[str, Any], control_ids: Collection[int]) -> dict[str, Any]:
    """The specification that writes text only: no templates, no rewriting, nothing before it.

    Every control token is marked special, so that `encode_special_tokens` makes its spelling text;
    none is left out, since that would renumber the others.
    """
    spec = {**spec, "truncation": None, "padding": None, "post_processor": None}
    spec["normalizer"] = _faithful(spec["normalizer"])
    spec["pre_tokenizer"] = _without_prefix(spec["pre_tokenizer"])
    spec["added_tokens"] = [
        {**token, "special": token["id"] in control_ids, "lstrip": False, "rstrip": False}
        for token in spec["added_tokens"]
    ]
    return spec


def digest(spec: dict[str, Any], *parts: str) -> str:
    """Of some parts of a specification."""
    chosen = {part: spec.get(part) for part in parts}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


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
