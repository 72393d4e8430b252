"""Pairs of tokens of two vocabularies that can begin the same text, and how mass flows along them.

A pair holds if one of the two tokenizers encodes the bytes of one token, and the other token is the
first of that encoding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary

Pairs = NDArray[np.int64]
"""Token ids `[P, 2]`."""

VERSION = 1
"""Increased whenever `relate_tokens` returns different pairs; part of the cache key."""

CONTEXTS = ("", "a", " ", "1", "\n", ".", " a", "\n\n")
"""Texts that may follow a token. Pre-tokenizers look ahead, so the encoding of a token depends on
the text after it, except where the token ends in a letter or a digit."""

_CHUNK = 16_384


def relate_tokens(
    one: Vocabulary, other: Vocabulary, progress: ProgressCallback | None = None
) -> Pairs:
    """All pairs (token of `one`, token of `other`) that can begin the same text.

    The bytes of every token are encoded by the other tokenizer, alone and before each of
    `CONTEXTS`; the first token of each encoding is a partner. End tokens are paired by role.

    Args:
        one: First vocabulary.
        other: Second vocabulary. Swapping the two swaps the columns of the result.
        progress: Called with (done, total), in tokens.

    Returns:
        Ids `[P, 2]`, sorted, each pair once.
    """
    total = len(one.ids_of) + len(other.ids_of)
    pairs: set[tuple[int, int]] = set()
    done = 0
    for source, target, swap in ((one, other, False), (other, one, True)):
        tokens = list(source.ids_of)
        for start in range(0, len(tokens), _CHUNK):
            chunk = tokens[start : start + _CHUNK]
            for token, partners in zip(chunk, _first_tokens(target, chunk), strict=True):
                for index in source.ids_of[token]:
                    pairs.update((p, index) if swap else (index, p) for p in partners)
            done += len(chunk)
            if progress:
                progress(done, total)
    pairs.update(product(_ends(one), _ends(other)))
    # An encoding has one id only of several with the same bytes, so the other ids are added here.
    for token, ids in one.ids_of.items():
        equal = other.ids_of.get(token, ())
        if len(ids) > 1 or len(equal) > 1:
            pairs.update(product(ids, equal))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _ends(vocabulary: Vocabulary) -> list[int]:
    """End ids without bytes. An end that is text, such as a newline, is paired as text."""
    return [index for index in vocabulary.end_ids if vocabulary.token_bytes[index] is None]


def _first_tokens(vocabulary: Vocabulary, tokens: Sequence[bytes]) -> list[set[int]]:
    """The first tokens of the encodings of each token's bytes, over all contexts."""
    found: list[set[int]] = [set() for _ in tokens]
    texts: list[str] = []
    owners: list[int] = []
    for owner, token in enumerate(tokens):
        try:
            text = token.decode()
        except UnicodeDecodeError:
            first = vocabulary.first_token(token)
            if first is not None:
                found[owner].add(first)
            continue
        contexts = CONTEXTS[:1] if text[-1].isalnum() else CONTEXTS
        texts.extend(text + context for context in contexts)
        owners.extend([owner] * len(contexts))
    for owner, ids in zip(owners, vocabulary.encode_batch(texts), strict=True):
        if ids:
            found[owner].add(ids[0])
    return found


