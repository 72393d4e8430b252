"""The papers' way of fusing, as their code works; the baseline that packs are compared with.

- MinED is a table: one member token for every reference token. A member reads the reference's
  tokens, and its logits are carried back, through this table.
- Weights come from PackLLM's greedy search: members by rising loss on the prompt, 21 shares for
  each, each share tried on the whole vocabulary at every position of the prompt.
- The first member keeps its KV cache; the others read the whole text again for every token.

Faster than the published code in one point: logits are computed only where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from packfuse.alignment.lexicon import writable
from packfuse.alignment.mined import Mined
from packfuse.hf_compat.models import output_cache
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary

from .clock import prompt_ids

SHARES = [i / 20 for i in range(21)]
MINED = {"name": "mined", "controls": "drop"}
"""The alignment as published."""
PUBLISHED = {
    "name": "opt",
    "normalize": "own",
    "shrinkage": 0,
    "positions": None,
    "candidates": None,
    "pieces": None,
}
"""The weighting of a pack that makes the same search."""


@dataclass(frozen=True)
class Other:
    """A member that is not the first.

    Attributes:
        model: Its model.
        partners: Its token for every token of the first member, `[V]`; the ids that it reads.
        columns: `partners` without the tokens of `unmapped`, `[V]`; where its logits are taken.
        unmapped: Tokens of the first member that its logits do not reach, bool `[V]`.
    """

    model: Any
    partners: Tensor
    columns: Tensor
    unmapped: Tensor

    @classmethod
    def mapped(cls, member: HFMember, first: Vocabulary) -> Other:
        """Make the table."""
        partners = torch.tensor(Mined().pair(member.vocabulary, first).map_ids(range(first.size)))
        unmapped = ~torch.from_numpy(writable(first)[: first.size])
        return cls(member.model, partners, partners.masked_fill(unmapped, 0), unmapped)

    def logits(self, ids: Sequence[int], last: int = 0) -> Tensor:
        """Read the whole text; logits after the `last` tokens, or after all, `[n, V]`."""
        mapped = self.partners[torch.tensor([list(ids)])]
        found: Tensor = self.model(mapped, use_cache=False, logits_to_keep=last).logits[0]
        return found[:, self.columns].masked_fill(self.unmapped, -torch.inf)


class PapersWay:
    """Greedy PackLLM with two or more members."""

    def __init__(self, members: Sequence[HFMember], first: int = 0) -> None:
        """Map every member to number `first`."""
        self.first = first
        self.vocabulary = members[first].vocabulary
        self.size = self.vocabulary.size
        self.model: Any = members[first].model
        self.others = [
            Other.mapped(member, self.vocabulary) if k != first else None
            for k, member in enumerate(members)
        ]

    def read(self, prompt: str) -> list[int]:
        """The prompt in the first member's tokens."""
        return prompt_ids(self.vocabulary, prompt)

    @torch.no_grad()
    def weights(self, ids: Sequence[int]) -> list[float]:
        """The greedy search over the logits of all members at every position of the prompt."""
        own = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0, :, : self.size]
        logits = [other.logits(ids) if other else own for other in self.others]
        labels = torch.tensor(ids[1:])
        losses = [_loss(found, labels) for found in logits]
        order = sorted(range(len(losses)), key=lambda k: losses[k])
        mixed, weights = logits[order[0]], {order[0]: 1.0}
        for k in order[1:]:
            share = min(SHARES, key=lambda s: _loss(_mix(mixed, logits[k], s), labels))
            if share == 1:
                break
            mixed = _mix(mixed, logits[k], share)
            weights = {known: w * share for known, w in weights.items()} | {k: 1 - share}
        return [weights.get(k, 0.0) for k in range(len(losses))]

    @torch.no_grad()
    def write(self, prompt: str, tokens: int, weights: Sequence[float] | None = None) -> list[int]:
        """Generate that many tokens greedily; end tokens are never chosen."""
        ids = self.read(prompt)
        weights = self.weights(ids) if weights is None else weights
        ends = torch.tensor(self.vocabulary.end_ids)
        new, cache, written = ids, None, list[int]()
        for _ in range(tokens):
            out = self.model(torch.tensor([new]), past_key_values=cache, logits_to_keep=1)
            cache = output_cache(out)
            total = weights[self.first] * out.logits[0, -1, : self.size]
            for other, weight in zip(self.others, weights, strict=True):
                if other and weight:
                    total = total + weight * other.logits([*ids, *written], last=1)[-1]
            total[ends] = -torch.inf
            new = [int(total.argmax())]
            written += new
        return written


def _mix(one: Tensor, other: Tensor, share: float) -> Tensor:
    """`share · one + (1 - share) · other`; -inf where either is -inf."""
    if share in (0, 1):
        # Otherwise 0 · -inf.
        return (one if share else other).masked_fill(one.isneginf() | other.isneginf(), -torch.inf)
    return share * one + (1 - share) * other


def _loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of the tokens that follow each position but the last."""
    return float(nn.functional.cross_entropy(logits[:-1], labels))
