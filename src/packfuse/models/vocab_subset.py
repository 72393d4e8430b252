"""A subset of a member's vocabulary: the rows of the weight matrix of a pruned LM head."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SHARE = 0.7
"""Share of the vocabulary above which a subset is too large for pruning to pay."""


MAX_PRUNED_MASS = 0.1
"""Mean probability of the pruned tokens on a prompt above which the LM head is not pruned.

English prose, code and Markdown measured 0.01 to 0.05 (Gemma's tokens that SmolLM2 has, too), five
other languages 0.27 to 0.68.
"""


class VocabSubset:
    """Some tokens of a member. A distribution over the subset is -inf at all others.

    Subsets are compared by identity: pruned heads and compiled calls are cached by the object.

    Attributes:
        ids: The token ids `[n]`, ascending.
        count: Size of the whole output dimension, that is `vocabulary.columns`.
        exact: Whether the result of fusion never depends on the pruned tokens.
        first: The first of the tokens.
    """

    def __init__(self, ids: Tensor, count: int, *, exact: bool = False) -> None:
        """See the attributes of the class."""
        self.ids, self.count, self.exact = ids, count, exact
        self.first = int(ids[0]) if len(ids) else 0
        self._moved: dict[torch.device, Tensor] = {ids.device: ids}

    def on(self, device: torch.device) -> Tensor:
        """The token ids on a device; copied there once."""
        if device not in self._moved:
            self._moved[device] = self.ids.to(device)
        return self._moved[device]

    def spread(self, logits: Tensor) -> Tensor:
        """Log-probabilities `[N, count]` (nats) from logits of the subset, `[N, n]`."""
        logps = logits.log_softmax(-1)
        whole = logps.new_full((len(logps), self.count), -torch.inf)
        return whole.index_copy_(1, self.on(logps.device), logps)

    def pruned_mass(self, logps: Tensor) -> float:
        """Probability of the tokens outside the subset, summed over the N of `[N, count]`."""
        inside = logps.index_select(1, self.on(logps.device)).logsumexp(-1).exp()
        return float((1 - inside).sum())

    def restrict(self, logps: Tensor) -> Tensor:
        """Log-probabilities `[N, count]`, renormalized over the subset."""
        return self.spread(logps.index_select(1, self.on(logps.device)))
