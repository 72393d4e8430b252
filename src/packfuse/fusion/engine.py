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
from packfuse.fusion.member_stream import Reader
from packfuse.fusion.pooling import Pooling, Watch
from packfuse.fusion.read_plan import Job, scan, window
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.sequence import Row
from packfuse.models.compiled import WARM, Compiled
from packfuse.models.member import Member, Visit
from packfuse.models.vocab_subset import Columns, read_columns
from packfuse.settings import HeadsName
from packfuse.text.prompt import PackPrompt
from packfuse.weighting.fit_positions import View
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
        self.view = View(reference, self.pairings, repr(alignment))
        self.lexicon = alignment.lexicon([member.vocabulary for member in members])
        self.pooling = Pooling(self.members, reference, self.pairings, self.lexicon)
        self._columns: list[Columns | None] = [
            read_columns(pairing, member.vocabulary)
            if heads == "pruned" and member is not members[reference]
            else None
            for member, pairing in zip(members, self.pairings, strict=True)
        ]

    def warm(self, report: Progress | None = None) -> None:
        """Compile the steps of single rows, for the members whose steps are compiled."""
        todo = [
            (member, columns, width)
            for member, columns in zip(self.members, self._read_columns, strict=True)
            for width in WARM
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

    def open(self, prompt: PackPrompt) -> Row:
        """A row that has read nothing yet; every member takes part."""
        sides = zip(self.members, self.pairings, prompt.members, self._read_columns, strict=True)
        readers = [
            Reader(member, pairing, side, self.reference, some)
            for member, pairing, side, some in sides
        ]
        return Row(prompt, readers, self.reference)

    @property
    def _read_columns(self) -> list[Columns | None]:
        """By member, the tokens that are read of it."""
        # Rules that compare words want the members' own best tokens, whatever is read of them.
        return [None] * len(self.members) if self.pooling.hears_words(self.rule) else self._columns

    @torch.no_grad()
    def prefill(self, row: Row, visits: Sequence[Visit | None]) -> None:
        """Read a fed row with every member, each watched by its visitor; `settle` then fuses.

        Raises:
            PromptError: if a member cannot read that much.
        """
        self._check_room(row)
        job = Job(row, self.reference_index, window(len(row.stream), 1), 1)
        scan(self.members, [job], visits)
        row.prefilled = job.places

    @torch.no_grad()
    def settle(self, rows: Sequence[Row], watch: Watch | None = None) -> None:
        """Fuse after prefilled prompts, now that the rows have their weights."""
        jobs = []
        for row in rows:
            first = window(len(row.stream), 1)
            heard = zip(row.prefilled, row.readers, strict=True)
            places = [said if reader else None for said, reader in heard]
            jobs.append(Job(row, self.reference_index, first, 1, places=places))
            row.prefilled = []
        self._fuse(jobs, watch)

    @torch.no_grad()
    def advance(
        self,
        rows: Sequence[Row],
        ids: Sequence[Sequence[int]],
        keep: int = 1,
        watch: Watch | None = None,
        endings: Container[int] = (),
        mark: bool = False,
    ) -> Tensor:
        """Read reference ids and give the fused distribution after each of the last `keep` of them.

        Args:
            rows: N rows with their weights set.
            ids: New ids by row, at least `keep` each.
            keep: Positions wanted, counted from the end.
            watch: Sees the members' carried distributions.
            mark: Note where the rows stand at each of the places, to be cropped to them at no cost.
            endings: Ids that end an answer. A row that gets one of them as its only new id rests:
                nobody listens to what it says next, so it repeats what it said last.

        Returns:
            Log-probabilities `[N, keep, reference columns]`, nats.
        """
        out: list[list[Tensor]] = [[] for _ in rows]
        plans: list[list[tuple[list[int], int]]] = []
        for row, new, said in zip(rows, ids, out, strict=True):
            if len(new) == 1 and new[0] in endings and row.last is not None:
                row.unread.append(new[0])
                said.append(row.last)
                plans.append([])
            else:
                plans.append(list(self._segments([*row.unread, *new], keep)))
                row.unread = []
        for turn in range(max(map(len, plans), default=0)):
            jobs: list[tuple[int, Job]] = []
            for index, (row, plan) in enumerate(zip(rows, plans, strict=True)):
                job = self._take(row, *plan[turn]) if turn < len(plan) else None
                if job:
                    jobs.append((index, job))
            scan(self.members, [job for _, job in jobs], parallel=self._parallel)
            self._fuse([job for _, job in jobs], watch, mark)
            for index, job in jobs:
                out[index].extend(job.out)
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

    def _take(self, row: Row, ids: list[int], kept: int) -> Job | None:
        """Append ids to a row; the job that gives the places wanted, or None if there are none."""
        if ids[0] in self.reference.control_ids:
            row.close(ids[0])
            return Job(row, self.reference_index, 0, 1) if kept else None
        warm, before = row.warm, len(row.stream)
        row.marks.clear()
        row.append(ids)
        row.warm = False
        if not kept:
            return None
        if warm and len(ids) <= kept + WINDOW:
            return Job(row, self.reference_index, before + 1, kept, warm=True)
        return Job(row, self.reference_index, window(len(row.stream), kept), kept)

    def _check_room(self, row: Row) -> None:
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

    def _fuse(self, jobs: Sequence[Job], watch: Watch | None, mark: bool = False) -> None:
        for job in jobs:
            for step in range(job.lead + 1):
                job.follow(step)
        for turn in range(max((job.keep for job in jobs), default=0)):
            group = [job for job in jobs if turn < job.keep]
            steps = [job.lead + turn for job in group]
            if turn:
                for job, step in zip(group, steps, strict=True):
                    job.follow(step)
            self.pooling.pool(self.rule, group, steps, watch)
            if mark:
                for job, step in zip(group, steps, strict=True):
                    job.mark(step)
        for job in jobs:
            job.finish()
