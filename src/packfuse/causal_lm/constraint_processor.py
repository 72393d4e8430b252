"""Holds generation to a constraint: what it forbids gets no score, the rest keeps its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor
from transformers import LogitsProcessor

from packfuse.constraint import Constraint
from packfuse.errors import ConstraintError
from packfuse.text.vocabulary import Vocabulary

_tokenizers: WeakKeyDictionary[Vocabulary, LLTokenizer] = WeakKeyDictionary()


class ConstraintProcessor(LogitsProcessor):
    """Masks what the constraint forbids, in every row.

    Rows are known by what they hold, not by their place: each step looks for the longest prefix
    whose state is known and reads on from there, so that beams may change places, drafts be taken
    back, and batches shrink.
    """

    def __init__(self, vocabulary: Vocabulary, constraint: Constraint, prompt_length: int) -> None:
        """`prompt_length` counts left padding; the prompt is not part of the text."""
        self.start = prompt_length
        # Rows that a stop string ended are filled up with padding.
        self._ends = frozenset([*vocabulary.end_ids, vocabulary.tokenizer.pad_token_id])
        self._first = LLMatcher(_tokenizer(vocabulary), constraint.grammar())
        if self._first.is_error():
            raise ConstraintError(f"this {constraint.kind} fails: {self._first.get_error()}")
        self._states: dict[tuple[int, ...], LLMatcher] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, V]` with -inf where a token would break the constraint."""
        states: dict[tuple[int, ...], LLMatcher] = {}
        masks = []
        for ids in input_ids[:, self.start :].tolist():
            key = tuple(ids)
            if self._ends.intersection(ids):
                masks.append(np.ones(scores.shape[-1], dtype=bool))
                continue
            if key not in states:
                states[key] = self._reach(key)
            masks.append(_allowed(states[key], scores.shape[-1]))
        self._states = states
        allowed = torch.from_numpy(np.stack(masks)).to(scores.device)
        held = scores.masked_fill(~allowed, -torch.inf)
        # Other processors may have ruled out all that is left; the constraint counts more.
        empty = torch.isneginf(held).all(-1, keepdim=True)
        return torch.where(empty & allowed, torch.zeros_like(held), held)

    def _reach(self, ids: tuple[int, ...]) -> LLMatcher:
        """The state after `ids`."""
        for known in range(len(ids), -1, -1):
            if ids[:known] in self._states:
                matcher = self._states[ids[:known]].deep_copy()
                break
        else:
            known, matcher = 0, self._first.deep_copy()
        rest = list(ids[known:])
        if rest and matcher.try_consume_tokens(rest) < len(rest):
            raise ConstraintError(
                "the text left its constraint",
                hint="leave out logits processors that force tokens",
            )
        return matcher


def _allowed(matcher: LLMatcher, columns: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    if matcher.is_error():
        raise ConstraintError(f"the constraint cannot go on: {matcher.get_error().splitlines()[0]}")
    return np.unpackbits(packed, count=columns, bitorder="little").view(np.bool_)


class _Tokens:
    """A vocabulary as llguidance takes it: tokens are their bytes, control tokens are special.

    Marks of calls are both: where a grammar spells one, a model that has a token writes the token.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        marks = vocabulary.answer_tags
        table = [marks.get(i, token) for i, token in enumerate(vocabulary.token_bytes)]
        self.eos_token_id = vocabulary.end_ids[0]
        self.bos_token_id = None
        self.tokens = [token or b"" for token in table]
        self.special_token_ids = [index for index, token in enumerate(table) if token is None]
        # What is made here lives as long as the vocabulary, and must not keep it alive.
        self._vocabulary = ref(vocabulary)

    def __call__(self, text: bytes) -> Sequence[int]:
        vocabulary = self._vocabulary()
        return vocabulary.encode_answer(text) if vocabulary else []


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """Made once for each vocabulary.

    Raises:
        ConstraintError: for a vocabulary without a token that ends an answer.
    """
    if vocabulary not in _tokenizers:
        if not vocabulary.end_ids:
            raise ConstraintError(
                f"{vocabulary!r} has no token to end with, so a constraint has no end"
            )
        wrapped = TokenizerWrapper(_Tokens(vocabulary))
        ends = list(vocabulary.end_ids)
        _tokenizers[vocabulary] = LLTokenizer(wrapped, vocabulary.columns, ends)
    return _tokenizers[vocabulary]
