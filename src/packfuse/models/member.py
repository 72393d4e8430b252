"""The interface of a member, through which the engine runs a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.errors import PromptError
from packfuse.models.logps import nan_error
from packfuse.models.vocab_subset import MAX_PRUNED_MASS, VocabSubset
from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import download


@dataclass(frozen=True, slots=True)
class ReadCallback:
    """A callback that gets log-probabilities while a request is read.

    Attributes:
        on_logps: Called with counts and log-probabilities `[n, columns]` (nats) over the whole
            vocabulary. A count is the number of tokens that the session has read at that position.
        counts: The counts for which it is called; None for all.
    """

    on_logps: Callable[[Sequence[int], Tensor], None]
    counts: frozenset[int] | None = None

    def wants(self, count: int) -> bool:
        """Whether the log-probabilities after the first `count` tokens are passed to it."""
        return self.counts is None or count in self.counts


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Positions at which logits may be NaN, which is not known on the host yet.

    Attributes:
        flags: Whether they are NaN, `[n]`, on the member's device.
        counts: By position, the number of tokens read there.
    """

    flags: Tensor
    counts: Sequence[int]

    @classmethod
    def after(cls, before: Unchecked | None, flags: Tensor, counts: Sequence[int]) -> Unchecked:
        """Positions after others that have not been checked either."""
        if before is None:
            return cls(flags, counts)
        return cls(torch.cat([before.flags, flags]), [*before.counts, *counts])


