"""One row on its way to the end of its stream: what the members read, and how filters follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from packfuse.alignment.straddle import WINDOW
from packfuse.fusion.member_stream import Place, Scan
from packfuse.fusion.sequence import Mark, Row
from packfuse.models.member import Member, Read, Visit
from packfuse.models.threads import lanes, side_by_side


@dataclass(slots=True)
class Job:
    """Bring one row to the end of its stream.

    Attributes:
        row: Which row.
        reference: Which member is the reference.
        first: Number of stream tokens before the first place.
        keep: How many places at the end are fused.
        warm: Whether the filters stand one token before the first place; if not, they start there.
        places: By member, what it says after `first`, `first + 1`, ... tokens.
        out: The fused places, log-probabilities `[reference columns]`.
    """

    row: Row
    reference: int
    first: int
    keep: int
    warm: bool = False
    places: list[list[Place] | None] = field(default_factory=list)
    out: list[Tensor] = field(default_factory=list)

    @property
    def own(self) -> list[Place]:
        """The reference's places; it reads every row."""
        return self.places[self.reference] or []

    @property
    def lead(self) -> int:
        """Places before the first one that is fused."""
        return len(self.own) - self.keep

    def logps(self, step: int) -> Tensor:
        """The reference's log-probabilities at a place that is fused."""
        logps = self.own[step].logps
        if logps is None:
            raise LookupError("the reference has read nothing yet")
        return logps

    def follow(self, step: int) -> None:
        """Move the filters from the place before `step` to the one after it."""
        for reader, places in zip(self.row.readers, self.places, strict=True):
            if reader is None or places is None or reader.straddle is None:
                continue
            if step == 0 and not self.warm:
                reader.straddle = reader.pairing.straddle()
                continue
            before = places[step - 1] if step else reader.place
            believed = self.own[step - 1] if step else self._reference_place()
            if before is None or believed is None or believed.logps is None:
                continue
            token, here = self.row.stream[self.first + step - 1], places[step]
            reader.straddle.advance(
                token, before.logps, believed.logps, here.inner, open_end=here.whole
            )

    def _reference_place(self) -> Place | None:
        reader = self.row.readers[self.reference]
        return reader.place if reader else None

    def mark(self, step: int) -> None:
        """Note where the filters stand, so that the row can come back to this place."""
        marks: list[Mark | None] = []
        for reader, places in zip(self.row.readers, self.places, strict=True):
            if reader is None or places is None:
                marks.append(None)
            else:
                marks.append((places[step], reader.straddle and reader.straddle.copy()))
        self.row.marks[self.first + step] = marks

    def finish(self) -> None:
        """Leave the readers at the last place."""
        for reader, places in zip(self.row.readers, self.places, strict=True):
            if reader is not None and places is not None:
                reader.place = places[-1]
        self.row.warm = True


def window(length: int, keep: int) -> int:
    """The first place needed so that `keep` places at the end have their filters in full."""
    return max(0, length - keep + 1 - WINDOW)


def scan(
    members: Sequence[Member],
    jobs: Sequence[Job],
    visits: Sequence[Visit | None] | None = None,
    *,
    parallel: bool = False,
) -> None:
    """Fill the jobs' places, the rows' reads batched.

    Args:
        members: In the pack's order.
        jobs: Rows to bring to the end of their streams.
        visits: By member, who sees every distribution of a row that has read nothing yet.
        parallel: Whether members that do not share a device read at the same time. Not while
            somebody watches, or under autocast, which is a setting of one thread.
    """
    for job in jobs:
        job.places = [None] * len(members)

    def read(order: Sequence[int]) -> None:
        for k in order:
            scans: list[tuple[Job, Scan]] = []
            for job in jobs:
                row, reader = job.row, job.row.readers[k]
                if reader is not None:
                    visit = visits[k] if visits else None
                    begun = reader.scan(row.stream, row.ends, row.text, job.first, visit)
                    scans.append((job, begun))
            for job, places in _drive(members[k], scans):
                job.places[k] = places

    if visits:
        # Who watches need not keep what the widest says until the others have spoken.
        read(sorted(range(len(members)), key=lambda k: members[k].vocabulary.columns))
    elif parallel and not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled():
        reading = [k for k in range(len(members)) if any(job.row.readers[k] for job in jobs)]
        side_by_side([partial(read, lane) for lane in lanes(members, reading)])
    else:
        read(range(len(members)))


def _drive(member: Member, scans: Sequence[tuple[Job, Scan]]) -> Iterator[tuple[Job, list[Place]]]:
    """Run scans side by side: one `read` of the member serves one request of each."""
    waiting: list[tuple[Job, Scan, Read]] = []
    for job, running in scans:
        try:
            waiting.append((job, running, next(running)))
        except StopIteration as stop:
            yield job, stop.value
    while waiting:
        answers = member.read([read for _, _, read in waiting])
        going: list[tuple[Job, Scan, Read]] = []
        for (job, running, _), logps in zip(waiting, answers, strict=True):
            try:
                going.append((job, running, running.send(logps)))
            except StopIteration as stop:
                yield job, stop.value
        waiting = going
