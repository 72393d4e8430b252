"""The interface of a fusion rule: K distributions become one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from packfuse.alignment.lexicon import Lexicon


class Rule(BaseModel, ABC):
    """How the members' next-token distributions are combined.

    Each rule is one file in this folder: a frozen pydantic model whose fields are its parameters.
    The registry finds it by its `name`, so that it is available in settings and on the command
    line.

    Example:
        A rule that takes the most confident member at each position:

        >>> class Confident(Rule):
        ...     pool = "linear"
        ...     def fuse(self, logps, weights):
        ...         best = logps.amax(-1).masked_fill(weights.T == 0, -float("inf")).argmax(0)
        ...         return logps[best, range(len(best))].log_softmax(-1)
        >>> import torch
        >>> logps = torch.tensor([[[0.6, 0.4]], [[0.1, 0.9]]]).log()
        >>> Confident().fuse(logps, torch.tensor([[0.5, 0.5]])).exp()
        tensor([[0.1000, 0.9000]])
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """The name in settings: `fusion="<name>"`."""
    source: ClassVar[str]
    """The paper and section of the method."""
    pool: ClassVar[str]
    """`"logit"` (geometric mean) or `"linear"` (arithmetic mean): weights are fitted to this."""
    uses_words: ClassVar[bool] = False
    """Whether `fuse_words` replaces `fuse` if the alignment has a lexicon."""

    @abstractmethod
    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """Combine the members at N positions.

        Args:
            logps: Log-probabilities in the reference's vocabulary, `[K, N, V]`, nats. They may be
                -inf. A member's row may sum to less than one; the rule normalizes it if necessary.
                A member whose row is -inf everywhere abstains.
            weights: `[N, K]`, non-negative; each row sums to one. The distribution of a member with
                weight 0 has no effect, whatever it is.

        Returns:
            Normalized fused log-probabilities `[N, V]`, nats: finite or -inf, never NaN.
        """

    def fuse_words(
        self, member_logps: Sequence[Tensor], weights: Tensor, lexicon: Lexicon, reference: int
    ) -> Tensor:
        """Combine the members in their own vocabularies; only for rules with `uses_words`.

        Args:
            member_logps: By member, log-probabilities over its own vocabulary, `[N, columns]`,
                nats. A member whose row is -inf everywhere abstains.
            weights: `[N, K]`, as in `fuse`.
            lexicon: Finds the tokens of one member in the vocabularies of the others.
            reference: Index of the reference among the members.

        Returns:
            Normalized fused log-probabilities in the reference's vocabulary, `[N, V]`, nats.
        """
        raise NotImplementedError
