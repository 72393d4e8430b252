"""Checks of what members have read that wait until the host has to wait for the device anyway."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Member, Session, settle
from packfuse.transfer import Download


class PendingChecks:
    """Whether logits of one step were NaN, on its way to the host; see `Read.defers_check`."""

    def __init__(self, sequences: Iterable[PackSequence]) -> None:
        """Collect what is unchecked in the streams of sequences, which are told of it."""
        self._reads: dict[int, list[tuple[Member, Session, int, int]]] = {}
        flags: dict[torch.device, list[torch.Tensor]] = {}
        for sequence in sequences:
            streams = [stream for stream in sequence.streams if stream and stream.session.unchecked]
            own = self._reads[id(sequence)] = []
            for stream in streams:
                if (unchecked := stream.session.unchecked) is not None:
                    here = flags.setdefault(unchecked.flags.device, [])
                    start = sum(map(len, here))
                    device = list(flags).index(unchecked.flags.device)
                    own.append((stream.member, stream.session, device, start))
                    here.append(unchecked.flags)
            sequence.checks = self if own else None
        joined = (one[0] if len(one) == 1 else torch.cat(one) for one in flags.values())
        self._download = Download(list(joined))

    def settle(self, sequence: PackSequence) -> None:
        """Check the members' reads of one of the sequences; waits until the host knows.

        Raises:
            MemberError: for NaN, naming the member.
        """
        sequence.checks = None
        found = self._download.wait()
        reads = self._reads.pop(id(sequence), [])
        known = [
            found[device][start : start + len(session.unchecked.flags if session.unchecked else ())]
            for _, session, device, start in reads
        ]
        settle([(member, session) for member, session, _, _ in reads], known)
