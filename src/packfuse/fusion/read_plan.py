"""What the members read to advance one sequence, and the straddle filters along the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from packfuse.alignment.straddle import StraddleFilter
from packfuse.fusion.host_rows import HostRow, HostRows
from packfuse.fusion.member_stream import Boundary, ReadSteps
from packfuse.fusion.sequence import PackSequence, StreamState
from packfuse.models.compute.threads import device_groups, run_beside, run_parallel
from packfuse.models.member import Member, Pause, Read, ReadCallback

NOTHING = -200.0
"""A log-probability that is finite, and 0 as a probability in float32, nats."""


@dataclass(frozen=True, slots=True)
class FilterMove:
    """What moves a straddle filter over one reference token.

    Attributes:
        straddle: The filter.
        before: The member's boundary before the token.
        reference: The reference's boundary before the token, with a distribution.
        here: The member's boundary after the token.
    """

    straddle: StraddleFilter
    before: Boundary
    reference: Boundary
    here: Boundary

    def tensors(self) -> list[Tensor]:
        """The distributions that it needs on the host."""
        rows = [self.before.logps, self.reference.logps, *(p.logps for p in self.here.inner)]
        return [row for row in rows if isinstance(row, Tensor)]

    def apply(self, target: int, rows: HostRows, *, literal: bool) -> None:
        """Move the filter over the reference token `target`; for `literal` see `Gate.literal`."""
        member, reference, *inner = (
            rows[logps] if isinstance(logps, Tensor) else None
            for logps in (
                self.before.logps,
                self.reference.logps,
                *(place.logps for place in self.here.inner),
            )
        )
        if reference is None:
            return
        places = [
            replace(place, logps=logps)
            for place, logps in zip(self.here.inner, inner, strict=True)
            if logps is not None
        ]
        if literal:
            # The member's token ends with the last token of its spelling, never inside one: how the
            # member would tokenize the text that is there now is no evidence against that.
            reference, places = np.full_like(reference, NOTHING), []
        self.straddle.advance(target, member, reference, places, open_end=self.here.whole)


@dataclass(slots=True)
class ReadPlan:
    """Brings every member to the end of one sequence.

    Attributes:
        sequence: Which one.
        reference: Index of the reference member.
        first: Number of text ids before the first boundary.
        keep: How many boundaries at the end are fused.
        filters_ready: Whether the straddle filters are one token before the first boundary; if not,
            they start there.
        boundaries: By member, its boundaries after `first`, `first + 1`, ... text ids; None for a
            member with weight 0.
        out: Fused log-probabilities `[reference columns]`, one for each boundary that is fused.
    """

    sequence: PackSequence
    reference: int
    first: int
    keep: int
    filters_ready: bool = False
    boundaries: list[list[Boundary] | None] = field(default_factory=list)
    out: list[Tensor] = field(default_factory=list)

    @property
    def own(self) -> list[Boundary]:
        """The reference's boundaries; the reference reads every sequence."""
        return self.boundaries[self.reference] or []

    @property
    def lead(self) -> int:
        """Number of boundaries before the first one that is fused."""
        return len(self.own) - self.keep

    def tokens_read(self, step: int) -> int:
        """How many of the sequence's ids are before a boundary."""
        return len(self.sequence.ids) - (len(self.own) - 1 - step)

    def reference_logps(self, step: int) -> Tensor:
        """The reference's log-probabilities at a boundary that is fused."""
        logps = self.own[step].logps
        if logps is None:
            raise LookupError("the reference has read nothing yet")
        return logps

    def filter_moves(self, step: int) -> Iterator[FilterMove]:
        """The filters that advance from boundary `step - 1` to boundary `step`, and by what."""
        for stream, boundaries in zip(self.sequence.streams, self.boundaries, strict=True):
            if stream is None or boundaries is None or stream.straddle is None:
                continue
            before = boundaries[step - 1] if step else stream.boundary
            reference = self.own[step - 1] if step else self._last_of_reference()
            if before is not None and reference is not None and reference.logps is not None:
                yield FilterMove(stream.straddle, before, reference, boundaries[step])

    def filter_rows(self) -> tuple[list[HostRow], list[Tensor]]:
        """The distributions that all moves of the filters need.

        Returns:
            Those that were copied to the host ahead, and all of them.
        """
        ahead: list[HostRow] = []
        wanted: list[Tensor] = []
        for step in range(0 if self.filters_ready else 1, len(self.own)):
            for move in self.filter_moves(step):
                ahead += [one.row for one in (move.before, move.reference) if one.row]
                wanted += move.tensors()
        return ahead, wanted

    def advance_filters(self, step: int, rows: HostRows, *, literal: bool = False) -> None:
        """Advance the straddle filters from boundary `step - 1` to boundary `step`.

        Args:
            step: Number of the boundary.
            rows: What `filter_rows` names, on the host.
            literal: See `Gate.literal`.
        """
        if step == 0 and not self.filters_ready:
            for stream, boundaries in zip(self.sequence.streams, self.boundaries, strict=True):
                if stream is not None and boundaries is not None and stream.straddle is not None:
                    stream.straddle = stream.pairing.straddle()
            return
        token = self.sequence.text_ids[self.first + step - 1]
        for move in self.filter_moves(step):
            move.apply(token, rows, literal=literal)

    def _last_of_reference(self) -> Boundary | None:
        stream = self.sequence.streams[self.reference]
        return stream.boundary if stream else None

    def save_state(self, step: int) -> None:
        """Save the streams' states at a boundary, so that the sequence can be cropped to it."""
        states: list[StreamState | None] = []
        for stream, boundaries in zip(self.sequence.streams, self.boundaries, strict=True):
            if stream is None or boundaries is None:
                states.append(None)
            else:
                states.append((boundaries[step], stream.straddle and stream.straddle.copy()))
        self.sequence.saved_states[self.first + step] = states

    def finish(self) -> None:
        """Leave the member streams at the last boundary; filters will need their distributions."""
        streams = self.sequence.streams
        filtered = any(stream.straddle is not None for stream in streams if stream)
        for k, (stream, boundaries) in enumerate(zip(streams, self.boundaries, strict=True)):
            if stream is not None and boundaries is not None:
                last = boundaries[-1]
                needed = filtered and (k == self.reference or stream.straddle is not None)
                stream.boundary = last.copied() if needed else last
        self.sequence.filters_ready = True


