"""UniTE's fusion: a mean of probabilities over the union of the members' best tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from packfuse.alignment.lexicon import Lexicon
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.pools import arithmetic


class UniTE(Rule):
    """Mean of the members' probabilities, each renormalized on the union of all top-k tokens.

    Tokens outside the union get -inf. Only members with a weight, and only tokens that they allow,
    enter the union; a member without mass on the union abstains.

    With the alignment "prefix" this is the paper's own arithmetic: the union is one of words, which
    every member looks up in its own vocabulary, so that a word may win that the reference lacks and
    begins to write with its first token.
    """

    name: ClassVar[str] = "unite"
    source: ClassVar[str] = "UniTE, arXiv 2410.03777, section 4"
    pool: ClassVar[str] = "linear"
    uses_words: ClassVar[bool] = True

    k: int = Field(default=10, ge=1)
    """How many tokens each member proposes."""

    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """Combine the members at N positions; see `Rule.fuse`."""
        ids, repeated = self._union(logps, weights)
        proposed = logps.gather(-1, ids.expand(len(logps), -1, -1))
        pooled = arithmetic(proposed.masked_fill_(repeated, -torch.inf), weights)
        fused = logps.new_full(logps.shape[1:], -torch.inf)
        # the maximum drops the -inf of repetitions
        return fused.scatter_reduce_(-1, ids, pooled, "amax")

    def _union(self, logps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids `[N, K·k]` in rising order, and which of them do not count."""
        size = logps.shape[-1]
        best = logps.topk(min(self.k, size), -1)
        unheard = torch.isneginf(best.values) | (weights.T.unsqueeze(-1) == 0)
        ids = best.indices.masked_fill(unheard, size).transpose(0, 1).flatten(1).sort(-1).values
        repeated = ids == size
        repeated[:, 1:] |= ids[:, 1:] == ids[:, :-1]
        return ids.clamp(max=size - 1), repeated

    def fuse_words(
        self, own: Sequence[Tensor], weights: Tensor, lexicon: Lexicon, reference: int
    ) -> Tensor:
        """Combine the members over the words that they propose; see `Rule.fuse_words`.

        Several words may begin with the same reference token. It gets the probability of the
        likeliest: so the most probable token begins the most probable word, which is what the
        paper picks, and mass that a first token lends to several words is not counted twice.
        """
        best = [
            member.masked_fill(~mask.to(member.device), -torch.inf).topk(min(self.k, len(mask)))
            for member, mask in zip(own, lexicon.writable, strict=True)
        ]
        rows = [self._proposals(k, *top, weights) for k, top in enumerate(best)]
        fused = own[reference].new_full(own[reference].shape, -torch.inf)
        for n, proposals in enumerate(zip(*rows, strict=True)):
            ids = torch.tensor(lexicon.union(proposals), device=fused.device)
            scores = torch.stack([_pick(own[k][n], ids[k]) for k in range(len(own))])
            pooled = arithmetic(scores[:, None], weights[n : n + 1])[0]
            here = ids[reference] >= 0
            fused[n].scatter_reduce_(0, ids[reference][here], pooled[here], "amax")
        return fused - torch.logsumexp(fused, -1, keepdim=True).nan_to_num(neginf=0)

    def _proposals(self, k: int, values: Tensor, ids: Tensor, weights: Tensor) -> list[list[int]]:
        """The ids that member k proposes in each row: none without a weight or a say."""
        heard = ~torch.isneginf(values) & (weights[:, k] > 0).to(values.device)[:, None]
        return [
            [index for index, said in zip(row, said_row, strict=True) if said]
            for row, said_row in zip(ids.tolist(), heard.tolist(), strict=True)
        ]


def _pick(member: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of `ids`, on their device; -inf for -1."""
    found = member[ids.clamp(min=0).to(member.device)].to(ids.device)
    return found.masked_fill(ids < 0, -torch.inf)
