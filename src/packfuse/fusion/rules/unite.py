"""The fusion rule of UniTE: a mean of probabilities over the union of the members' top-k tokens."""

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
    """Mean of the members' probabilities, each normalized over the union of all top-k tokens.

    Tokens outside the union get -inf. Members with weight 0 and tokens with probability 0 do not
    enter the union. A member without mass on the union abstains.

    With the alignment "prefix" this is exactly the method of the paper: the union consists of
    words, and every member's probabilities of them are those of its own tokens. If the most
    probable word is not a token of the reference, the reference's first token for it is generated.

    Example:
        >>> logps = torch.tensor([[[0.6, 0.4, 0.0, 0.0]], [[0.1, 0.2, 0.3, 0.4]]]).log()
        >>> UniTE(k=1).fuse(logps, torch.tensor([[0.5, 0.5]])).exp()  # the union is {0, 3}
        tensor([[0.6000, 0.0000, 0.0000, 0.4000]])
    """

    name: ClassVar[str] = "unite"
    source: ClassVar[str] = "UniTE, arXiv 2410.03777, section 4"
    pool: ClassVar[str] = "linear"
    uses_words: ClassVar[bool] = True

    k: int = Field(default=10, ge=1)
    """Number of tokens that each member proposes."""

    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """See `Rule.fuse`."""
        ids, repeated = self._union(logps, weights)
        proposed = logps.gather(-1, ids.expand(len(logps), -1, -1))
        pooled = arithmetic(proposed.masked_fill_(repeated, -torch.inf), weights)
        fused = logps.new_full(logps.shape[1:], -torch.inf)
        # the maximum ignores the -inf of repetitions
        return fused.scatter_reduce_(-1, ids, pooled, "amax")

    def _union(self, logps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids `[N, K·k]`, ascending, and which of them are repeated or not proposed."""
        size = logps.shape[-1]
        best = logps.topk(min(self.k, size), -1)
        ignored = torch.isneginf(best.values) | (weights.T.unsqueeze(-1) == 0)
        ids = best.indices.masked_fill(ignored, size).transpose(0, 1).flatten(1).sort(-1).values
        repeated = ids == size
        repeated[:, 1:] |= ids[:, 1:] == ids[:, :-1]
        return ids.clamp(max=size - 1), repeated

    def fuse_words(
        self, member_logps: Sequence[Tensor], weights: Tensor, lexicon: Lexicon, reference: int
    ) -> Tensor:
        """Combine the members over the words that they propose; see `Rule.fuse_words`.

        Several words may have the same first token in the reference. That token gets the
        probability of the most probable of these words. So the most probable token is the first of
        the most probable word, which is the choice of the paper, and the probability that a member
        gives to one first token is not counted once for each of its words.

        With the probability of control tokens that are not words, a member abstains: that share of
        its weight goes to the reference.
        """
        weights = _without_abstentions(member_logps, weights, lexicon, reference)
        masks = list(lexicon.writable)
        masks[reference] = masks[reference].index_fill(0, lexicon.unwritable[reference], True)
        best = [
            logps.masked_fill(~mask.to(logps.device), -torch.inf).topk(min(self.k, len(mask)))
            for logps, mask in zip(member_logps, masks, strict=True)
        ]
        rows = [self._proposals(k, *top, weights) for k, top in enumerate(best)]
        fused = torch.full_like(member_logps[reference], -torch.inf)
        for n, proposals in enumerate(zip(*rows, strict=True)):
            ids = torch.tensor(lexicon.union(proposals), device=fused.device)
            scores = torch.stack([_pick(logps[n], ids[k]) for k, logps in enumerate(member_logps)])
            pooled = arithmetic(scores[:, None], weights[n : n + 1])[0]
            here = ids[reference] >= 0
            fused[n].scatter_reduce_(0, ids[reference][here], pooled[here], "amax")
        return fused - torch.logsumexp(fused, -1, keepdim=True).nan_to_num(neginf=0)

    def _proposals(self, k: int, values: Tensor, ids: Tensor, weights: Tensor) -> list[list[int]]:
        """The ids that member k proposes in each row; none where its weight is 0 or it abstains."""
        proposed = ~torch.isneginf(values) & (weights[:, k] > 0).to(values.device)[:, None]
        return [
            [index for index, keep in zip(row, mask, strict=True) if keep]
            for row, mask in zip(ids.tolist(), proposed.tolist(), strict=True)
        ]


def _without_abstentions(
    member_logps: Sequence[Tensor], weights: Tensor, lexicon: Lexicon, reference: int
) -> Tensor:
    """Weights `[N, K]`, of which the reference has the shares that the others abstain with."""
    moved = weights.clone()
    for k, (logps, ids) in enumerate(zip(member_logps, lexicon.unwritable, strict=True)):
        if k != reference and len(ids):
            lost = logps.index_select(-1, ids.to(logps.device)).exp().sum(-1).clamp(max=1)
            lost = weights[:, k] * lost.to(weights)
            moved[:, k] -= lost
            moved[:, reference] += lost
    return moved


def _pick(member: Tensor, ids: Tensor) -> Tensor:
    """The log-probabilities of `ids`, on the device of `ids`; -inf for the id -1."""
    found = member[ids.clamp(min=0).to(member.device)].to(ids.device)
    return found.masked_fill(ids < 0, -torch.inf)