@dataclass(slots=True)
class Session:
    """The tokens that a member has read of one sequence, and the state that it keeps for them.

    Attributes:
        ids: The token ids read so far.
        state: Private to the member (a KV cache).
        log_normalizers: Logsumexp of the logits at the positions of the last forward pass, in nats,
            oldest first; None if the logits are not known.
        observed: Number of positions over which `pruned_mass` is averaged.
        pruned_mass: Mean probability of the tokens outside the request's subset at the positions
            that a callback got.
        unchecked: What is still to be checked of the last read; see `Read.defers_check`.
    """

    ids: list[int] = field(default_factory=list)
    state: Any = None
    log_normalizers: Tensor | None = None
    observed: int = 0
    pruned_mass: float = 0.0
    unchecked: Unchecked | None = None

    @property
    def length(self) -> int:
        """Number of tokens read."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Pause:
    """Interrupts a long read, so that other sequences are not kept waiting.

    Attributes:
        tokens: Most tokens that are read without a pause.
        call: Called between two parts of the read. It may use the member for other sessions, and
            may raise an error to end the read.
    """

    tokens: int
    call: Callable[[], object]


@dataclass(slots=True)
class Read:
    """A request to read tokens after those that a session has read.

    Attributes:
        session: The session, which is advanced in place.
        ids: The token ids to read, at least one.
        keep: For how many of the last of these tokens the next-token distribution is returned.
        callback: Gets the log-probabilities at the counts that it names, block by block; None for
            no callback.
        subset: The tokens over which the returned distributions are normalized; None for all. The
            callback gets distributions over all tokens in either case.
        pause: Interrupts the read; None to read without a pause.
        defers_check: Whether the caller will call `check` before it uses what was read, so that the
            member need not wait for the device to find NaN logits. Members may check at once.
    """

    session: Session
    ids: Sequence[int]
    keep: int = 1
    callback: ReadCallback | None = None
    subset: VocabSubset | None = None
    pause: Pause | None = None
    defers_check: bool = False

    @property
    def active_subset(self) -> VocabSubset | None:
        """`subset`, or None after a prompt on which the pruned tokens have too much probability."""
        subset = self.subset
        if subset is None or subset.exact or self.session.pruned_mass <= MAX_PRUNED_MASS:
            return subset
        return None

    def notify(self, counts: Sequence[int], logps: Tensor) -> None:
        """Pass log-probabilities `[n, columns]` at counts to the callback; measure pruned mass."""
        session = self.session
        if self.callback and len(counts):
            self.callback.on_logps(counts, logps)
            if self.subset is not None and not self.subset.exact:
                total = session.pruned_mass * session.observed + self.subset.pruned_mass(logps)
                session.observed += len(logps)
                session.pruned_mass = total / session.observed


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """What is said of a member in identities, records and lists.

    Attributes:
        source: Hub id, folder or address of its model.
        dtype: Type of its weights; "" if that is not known.
        parameters: Number of parameters; None if that is not known.
        nbytes: Memory of its weights in this process, in bytes.
    """

    source: str
    dtype: str = ""
    parameters: int | None = None
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class NamedFacts:
    """What a member that does not give whole distributions gave to one sequence.

    Attributes:
        named: Most tokens that it named at a place.
        outside: Mean probability of the tokens that it did not name.
    """

    named: int
    outside: float


class Member(ABC):
    """A causal language model that reads tokens of its own vocabulary.

    Attributes:
        name: Its name in records and error messages.
        vocabulary: Its tokenizer, with the bytes of every token.
        context_window: The most tokens of a session.
        model: The transformers model, for members whose model is in this process; else None.
        elsewhere: Whether another process computes it, so that this one only waits.
        names_few: Whether it names so few tokens at a place that the reference knows better where
            the probability of the others belongs. These have the lowest log-probability of all.
        max_scored_places: Most places of a prompt at which it is scored for the weights; None where
            further places cost little.
        state: What the model was when `refresh` was called last. Sessions and log-probabilities
            that were computed in another state are not used again.
    """

    name: str
    vocabulary: Vocabulary
    context_window: int
    model: Any = None
    elsewhere: bool = False
    names_few: bool = False
    max_scored_places: int | None = None
    state: Hashable = None

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.vocabulary.tokenizer

    @abstractmethod
    def renamed(self, name: str) -> Member:
        """The same model under another name."""

    @property
    @abstractmethod
    def facts(self) -> MemberFacts:
        """Where its model is from, and how large it is."""

    @abstractmethod
    def digest(self) -> str:
        """Digest of all that its distributions depend on, for caches. It may take seconds."""

    @abstractmethod
    def quick_digest(self) -> str:
        """The same from samples of the weights, in milliseconds."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of its input ids."""

    def refresh(self) -> None:  # noqa: B027 (nothing to do is the rule)
        """Find out what the model is now: set `state`, and drop what another state left behind.

        Called before every sequence. Members whose model never changes need do nothing.

        Raises:
            MemberError: if the model does not fit its vocabulary any more.
        """

    def forget(self) -> None:  # noqa: B027 (nothing to do is the rule)
        """Drop what was made from the model's weights, whether or not they seem to have changed."""

    def named(self, session: Session) -> NamedFacts | None:
        """How many tokens it named at the places of a session; None for whole distributions."""
        del session
        return None

    @abstractmethod
    def open(self) -> Session:
        """A session that has read nothing."""

    @abstractmethod
    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        """Read tokens of one or several sessions, as a batch where possible.

        Returns:
            For each request the log-probabilities `[keep, vocabulary.columns]` in nats after each
            of its last `keep` tokens, float32; normalized over `subset`, -inf elsewhere.

        Raises:
            MemberError: if the model fails or gives NaN.
            PromptError: if a session would exceed the context window.
        """

    def check_context_window(self, requests: Sequence[Read]) -> None:
        """Refuse requests after which a session would exceed the context window.

        Raises:
            PromptError: naming the member, the length and the window.
        """
        for request in requests:
            total = request.session.length + len(request.ids)
            if total > self.context_window:
                raise PromptError(
                    f"member {self.name!r} would read {total} tokens, and can read "
                    f"{self.context_window}",
                    hint="shorten the prompt or the answer",
                )

    def reset(self, session: Session) -> None:
        """Forget all that a session has read, in place."""
        fresh = self.open()
        session.ids, session.state, session.unchecked = fresh.ids, fresh.state, None

    @abstractmethod
    def rollback(self, session: Session, length: int) -> None:
        """Drop the tokens after the first `length`, in place.

        Members with recurrent states may have to drop a few more: afterwards `session.length` is at
        most `length`.
        """

    @abstractmethod
    def fork(self, session: Session) -> Session:
        """An independent copy of a session, made without copying keys and values."""

    @abstractmethod
    def keep(self, session: Session, length: int) -> Session:
        """An independent copy of the first `length` tokens, or of a few fewer.

        Its memory holds these tokens alone.
        """

    @abstractmethod
    def nbytes(self, session: Session) -> int:
        """Memory that a session keeps alive in bytes, shared tensors included."""


def check(read: Sequence[tuple[Member, Session]]) -> None:
    """Check the last reads of sessions whose check was deferred; the host waits once.

    Raises:
        MemberError: for NaN, naming the first member; the session that has read it is reset.
    """
    waiting = [(member, session) for member, session in read if session.unchecked]
    settle(waiting, download([s.unchecked.flags for _, s in waiting if s.unchecked]))


def settle(read: Sequence[tuple[Member, Session]], flags: Sequence[NDArray[np.bool_]]) -> None:
    """The end of `check`, for a caller who brings the flags to the host by itself.

    Raises:
        MemberError: see `check`.
    """
    for (member, session), broken in zip(read, flags, strict=True):
        unchecked, session.unchecked = session.unchecked, None
        if unchecked is not None and broken.any():
            member.reset(session)
            raise nan_error(member.name, unchecked.counts[int(broken.argmax())])
