"""Sessions that give way to others are read again, and never wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packfuse.errors import MemberError
from packfuse.models.llama_cpp import LlamaCppMember
from packfuse.models.llama_cpp.context import SEQUENCES
from packfuse.models.member import Member, Read, Session
from tests.models.llama_cpp.conftest import opened
from tests.models.llama_cpp.test_llama_cpp_member import IDS, assert_same, whole

CELLS = 512
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "fork", "rollback", "keep", "drop"]), st.integers(0)
    ),
    max_size=25,
)


def crowded(path: Path) -> LlamaCppMember:
    """A member whose memory does not grow."""
    member = opened(path)
    member.sessions.most_cells = CELLS
    return member


_made: dict[Path, LlamaCppMember] = {}


@settings(deadline=None)
@given(STEPS)
def test_any_schedule_gives_what_each_sequence_gives_alone(
    gguf: Path, expanded: Member, steps: list[tuple[str, int]]
) -> None:
    member = _made.setdefault(gguf, crowded(gguf))
    alive: list[Session] = [member.open()]
    for what, number in steps:
        session = alive[number % len(alive)]
        cut = number // 7 % (session.length + 1)
        if what == "read":
            rows = alive[number % len(alive) :][: 1 + number % 3]
            news = [
                [3 + (number + 11 * i + row) % 250 for i in range(40)] for row in range(len(rows))
            ]
            found = member.read([Read(s, n, 2) for s, n in zip(rows, news, strict=True)])
            for one, logps in zip(rows, found, strict=True):
                assert_same(logps, whole(expanded, one.ids)[-2:])
        elif what == "rollback":
            member.rollback(session, cut)
        elif what == "drop":
            alive = [one for one in alive if one is not session] or [member.open()]
        else:
            alive.append(member.fork(session) if what == "fork" else member.keep(session, cut))


def test_more_sessions_than_sequences(gguf: Path, expanded: Member) -> None:
    member = opened(gguf)
    texts = [[3 + (7 * number + i) % 250 for i in range(10)] for number in range(SEQUENCES + 9)]
    sessions = [member.open() for _ in texts]
    for session, text in zip(sessions, texts, strict=True):
        member.read([Read(session, text)])
    assert member.sessions.live == SEQUENCES
    assert sessions[0].state.sequence is None
    assert member.nbytes(sessions[0]) < member.nbytes(sessions[-1])
    for session in (sessions[0], member.fork(sessions[1]), sessions[-1]):
        found = member.read([Read(session, IDS[:6], 2)])[0]
        assert_same(found, whole(expanded, session.ids)[-2:])


def test_rows_that_do_not_fit_together_are_read_in_turn(gguf: Path, expanded: Member) -> None:
    member = crowded(gguf)
    texts = [[3 + (7 * number + i) % 250 for i in range(300)] for number in range(4)]
    found = member.read([Read(member.open(), text, 2) for text in texts])
    for text, logps in zip(texts, found, strict=True):
        assert_same(logps, whole(expanded, text)[-2:])


def test_a_row_that_does_not_fit_alone_is_an_error(gguf: Path) -> None:
    member = crowded(gguf)
    session = member.open()
    with pytest.raises(MemberError, match=r"member 'tiny': no room for \d+ more tokens"):
        member.read([Read(session, [5] * 600)])
    found = member.read([Read(member.open(), IDS)])[0]
    assert torch.isfinite(found).all()


def test_forks_share_their_tokens(member: LlamaCppMember) -> None:
    session = member.open()
    member.read([Read(session, [5 + i % 250 for i in range(400)])])
    cells = member.sessions.context.cells
    forks = [member.fork(session) for _ in range(30)]
    member.read([Read(fork, IDS[:3]) for fork in forks])
    assert member.sessions.context.cells == cells  # 12,000 tokens would have taken more
    kept = member.keep(session, 50)
    assert member.nbytes(kept) < member.nbytes(session) / 4
