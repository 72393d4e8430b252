"""Log-probabilities, and the tokens with the highest."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from packfuse.models.logps import best_tokens, sampled_tokens

SCORES = st.sampled_from([-torch.inf, -1e6, -2.0, 0.0, 0.5, torch.inf, torch.nan])


@given(st.lists(SCORES, min_size=6, max_size=6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_best_tokens_are_the_first_ones_with_the_highest_score(
    scores: list[float], dtype: torch.dtype
) -> None:
    for table in (torch.tensor(scores, dtype=dtype), torch.tensor(scores, dtype=dtype).view(2, 3)):
        assert best_tokens(table).equal(table.argmax(-1))
        view = table.T if table.dim() == 2 else table[::2]
        assert best_tokens(view).equal(view.argmax(-1))


def test_views_and_gradients_do_not_matter() -> None:
    table = torch.randn(3, 8, requires_grad=True)
    assert best_tokens(table[:, ::2]).equal(table[:, ::2].argmax(-1))


@given(st.integers(0, 2**32 - 1))
def test_samples_are_those_of_torch(seed: int) -> None:
    """With the same random numbers, so that answers are the same as by `generate`."""
    probs = torch.randn(3, 500, generator=torch.manual_seed(seed)).mul(3).softmax(-1)
    probs[:, ::7] = 0
    torch.manual_seed(seed)
    expected = torch.multinomial(probs, 1)[:, 0]
    torch.manual_seed(seed)
    assert sampled_tokens(probs).equal(expected)
    assert sampled_tokens(probs * torch.nan).shape == (3,)