def nothing_expected(reference_logps: Tensor) -> Tensor:
    """Log-probabilities that are 0 as probabilities, in place of the reference's of that shape."""
    return torch.full_like(reference_logps, NOTHING)


def first_boundary(sequence: PackSequence, keep: int) -> int:
    """The first boundary needed so that the straddle filters are complete at the last `keep`."""
    return max(0, len(sequence.text_ids) - keep + 1 - sequence.window)


def execute(
    members: Sequence[Member],
    plans: Sequence[ReadPlan],
    callbacks: Sequence[ReadCallback | None] | None = None,
    *,
    parallel: bool = False,
    pause: Pause | None = None,
) -> None:
    """Run the plans; each member reads all sequences as one batch.

    Args:
        members: In the pack's order.
        plans: One for each sequence; their `boundaries` are filled in.
        callbacks: By member, called with every distribution of a prompt.
        parallel: Whether members on different devices of this process run at the same time. Not
            together with callbacks, nor under autocast, which is a setting of one thread.
        pause: Interrupts long reads; None to read without a pause.
    """
    for plan in plans:
        plan.boundaries = [None] * len(members)

    def read(order: Sequence[int]) -> None:
        for k in order:
            reads: list[tuple[ReadPlan, ReadSteps]] = []
            for plan in plans:
                sequence, stream = plan.sequence, plan.sequence.streams[k]
                if stream is not None:
                    callback = callbacks[k] if callbacks else None
                    steps = stream.read_steps(
                        sequence.text_ids,
                        sequence.ends,
                        sequence.text,
                        plan.first,
                        callback,
                        sequence.answer_from,
                    )
                    reads.append((plan, steps))
            for plan, boundaries in _batched(members[k], reads, pause):
                plan.boundaries[k] = boundaries

    if callbacks:
        # The member with the widest vocabulary comes last: its distributions need not be kept until
        # the other members have read the same position.
        read(sorted(range(len(members)), key=lambda k: members[k].vocabulary.columns))
    elif parallel and not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled():
        reading = [k for k in range(len(members)) if any(p.sequence.streams[k] for p in plans)]
        run_parallel([partial(read, group) for group in device_groups(members, reading)])
    else:
        away = [k for k in range(len(members)) if members[k].elsewhere]
        here = [k for k in range(len(members)) if not members[k].elsewhere]
        run_beside([partial(read, [k]) for k in away], partial(read, here))


def _batched(
    member: Member, reads: Sequence[tuple[ReadPlan, ReadSteps]], pause: Pause | None
) -> Iterator[tuple[ReadPlan, list[Boundary]]]:
    """Run several streams' reads together: one call of the member serves one read of each."""
    waiting: list[tuple[ReadPlan, ReadSteps, Read]] = []
    for plan, steps in reads:
        try:
            waiting.append((plan, steps, next(steps)))
        except StopIteration as stop:
            yield plan, stop.value
    while waiting:
        for _, _, read in waiting:
            read.pause = pause
        results = member.read([read for _, _, read in waiting])
        remaining: list[tuple[ReadPlan, ReadSteps, Read]] = []
        for (plan, steps, _), logps in zip(waiting, results, strict=True):
            try:
                remaining.append((plan, steps, steps.send(logps)))
            except StopIteration as stop:
                yield plan, stop.value
        waiting = remaining
