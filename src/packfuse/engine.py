"""The engine: rows of reference ids in, fused next-token distributions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from packfuse.alignments.base import Alignment, Pairing, stack
from packfuse.errors import PromptError
from packfuse.member import Member, Read, Visit
from packfuse.prompt import PackPrompt
from packfuse.reader import Place, Reader, Scan
from packfuse.relation import Progress
from packfuse.row import Row
from packfuse.rules.base import Rule
from packfuse.straddle import WINDOW

Watch = Callable[[Row, Tensor, Tensor], None]
"""Sees each fused position: the row, the members' log-probabilities `[K, V]`, the fused `[V]`."""

_BLOCK = 32
"""Positions fused in one go when many are wanted."""


@dataclass(slots=True)
class _Job:
    """Bring one row to the end of its stream: places after `first`.. tokens, the last `keep` fused."""

    row: Row
    first: int
    keep: int
    places: list[list[Place] | None] = field(default_factory=list)
    out: list[Tensor] = field(default_factory=list)


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
    ) -> None:
        """Pair every member with member number `reference`."""
        self.members, self.rule, self.alignment = list(members), rule, alignment
        self.reference_index = reference
        self.reference = members[reference].vocabulary
        self.pairings: list[Pairing] = [
            alignment.pair(member.vocabulary, self.reference, progress) for member in members
        ]
        self.lexicon = alignment.lexicon([member.vocabulary for member in members])
        pad = self.reference.tokenizer.pad_token_id
        self._endings = {*self.reference.end_ids, *([] if pad is None else [pad])}
        ends = [index for index in self.reference.end_ids if index < self.reference.columns]
        self._end_ids = torch.tensor(ends, dtype=torch.long)

    def open(self, prompt: PackPrompt) -> Row:
        """A row that has read nothing yet; every member takes part."""
        sides = zip(self.members, self.pairings, prompt.members, strict=True)
        readers = [Reader(member, pairing, side) for member, pairing, side in sides]
        return Row(prompt, readers, self.reference)

    @torch.no_grad()
    def prefill(self, row: Row, visits: Sequence[Visit | None]) -> None:
        """Read a fed row with every member, each watched by its visitor; `settle` then fuses."""
        self._check_room(row)
        job = _Job(row, _window(len(row.stream), 1), 1)
        self._scan([job], visits)
        row.prefilled = job.places

    @torch.no_grad()
    def settle(self, rows: Sequence[Row], watch: Watch | None = None) -> None:
        """Fuse after prefilled prompts, now that the rows have their weights."""
        jobs = []
        for row in rows:
            job = _Job(row, _window(len(row.stream), 1), 1, row.prefilled)
            row.prefilled = []
            for k, reader in enumerate(row.readers):
                if reader is None:
                    job.places[k] = None
            jobs.append(job)
        self._fuse(jobs, watch)

    @torch.no_grad()
    def advance(
        self, rows: Sequence[Row], ids: Sequence[Sequence[int]], keep: int = 1, watch: Watch | None = None
    ) -> Tensor:
        """Read reference ids and give the fused distribution after each of the last `keep` of them.

        Args:
            rows: N rows with their weights set.
            ids: New ids by row, at least `keep` each.
            keep: Positions wanted, counted from the end.
            watch: Sees the members' carried distributions.

        Returns:
            Log-probabilities `[N, keep, reference columns]`, nats.
        """
        out: list[list[Tensor]] = [[] for _ in rows]
        plans = [list(self._segments(row_ids, keep)) for row_ids in ids]
        for turn in range(max(len(plan) for plan in plans)):
            jobs: list[tuple[int, _Job]] = []
            for index, (row, plan) in enumerate(zip(rows, plans, strict=True)):
                if turn < len(plan):
                    part, kept = plan[turn]
                    job = self._take(row, part, kept)
                    if job:
                        jobs.append((index, job))
                    elif kept:
                        out[index].append(self._idle(row))
            self._scan([job for _, job in jobs], None)
            self._fuse([job for _, job in jobs], watch)
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

    def _take(self, row: Row, ids: list[int], kept: int) -> _Job | None:
        """Append ids to a row; the job that gives its places, or None if it has nothing to do."""
        if ids[0] in self._endings and row.last is not None:
            row.unread.extend(ids)
            return None
        for index in row.unread:
            row.close(index)
        row.unread = []
        if ids[0] in self.reference.control_ids:
            row.close(ids[0])
            return _Job(row, 0, 1) if kept else None
        warm, before = row.warm, len(row.stream)
        row.append(ids)
        row.warm = False
        if not kept:
            return None
        if warm and len(ids) <= kept + WINDOW:
            row.warm = True
            return _Job(row, before + 1, kept)
        return _Job(row, _window(len(row.stream), kept), kept)

    def _check_room(self, row: Row) -> None:
        """Refuse a prompt that some member cannot read, naming the one that can read least."""
        for reader in row.readers:
            if reader is None:
                continue
            length = len(reader.ids(row.stream, row.text))
            if length > reader.member.context_window:
                raise PromptError(
                    f"the prompt is {length} tokens long for member {reader.member.name!r}, "
                    f"which can read {reader.member.context_window}",
                    hint=f"shorten it by {length - reader.member.context_window} tokens or more",
                )

    def _idle(self, row: Row) -> Tensor:
        """What a finished row goes on to say: nobody listens, but it has to be a distribution."""
        if row.last is not None:
            return row.last
        return torch.full((self.reference.columns,), -1.0).log_softmax(0)

    def _scan(self, jobs: Sequence[_Job], visits: Sequence[Visit | None] | None) -> None:
        """Run the readers of all jobs, member by member, their reads batched."""
        for job in jobs:
            job.places = [None] * len(self.members)
        for k, member in enumerate(self.members):
            scans: list[tuple[_Job, Scan]] = []
            for job in jobs:
                reader = job.row.readers[k]
                if reader is not None:
                    visit = visits[k] if visits else None
                    row = job.row
                    scan = reader.scan(row.stream, row.ends, row.text, job.first, visit)
                    scans.append((job, scan))
            for job, places in _drive(member, scans):
                job.places[k] = places

    def _fuse(self, jobs: Sequence[_Job], watch: Watch | None) -> None:
        for job in jobs:
            for step in range(len(self._own(job)) - job.keep + 1):
                self._step(job, step)
        for turn in range(max((job.keep for job in jobs), default=0)):
            group = [job for job in jobs if turn < job.keep]
            steps = [len(self._own(job)) - job.keep + turn for job in group]
            if turn:
                for job, step in zip(group, steps, strict=True):
                    self._step(job, step)
            self._pool(group, steps, watch)
        for job in jobs:
            for reader, places in zip(job.row.readers, job.places, strict=True):
                if reader is not None and places is not None:
                    reader.place = places[-1]
            job.row.warm = True

    def _own(self, job: _Job) -> list[Place]:
        places = job.places[self.reference_index]
        assert places is not None
        return places

    def _step(self, job: _Job, step: int) -> None:
        """Move the filters of one row from the place before `step` to the one after it."""
        own, row = self._own(job), job.row
        position = job.first + step
        for k, reader in enumerate(row.readers):
            places = job.places[k]
            if reader is None or places is None or reader.straddle is None:
                continue
            if step == 0 and not row.warm:
                reader.straddle = reader.pairing.straddle()
                continue
            before = places[step - 1] if step else reader.place
            believed = own[step - 1] if step else self._reader(row).place
            if before is None or believed is None or believed.logps is None:
                continue
            said = None if before.logps is None else before.logps.exp()
            here = places[step]
            reader.straddle.advance(
                row.stream[position - 1], said, believed.logps.exp(), here.inner, here.whole
            )

    def _reader(self, row: Row) -> Reader:
        reader = row.readers[self.reference_index]
        assert reader is not None
        return reader

    def _pool(self, jobs: Sequence[_Job], steps: Sequence[int], watch: Watch | None) -> None:
        """Carry and combine one place of each row."""
        own = [self._own(job)[step].logps for job, step in zip(jobs, steps, strict=True)]
        belief = stack(own, own[0] if own[0] is not None else torch.empty(0))
        logps = torch.stack([self._carried(k, jobs, steps, belief) for k in range(len(self.members))])
        weights = torch.stack([self._weights(job.row) for job in jobs]).to(belief)
        if self.lexicon and self.rule.by_words:
            words = [self._own_rows(k, jobs, steps, belief) for k in range(len(self.members))]
            fused = self.rule.fuse_words(words, weights, self.lexicon, self.reference_index)
        else:
            fused = self.rule.fuse(logps, weights)
        for index, job in enumerate(jobs):
            job.out.append(fused[index])
            job.row.last = fused[index]
            job.row.heard = logps[:, index]
            if watch:
                watch(job.row, logps[:, index], fused[index])

    def _weights(self, row: Row) -> Tensor:
        if row.weights is not None:
            return row.weights
        return torch.full((len(self.members),), 1 / len(self.members))

    def _carried(self, k: int, jobs: Sequence[_Job], steps: Sequence[int], belief: Tensor) -> Tensor:
        """Member k's distributions in the reference vocabulary, `[N, V]`; absent ones echo it."""
        present = [i for i, job in enumerate(jobs) if job.places[k] is not None]
        if not present:
            return belief
        here = [job.places[k][steps[i]] for i, job in enumerate(jobs) if job.places[k] is not None]  # type: ignore[index]
        readers = [jobs[i].row.readers[k] for i in present]
        straddles = [reader.straddle if reader else None for reader in readers]
        some = belief if len(present) == len(jobs) else belief[present]
        carried = self.pairings[k].carry([place.logps for place in here], some, straddles)
        for n, reader in enumerate(readers):
            if reader is not None and not reader.ends_turns:
                carried[n] = self._leave_ends(carried[n], some[n])
        if len(present) == len(jobs):
            return carried
        return belief.index_copy(0, torch.tensor(present), carried)

    def _own_rows(self, k: int, jobs: Sequence[_Job], steps: Sequence[int], belief: Tensor) -> Tensor:
        """Member k's distributions in its own vocabulary, `[N, columns]`; -inf where it has none."""
        rows: list[Tensor | None] = []
        for n, (job, step) in enumerate(zip(jobs, steps, strict=True)):
            places, reader = job.places[k], job.row.readers[k]
            said = places[step].logps if places is not None else None
            if said is not None and reader and not reader.ends_turns:
                said = self._leave_own_ends(said, self.members[k].vocabulary.end_ids, belief[n])
            rows.append(said)
        present = next((row for row in rows if row is not None), belief)
        silent = present.new_full((self.members[k].vocabulary.columns,), -torch.inf)
        return torch.stack([silent if row is None else row for row in rows])

    def _leave_own_ends(self, said: Tensor, ends: Sequence[int], belief: Tensor) -> Tensor:
        """`_leave_ends` for a distribution over the member's own tokens."""
        if not ends:
            return said
        values = said.new_full((len(ends),), -torch.inf)
        values[0] = belief[self._end_ids.to(belief.device)].logsumexp(0)
        return _with_ends(said, torch.tensor(ends, device=said.device), values)

    def _leave_ends(self, carried: Tensor, belief: Tensor) -> Tensor:
        """The carried distribution with the reference's own probability of ending the turn."""
        ends = self._end_ids.to(carried.device)
        return _with_ends(carried, ends, belief[ends])


