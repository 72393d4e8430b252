"""Which tokens of two vocabularies can begin the same text."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary

Pairs = NDArray[np.int64]

VERSION = 1
"""Changes whenever `relate_tokens` would give other pairs; part of the cache key."""

# What may follow a token decides how it is written (pre-tokenizers look ahead), but only after
# a token that does not end in a letter or a digit.
CONTEXTS = ("", "a", " ", "1", "\n", ".", " a", "\n\n")
_CHUNK = 16_384


def relate_tokens(
    one: Vocabulary, other: Vocabulary, progress: ProgressCallback | None = None
) -> Pairs:
    """All pairs (token of `one`, token of `other`) that begin some text in both tokenizations.

    Every token's bytes are written by the other tokenizer, alone and before a letter, a space, a
    digit, a newline and so on; the first token written is its partner. End tokens pair by role.

    Args:
        one: First vocabulary.
        other: Second vocabulary; swapping the two swaps the columns of the result.
        progress: Called with (done, total) in tokens.

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
                for mine in source.ids_of[token]:
                    pairs.update((p, mine) if swap else (mine, p) for p in partners)
            done += len(chunk)
            if progress:
                progress(done, total)
    pairs.update((mine, twin) for mine in _ends(one) for twin in _ends(other))
    # The same bytes under several ids: whoever begins with one begins with each of them.
    for token, ids in one.ids_of.items():
        twins = other.ids_of.get(token, ())
        if len(ids) > 1 or len(twins) > 1:
            pairs.update((mine, twin) for mine in ids for twin in twins)
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _ends(vocabulary: Vocabulary) -> list[int]:
    """End ids that are no text; one that is text (a newline) pairs as text."""
    return [index for index in vocabulary.end_ids if vocabulary.token_bytes[index] is None]


def _first_tokens(vocabulary: Vocabulary, tokens: Sequence[bytes]) -> list[set[int]]:
    """What `vocabulary` writes first for each token's bytes, over all contexts."""
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
    """The pairs of a member with the reference, ready to carry distributions.

    The member decides how much mass goes to each of its tokens; where one member token has several
    partners in the reference, the reference's own belief splits that mass.
    """

    def __init__(self, pairs: Pairs, member: Vocabulary, reference: Vocabulary) -> None:
        """`pairs` are `[P, 2]` (member id, reference id)."""
        by_reference = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
        tokens, targets = by_reference[:, 0], by_reference[:, 1]
        single = np.bincount(tokens, minlength=member.columns)[tokens] == 1
        self._starts = np.searchsorted(targets, np.arange(reference.columns + 1))
        self._tokens = _tensor(tokens)
        self._single = _tensor(tokens[single]), _tensor(targets[single])
        self._split = _tensor(tokens[~single]), _tensor(targets[~single])
        # Member tokens that are split, numbered densely: normalizers need no vocabulary-wide array.
        split_tokens, self._group = torch.unique(self._split[0], return_inverse=True)
        self._groups = len(split_tokens)
        self._group_of = torch.full((member.columns,), -1)
        self._group_of[split_tokens] = torch.arange(self._groups)
        self._moved: dict[torch.device, TokenPairs] = {}

    def on(self, device: torch.device) -> TokenPairs:
        """This relation with its tensors on a device, copied there once."""
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
        """The member tokens that can begin what reference token `target` begins, `[n]`."""
        return self._tokens[self._starts[target] : self._starts[target + 1]]

    def carry(self, member: Tensor, reference: Tensor) -> Tensor:
        """Carry distributions into the reference vocabulary.

        Args:
            member: Probabilities `[N, member columns]`, on the reference's device.
            reference: The reference's own probabilities `[N, reference columns]`.

        Returns:
            Probabilities `[N, reference columns]`; rows sum to the mass of the paired tokens.
        """
        here = self.on(reference.device)
        carried = torch.zeros_like(reference)
        tokens, targets = here._single
        carried.index_add_(1, targets, member.index_select(1, tokens))
        tokens, targets = here._split
        reference_logps = reference.index_select(1, targets)
        share = here._normalizers(reference_logps).index_select(1, here._group)
        reference_logps.div_(share.clamp_min_(torch.finfo(reference_logps.dtype).tiny))
        carried.index_add_(1, targets, reference_logps.mul_(member.index_select(1, tokens)))
        return carried

    def _normalizers(self, reference_logps: Tensor) -> Tensor:
        total = reference_logps.new_zeros((len(reference_logps), self._groups))
        return total.index_add_(1, self._group, reference_logps)

    def flow(self, target: int, member: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of `carry` that arrive at one reference token.

        Args:
            target: Reference token id.
            member: Log-probabilities `[member columns]`.
            reference: Log-probabilities `[reference columns]`.

        Returns:
            Member token ids and the mass that each sends, both `[n]`, on the reference's device.
        """
        here = self.on(reference.device)
        tokens = here.partners(target)
        mass = member.to(reference.device)[tokens].exp()
        groups = here._group_of[tokens]
        split = groups >= 0
        if bool(split.any()):
            total = here._normalizers(reference[here._split[1]].exp()[None])[0]
            share = total[groups.clamp_min(0)].clamp_min(torch.finfo(total.dtype).tiny)
            mass = torch.where(split, mass * (reference[target].exp() / share), mass)
        return tokens, mass


def _tensor(ids: Pairs) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids))
