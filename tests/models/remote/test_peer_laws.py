"""A member that another packfuse serves passes the tests of members in this process."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member, Read
from packfuse.models.remote import PeerMember
from packfuse.models.vocab_subset import VocabSubset
from packfuse.testing import MemberLaws
from tests.models import test_hf_member
from tests.models.test_hf_member import (
    IDS,
    test_a_callback_gets_every_position,
    test_a_callback_gets_its_counts_and_no_others,
    test_a_fork_is_independent,
    test_a_row_rolled_back_to_nothing_joins_new_rows,
    test_callbacks_get_their_own_row_of_a_batch,
    test_chunks_read_as_one,
    test_errors_of_a_callback_are_not_the_members,
    test_more_rows_than_a_block_of_logits,
)
from tests.support import fusing
from tests.support.member_server import member_server, peer_of
from tests.support.pico import ARCHITECTURES

__all__ = [
    "test_a_callback_gets_every_position",
    "test_a_callback_gets_its_counts_and_no_others",
    "test_a_fork_is_independent",
    "test_a_row_rolled_back_to_nothing_joins_new_rows",
    "test_callbacks_get_their_own_row_of_a_batch",
    "test_chunks_read_as_one",
    "test_errors_of_a_callback_are_not_the_members",
    "test_more_rows_than_a_block_of_logits",
]


@pytest.fixture(scope="module")
def peers() -> Iterator[dict[str, PeerMember]]:
    """Tiny members in servers, by architecture."""
    with ExitStack() as stack:
        urls = {
            arch: stack.enter_context(member_server(fusing.member("mistral", arch)))
            for arch in ARCHITECTURES
        }
        yield {arch: peer_of(url) for arch, url in urls.items()}


@pytest.fixture(autouse=True)
def _served(peers: dict[str, PeerMember], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests of members in this process read the served ones."""
    expected = functools.cache(
        lambda arch, ids: torch.stack([alone(fusing.member("mistral", arch), ids)])[0]
    )
    monkeypatch.setattr(test_hf_member, "member", peers.__getitem__)
    monkeypatch.setattr(test_hf_member, "anew", expected)


def alone(one: HFMember, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities after every token, from the model alone."""
    with torch.no_grad():
        logits = one.model(torch.tensor([ids]), use_cache=False).logits[0]
    logits[:, one.vocabulary.size :] = -torch.inf
    return logits.log_softmax(-1)


@pytest.fixture(params=ARCHITECTURES)
def both(request: pytest.FixtureRequest, peers: dict[str, PeerMember]) -> tuple[HFMember, Member]:
    """A member here, and the same one served."""
    return fusing.member("mistral", request.param), peers[request.param]


class TestLaws(MemberLaws):
    """The laws of members."""

    ids = tuple(IDS[:12])

    @pytest.fixture(autouse=True)
    def _both(self, both: tuple[HFMember, Member]) -> None:
        self._peer = both[1]

    def member(self) -> Member:
        """The member of the server."""
        return self._peer


_SUBSET = torch.arange(5, 300)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule_is_that_of_the_member(
    both: tuple[HFMember, Member], data: st.DataObject
) -> None:
    """Reads, rollbacks, forks and kept beginnings of several rows, bit for bit."""
    here, there = both
    subset = VocabSubset(_SUBSET, here.vocabulary.columns)
    pairs = [(here.open(), there.open()) for _ in range(3)]
    rows = [IDS[k:] for k in range(3)]
    for _ in range(data.draw(st.integers(1, 6))):
        requests: list[tuple[Read, Read]] = []
        for k, row in enumerate(rows):
            one, other = pairs[k]
            if one.length and data.draw(st.booleans()):
                here.rollback(one, data.draw(st.integers(0, one.length)))
                there.rollback(other, one.length)
            kind = data.draw(st.sampled_from(["none", "none", "fork", "keep", "open"]))
            if kind == "fork":
                pairs[k] = here.fork(one), there.fork(other)
            elif kind == "keep":
                length = data.draw(st.integers(0, one.length))
                kept = here.keep(one, length)
                pairs[k] = kept, there.keep(other, kept.length)
            elif kind == "open":
                pairs[k] = here.open(), there.open()
            one, other = pairs[k]
            assert one.ids == other.ids
            size, at = data.draw(st.sampled_from([1, 1, 2, 3, 9])), one.length
            if at + size > len(row) or data.draw(st.integers(0, 4)) == 0:
                continue
            keep = data.draw(st.integers(1, size))
            wanted = subset if data.draw(st.booleans()) else None
            ids = row[at : at + size]
            requests.append(
                (Read(one, ids, keep, subset=wanted), Read(other, ids, keep, subset=wanted))
            )
        found = here.read([own for own, _ in requests]), there.read([own for _, own in requests])
        for (mine, theirs), expected, logps in zip(requests, *found, strict=True):
            assert torch.equal(expected, logps)
            assert mine.session.ids == theirs.session.ids
            known = mine.session.log_normalizers, theirs.session.log_normalizers
            assert known[0] is not None and known[1] is not None
            assert torch.equal(known[0], known[1])
