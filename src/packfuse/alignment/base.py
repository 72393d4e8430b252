"""The interface of an alignment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from packfuse.alignment.controls import (
    MarkTable,
)
from packfuse.alignment.lexicon import Lexicon
from packfuse.alignment.straddle import WINDOW, StraddleFilter
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import move


class Pairing(ABC):
    """One member and the reference, ready to carry distributions from the first to the second.

    Attributes:
        same_ids: Whether the member is fed the reference's ids, mapped by `map_ids`. If not, the
            member is fed the text in its own tokens.
        lookahead: Whether white space at the end of the text is tokenized as if a word followed.
        exact: Whether the tokens outside `used_ids` have no effect on the result.
        marks: The marks that the member reads as control tokens where the reference spells them;
            None for none.
        window: Number of last reference tokens that decide the state of its filters.
    """

    same_ids: bool = False
    lookahead: bool = True
    exact: bool = True
    marks: MarkTable | None = None
    window: int = WINDOW

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """The member's ids for reference ids; only for pairings with `same_ids`."""
        raise NotImplementedError

    def map_control(self, index: int) -> list[int]:
        """The member's ids for a control token of the reference; only with `same_ids`."""
        return self.map_ids([index])

    def translate(self, logps: Tensor) -> Tensor:
        """The member's log-probabilities of the reference's ids; only with `same_ids`.

        Args:
            logps: `[N, member columns]`, nats.

        Returns:
            Log-probabilities `[N, reference columns]`, nats.
        """
        raise NotImplementedError

    def used_ids(self) -> Tensor | None:
        """The member's ids whose probabilities are used, `[n]`; None for all."""
        return None

    def straddle(self) -> StraddleFilter | None:
        """A new filter for one sequence; None for alignments without one."""
        return None

    @abstractmethod
    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        filters: Sequence[StraddleFilter | None],
    ) -> Tensor:
        """Carry N distributions into the reference's vocabulary.

        Args:
            member: The member's log-probabilities of each row, `[member columns]`, nats; None for a
                row whose text ends inside a character of the member.
            reference: The reference's own log-probabilities, `[N, reference columns]`, nats.
            filters: The filter of each row, from `straddle`.

        Returns:
            Log-probabilities `[N, reference columns]`, nats. For mass that cannot be carried, a row
            has the reference's own distribution.
        """


@dataclass(frozen=True, slots=True)
class ReferenceView:
    """How distributions look from one reference.

    Attributes:
        reference: Which member it is.
        pairings: By member, how its distributions are carried there.
        alignment: The alignment that made the pairings, by its name and parameters.
    """

    reference: int
    pairings: Sequence[Pairing] = ()
    alignment: str = ""


class Alignment(BaseModel, ABC):
    """How two vocabularies are compared.

    Each alignment is one file in this folder: a frozen pydantic model whose fields are its
    parameters. The registry finds it by its `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """The name in settings: `alignment="<name>"`."""
    source: ClassVar[str]
    """The paper and section of the method."""

    @abstractmethod
    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Prepare to carry from `member` to `reference`.

        This takes up to minutes for two large vocabularies. The result is cached on disk.

        Args:
            member: The member's vocabulary.
            reference: The reference's vocabulary.
            progress: Called with (done, total), in tokens.
        """

    def pair_naming_few(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """The same for a member that names few tokens; see `Member.names_few`.

        What it does not name is spread evenly over its vocabulary, unless the alignment knows a
        better place.
        """
        return self.pair(member, reference, progress)

    @property
    def reading(self) -> Alignment:
        """The alignment for prompt losses, which are computed in the members' own tokens."""
        return self

    def lexicon(self, vocabularies: Sequence[Vocabulary]) -> Lexicon | None:
        """For rules that compare words; None for alignments that only carry distributions."""
        return None


def stack(rows: Sequence[Tensor | None], reference: Tensor) -> Tensor:
    """Rows as one tensor `[N, columns]` on the reference's device.

    A row that is None is filled with the first row that is not. The caller replaces it.

    Raises:
        ValueError: if all rows are None.

    Example:
        >>> stack([None, torch.tensor([0.5, 0.5])], torch.zeros(2, 3))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    present = next((row for row in rows if row is not None), None)
    if present is None:
        raise ValueError("no row has a distribution")
    filled = [present if row is None else row for row in rows]
    joined = filled[0][None] if len(filled) == 1 else torch.stack(filled)
    return move(joined, reference.device)
