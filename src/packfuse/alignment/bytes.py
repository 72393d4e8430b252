"""Alignment by bytes: mass moves between tokens whose bytes can begin the same text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from packfuse.alignment.base import Alignment, Pairing, stack
from packfuse.alignment.controls import MarkTable
from packfuse.alignment.map_cache import cached_map
from packfuse.alignment.pairings import Same
from packfuse.alignment.spelling import unshared_marks
from packfuse.alignment.straddle import WINDOW, StraddleFilter, StraddleIndex
from packfuse.alignment.straddle_mixture import mix_straddles
from packfuse.alignment.tail import BelievedTail
from packfuse.alignment.token_pairs import VERSION, TokenPairs, relate_tokens
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary


class Bytes(Alignment):
    """Carry mass between tokens that can begin the same text, and follow tokens that straddle.

    `packfuse.alignment.token_pairs` has the arithmetic, `packfuse.alignment.straddle` defines a
    straddle.

    Example:
        >>> Bytes(hedge=0)
        Bytes(hedge=0.0, straddles=True)
    """

    name: ClassVar[str] = "bytes"
    source: ClassVar[str] = "packfuse; builds on exact byte-level probabilities (arXiv 2410.09303)"

    # 0.01 measured better than 0.0001 in both directions of a pair.
    hedge: float = Field(default=0.01, ge=0, lt=1)
    """Share of the reference's own distribution in every carried one, so that no token is
    impossible."""
    straddles: bool = True
    """Follow the member's tokens across the ends of the reference's tokens."""

    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Pair the tokens of the two vocabularies, or load the pairs from the cache."""
        if member.text_digest == reference.text_digest:
            return Same(member, reference)
        # The pairs of (a, b) and of (b, a) are the same, so both share one file of the cache.
        one, other = sorted((member, reference), key=lambda v: v.fingerprint)
        pairs = cached_map(
            "bytes", VERSION, one, other, lambda: relate_tokens(one, other, progress)
        )
        if one is not member:
            pairs = pairs[:, ::-1]
        return BytesPairing(self, TokenPairs(pairs, member, reference), member, reference)

    def pair_naming_few(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """What the member does not name is placed by the reference's belief (dev/log.md)."""
        there = self.pair(member, reference, progress)
        return BelievedTail(there, self.pair(reference, member, progress))


class BytesPairing(Pairing):
    """Token pairs of a member and the reference, and what their straddle filters share."""

    exact = False

    def __init__(
        self, alignment: Bytes, token_pairs: TokenPairs, member: Vocabulary, reference: Vocabulary
    ) -> None:
        """See `Bytes.pair`."""
        self.alignment, self.token_pairs = alignment, token_pairs
        self._vocabularies = member, reference
        self._index = StraddleIndex(token_pairs, member, reference) if alignment.straddles else None
        self.marks = MarkTable(member, reference)
        self.window = self._index.window if self._index else WINDOW

    def used_ids(self) -> Tensor:
        """The member's ids that encode the bytes of reference tokens, and its control tokens.

        The others have a small effect: each sends its mass to some reference token, too. Most are
        long, rare, or in scripts for which the reference has byte tokens only.
        """
        member, reference = self._vocabularies
        spelled = [*reference.ids_of, *unshared_marks(reference, member).values()]
        encoded = member.encode_batch([token.decode(errors="replace") for token in spelled])
        ids = {index for path in encoded for index in path}
        equal = {i for token in reference.ids_of for i in member.ids_of.get(token, ())}
        controls = {index for index in member.control_ids if index < member.columns}
        return torch.tensor(sorted(ids | equal | controls))

    def straddle(self) -> StraddleFilter | None:
        """A new filter."""
        return StraddleFilter(self._index) if self._index else None

    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        filters: Sequence[StraddleFilter | None],
    ) -> Tensor:
        """Carry the cut, mix in the straddles, and hedge.

        For mass that cannot be carried, the cut has the reference's distribution. A row without a
        member's distribution and without straddles is the reference's.
        """
        reference_probs = reference.exp()
        if any(row is not None for row in member):
            member_probs = stack(member, reference).exp()
            carried = self.token_pairs.carry(member_probs, reference_probs)
            carried /= carried.sum(-1, keepdim=True).clamp_min(torch.finfo(carried.dtype).tiny)
            carried.lerp_(reference_probs, self.token_pairs.uncarried(member_probs))
        else:
            carried = reference_probs.clone()
        cut = [row is not None for row in member]
        carried = mix_straddles(carried, reference_probs, cut, filters)
        return carried.lerp_(reference_probs, self.alignment.hedge).log_()
