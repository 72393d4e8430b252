"""The tokenizer that a GGUF file describes, read as llama.cpp reads it.

A GGUF file has the tokens and merges, and for the rest a name: how text is split before merging. A
byte-level tokenizer is built here, because transformers takes GPT-2's split for names that it does
not know, and spells control tokens as if they were text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from packfuse.errors import LoadError
from packfuse.models.loading.gguf.fields import gguf_header

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
"""Types of tokens; others are text."""

_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"


def _words(digits: str, letters: str = r"\p{L}") -> str:
    """The split of Llama 3 and Qwen, which differ in the number of digits of a piece."""
    marks = letters.strip("[]")
    other = rf" ?[^\s{marks}\p{{N}}]+[\r\n]*"
    return rf"{_CASES}|{_BEFORE}{letters}+|{digits}|{other}|{_ENDS}"


def _cased(digits: str, cases: str = "") -> str:
    """The split of Tekken and GPT-4o, which begins a new piece at an upper-case letter."""
    words = rf"{_BEFORE}{_UPPER}*{_LOWER}+{cases}|{_BEFORE}{_UPPER}+{_LOWER}*{cases}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"


_LLAMA3 = (_words(r"\p{N}{1,3}"),)
_QWEN2 = (_words(r"\p{N}"),)
_DIGITS = (r"\p{N}", _GPT2)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _ENDS,
)
_GPT4O = (_cased(r"\p{N}{1,3}", f"{_CASES}?"),)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), _LLAMA3),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("chatglm-bpe", "glm4"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), _QWEN2),
    "qwen35": (_words(r"\p{N}", r"[\p{L}\p{M}]"),),
    "tekken": (_cased(r"\p{N}"),),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), _GPT4O),
    **dict.fromkeys(("deepseek-v3", "deepseek-r1", "hunyuan-dense"), _DEEPSEEK3),
    "deepseek-coder": (
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
        r"\p{N}",
    ),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    "viking": (_BLOOM, r"\p{N}"),
}
"""By the name in a file, the patterns by which text is split one after the other."""

_WHOLE_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken"}
"""Names with which a piece that is a token as a whole is not merged."""

TURN_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<|EOT|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Control tokens that end a turn or a text whatever a file says."""


def gguf_tokenizer(path: Path, fields: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Args:
        path: The file.
        fields: Its fields, by `gguf_header`; read if None.

    Raises:
        LoadError: for a way to split text that is not known.
        Exception: what the reader of the format raises for a damaged file.
    """
    facts = _facts(gguf_header(path).fields if fields is None else fields)
    tokens: list[str] = facts["tokens"]
    types: list[int] = facts.get("token_type") or [1] * len(tokens)
    if facts["model"] == "gpt2":
        backend = _byte_level(facts, tokens, types)
    else:
        loaded = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        backend = loaded.backend_tokenizer
        unused = [t for t, kind in zip(tokens, types, strict=True) if kind == _UNUSED]
        backend.add_special_tokens([AddedToken(t, normalized=False) for t in unused])
    named = {
        name: tokens[facts[key]]
        for name, key in _NAMES.items()
        if isinstance(facts.get(key), int) and 0 <= facts[key] < len(tokens)
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=facts.get("chat_template"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **named,
    )
    # Not before: offline, transformers would look for a repository of that name.
    made.name_or_path = str(path)
    return made


_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def turn_ends(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a turn: those that a file names, and usual control tokens of its vocabulary.

    Args:
        fields: The fields of the file, by `gguf_header`.
        tokenizer: The tokenizer.
    """
    facts = _facts(fields)
    named = [facts.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    controls = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    usual = [controls[name] for name in TURN_ENDS if name in controls]
    if {"<|return|>", "<|call|>"} <= controls.keys() and "<|end|>" in controls:
        # There, `<|end|>` ends a message of which a turn has several.
        usual.remove(controls["<|end|>"])
    return list(dict.fromkeys([*(i for i in named if isinstance(i, int)), *usual]))


def _facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of its tokenizer, by the names after `tokenizer.ggml.`."""
    start = "tokenizer.ggml."
    found = {
        name.removeprefix(start): value for name, value in fields.items() if name.startswith(start)
    }
    if template := fields.get("tokenizer.chat_template"):
        found["chat_template"] = template
    return found


def _byte_level(facts: Mapping[str, Any], tokens: list[str], types: list[int]) -> Tokenizer:
    name = facts.get("pre", "default")
    if name not in SPLITS:
        raise LoadError(
            f"its tokenizer splits text in a way that is not known here: {name!r}",
            hint="name the original model as `tokenizer` of this member",
        )
    text = max((i for i, kind in enumerate(types) if kind not in _TYPES), default=-1) + 1
    merges = [tuple(merge.split(" ", 1)) for merge in facts.get("merges", ())]
    vocabulary = {token: index for index, token in enumerate(tokens[:text])}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in _WHOLE_FIRST))
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
            for token, kind in zip(tokens, types, strict=True)
            if kind in _TYPES
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[name]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    bos = facts.get("bos_token_id")
    if facts.get("add_bos_token", name in _WHOLE_FIRST) and isinstance(bos, int):
        first = tokens[bos]
        backend.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", "$B"], special_tokens=[(first, bos)]
        )
    return backend


_TYPES = (_CONTROL, _USER_DEFINED, _UNUSED)