class TokenPairs:
    """The pairs of a member and the reference, ready to carry distributions.

    Each member token sends its probability to its partners among the reference's tokens. Several
    partners share it in proportion to the reference's own probabilities of them.

    Example:
        Member token 1 has the partners 1 and 2, which have 0.1 and 0.4 in the reference:

        >>> from types import SimpleNamespace
        >>> member, reference = SimpleNamespace(columns=2), SimpleNamespace(columns=3)
        >>> pairs = TokenPairs(np.array([[0, 0], [1, 1], [1, 2]]), member, reference)
        >>> pairs.carry(torch.tensor([[0.4, 0.6]]), torch.tensor([[0.5, 0.1, 0.4]]))
        tensor([[0.4000, 0.1200, 0.4800]])
    """

    def __init__(self, pairs: Pairs, member: Vocabulary, reference: Vocabulary) -> None:
        """`pairs` has rows of (member id, reference id), `[P, 2]`."""
        by_reference = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
        tokens, targets = by_reference[:, 0], by_reference[:, 1]
        single = np.bincount(tokens, minlength=member.columns)[tokens] == 1
        self._starts = np.searchsorted(targets, np.arange(reference.columns + 1))
        self._tokens = _tensor(tokens)
        self._single = _tensor(tokens[single]), _tensor(targets[single])
        self._split = _tensor(tokens[~single]), _tensor(targets[~single])
        # Member tokens with several partners are numbered 0, 1, 2, ..., so that their normalizers
        # need no array as wide as the vocabulary.
        split_tokens, self._group = torch.unique(self._split[0], return_inverse=True)
        self._groups = len(split_tokens)
        self._group_of = torch.full((member.columns,), -1)
        self._group_of[split_tokens] = torch.arange(self._groups)
        self._moved: dict[torch.device, TokenPairs] = {}

    def on(self, device: torch.device) -> TokenPairs:
        """These pairs with their tensors on a device; copied there once."""
        if device == self._tokens.device:
            return self
        if device not in self._moved:
            twin = copy.copy(self)
            for name in ("_tokens", "_group", "_group_of"):
                setattr(twin, name, getattr(self, name).to(device))
            for name in ("_single", "_split"):
                setattr(twin, name, tuple(ids.to(device) for ids in getattr(self, name)))
            self._moved[device] = twin
        return self._moved[device]

    def partners(self, target: int) -> Tensor:
        """The member tokens that are paired with reference token `target`, `[n]`."""
        return self._tokens[self._starts[target] : self._starts[target + 1]]

    def carry(self, member_probs: Tensor, reference_probs: Tensor) -> Tensor:
        """Carry distributions into the reference's vocabulary.

        Args:
            member_probs: Probabilities `[N, member columns]`, on the reference's device.
            reference_probs: The reference's own probabilities, `[N, reference columns]`.

        Returns:
            Probabilities `[N, reference columns]`; each row sums to the mass of the paired tokens.
        """
        here = self.on(reference_probs.device)
        carried = torch.zeros_like(reference_probs)
        tokens, targets = here._single
        carried.index_add_(1, targets, member_probs.index_select(1, tokens))
        tokens, targets = here._split
        shares = reference_probs.index_select(1, targets)
        totals = here._normalizers(shares).index_select(1, here._group)
        shares.div_(totals.clamp_min_(torch.finfo(shares.dtype).tiny))
        carried.index_add_(1, targets, shares.mul_(member_probs.index_select(1, tokens)))
        return carried

    def _normalizers(self, probs: Tensor) -> Tensor:
        """Sums of the partners' probabilities, `[N, groups]`, from `[N, split pairs]`."""
        total = probs.new_zeros((len(probs), self._groups))
        return total.index_add_(1, self._group, probs)

    def flow(
        self, target: int, member_logps: Tensor, reference_logps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The parts of `carry` that arrive at one reference token.

        Args:
            target: Reference token id.
            member_logps: Log-probabilities `[member columns]`, nats.
            reference_logps: Log-probabilities `[reference columns]`, nats.

        Returns:
            Member token ids and the mass that each sends, both `[n]`, on the reference's device.
        """
        here = self.on(reference_logps.device)
        tokens = here.partners(target)
        mass = member_logps.to(reference_logps.device)[tokens].exp()
        groups = here._group_of[tokens]
        split = groups >= 0
        if bool(split.any()):
            totals = here._normalizers(reference_logps[here._split[1]].exp()[None])[0]
            total = totals[groups.clamp_min(0)].clamp_min(torch.finfo(totals.dtype).tiny)
            mass = torch.where(split, mass * (reference_logps[target].exp() / total), mass)
        return tokens, mass


def _tensor(ids: Pairs) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids))
