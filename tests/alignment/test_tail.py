"""What a member does not name is placed by the reference's belief: against readable twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packfuse import Pack
from packfuse.alignment.base import Alignment
from packfuse.alignment.bytes import Bytes
from packfuse.alignment.mined import Mined
from packfuse.alignment.tail import BelievedTail, complete
from packfuse.models.remote.protocols import Candidates
from packfuse.models.remote.rows import row
from tests.support.small import small_pack, vocabulary

SIZE = 12


def twin(named: dict[int, float], belief: list[float]) -> list[float]:
    """Probabilities over a small vocabulary, token by token.

    Named tokens keep theirs. The others share the rest in proportion to the square root of the
    belief.
    """
    rest = 1 - sum(named.values())
    total = sum(math.sqrt(p) for index, p in enumerate(belief) if index not in named)
    return [
        named[index] if index in named else rest * math.sqrt(p) / total
        for index, p in enumerate(belief)
    ]


@st.composite
def named_and_belief(draw: st.DrawFn) -> tuple[dict[int, float], list[float]]:
    """The most probable tokens of a distribution, and another distribution."""
    weights = st.lists(st.floats(1e-3, 1), min_size=SIZE, max_size=SIZE)
    given_, belief = draw(weights), draw(weights)
    count = draw(st.integers(1, SIZE - 2))
    best = sorted(range(SIZE), key=lambda index: -given_[index])[:count]
    total = sum(given_)
    return {index: given_[index] / total for index in best}, [p / sum(belief) for p in belief]


def logps_of(named: dict[int, float], size: int) -> torch.Tensor:
    """The distribution as a member in a server gives it, `[size]`."""
    ids = np.array(list(named), dtype=np.int64)
    values = np.log(np.array(list(named.values())))
    return row(Candidates(ids, values), size, size)[0]


@given(named_and_belief())
def test_unnamed_tokens_share_by_the_root_of_the_belief(
    drawn: tuple[dict[int, float], list[float]],
) -> None:
    named, belief = drawn
    found = complete(logps_of(named, SIZE)[None], torch.tensor([belief]).log())[0].exp()
    torch.testing.assert_close(found, torch.tensor(twin(named, belief)), atol=1e-5, rtol=1e-4)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_without_a_belief_in_any_unnamed_token_it_stays_even() -> None:
    given_ = logps_of({0: 0.5, 1: 0.3}, 4)
    belief = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    assert torch.equal(complete(given_[None], belief)[0], given_)


def test_columns_without_a_token_stay_impossible() -> None:
    given_ = torch.cat([logps_of({0: 0.5, 1: 0.3}, 4), torch.tensor([-torch.inf])])
    found = complete(given_[None], torch.full((1, 5), 0.2).log())[0].exp()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.3, 0.1, 0.1, 0.0]))


@given(st.integers(0, 2**16), st.sampled_from([1, 5, 20]))
def test_it_is_the_belief_in_the_members_own_tokens(seed: int, count: int) -> None:
    """Against carrying there, completing token by token, and carrying back."""
    member, reference = vocabulary("short"), vocabulary("long")
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(member.size, generator=generator).mul(3).softmax(-1)
    best = own.topk(count)
    named = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    logits = torch.randn(reference.columns, generator=generator).mul(3)
    logits[reference.size :] = -torch.inf
    there = logits.log_softmax(-1)
    even = torch.full((member.columns,), -torch.inf)
    even[: member.size] = logps_of(named, member.size)

    belief = Bytes().pair(reference, member).carry([there], even[None], [None])[0].exp()
    completed = torch.zeros(member.columns)
    completed[: member.size] = torch.tensor(twin(named, belief[: member.size].tolist()))
    expected = Bytes().pair(member, reference).carry([completed.log()], there[None], [None])[0]

    found = Bytes().pair_naming_few(member, reference).carry([even], there[None], [None])[0]
    torch.testing.assert_close(found.exp(), expected.exp(), atol=1e-5, rtol=1e-3)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_places_without_a_distribution_are_left_to_the_pairing() -> None:
    """And an alignment from a paper spreads evenly, as `pair` does."""
    member, reference = vocabulary("short"), vocabulary("long")
    there = torch.zeros(2, reference.columns).log_softmax(-1)
    row_ = torch.full((member.columns,), -torch.inf)
    row_[: member.size] = logps_of({5: 0.9}, member.size)
    few, usual = Bytes().pair_naming_few(member, reference), Bytes().pair(member, reference)
    both = few.carry([None, row_], there, [None, None])
    assert torch.equal(both[0], usual.carry([None], there[:1], [None])[0])
    assert torch.equal(both[1], few.carry([row_], there[1:], [None])[0])
    alignment: Alignment = Mined()
    assert not isinstance(alignment.pair_naming_few(member, reference), BelievedTail)


@pytest.mark.parametrize("reference", [0, 1])
def test_a_pack_places_what_others_than_its_reference_do_not_name(reference: int) -> None:
    members = small_pack().members
    for member in members:
        member.names_few = True
    pack = Pack(members, progress=False, reference=members[reference].name)
    pairings = pack.runtime.model(reference).engine.pairings
    assert [isinstance(own, BelievedTail) for own in pairings] == [k != reference for k in range(2)]
