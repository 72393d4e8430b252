"""The interface of a fusion rule: K distributions in, one out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from packfuse.alignment.lexicon import Lexicon


class Rule(BaseModel, ABC):
    """How the members' next-token distributions are combined.

    A rule is one file in this folder: a frozen pydantic model whose fields are its parameters.
    It registers itself by its `name` and so appears in the configuration and on the command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """What users write: `fusion="<name>"`."""
    source: ClassVar[str]
    """The paper and section that the rule comes from."""
    pool: ClassVar[str]
    """`"logit"` (geometric) or `"linear"` (arithmetic): which weights are optimal for it."""
    uses_words: ClassVar[bool] = False
    """Whether `fuse_words` takes the place of `fuse` where the alignment offers a lexicon."""

    @abstractmethod
    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """Combine the members at N positions.

        Args:
            logps: Log-probabilities in the reference vocabulary, `[K, N, V]`, nats. They may be
                -inf, and a member's may sum to less than one (it is up to the rule to normalize).
            weights: `[N, K]`, non-negative, rows summing to one. A member with weight 0 has no say,
                whatever its distribution is.

        Returns:
            Normalized fused log-probabilities `[N, V]`: finite or -inf, never NaN.
        """

    def fuse_words(
        self, own: Sequence[Tensor], weights: Tensor, lexicon: Lexicon, reference: int
    ) -> Tensor:
        """Combine the members in their own vocabularies; only for rules with `uses_words`.

        Args:
            own: By member, log-probabilities over its own vocabulary, `[N, columns]`, nats. A row
                of -inf abstains.
            weights: As in `fuse`.
            lexicon: Finds one member's tokens in another's vocabulary.
            reference: Which member is the reference.

        Returns:
            As `fuse`.
        """
        raise NotImplementedError
