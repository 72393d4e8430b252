"""The interface of an alignment, and the pairings that need no arithmetic over several tokens."""

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

from packfuse.alignment.controls import (
    ControlFlow,
    MarkHypotheses,
    MarkShare,
    MarkTable,
    SharedFirsts,
)
from packfuse.alignment.lexicon import Lexicon, writable
from packfuse.alignment.straddle import WINDOW, StraddleFilter
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary


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


class SpelledMarks(Pairing):
    """A pairing whose only straddles are marks that the reference has to spell."""

    def _follow_marks(
        self,
        marks: MarkTable,
        member: Vocabulary,
        reference: Vocabulary,
        table: NDArray[np.int64],
    ) -> None:
        """Prepare the filters; `table` has the member's id by reference id, -1 for none."""
        self.marks = marks
        self._hypotheses = MarkHypotheses(marks, member, reference, table) if marks else None
        self.window = self._hypotheses.window if self._hypotheses else WINDOW

    def straddle(self) -> StraddleFilter | None:
        """A filter for marks that the reference has to spell; None without such marks."""
        return StraddleFilter(self._hypotheses) if self._hypotheses else None


class Same(SpelledMarks):
    """A member that encodes every text to the reference's ids: nothing has to be carried.

    The control tokens of the two may differ. Marks and ends that only one of them has go to, and
    take from, what the other writes in their place. Any other control token that the member does
    not have gets probability 0.
    """

    same_ids = True

    def __init__(self, member: Vocabulary, reference: Vocabulary) -> None:
        """Compare the control tokens of two vocabularies with one `text_digest`."""
        self.columns = reference.columns
        absent = [
            index
            for name, index in reference.controls.items()
            if index < self.columns and member.controls.get(name) != index
        ]
        # The member is fed its own end of turn for an end of the reference that it does not have,
        # its own token for a control token that has another id, and the spelling of any other.
        ends = {index: [member.end_ids[0]] for index in reference.end_ids if member.end_ids}
        self._controls = {
            i: _twin(reference.spell(i), member) or ends.get(i) or member.encode(reference.spell(i))
            for i in absent
        }
        self._absent = torch.tensor([*absent, *range(reference.size, self.columns)]).long()
        kept = {i for name, i in member.controls.items() if reference.controls.get(name) == i}
        self._flow = ControlFlow(member, reference, kept, twins=True)
        self._firsts = SharedFirsts(member, reference)
        self._share = MarkShare(member, reference)
        table = np.arange(self.columns)
        table[table >= member.columns] = -1
        self._follow_marks(MarkTable(member, reference), member, reference, table)

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """The same ids."""
        return list(ids)

    def map_control(self, index: int) -> list[int]:
        """The same id if the member has that control token."""
        return self._controls.get(index, [index])

    def translate(self, logps: Tensor) -> Tensor:
        """The same log-probabilities, padded to the reference's columns."""
        extra = self.columns - logps.shape[-1]
        if extra:
            logps = nn.functional.pad(logps, (0, extra), value=float("-inf"))
        if len(self._absent):
            logps = logps.index_fill(-1, self._absent.to(logps.device), float("-inf"))
        return logps

    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        filters: Sequence[StraddleFilter | None],
    ) -> Tensor:
        """The member's own log-probabilities, except of control tokens that one side lacks."""
        logps = stack(member, reference)
        carried = self._firsts.add(self.translate(logps), reference)
        carried = self._share.add(carried, reference, self._flow.kept(logps))
        carried = self._flow.add(carried, logps, reference)
        return follow_straddles(carried, member, reference, filters)


