"""Laws of fusion rules."""

from __future__ import annotations

import torch
from torch import Tensor

from packfuse.fusion.rules.base import Rule

MEMBERS, POSITIONS, TOKENS = 3, 5, 17
CLOSE = 1e-5


class RuleLaws:
    """What every `Rule` must satisfy.

    Attributes:
        part: The rule.
        seed: Of the random distributions.
    """

    part: Rule
    seed: int = 0

    def distributions(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[K, N, V]` in nats, and weights `[N, K]`."""
        generator = torch.Generator().manual_seed(self.seed)
        logps = 3 * torch.randn(MEMBERS, POSITIONS, TOKENS, generator=generator)
        weights = torch.rand(POSITIONS, MEMBERS, generator=generator) + 0.1
        return logps.log_softmax(-1), weights / weights.sum(-1, keepdim=True)

    def test_the_result_is_a_distribution(self) -> None:
        """`[N, V]`, normalized, never NaN."""
        logps, weights = self.distributions()
        fused = self.part.fuse(logps, weights)
        assert fused.shape == logps.shape[1:]
        assert not fused.isnan().any()
        assert fused.logsumexp(-1).abs().max() < CLOSE

    def test_copies_of_one_member_keep_its_first_choice(self) -> None:
        """Members that agree are not overruled, whatever their weights."""
        logps, weights = self.distributions()
        copies = logps[:1].expand_as(logps)
        assert self.part.fuse(copies, weights).argmax(-1).equal(logps[0].argmax(-1))

    def test_a_member_with_weight_zero_changes_nothing(self) -> None:
        """Not even where its distribution is NaN-free nonsense: all mass on one token."""
        logps, weights = self.distributions()
        weights = weights.clone()
        weights[:, -1] = 0
        weights /= weights.sum(-1, keepdim=True)
        other = logps.clone()
        other[-1] = -torch.inf
        other[-1, :, 0] = 0
        same = self.part.fuse(logps, weights) - self.part.fuse(other, weights)
        assert same.nan_to_num(0).abs().max() < CLOSE

    def test_positions_are_independent(self) -> None:
        """Fusing N positions at once is fusing them one by one."""
        logps, weights = self.distributions()
        whole = self.part.fuse(logps, weights)
        parts = [self.part.fuse(logps[:, n : n + 1], weights[n : n + 1]) for n in range(POSITIONS)]
        assert torch.allclose(whole, torch.cat(parts), atol=CLOSE)

    def test_an_impossible_token_stays_impossible(self) -> None:
        """A token that every member excludes is not generated."""
        logps, weights = self.distributions()
        logps = logps.clone()
        logps[:, :, 3] = -torch.inf
        fused = self.part.fuse(logps.log_softmax(-1), weights)
        assert torch.isneginf(fused[:, 3]).all()

    def test_arguments_are_not_changed(self) -> None:
        """`fuse` writes to neither of its arguments."""
        logps, weights = self.distributions()
        before = logps.clone(), weights.clone()
        self.part.fuse(logps, weights)
        assert before[0].equal(logps)
        assert before[1].equal(weights)

    def test_it_can_be_written_down(self) -> None:
        """A rule is its parameters: a copy made of them is equal."""
        assert type(self.part)(**self.part.model_dump()) == self.part
        assert self.part.name
        assert self.part.source
        assert self.part.pool in ("logit", "linear")
