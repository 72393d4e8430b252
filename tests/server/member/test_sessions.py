"""Leases and the memory of sessions."""

from __future__ import annotations

import pytest

from packfuse.models.member import Read
from packfuse.models.remote.peer.wire import Operation, RowHeader
from packfuse.server.member.sessions import Sessions
from tests.support.small import small_pack

IDS = [*range(60, 80)]


class Clock:
    """A time that stands still."""

    now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def row(number: int) -> RowHeader:
    return RowHeader(session=number, start=0, prefix="", tokens=len(IDS))


def opened(sessions: Sessions, client: str, *numbers: int) -> None:
    member = sessions._member
    sessions.apply(client, [])
    reads = [Read(sessions.cut(client, row(number))[0], IDS) for number in numbers]
    member.read(reads)
    sessions.measure(client, numbers)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_silence_ends_the_sessions_of_one_client(clock: Clock) -> None:
    sessions = Sessions(small_pack().members[1], 10.0, 10**9, clock)
    opened(sessions, "one", 1, 2)
    opened(sessions, "other", 1)
    clock.now = 8.0
    sessions.apply("other", [])
    clock.now = 11.0
    sessions.end_expired()
    assert (len(sessions), sessions.clients) == (1, 1)
    clock.now = 18.5
    sessions.end_expired()
    assert (len(sessions), sessions.clients, sessions.nbytes) == (0, 0, 0)


def test_operations_make_and_end_sessions(clock: Clock) -> None:
    sessions = Sessions(small_pack().members[1], 10.0, 10**9, clock)
    opened(sessions, "one", 1)
    done: list[Operation] = [
        ("fork", 2, 1, 0), ("keep", 3, 2, 5), ("fork", 4, 99, 0), ("drop", 1, 0, 0),
        ("drop", 98, 0, 0),
    ]  # fmt: skip
    for _ in range(2):  # a request may be repeated
        sessions.apply("one", done)
        assert {key for _, key in sessions._held} == {2, 3}
    lengths = [held.session.length for held in sessions._held.values()]
    assert sorted(lengths) == [5, 20]


def test_the_least_recently_used_end_first(clock: Clock) -> None:
    member = small_pack().members[1]
    probe = Sessions(member, 10.0, 10**9, clock)
    opened(probe, "one", 1)
    sessions = Sessions(member, 10.0, int(2.5 * probe.nbytes), clock)
    for number in (1, 2, 1, 3):
        opened(sessions, "one", number)
    assert {number for _, number in sessions._held} == {1, 3}
    opened(sessions, "one", 4, 5, 6)  # those of one request are never ended by it
    assert {number for _, number in sessions._held} == {4, 5, 6}
