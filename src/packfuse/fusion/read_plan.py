"""One row on its way to the end of its stream: what the members read, and how filters follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from packfuse.alignment.straddle import WINDOW
from packfuse.fusion.member_stream import Boundary, ReadSteps
from packfuse.fusion.sequence import PackSequence, StreamState
from packfuse.models.member import Member, Read, ReadCallback
from packfuse.models.threads import device_groups, run_parallel


@dataclass(slots=True)
class ReadPlan:
    """Bring one row to the end of its stream.

    Attributes:
        row: Which row.
        reference: Which member is the reference.
        first: Number of stream tokens before the first place.
        keep: How many places at the end are fused.
        filters_ready: Whether the boundary filters are one token before the first position; else
            they start there.
        places: By member, what it says after `first`, `first + 1`, ... tokens.
        out: The fused places, log-probabilities `[reference columns]`.
    """

    row: PackSequence
    reference: int
    first: int
    keep: int
    filters_ready: bool = False
    places: list[list[Boundary] | None] = field(default_factory=list)
    out: list[Tensor] = field(default_factory=list)

    @property
    def own(self) -> list[Boundary]:
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
            if step == 0 and not self.filters_ready:
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

    def _reference_place(self) -> Boundary | None:
        reader = self.row.readers[self.reference]
        return reader.place if reader else None

    def save_state(self, step: int) -> None:
        """Note where the filters stand, so that the row can come back to this place."""
        saved_states: list[StreamState | None] = []
        for reader, places in zip(self.row.readers, self.places, strict=True):
            if reader is None or places is None:
                saved_states.append(None)
            else:
                saved_states.append((places[step], reader.straddle and reader.straddle.copy()))
        self.row.saved_states[self.first + step] = saved_states

    def finish(self) -> None:
        """Leave the readers at the last place."""
        for reader, places in zip(self.row.readers, self.places, strict=True):
            if reader is not None and places is not None:
                reader.place = places[-1]
        self.row.filters_ready = True


def first_boundary(length: int, keep: int) -> int:
    """The first place needed so that `keep` places at the end have their filters in full."""
    return max(0, length - keep + 1 - WINDOW)


def execute(
    members: Sequence[Member],
    plans: Sequence[ReadPlan],
    callbacks: Sequence[ReadCallback | None] | None = None,
    *,
    parallel: bool = False,
) -> None:
    """Fill the jobs' places, the rows' reads batched.

    Args:
        members: In the pack's order.
        plans: Rows to bring to the end of their streams.
        callbacks: By member, who sees every distribution of a row that has read nothing yet.
        parallel: Whether members that do not share a device read at the same time. Not while
            somebody watches, or under autocast, which is a setting of one thread.
    """
    for plan in plans:
        plan.places = [None] * len(members)

    def read(order: Sequence[int]) -> None:
        for k in order:
            scans: list[tuple[ReadPlan, ReadSteps]] = []
            for plan in plans:
                row, reader = plan.row, plan.row.readers[k]
                if reader is not None:
                    callback = callbacks[k] if callbacks else None
                    begun = reader.scan(row.stream, row.ends, row.text, plan.first, callback)
                    scans.append((plan, begun))
            for plan, places in _drive(members[k], scans):
                plan.places[k] = places

    if callbacks:
        # Who watches need not keep what the widest says until the others have spoken.
        read(sorted(range(len(members)), key=lambda k: members[k].vocabulary.columns))
    elif parallel and not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled():
        reading = [k for k in range(len(members)) if any(plan.row.readers[k] for plan in plans)]
        run_parallel([partial(read, lane) for lane in device_groups(members, reading)])
    else:
        read(range(len(members)))


def _drive(
    member: Member, scans: Sequence[tuple[ReadPlan, ReadSteps]]
) -> Iterator[tuple[ReadPlan, list[Boundary]]]:
    """Run scans side by side: one `read` of the member serves one request of each."""
    waiting: list[tuple[ReadPlan, ReadSteps, Read]] = []
    for plan, running in scans:
        try:
            waiting.append((plan, running, next(running)))
        except StopIteration as stop:
            yield plan, stop.value
    while waiting:
        answers = member.read([read for _, _, read in waiting])
        going: list[tuple[ReadPlan, ReadSteps, Read]] = []
        for (plan, running, _), logps in zip(waiting, answers, strict=True):
            try:
                going.append((plan, running, running.send(logps)))
            except StopIteration as stop:
                yield plan, stop.value
        waiting = going
