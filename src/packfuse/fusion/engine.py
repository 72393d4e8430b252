"""The engine: rows of reference ids in, fused next-token distributions out."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor

from packfuse.alignment.base import Alignment, Pairing
from packfuse.alignment.straddle import WINDOW
from packfuse.alignment.token_pairs import Progress
from packfuse.errors import PromptError
from packfuse.fusion.member_stream import MemberStream
from packfuse.fusion.pooling import Pooling, PositionCallback
from packfuse.fusion.read_plan import ReadPlan, execute, first_boundary
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.sequence import PackSequence
from packfuse.models.compiled import PRECOMPILED_WIDTHS, Compiled
from packfuse.models.member import Member, ReadCallback
from packfuse.models.vocab_subset import VocabSubset, read_subset
from packfuse.settings import HeadsName
from packfuse.text.prompt import PackPrompt
from packfuse.weighting.fit_positions import ReferenceView
from packfuse.weighting.prefix_cache import PrefixCache

_BLOCK = 32
"""Positions fused in one go when many are wanted."""


class Engine:
    """Members, how they are paired with the reference, and the rule that combines them.

    It knows token ids and bytes; text, templates and sampling belong to others.
    """

    def __init__(
        self,
        members: Sequence[Member],
        reference: int,
        alignment: Alignment,
        rule: Rule,
        progress: Progress | None = None,
        prefixes: PrefixCache | None = None,
        heads: HeadsName = "full",
        *,
        parallel: bool = False,
    ) -> None:
        """Pair every member with member number `reference`; `prefixes` keeps what they read.

        With "pruned" `heads`, the others give probabilities to tokens that the alignment reads.
        `parallel`: what is generated is read by members at the same time.
        """
        self._parallel = parallel
        self.prefixes = prefixes
        self.members, self.rule, self.alignment = list(members), rule, alignment
        self.reference_index = reference
        self.reference = members[reference].vocabulary
        self.pairings: list[Pairing] = [
            alignment.pair(member.vocabulary, self.reference, progress) for member in members
        ]
        self.view = ReferenceView(reference, self.pairings, repr(alignment))
        self.lexicon = alignment.lexicon([member.vocabulary for member in members])
        self.pooling = Pooling(self.members, reference, self.pairings, self.lexicon)
        self._columns: list[VocabSubset | None] = [
            read_subset(pairing, member.vocabulary)
            if heads == "pruned" and member is not members[reference]
            else None
            for member, pairing in zip(members, self.pairings, strict=True)
        ]

    def warm(self, report: Progress | None = None) -> None:
        """Compile the steps of single rows, for the members whose steps are compiled."""
        todo = [
            (member, columns, width)
            for member, columns in zip(self.members, self._read_columns, strict=True)
            for width in PRECOMPILED_WIDTHS
            if isinstance(member, Compiled)
        ]
        for done, (member, columns, width) in enumerate(todo):
            if report:
                report(done, len(todo))
            if member.refused is None:
                member.warm(columns, width)

    def with_members(self, members: Sequence[Member]) -> Engine:
        """The same with others in the members' places, who have the same vocabularies."""
        twin = copy.copy(self)
        twin.members = list(members)
        return twin

    def open(self, prompt: PackPrompt) -> PackSequence:
        """A row that has read nothing yet; every member takes part."""
        sides = zip(self.members, self.pairings, prompt.members, self._read_columns, strict=True)
        readers = [
            MemberStream(member, pairing, side, self.reference, some)
            for member, pairing, side, some in sides
        ]
        return PackSequence(prompt, readers, self.reference)

    @property
    def _read_columns(self) -> list[VocabSubset | None]:
        """By member, the tokens that are read of it."""
        # Rules that compare words want the members' own best tokens, whatever is read of them.
        return [None] * len(self.members) if self.pooling.uses_lexicon(self.rule) else self._columns

    @torch.no_grad()
    def prefill(self, row: PackSequence, callbacks: Sequence[ReadCallback | None]) -> None:
        """Read a fed row with every member, each watched by its visitor; `settle` then fuses.

        Raises:
            PromptError: if a member cannot read that much.
        """
        self._check_room(row)
        plan = ReadPlan(row, self.reference_index, first_boundary(len(row.stream), 1), 1)
        execute(self.members, [plan], callbacks)
        row.prefilled = plan.places

    @torch.no_grad()
    def settle(
        self, rows: Sequence[PackSequence], observer: PositionCallback | None = None
    ) -> None:
        """Fuse after prefilled prompts, now that the rows have their weights."""
        plans = []
        for row in rows:
            first = first_boundary(len(row.stream), 1)
            heard = zip(row.prefilled, row.readers, strict=True)
            places = [said if reader else None for said, reader in heard]
            plans.append(ReadPlan(row, self.reference_index, first, 1, places=places))
            row.prefilled = []
        self._fuse(plans, observer)

    @torch.no_grad()
    def advance(
        self,
        rows: Sequence[PackSequence],
        ids: Sequence[Sequence[int]],
        keep: int = 1,
        observer: PositionCallback | None = None,
        endings: Container[int] = (),
        mark: bool = False,
    ) -> Tensor:
        """Read reference ids and give the fused distribution after each of the last `keep` of them.

        Args:
            rows: N rows with their weights set.
            ids: New ids by row, at least `keep` each.
            keep: Positions wanted, counted from the end.
            observer: Sees the members' carried distributions.
            mark: Note where the rows stand at each of the places, to be cropped to them at no cost.
            endings: Ids that end an answer. A row that gets one of them as its only new id rests:
                nobody listens to what it says next, so it repeats what it said last.

        Returns:
            Log-probabilities `[N, keep, reference columns]`, nats.
        """
        out: list[list[Tensor]] = [[] for _ in rows]
        segments: list[list[tuple[list[int], int]]] = []
        for row, new, said in zip(rows, ids, out, strict=True):
            if len(new) == 1 and new[0] in endings and row.last is not None:
                row.unread.append(new[0])
                said.append(row.last)
                segments.append([])
            else:
                segments.append(list(self._segments([*row.unread, *new], keep)))
                row.unread = []
        for turn in range(max(map(len, segments), default=0)):
            plans: list[tuple[int, ReadPlan]] = []
            for index, (row, parts) in enumerate(zip(rows, segments, strict=True)):
                plan = self._take(row, *parts[turn]) if turn < len(parts) else None
                if plan:
                    plans.append((index, plan))
            execute(self.members, [plan for _, plan in plans], parallel=self._parallel)
            self._fuse([plan for _, plan in plans], observer, mark)
            for index, plan in plans:
                out[index].extend(plan.out)
        return torch.stack([torch.stack(positions) for positions in out])

    def _segments(self, ids: Sequence[int], keep: int) -> Iterator[tuple[list[int], int]]:
        """Runs of text and single control tokens, in blocks, with how many places are wanted."""
        control, run = self.reference.control_ids, list[int]()
        unwanted = len(ids) - keep
        kept = 0
        for position, index in enumerate(ids):
            if index in control:
                if run:
                    yield run, kept
                yield [index], int(position >= unwanted)
                run, kept = [], 0
                continue
            run.append(index)
            kept += position >= unwanted
            if kept == _BLOCK:
                yield run, kept
                run, kept = [], 0
        if run:
            yield run, kept

    def _take(self, row: PackSequence, ids: list[int], kept: int) -> ReadPlan | None:
        """Append ids to a row; the job that gives the places wanted, or None if there are none."""
        if ids[0] in self.reference.control_ids:
            row.close(ids[0])
            return ReadPlan(row, self.reference_index, 0, 1) if kept else None
        ready, before = row.filters_ready, len(row.stream)
        row.saved_states.clear()
        row.append(ids)
        row.filters_ready = False
        if not kept:
            return None
        if ready and len(ids) <= kept + WINDOW:
            return ReadPlan(row, self.reference_index, before + 1, kept, filters_ready=True)
        return ReadPlan(row, self.reference_index, first_boundary(len(row.stream), kept), kept)

    def _check_room(self, row: PackSequence) -> None:
        """Refuse a prompt that some member cannot read, naming the member."""
        for reader in row.readers:
            if reader is None:
                continue
            length, fits = len(reader.ids(row.stream, row.text)), reader.member.context_window
            if length > fits:
                raise PromptError(
                    f"the prompt is {length} tokens long for member {reader.member.name!r}, "
                    f"which can read {fits}",
                    hint=f"shorten it by {length - fits} tokens or more",
                )

    def _fuse(
        self, plans: Sequence[ReadPlan], observer: PositionCallback | None, mark: bool = False
    ) -> None:
        for plan in plans:
            for step in range(plan.lead + 1):
                plan.follow(step)
        for turn in range(max((plan.keep for plan in plans), default=0)):
            group = [plan for plan in plans if turn < plan.keep]
            steps = [plan.lead + turn for plan in group]
            if turn:
                for plan, step in zip(group, steps, strict=True):
                    plan.follow(step)
            self.pooling.pool(self.rule, group, steps, observer)
            if mark:
                for plan, step in zip(group, steps, strict=True):
                    plan.save_state(step)
        for plan in plans:
            plan.finish()
