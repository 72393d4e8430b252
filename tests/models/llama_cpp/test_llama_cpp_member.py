"""A GGUF file under llama.cpp gives what its expanded weights give under transformers."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from packfuse.errors import MemberError, PromptError
from packfuse.models.llama_cpp import LlamaCppMember
from packfuse.models.member import Member, Pause, Read, ReadCallback
from tests.models.llama_cpp.conftest import LlamaCppLaws, opened

IDS = [5 + 37 * index % 250 for index in range(60)]
CLOSE = 0.03
"""Nats: llama.cpp keeps keys and values in float16."""
LIKELY = -8


def whole(member: Member, ids: list[int]) -> Tensor:
    """Log-probabilities after every token, read at once."""
    return member.read([Read(member.open(), ids, len(ids))])[0]


def assert_same(found: Tensor, expected: Tensor) -> None:
    likely = expected > LIKELY
    torch.testing.assert_close(found[likely], expected[likely], atol=CLOSE, rtol=0)


class TestLaws(LlamaCppLaws):
    """The laws of members."""


def test_distributions_are_those_of_the_expanded_weights(
    member: LlamaCppMember, expanded: Member
) -> None:
    found, expected = whole(member, IDS), whole(expanded, IDS)
    assert_same(found, expected)
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.98
    assert member.context_window == expanded.context_window
    assert member.vocabulary.fingerprint == expanded.vocabulary.fingerprint
    assert member.vocabulary.end_ids == expanded.vocabulary.end_ids


@given(st.data())
def test_after_a_rollback_the_bits_are_those_of_the_first_read(
    gguf: Path, data: st.DataObject
) -> None:
    member = _shared(gguf)
    ids = data.draw(st.lists(st.integers(3, 262), min_size=2, max_size=40))
    cut = data.draw(st.integers(0, len(ids) - 1))
    session = member.open()
    if cut:
        member.read([Read(session, ids[:cut])])
    first = member.read([Read(session, ids[cut:], len(ids) - cut)])[0]
    member.rollback(session, cut)
    assert session.ids == ids[:cut]
    again = member.read([Read(session, ids[cut:], len(ids) - cut)])[0]
    assert torch.equal(first, again)


_members: dict[Path, LlamaCppMember] = {}


def _shared(gguf: Path) -> LlamaCppMember:
    """One member for all examples of a property."""
    return _members.setdefault(gguf, opened(gguf))


def test_more_rows_and_tokens_than_a_batch_takes(member: LlamaCppMember, expanded: Member) -> None:
    texts = [[3 + (number * 31 + 7 * i) % 250 for i in range(30 + number)] for number in range(40)]
    found = member.read([Read(member.open(), text, 3) for text in texts])
    for text, own in zip(texts, found, strict=True):
        assert_same(own, whole(expanded, text)[-3:])


def test_a_long_text_grows_the_memory(member: LlamaCppMember, expanded: Member) -> None:
    ids = (IDS * 40)[:1500]
    session = member.open()
    before = member.sessions.context.cells
    found = member.read([Read(session, ids, 4)])[0]
    assert member.sessions.context.cells > before
    assert_same(found, expanded.read([Read(expanded.open(), ids, 4)])[0])
    # What was read before the memory grew is still there.
    twin = member.fork(session)
    member.rollback(twin, 700)
    more = member.read([Read(twin, ids[700:720], 20)])[0]
    assert_same(more, whole(expanded, ids[:720])[-20:])


def test_a_callback_gets_the_counts_that_it_wants_and_those_kept(member: LlamaCppMember) -> None:
    expected, found = whole(member, IDS), dict[int, Tensor]()

    def take(counts: Sequence[int], logps: Tensor) -> None:
        found.update(zip(counts, logps.clone(), strict=True))

    counts = frozenset({1, 7, 30, 31, 60})
    kept = member.read([Read(member.open(), IDS, 2, ReadCallback(take, counts))])[0]
    assert set(found) == counts | {59}
    for count, logps in found.items():
        assert_same(logps, expected[count - 1])
    assert_same(kept, expected[-2:])


def test_a_pause_may_use_the_member_and_may_end_the_read(member: LlamaCppMember) -> None:
    session, paused = member.open(), []

    def pause() -> None:
        paused.append(session.length)
        member.read([Read(member.open(), IDS[::-1])])

    found = member.read([Read(session, IDS, 1, pause=Pause(16, pause))])[0]
    assert paused == [16, 32, 48]
    assert_same(found[0], whole(member, IDS)[-1])

    def stop() -> None:
        raise InterruptedError

    session = member.open()
    with pytest.raises(InterruptedError):
        member.read([Read(session, IDS, 1, pause=Pause(16, stop))])
    assert session.ids == IDS[:16]
    found = member.read([Read(session, IDS[16:])])[0]
    assert_same(found[0], whole(member, IDS)[-1])


def test_an_error_of_a_callback_leaves_empty_sessions(member: LlamaCppMember) -> None:
    def fail(counts: Sequence[int], logps: Tensor) -> None:
        raise ValueError("no")

    session = member.open()
    member.read([Read(session, IDS[:5])])
    with pytest.raises(ValueError, match="no"):
        member.read([Read(session, IDS[5:], 1, ReadCallback(fail))])
    assert session.ids == []
    assert_same(member.read([Read(session, IDS)])[0][0], whole(member, IDS)[-1])


def test_log_normalizers_are_those_of_the_expanded_weights(
    member: LlamaCppMember, expanded: Member
) -> None:
    values = []
    for one in (member, expanded):
        session = one.open()
        one.read([Read(session, IDS, 3)])
        assert session.log_normalizers is not None
        values.append(session.log_normalizers[-3:])
    torch.testing.assert_close(*values, atol=0.1, rtol=0)


def test_the_context_window_is_that_of_the_file(member: LlamaCppMember) -> None:
    with pytest.raises(PromptError, match="would read 2049 tokens, and can read 2048"):
        member.read([Read(member.open(), [5] * 2049)])


def test_threads_may_share_a_member(member: LlamaCppMember) -> None:
    texts = [[3 + (number * 31 + 7 * i) % 250 for i in range(20)] for number in range(12)]
    expected = [whole(member, text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: whole(member, text), texts))
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_goes_on(member: LlamaCppMember) -> None:
    session = member.open()
    member.read([Read(session, IDS[:30])])
    expected = int(whole(member, IDS)[-1].argmax())
    threads = torch.get_num_threads()
    child = os.fork()
    if not child:
        found = member.read([Read(session, IDS[30:])])[0]
        os._exit(int(int(found[0].argmax()) != expected))
    assert os.waitpid(child, 0)[1] == 0
    torch.set_num_threads(threads)
    assert int(member.read([Read(session, IDS[30:])])[0][0].argmax()) == expected


def test_names_share_sessions_and_digests(member: LlamaCppMember, expanded: Member) -> None:
    twin = member.renamed("twin")
    session = member.open()
    member.read([Read(session, IDS[:20])])
    assert_same(twin.read([Read(session, IDS[20:])])[0][0], whole(member, IDS)[-1])
    assert twin.name == "twin"
    assert twin.digest() == member.digest() != expanded.digest()
    assert twin.quick_digest() == member.quick_digest() != member.digest()
    facts = member.facts
    assert (facts.parameters, facts.dtype) == (expanded.facts.parameters, "all F32")
    assert facts.nbytes == 4 * (facts.parameters or 0)


def test_a_file_that_changes_ends_calls(tmp_path: Path, gguf: Path) -> None:
    path = tmp_path / "changing.gguf"
    path.write_bytes(gguf.read_bytes())
    member = opened(path)
    member.refresh()
    os.utime(path, (1, 1))
    for call in (member.refresh, member.digest):
        with pytest.raises(MemberError, match=r"'changing': .*changed since it was loaded"):
            call()
    path.unlink()
    with pytest.raises(MemberError, match="changed since it was loaded"):
        member.refresh()


def test_nothing_is_left_of_members_and_sessions(gguf: Path) -> None:
    process, sizes = psutil.Process(), []
    for number in range(24):
        member = opened(gguf)
        sessions = [member.open() for _ in range(9)]
        member.read([Read(session, IDS) for session in sessions])
        assert member.sessions.live == 9
        del sessions
        assert member.sessions.live == 0
        del member
        gc.collect()
        if number > 3:
            sizes.append(process.memory_info().rss)
    assert max(sizes) - sizes[0] < 12 * 2**20
