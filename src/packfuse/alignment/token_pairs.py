"""Pairs of tokens of two vocabularies that can begin the same text, and how mass flows along them.

A pair holds if one of the two tokenizers encodes the bytes of one token, and the other token is the
first of that encoding.

A mark (`packfuse.text.marks`) is a control token of one vocabulary and text in another: there it is
paired by its spelling. Two control tokens with one spelling are paired with each other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.alignment.spelling import spelled_lengths, unshared_marks
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary

Pairs = NDArray[np.int64]
"""Token ids, `[P, 2]` for pairs."""

Logps = NDArray[np.float32]
"""Log-probabilities on the host, nats."""

VERSION = 2
"""Increased whenever `relate_tokens` returns different pairs; part of the cache key."""

CONTEXTS = ("", "a", " ", "1", "\n", ".", " a", "\n\n")
"""Texts that may follow a token. Pre-tokenizers look ahead, so the encoding of a token depends on
the text after it, except where the token ends in a letter or a digit."""

FLOOR = 1e-36
"""Added to the reference's probability of a token's first choice among its partners, which so takes
all of the mass where the reference gives every partner probability 0. No effect anywhere else."""

_CHUNK = 16_384


def relate_tokens(
    one: Vocabulary, other: Vocabulary, progress: ProgressCallback | None = None
) -> Pairs:
    """All pairs (token of `one`, token of `other`) that can begin the same text.

    The bytes of every token are encoded by the other tokenizer, alone and before each of
    `CONTEXTS`; the first token of each encoding is a partner. End tokens are paired by role, marks
    by their spelling.

    Args:
        one: First vocabulary.
        other: Second vocabulary. Swapping the two swaps the columns of the result.
        progress: Called with (done, total), in tokens.

    Returns:
        Ids `[P, 2]`, sorted, each pair once.
    """
    spelled = _ids_by_spelling(one, other), _ids_by_spelling(other, one)
    total = sum(map(len, spelled))
    pairs: set[tuple[int, int]] = set()
    done = 0
    for ids_of, target, swap in ((spelled[0], other, False), (spelled[1], one, True)):
        tokens = list(ids_of)
        for start in range(0, len(tokens), _CHUNK):
            chunk = tokens[start : start + _CHUNK]
            for token, partners in zip(chunk, _first_tokens(target, chunk), strict=True):
                for index in ids_of[token]:
                    pairs.update((p, index) if swap else (index, p) for p in partners)
            done += len(chunk)
            if progress:
                progress(done, total)
    pairs.update(product(_ends(one), _ends(other)))
    pairs.update(_shared_controls(one, other))
    # An encoding has one id only of several with the same bytes, so the other ids are added here.
    for token, ids in one.ids_of.items():
        equal = other.ids_of.get(token, ())
        if len(ids) > 1 or len(equal) > 1:
            pairs.update(product(ids, equal))
    return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)


def _ends(vocabulary: Vocabulary) -> list[int]:
    """End ids without bytes. An end that is text, such as a newline, is paired as text."""
    return [index for index in vocabulary.end_ids if vocabulary.token_bytes[index] is None]


def _ids_by_spelling(vocabulary: Vocabulary, other: Vocabulary) -> dict[bytes, tuple[int, ...]]:
    """The ids of each token that is text in the other vocabulary, marks included."""
    found = dict(vocabulary.ids_of)
    for index, spelling in unshared_marks(vocabulary, other).items():
        found[spelling] = (*found.get(spelling, ()), index)
    return found


def _shared_controls(one: Vocabulary, other: Vocabulary) -> Iterator[tuple[int, int]]:
    """Control tokens with one spelling: marks, and those that are an end in one vocabulary only."""
    for spelling, index in one.controls.items():
        twin = other.controls.get(spelling, other.columns)
        if index >= one.columns or twin >= other.columns:
            continue
        mark = index in one.marks or twin in other.marks
        if mark or (index in one.end_ids) != (twin in other.end_ids):
            yield index, twin


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


_TENSORS = ("_tokens", "_group", "_group_of", "_floors", "_split_floors", "_unpaired")


class TokenPairs:
    """The pairs of a member and the reference, ready to carry distributions.

    Each member token sends its probability to its partners among the reference's tokens. Several
    partners share it in proportion to the reference's own probabilities of them. If these are all
    0, the token's first choice takes it: the partner with the same bytes, else the longest one that
    begins the token, else the shortest one that the token begins. Of several with the same bytes,
    such as `.` and `<0x2E>`, it is the one that the reference's tokenizer produces.

    Tokens without a partner are control tokens that the reference cannot spell. Their mass is not
    carried (`uncarried`).

    Example:
        Member token 1 has the partners 1 and 2, which have 0.1 and 0.4 in the reference:

        >>> from types import SimpleNamespace
        >>> none = {"marks": {}, "ids_of": {}}
        >>> member = SimpleNamespace(columns=2, lengths=np.array([3, 1]), **none)
        >>> reference = SimpleNamespace(columns=3, lengths=np.array([3, 1, 2]), **none)
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
        first = _first_choices(tokens, targets, member, reference)
        self._floors = torch.from_numpy(np.where(first, np.float32(FLOOR), np.float32(0)))
        self._split_floors = self._floors[torch.from_numpy(~single)]
        unpaired = np.setdiff1d(np.arange(member.columns), tokens)
        self._unpaired = _tensor(unpaired)
        # Member tokens with several partners are numbered 0, 1, 2, ..., so that their normalizers
        # need no array as wide as the vocabulary.
        split_tokens, self._group = torch.unique(self._split[0], return_inverse=True)
        self._groups = len(split_tokens)
        self._group_of = torch.full((member.columns,), -1)
        self._group_of[split_tokens] = torch.arange(self._groups)
        self._moved: dict[torch.device, TokenPairs] = {}
        # The same on the host, for `flow`: there the split pairs are in the order of their groups.
        self._host_tokens, self._host_floors = self._tokens.numpy(), self._floors.numpy()
        self._host_group_of, group = self._group_of.numpy(), self._group.numpy()
        order = np.argsort(group, kind="stable")
        self._by_group = self._split[1].numpy()[order]
        self._floors_by_group = self._split_floors.numpy()[order]
        self._group_sizes = np.bincount(group, minlength=self._groups)
        self._group_starts = np.cumsum(self._group_sizes) - self._group_sizes

    def on(self, device: torch.device) -> TokenPairs:
        """These pairs with their tensors on a device; copied there once."""
        if device == self._tokens.device:
            return self
        if device not in self._moved:
            twin = copy.copy(self)
            for name in _TENSORS:
                setattr(twin, name, getattr(self, name).to(device))
            for name in ("_single", "_split"):
                setattr(twin, name, tuple(ids.to(device) for ids in getattr(self, name)))
            self._moved[device] = twin
        return self._moved[device]

    def partners(self, target: int) -> Pairs:
        """The member tokens that are paired with reference token `target`, `[n]`."""
        return self._host_tokens[self._starts[target] : self._starts[target + 1]]

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
        shares = reference_probs.index_select(1, targets).add_(here._split_floors)
        totals = here._normalizers(shares).index_select(1, here._group)
        shares.div_(totals)
        carried.index_add_(1, targets, shares.mul_(member_probs.index_select(1, tokens)))
        return carried

    def uncarried(self, member_probs: Tensor) -> Tensor:
        """The mass of the member's tokens without a partner, `[N, 1]`."""
        here = self.on(member_probs.device)
        return member_probs.index_select(1, here._unpaired).sum(-1, keepdim=True)

    def _normalizers(self, probs: Tensor) -> Tensor:
        """Sums of the partners' probabilities, `[N, groups]`, from `[N, split pairs]`."""
        total = probs.new_zeros((len(probs), self._groups))
        return total.index_add_(1, self._group, probs)

    def flow(self, target: int, member_logps: Logps, reference_logps: Logps) -> tuple[Pairs, Logps]:
        """The parts of `carry` that arrive at one reference token.

        Args:
            target: Reference token id.
            member_logps: Log-probabilities `[member columns]`, nats, on the host.
            reference_logps: Log-probabilities `[reference columns]`, nats, on the host.

        Returns:
            Member token ids and the mass that each sends, both `[n]`.
        """
        here = slice(self._starts[target], self._starts[target + 1])
        tokens = self._host_tokens[here]
        mass = np.exp(member_logps[tokens])
        groups = self._host_group_of[tokens]
        split = np.flatnonzero(groups >= 0)
        if len(split):
            groups = groups[split]
            first, sizes = self._group_starts[groups], self._group_sizes[groups]
            begins = np.cumsum(sizes) - sizes
            places = np.arange(sizes.sum()) + np.repeat(first - begins, sizes)
            shares = np.exp(reference_logps[self._by_group[places]]) + self._floors_by_group[places]
            share = np.exp(reference_logps[target]) + self._host_floors[here][split]
            mass[split] *= share / np.add.reduceat(shares, begins)
        return tokens, mass


def _first_choices(
    tokens: Pairs, targets: Pairs, member: Vocabulary, reference: Vocabulary
) -> NDArray[np.bool_]:
    """Which pairs `[P]` are the first choices of their member tokens."""
    own, other = spelled_lengths(member)[tokens], spelled_lengths(reference)[targets]
    longest = int(other.max(initial=0)) + 1
    cost = np.where(other <= own, own - other, longest + other)
    rank = np.zeros(reference.columns, dtype=np.int64)
    for ids in reference.ids_of.values():
        if len(ids) > 1:
            rank[list(ids)] = range(len(ids))  # produced by the tokenizer first
    order = np.lexsort((rank[targets], cost, tokens))
    begins = np.flatnonzero(np.r_[True, np.diff(tokens[order]) != 0][: len(order)])
    first = np.zeros(len(tokens), dtype=np.bool_)
    first[order[begins]] = True
    return first


def _tensor(ids: Pairs) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(ids))
