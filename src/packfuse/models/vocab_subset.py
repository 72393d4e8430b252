"""Which of a member's tokens count: the columns of a pruned output head."""

from __future__ import annotations

import torch
from torch import Tensor

from packfuse.alignment.base import Pairing
from packfuse.text.vocabulary import Vocabulary

MAX_SHARE = 0.7
"""Share of the vocabulary above which pruning saves too little."""


MAX_PRUNED_MASS = 0.1
"""Mean probability of the other tokens on a prompt above which pruning would lose too much.

English prose, code and Markdown measured 0.01 to 0.05 (Gemma's tokens that SmolLM2 reads), five
other languages 0.27 to 0.68.
"""


class VocabSubset:
    """Some of a member's tokens. A distribution over them is -inf elsewhere.

    Attributes:
        ids: The tokens `[n]`, rising.
        count: How many columns there are in all.
        exact: Whether the others never matter.
    """

    def __init__(self, ids: Tensor, count: int, *, exact: bool = False) -> None:
        """Remember which they are."""
        self.ids, self.count, self.exact = ids, count, exact

    def spread(self, logits: Tensor) -> Tensor:
        """Log-probabilities `[N, count]` from logits of these tokens, `[N, n]`."""
        logps = logits.log_softmax(-1)
        whole = logps.new_full((len(logps), self.count), -torch.inf)
        return whole.index_copy_(1, self.ids.to(logps.device), logps)

    def pruned_mass(self, logps: Tensor) -> float:
        """Probability of all other tokens, summed over rows `[N, count]`."""
        inside = logps.index_select(1, self.ids.to(logps.device)).logsumexp(-1).exp()
        return float((1 - inside).sum())

    def restrict(self, logps: Tensor) -> Tensor:
        """Log-probabilities `[N, count]` renormalized over these tokens."""
        return self.spread(logps.index_select(1, self.ids.to(logps.device)))


def read_subset(pairing: Pairing, member: Vocabulary) -> VocabSubset | None:
    """The tokens that an alignment reads; None where that is nearly all."""
    ids = pairing.used_ids()
    if ids is None:
        return None
    # Whether a turn ends is asked of the member itself, too.
    ids = torch.cat([ids, torch.tensor(member.end_ids, dtype=torch.long)]).unique()
    if len(ids) > MAX_SHARE * member.size:
        return None
    return VocabSubset(ids, member.columns, exact=pairing.exact)
