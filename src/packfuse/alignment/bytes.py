"""Alignment by bytes: what text a token begins decides where its mass goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from packfuse.alignment.base import Alignment, Pairing, Same, stack
from packfuse.alignment.joints import InnerBoundaries
from packfuse.alignment.map_cache import cached_map
from packfuse.alignment.straddle import Straddle
from packfuse.alignment.token_pairs import VERSION, TokenPairs, relate_tokens
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary


class Bytes(Alignment):
    """Carry mass between tokens that can begin the same text, and follow tokens that straddle.

    Attributes:
        hedge: Share of the reference's own distribution mixed into every carried one, so that no
            token is impossible. 0.01 measured better than 0.0001 in both directions (dev/log.md).
        straddles: Follow the member's tokens across the ends of the reference's tokens.
    """

    name: ClassVar[str] = "bytes"
    source: ClassVar[str] = "packfuse; builds on exact byte-level probabilities (arXiv 2410.09303)"

    hedge: float = Field(default=0.01, ge=0, lt=1)
    straddles: bool = True

    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Relate the two vocabularies, or take their relation from the cache."""
        if member.text_digest == reference.text_digest:
            return Same(member, reference)
        one, other = sorted((member, reference), key=lambda v: v.fingerprint)
        pairs = cached_map(
            "bytes", VERSION, one, other, lambda: relate_tokens(one, other, progress)
        )
        if one is not member:
            pairs = pairs[:, ::-1]
        return BytesPairing(self, TokenPairs(pairs, member, reference), member, reference)


class BytesPairing(Pairing):
    """A relation and its filters."""

    exact = False

    def __init__(
        self, alignment: Bytes, relation: TokenPairs, member: Vocabulary, reference: Vocabulary
    ) -> None:
        """See `Bytes.pair`."""
        self.alignment, self.relation = alignment, relation
        self._vocabularies = member, reference
        self.joints = InnerBoundaries(relation, member, reference) if alignment.straddles else None

    def reads(self) -> Tensor:
        """Tokens that the member writes for a reference token, or the reference in one token.

        Not exact: every token sends its mass to some reference token, but most of what a member
        has beyond these is long, rare, or in scripts that the reference spells byte by byte.
        """
        member, reference = self._vocabularies
        paths = member.encode_batch([token.decode(errors="replace") for token in reference.ids_of])
        written = {index for path in paths for index in path}
        twins = {i for token in reference.ids_of for i in member.ids_of.get(token, ())}
        return torch.tensor(sorted(written | twins))

    def straddle(self) -> Straddle | None:
        """A fresh filter."""
        return Straddle(self.joints) if self.joints else None

    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        straddles: Sequence[Straddle | None],
    ) -> Tensor:
        """Carry the cut, mix in the straddles, hedge; rows with nothing to say abstain."""
        reference_logps = reference.exp()
        if any(row is not None for row in member):
            carried = self.relation.carry(stack(member, reference).exp(), reference_logps)
            carried /= carried.sum(-1, keepdim=True).clamp_min(torch.finfo(carried.dtype).tiny)
        else:
            carried = reference_logps.clone()
        for index, (row, straddle) in enumerate(zip(member, straddles, strict=True)):
            if row is not None and (straddle is None or straddle.trivial):
                continue
            cut = None if row is None else carried[index]
            mixed = straddle.mix(cut, reference_logps[index]) if straddle else None
            carried[index] = reference_logps[index] if mixed is None else mixed
        return carried.lerp_(reference_logps, self.alignment.hedge).log_()
