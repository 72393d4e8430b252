"""A member of the pack: the one narrow interface through which the engine reaches a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from packfuse.models.vocab_subset import MAX_PRUNED_MASS, VocabSubset
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ReadCallback:
    """Who sees log-probabilities as they come.

    Attributes:
        on_logps: Called with how many tokens had been read at n places, and what was said there,
            `[n, columns]`.
        counts: The places wanted, by how many tokens have been read there; None for all.
    """

    on_logps: Callable[[Sequence[int], Tensor], None]
    counts: frozenset[int] | None = None

    def wants(self, count: int) -> bool:
        """Whether what is said after that many tokens is wanted."""
        return self.counts is None or count in self.counts


@dataclass(slots=True)
class Session:
    """What a member has read in one row. Only its member looks inside `state`.

    Attributes:
        ids: The tokens.
        state: The member's own.
        log_normalizers: Logsumexp of its logits after each of the last tokens read, nats, oldest
            first; None if its logits are not known.
        observed: At how many places somebody saw the distributions.
        pruned_mass: Mean probability there of tokens outside the columns asked about.
    """

    ids: list[int] = field(default_factory=list)
    state: Any = None
    log_normalizers: Tensor | None = None
    observed: int = 0
    pruned_mass: float = 0.0

    @property
    def length(self) -> int:
        """Tokens read."""
        return len(self.ids)


@dataclass(slots=True)
class Read:
    """A request: read `ids` on top of `session`.

    Attributes:
        session: Where to read; it is advanced in place.
        ids: The tokens to read, at least one.
        keep: After how many of the last tokens the next-token distribution is wanted.
        callback: Sees the distributions where it wants them, in chunks, when given.
        columns: Which tokens count in what is returned; None for all. `callback` sees all anyway.
    """

    session: Session
    ids: Sequence[int]
    keep: int = 1
    callback: ReadCallback | None = None
    columns: VocabSubset | None = None

    @property
    def active_subset(self) -> VocabSubset | None:
        """The columns that count: all of them after a prompt on which the others matter."""
        columns = self.columns
        if columns is None or columns.exact or self.session.pruned_mass <= MAX_PRUNED_MASS:
            return columns
        return None

    def notify(self, counts: Sequence[int], logps: Tensor) -> None:
        """Show distributions `[n, columns]` after so many tokens to the visitor."""
        session = self.session
        if self.callback and len(counts):
            self.callback.on_logps(counts, logps)
            if self.columns is not None and not self.columns.exact:
                total = session.pruned_mass * session.observed + self.columns.pruned_mass(logps)
                session.observed += len(logps)
                session.pruned_mass = total / session.observed


class Member(ABC):
    """A causal language model that reads its own tokens.

    Attributes:
        name: What the record and the errors call it.
        vocabulary: Its tokenizer as bytes.
        context_window: How many tokens it can read.
    """

    name: str
    vocabulary: Vocabulary
    context_window: int

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it takes its tokens."""

    @abstractmethod
    def open(self) -> Session:
        """A row in which nothing has been read."""

    @abstractmethod
    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """Read tokens in several rows at once.

        Returns:
            For each request the log-probabilities `[keep, vocabulary.columns]` in nats after its
            last `keep` tokens, float32; normalized over `columns`, -inf elsewhere.

        Raises:
            MemberError: if the model fails or gives NaN.
            PromptError: if a row outgrows the context window.
        """

    @abstractmethod
    def rollback(self, session: Session, length: int) -> None:
        """Forget what was read after the first `length` tokens, or a little more than that.

        `session.length` says afterwards how much is left, at most `length`.
        """

    @abstractmethod
    def fork(self, session: Session) -> Session:
        """An independent copy; cheap."""

    @abstractmethod
    def keep(self, session: Session, length: int) -> Session:
        """An independent copy of the first `length` tokens, or a few less, and of nothing more."""

    @abstractmethod
    def nbytes(self, session: Session) -> int:
        """Memory that a session holds, shared or not, in bytes."""
