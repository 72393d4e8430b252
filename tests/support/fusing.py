"""Fused tiny models for the tests: real tokenizers, random weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from packfuse.alignment import alignments
from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import FusionSettings, PositionCallback
from packfuse.fusion.rules import rules
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from tests.support import pico

PROMPT = "The capital of France is Paris, and the capital of"
SHORT = "def f(x):\n"

Spec = tuple[str, str, int]
"""A tiny member: tokenizer, architecture, seed."""


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a packaged tokenizer, as wide as the tiny models over it."""
    tokenizer = pico.real_tokenizer(name)
    return Vocabulary(tokenizer, pico.padded_size(tokenizer))


@functools.cache
def member(name: str, arch: str = "llama", seed: int = 0, context: int = 512) -> HFMember:
    """A tiny member; the same object for the same arguments."""
    model = pico.tiny_model(pico.real_tokenizer(name), arch, seed, context=context)
    return HFMember(f"{name}-{arch}-{seed}", model, vocabulary(name))


@functools.cache
def fused(
    specs: tuple[Spec, ...],
    reference: int = 0,
    rule: str = "packllm",
    weighting: str = "uniform",
    alignment: str = "bytes",
) -> FusedForCausalLM:
    """A pack of tiny members as one model; the same object for the same arguments."""
    return fuse([member(*spec) for spec in specs], reference, rule, weighting, alignment)


def fuse(
    members: Sequence[HFMember],
    reference: int = 0,
    rule: Any = "packllm",
    weighting: Any = "uniform",
    alignment: Any = "bytes",
) -> FusedForCausalLM:
    """Members as one model."""
    engine = Engine(members, reference, alignments().make(alignment))
    call = CallSettings(rule=rules().make(rule), weighting=weightings().make(weighting))
    return FusedForCausalLM(engine, call)


FUSION = FusionSettings(rule=rules().make("packllm"))
"""The rule of most tests, at every position."""


def observed(observer: PositionCallback, fusion: FusionSettings = FUSION) -> FusionSettings:
    """The same with an observer."""
    return replace(fusion, observer=observer)


def cache(model: FusedForCausalLM, **changes: Any) -> FusedCache:
    """An empty cache for one call under other settings than the model's own."""
    return FusedCache(replace(model.call, **changes))


def tokenizer(model: FusedForCausalLM) -> PreTrainedTokenizerFast:
    """The reference's tokenizer."""
    found = model.engine.reference.tokenizer
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


def prompt(model: FusedForCausalLM, text: str = PROMPT) -> torch.Tensor:
    """A prompt's ids `[1, n]`."""
    return torch.tensor([tokenizer(model)(text).input_ids])


def batch(model: FusedForCausalLM, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Prompts, left-padded, with their mask."""
    rows = [tokenizer(model)(text).input_ids for text in texts]
    longest = max(map(len, rows))
    pad = model.config.pad_token_id
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of two log-probability tensors, which must be -inf at the same places."""
    assert torch.equal(torch.isneginf(one), torch.isneginf(other))
    finite = torch.isfinite(one)
    return float((one[finite] - other[finite]).abs().max())


def bpe(*words: str, name: str = "bpe", controls: Sequence[str] = ("<end>",)) -> Vocabulary:
    """A small byte-level vocabulary with one token for each of `words`, merged from the left.

    Its ids: the 256 bytes, the words and their prefixes, then the control tokens. The first control
    token ends a text.
    """
    letters = bytes_to_unicode()
    vocab = {letters[byte]: byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for word in words:
        spelled = "".join(letters[byte] for byte in word.encode())
        for size in range(2, len(spelled) + 1):
            if spelled[:size] not in vocab:
                vocab[spelled[:size]] = len(vocab)
                merges.append((spelled[: size - 1], spelled[size - 1]))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(controls))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=controls[0], name_or_path=name
    )
    return Vocabulary(fast)