def _with_ends(said: Tensor, ends: Tensor, values: Tensor) -> Tensor:
    """Log-probabilities with `values` at `ends`; all others keep their proportions."""
    mine, theirs = (p.exp().sum().clamp(0, 1 - 1e-6) for p in (said[ends], values))
    moved = said + (torch.log1p(-theirs) - torch.log1p(-mine))
    return moved.index_copy(0, ends, values)


def _window(length: int, keep: int) -> int:
    """The first place needed so that `keep` places at the end have their filters in full."""
    return max(0, length - keep + 1 - WINDOW)


def _drive(
    member: Member, scans: Sequence[tuple[_Job, Scan]]
) -> Iterator[tuple[_Job, list[Place]]]:
    """Run scans side by side: one `read` of the member serves one request of each."""
    waiting: list[tuple[_Job, Scan, Read]] = []
    for job, scan in scans:
        try:
            waiting.append((job, scan, next(scan)))
        except StopIteration as stop:
            yield job, stop.value
    while waiting:
        answers = member.read([read for _, _, read in waiting])
        going: list[tuple[_Job, Scan, Read]] = []
        for (job, scan, _), logps in zip(waiting, answers, strict=True):
            try:
                going.append((job, scan, scan.send(logps)))
            except StopIteration as stop:
                yield job, stop.value
        waiting = going
