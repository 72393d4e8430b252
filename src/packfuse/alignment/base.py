"""The interface of an alignment: how a member's distribution reaches the reference vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from packfuse.alignment.lexicon import Lexicon, writable
from packfuse.alignment.straddle import Straddle
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary


class Pairing(ABC):
    """One member, seen from the reference.

    Attributes:
        same_ids: Whether the member reads the reference's ids (through `map_ids`), not its text.
        lookahead: Whether it reads white space at the end of the text as it would before a word.
        exact: Whether tokens that it does not `reads` never matter.
    """

    same_ids: bool = False
    lookahead: bool = True
    exact: bool = True

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """The member's ids for reference ids; only for verbatim pairings."""
        raise NotImplementedError

    def map_control(self, index: int) -> list[int]:
        """The member's ids for a control token of the reference; only for verbatim pairings."""
        return self.map_ids([index])

    def translate(self, logps: Tensor) -> Tensor:
        """What the member says of reference ids; only for verbatim pairings.

        Args:
            logps: `[N, member columns]`, nats.

        Returns:
            Log-probabilities `[N, reference columns]`.
        """
        raise NotImplementedError

    def reads(self) -> Tensor | None:
        """The member's tokens whose probabilities matter here, `[n]`; None for all."""
        return None

    def straddle(self) -> Straddle | None:
        """A filter for one row, if the alignment looks inside tokens."""
        return None

    @abstractmethod
    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        straddles: Sequence[Straddle | None],
    ) -> Tensor:
        """Carry N distributions into the reference vocabulary.

        Args:
            member: The member's log-probabilities `[member columns]` by row; None where it has none
                (the text stands inside one of its characters).
            reference: The reference's own, `[N, reference columns]`.
            straddles: The rows' filters.

        Returns:
            Log-probabilities `[N, reference columns]`, nats.
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
    """How vocabularies are compared.

    An alignment is one file in this folder: a frozen pydantic model whose fields are its
    parameters. It registers itself by its `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Prepare to carry from `member` to `reference`; may take seconds and be cached on disk."""

    @property
    def reading(self) -> Alignment:
        """The same with every member reading the text in its own tokens, to compare losses."""
        return self

    def lexicon(self, vocabularies: Sequence[Vocabulary]) -> Lexicon | None:
        """For rules that compare words, not distributions; None leaves them the carried ones."""
        return None


class Same(Pairing):
    """The member writes every text in the reference's ids: nothing is carried, nothing is lost.

    Control tokens may differ: those of the reference that the member does not have get no mass.
    """

    same_ids = True

    def __init__(self, member: Vocabulary, reference: Vocabulary) -> None:
        """Compare the control tokens of two vocabularies with one `text_digest`."""
        self.columns = reference.columns
        strange = [
            index
            for name, index in reference.controls.items()
            if index < self.columns and member.controls.get(name) != index
        ]
        # What the member lacks is read as the end of its turns if that is its role, or as text.
        ends = {index: [member.end_ids[0]] for index in reference.end_ids if member.end_ids}
        self._controls = {i: ends.get(i) or member.encode(reference.spell(i)) for i in strange}
        self._strange = torch.tensor([*strange, *range(reference.size, self.columns)]).long()

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """The same ids."""
        return list(ids)

    def map_control(self, index: int) -> list[int]:
        """The same id if the member has it."""
        return self._controls.get(index, [index])

    def translate(self, logps: Tensor) -> Tensor:
        """The same, as wide as the reference's."""
        extra = self.columns - logps.shape[-1]
        if extra:
            logps = nn.functional.pad(logps, (0, extra), value=float("-inf"))
        if len(self._strange):
            logps = logps.index_fill(-1, self._strange.to(logps.device), float("-inf"))
        return logps

    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        straddles: Sequence[Straddle | None],
    ) -> Tensor:
        """The member's own log-probabilities."""
        return self.translate(stack(member, reference))


class Mapped(Pairing):
    """Every reference token takes the log-probability of one member token, whoever shares it."""

    def __init__(
        self,
        table: NDArray[np.int64],
        reference: Vocabulary,
        *,
        same_ids: bool = False,
        lookahead: bool = True,
    ) -> None:
        """Carry through `table`.

        Args:
            table: The member's id by reference id, `[reference columns]`; -1 for none. Only text
                and ends are carried: a member's text must not turn into control tokens.
            reference: The reference's vocabulary.
            same_ids: See `Pairing`.
            lookahead: Likewise.
        """
        self.same_ids, self.lookahead = same_ids, lookahead
        carried = (table >= 0) & writable(reference)
        self._table = table
        self._tokens = torch.from_numpy(np.where(carried, table, 0))
        self._silent = torch.from_numpy(~carried)

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """The member's ids, one for one."""
        mapped: list[int] = self._table[list(ids)].clip(min=0).tolist()
        return mapped

    def reads(self) -> Tensor:
        """The tokens in the table: exact, as `translate` normalizes over them."""
        carried: Tensor = self._tokens[~self._silent].unique()
        return carried.cpu()

    def translate(self, logps: Tensor) -> Tensor:
        """Normalized over the reference's ids."""
        if self._tokens.device != logps.device:
            self._tokens, self._silent = (t.to(logps.device) for t in (self._tokens, self._silent))
        said = logps.index_select(-1, self._tokens).masked_fill_(self._silent, -torch.inf)
        return said.log_softmax(-1)

    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        straddles: Sequence[Straddle | None],
    ) -> Tensor:
        """See `translate`; where the member has nothing to say it echoes the reference."""
        if all(row is None for row in member):
            return reference.clone()
        carried = self.translate(stack(member, reference))
        for index, row in enumerate(member):
            if row is None:
                carried[index] = reference[index]
        return carried


def stack(rows: Sequence[Tensor | None], reference: Tensor) -> Tensor:
    """Rows `[N, columns]` on the reference's device; rows of None repeat a present one."""
    present = next((row for row in rows if row is not None), None)
    if present is None:
        raise ValueError("no row has a distribution")
    filled = [present if row is None else row for row in rows]
    joined = filled[0][None] if len(filled) == 1 else torch.stack(filled)
    return joined.to(reference.device, non_blocking=True)
