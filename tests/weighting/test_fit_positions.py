"""Scores at fit positions, against distributions that are carried one by one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from packfuse.alignment.base import ReferenceView
from packfuse.fusion.engine import Engine
from packfuse.weighting.fit_positions import (
    FitKey,
    FitPositions,
    FitScore,
    compress_topk,
    join_positions,
)
from tests.support import fusing
from tests.support.fusing import Spec

TRIO: tuple[Spec, ...] = (
    ("mistral", "gemma3", 0),
    ("deepseek", "llama", 1),
    ("tekken", "llama", 2),
)
COUNTS = {4: (1, 2, 1), 9: (3, 3, 4), 11: (4, 6, 5), 20: (7, 9, 8)}
"""By offset, the number of tokens of each member before it; made up, as are the tokens."""
LENGTH = 12

engines: dict[int, Engine] = {}


def engine(reference: int) -> Engine:
    if reference not in engines:
        engines[reference] = fusing.fused(TRIO, reference).engine
    return engines[reference]


def tokens() -> list[list[int]]:
    return [[(7 * k + 3 * i) % 50 + 10 for i in range(LENGTH)] for k in range(3)]


def distributions(seed: int) -> list[Tensor]:
    """By member, log-probabilities after 1, 2, ... tokens, `[LENGTH, columns]`."""
    torch.manual_seed(seed)
    members = engine(0).members
    return [torch.randn(LENGTH, m.vocabulary.columns).mul(3).log_softmax(-1) for m in members]


def by_hand(
    view: ReferenceView, rows: list[Tensor], candidates: int | None
) -> tuple[Tensor, Tensor]:
    """Every position on its own, from whole distributions."""
    parts: list[FitScore] = []
    for counts in COUNTS.values():
        here = [rows[k][counts[k] - 1] for k in range(3)]
        reference_logps = here[view.reference][None]
        pairs = zip(view.pairings, here, strict=True)
        carried = torch.stack(
            [pairing.carry([row], reference_logps, [None]) for pairing, row in pairs]
        )
        label = tokens()[view.reference][counts[view.reference]]
        parts.append(compress_topk(carried, torch.tensor([label]), candidates))
    return join_positions(parts)


def fit_positions(
    reference: int,
    candidates: int | None,
    *others: ReferenceView,
    known: dict[FitKey, FitScore] | None = None,
) -> FitPositions:
    found = FitPositions(engine(reference).view, COUNTS, tokens(), candidates, lambda: others)
    found.reuse(known or {})
    return found


def assert_equal(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Equal but for columns of -inf, which are padding."""
    for at in range(len(COUNTS)):
        (one, first), (other, second) = ((s[:, at], y[at]) for s, y in (found, expected))
        torch.testing.assert_close(one[:, first], other[:, second], rtol=1e-5, atol=1e-5)
        one, other = (s[:, ~torch.isneginf(s).all(0)] for s in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@given(
    st.permutations(range(3)),
    st.lists(st.integers(1, LENGTH - 1), max_size=4),
    st.sampled_from([None, 8]),
    st.integers(0, 2),
    st.integers(0, 3),
)
def test_any_order_of_members_and_any_split_of_their_reads(
    order: list[int], cuts: list[int], candidates: int | None, reference: int, seed: int
) -> None:
    rows, found = distributions(seed), fit_positions(reference, candidates)
    for k in order:
        for low, high in pairwise([0, *sorted(set(cuts)), LENGTH]):
            found.add(k, range(low + 1, high + 1), rows[k][low:high])
        # Positions that are complete are no longer held.
        held = [set(members) for members in found._pending.values()]
        assert all(len(members) == order.index(k) + 1 for members in held)
    assert not found._pending
    assert_equal(found.stacked(), by_hand(engine(reference).view, rows, candidates))


@pytest.mark.parametrize("reference", range(3))
def test_another_reference_finds_its_scores(reference: int) -> None:
    rows = distributions(0)
    others = [engine(k).view for k in range(3) if k != reference]
    first = fit_positions(reference, 8, *others)
    for k in range(3):
        first.add(k, range(1, LENGTH + 1), rows[k])
    for k in range(3):
        then = fit_positions(k, 8, known=first.scores)
        assert then.needed == [frozenset()] * 3
        assert_equal(then.stacked(), by_hand(engine(k).view, rows, 8))
    # Scores of another number of candidates are not reused.
    assert (
        fit_positions(reference, 7, known=first.scores).needed == fit_positions(reference, 7).needed
    )


def test_known_scores_need_no_distributions() -> None:
    rows, first = distributions(1), fit_positions(0, 8)
    for k in range(3):
        first.add(k, [1, 2, 3, 4], rows[k][:4])
    done = {key.counts for key in first.scores}
    assert done == {(1, 2, 1), (3, 3, 4)}
    then = fit_positions(0, 8, known=first.scores)
    assert then.needed == [frozenset({4, 7}), frozenset({6, 9}), frozenset({5, 8})]
    for k in range(3):
        then.add(k, range(1, LENGTH + 1), rows[k])
        then.add(k, [4], rows[k][3:4])
    assert_equal(then.stacked(), by_hand(engine(0).view, rows, 8))