class Mapped(SpelledMarks):
    """Each reference token has the log-probability of one member token.

    Several reference tokens may share one member token. Each has its whole probability, and the
    result is normalized. Tokens of the member that stand for none have no effect.

    With `published=True`, as in the papers, that is all. Otherwise control tokens are carried, too
    (`ControlFlow`).
    """

    def __init__(
        self,
        table: NDArray[np.int64],
        member: Vocabulary,
        reference: Vocabulary,
        *,
        same_ids: bool = False,
        lookahead: bool = True,
        published: bool = False,
    ) -> None:
        """Carry through `table`.

        Args:
            table: The member's id by reference id, `[reference columns]`; -1 for none. Only the
                reference's text tokens, ends and marks get a probability, so that no text of a
                member becomes another control token.
            member: The member's vocabulary.
            reference: The reference's vocabulary.
            same_ids: See `Pairing`.
            lookahead: See `Pairing`.
            published: Whether only what the table has is carried, as in the papers.
        """
        self.same_ids, self.lookahead, self._published = same_ids, lookahead, published
        self._table = table
        carried = np.where(writable(reference), table, -1)
        if not published:
            carried = with_marks(carried, member, reference)
        self._tokens = torch.from_numpy(carried.clip(min=0))
        self._excluded = torch.from_numpy(carried < 0)
        self._flow = ControlFlow(member, reference, set(carried.tolist()), twins=False)
        self._share = MarkShare(member, reference)
        used = self._tokens[~self._excluded].unique()
        self._used: Tensor = used if published else torch.cat([used, self._flow.used_ids]).unique()
        marks = MarkTable(member, member if published else reference)
        self._follow_marks(marks, member, reference, carried)

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """The member's ids, one for each reference id."""
        mapped: list[int] = self._table[list(ids)].clip(min=0).tolist()
        return mapped

    def used_ids(self) -> Tensor:
        """The ids in the table. The others have no effect, as `translate` normalizes over these."""
        return self._used

    def translate(self, logps: Tensor) -> Tensor:
        """Log-probabilities `[N, reference columns]`, normalized."""
        if self._tokens.device != logps.device:
            self._tokens = self._tokens.to(logps.device)
            self._excluded = self._excluded.to(logps.device)
        mapped = logps.index_select(-1, self._tokens).masked_fill_(self._excluded, -torch.inf)
        normalized: Tensor = mapped.log_softmax(-1)
        return normalized

    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        filters: Sequence[StraddleFilter | None],
    ) -> Tensor:
        """See `translate` and `ControlFlow`.

        A row without a member's distribution is the reference's.
        """
        if all(row is None for row in member):
            return follow_straddles(reference, member, reference, filters)
        logps = stack(member, reference)
        if self._published:
            return follow_straddles(self.translate(logps), member, reference, filters)
        logps = logps - logps.index_select(-1, self._used.to(logps.device)).logsumexp(-1, True)
        kept = self._flow.kept(logps)
        # Without any mass on text, the normalized text is NaN.
        text = self.translate(logps).masked_fill_(torch.isneginf(kept), -torch.inf)
        carried = self._share.add(text + kept, reference, kept)
        carried = self._flow.add(carried, logps, reference)
        return follow_straddles(carried, member, reference, filters)


def follow_straddles(
    carried: Tensor,
    member: Sequence[Tensor | None],
    reference: Tensor,
    filters: Sequence[StraddleFilter | None],
) -> Tensor:
    """Carried distributions, mixed with the straddles of each row; `carried` is not changed.

    Args:
        carried: Log-probabilities at the cut, `[N, reference columns]`, nats.
        member: As in `Pairing.carry`. A row that is None is the reference's, unless it has
            straddles.
        reference: As in `Pairing.carry`.
        filters: As in `Pairing.carry`.
    """
    rows = list(carried)
    plain = [
        row is not None and (straddle is None or straddle.trivial)
        for row, straddle in zip(member, filters, strict=True)
    ]
    if all(plain):
        return carried
    for index, (row, straddle) in enumerate(zip(member, filters, strict=True)):
        if plain[index]:
            continue
        cut = None if row is None else carried[index].exp()
        mixed = straddle.mix(cut, reference[index].exp()) if straddle else None
        rows[index] = reference[index] if mixed is None else mixed.log()
    return torch.stack(rows)


def with_marks(
    table: NDArray[np.int64], member: Vocabulary, reference: Vocabulary
) -> NDArray[np.int64]:
    """A table of member ids by reference id, with the reference's marks.

    A mark has the control token of that spelling, or else the first token of its spelling.
    """
    table = table.copy()
    for index, spelling in reference.marks.items():
        twin = member.controls.get(spelling.decode(), member.columns)
        first = twin if twin < member.columns else member.first_token(spelling)
        table[index] = -1 if first is None else first
    return table


def _twin(spelling: str, vocabulary: Vocabulary) -> list[int]:
    """The control token with that spelling; empty for none."""
    index = vocabulary.controls.get(spelling, vocabulary.columns)
    return [index] if index < vocabulary.columns else []


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
    return joined.to(reference.device, non_blocking=True)
