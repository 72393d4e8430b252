"""Constrained decoding: a logits processor that masks the tokens a constraint forbids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from packfuse.causal_lm.processors import LevelFree
from packfuse.constraint.constraints import Constraint, check_satisfiable
from packfuse.errors import ConstraintError
from packfuse.text.vocabulary import Vocabulary

_tokenizers: WeakKeyDictionary[Vocabulary, LLTokenizer] = WeakKeyDictionary()


def check_writable(vocabulary: Vocabulary, constraint: Constraint) -> None:
    """Check that a reference can write some text that satisfies a constraint, and end it.

    Raises:
        ConstraintError: if it cannot.
    """
    _check_end(vocabulary)
    missing = vocabulary.missing
    if not missing:
        return
    # Every text that the vocabulary can write at all is written with these tokens.
    needed = [
        token for token in vocabulary.ids_of if len(token) == 1 or missing.intersection(token)
    ]
    check_satisfiable(constraint.grammar(), constraint.kind, tuple(sorted(needed)))


def _check_end(vocabulary: Vocabulary) -> None:
    if not vocabulary.end_ids:
        raise ConstraintError(
            f"{vocabulary!r} has no end token, so a constrained answer could not end"
        )


class ConstraintProcessor(LevelFree):
    """Masks forbidden tokens in every sequence of a batch.

    The state of the grammar is stored by the tokens generated so far, not by the index in the
    batch. Each step starts from the longest prefix with a stored state. So beams may be reordered,
    drafts rejected, and sequences removed.
    """

    def __init__(self, vocabulary: Vocabulary, constraint: Constraint, prompt_length: int) -> None:
        """Start before the answer.

        Args:
            vocabulary: The reference's.
            constraint: The constraint on the answer.
            prompt_length: Number of tokens before the answer, left padding included.

        Raises:
            ConstraintError: for a constraint that llguidance rejects, or a vocabulary without an
                end token.
        """
        self.start = prompt_length
        # Sequences that ended at a stop string continue with padding.
        self._ends = frozenset([*vocabulary.end_ids, vocabulary.tokenizer.pad_token_id])
        self._first = LLMatcher(_tokenizer(vocabulary), constraint.grammar())
        if self._first.is_error():
            raise ConstraintError(
                f"this {constraint.kind} cannot be used: {self._first.get_error()}"
            )
        self._states: dict[tuple[int, ...], LLMatcher] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, V]` with -inf for tokens that the constraint forbids."""
        states: dict[tuple[int, ...], LLMatcher] = {}
        masks = []
        for ids in input_ids[:, self.start :].tolist():
            key = tuple(ids)
            if self._ends.intersection(ids):
                masks.append(np.ones(scores.shape[-1], dtype=bool))
                continue
            if key not in states:
                states[key] = self._state_after(key)
            masks.append(_allowed(states[key], scores.shape[-1]))
        self._states = states
        allowed = torch.from_numpy(np.stack(masks)).to(scores.device)
        masked = scores.masked_fill(~allowed, -torch.inf)
        # If other processors forbid every allowed token, all allowed tokens are equally likely.
        empty = torch.isneginf(masked).all(-1, keepdim=True)
        return torch.where(empty & allowed, torch.zeros_like(masked), masked)

    def _state_after(self, ids: tuple[int, ...]) -> LLMatcher:
        """The state after `ids`.

        Raises:
            ConstraintError: if the constraint does not allow `ids`.
        """
        for known in range(len(ids), -1, -1):
            if ids[:known] in self._states:
                matcher = self._states[ids[:known]].deep_copy()
                break
        else:
            known, matcher = 0, self._first.deep_copy()
        rest = list(ids[known:])
        if rest and matcher.try_consume_tokens(rest) < len(rest):
            raise ConstraintError(
                "the generated text does not fit the constraint",
                hint="leave out logits processors that force tokens",
            )
        return matcher


def _allowed(matcher: LLMatcher, columns: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which tokens are allowed next, `[columns]`."""
    packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    if matcher.is_error():
        reason = matcher.get_error().splitlines()[0]
        raise ConstraintError(f"the constraint allows no next token: {reason}")
    return np.unpackbits(packed, count=columns, bitorder="little").view(np.bool_)


class _Tokens:
    """A vocabulary in the form that llguidance takes: text tokens as bytes, others as special.

    Tags of reasoning and tool calls that are single control tokens have bytes as well: where a
    grammar has such a tag, the control token is allowed.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        tags = vocabulary.answer_tags
        table = [tags.get(i, token) for i, token in enumerate(vocabulary.token_bytes)]
        self.eos_token_id = vocabulary.end_ids[0]
        self.bos_token_id = None
        self.tokens = [token or b"" for token in table]
        self.special_token_ids = [index for index, token in enumerate(table) if token is None]
        # This object is cached for the vocabulary and must not keep it in memory.
        self._vocabulary = ref(vocabulary)

    def __call__(self, text: bytes) -> Sequence[int]:
        vocabulary = self._vocabulary()
        return vocabulary.encode_answer(text) if vocabulary else []


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """The tokenizer of llguidance for a vocabulary, created once.

    Raises:
        ConstraintError: for a vocabulary without an end token.
    """
    if vocabulary not in _tokenizers:
        _check_end(vocabulary)
        wrapped = TokenizerWrapper(_Tokens(vocabulary))
        ends = list(vocabulary.end_ids)
        _tokenizers[vocabulary] = LLTokenizer(wrapped, vocabulary.columns, ends)
    return _tokenizers[vocabulary]
