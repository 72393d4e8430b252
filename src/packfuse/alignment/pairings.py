"""Pairings of tokens with tokens, which need no arithmetic over several of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from packfuse.alignment.base import Pairing, stack
from packfuse.alignment.controls import (
    ControlFlow,
    MarkHypotheses,
    MarkShare,
    MarkTable,
    SharedFirsts,
)
from packfuse.alignment.lexicon import writable
from packfuse.alignment.straddle import WINDOW, StraddleFilter
from packfuse.alignment.straddle_mixture import mix_straddles
from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import Constant, upload


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
        missing = [*absent, *range(reference.size, self.columns)]
        self._absent = Constant(torch.tensor(missing, dtype=torch.long))
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
            logps = logps.index_fill(-1, self._absent.on(logps.device), float("-inf"))
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
        tokens, excluded = torch.from_numpy(carried.clip(min=0)), torch.from_numpy(carried < 0)
        self._tokens, self._excluded = Constant(tokens), Constant(excluded)
        self._flow = ControlFlow(member, reference, set(carried.tolist()), twins=False)
        self._share = MarkShare(member, reference)
        used = tokens[~excluded].unique()
        used = used if published else torch.cat([used, self._flow.used_ids]).unique()
        self._used = Constant(used)
        marks = MarkTable(member, member if published else reference)
        self._follow_marks(marks, member, reference, carried)

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """The member's ids, one for each reference id."""
        mapped: list[int] = self._table[list(ids)].clip(min=0).tolist()
        return mapped

    def used_ids(self) -> Tensor:
        """The ids in the table. The others have no effect, as `translate` normalizes over these."""
        return self._used.tensor

    def translate(self, logps: Tensor) -> Tensor:
        """Log-probabilities `[N, reference columns]`, normalized."""
        tokens, excluded = (one.on(logps.device) for one in (self._tokens, self._excluded))
        mapped = logps.index_select(-1, tokens).masked_fill_(excluded, -torch.inf)
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
        logps = logps - logps.index_select(-1, self._used.on(logps.device)).logsumexp(-1, True)
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
    cut = [row is not None for row in member]
    plain = [
        there and (straddle is None or straddle.trivial)
        for there, straddle in zip(cut, filters, strict=True)
    ]
    if all(plain):
        return carried
    mixed = mix_straddles(carried.exp(), reference.exp(), cut, filters).log_()
    if not any(plain):
        return mixed
    return torch.where(upload([[one] for one in plain], carried.device), carried, mixed)


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
