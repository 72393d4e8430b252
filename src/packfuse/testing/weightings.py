"""Laws of weightings."""

from __future__ import annotations

import numpy as np
import torch

from packfuse.weighting.methods.base import Evidence, Weighting, Weights

MEMBERS, TOKENS, POSITIONS, CANDIDATES = 3, 40, 12, 9
CLOSE = 1e-6


class WeightingLaws:
    """What every `Weighting` that is fitted to the prompt must satisfy.

    Attributes:
        part: The weighting.
        seed: Of the random evidence.
    """

    part: Weighting
    seed: int = 0

    def evidence(self, members: int = MEMBERS, tokens: int = TOKENS) -> Evidence:
        """Random evidence of K members."""
        numbers = np.random.default_rng(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        pieces = -numbers.gamma(2.0, 1.0, (members, tokens))
        scores = torch.randn(members, POSITIONS, CANDIDATES, generator=generator).log_softmax(-1)
        labels = torch.randint(CANDIDATES, (POSITIONS,), generator=generator)
        return Evidence(-pieces.mean(1), tokens, pieces, scores, labels)

    def weights(self, evidence: Evidence, pool: str) -> Weights:
        """The weights, whether they are fitted or given."""
        given = self.part.for_members([f"member {k}" for k in range(evidence.members)])
        return self.part.fit(evidence, pool) if given is None else given

    def test_weights_are_weights(self) -> None:
        """`[K]`, not negative, summing to one, for both kinds of pools."""
        for pool in ("logit", "linear"):
            found = self.weights(self.evidence(), pool)
            assert found.shape == (MEMBERS,)
            assert (found >= 0).all()
            assert abs(found.sum() - 1) < CLOSE

    def test_one_member_has_all_the_weight(self) -> None:
        """A pack of one is its member."""
        for pool in ("logit", "linear"):
            assert np.allclose(self.weights(self.evidence(members=1), pool), [1.0])

    def test_the_same_evidence_gives_the_same_weights(self) -> None:
        """Fitting draws no random numbers and keeps no state."""
        for pool in ("logit", "linear"):
            first, second = (self.weights(self.evidence(), pool) for _ in range(2))
            assert np.array_equal(first, second)

    def test_evidence_is_not_changed(self) -> None:
        """`fit` writes to nothing that it is given."""
        evidence = self.evidence()
        before = evidence.losses.copy(), evidence.pieces.copy()
        self.weights(evidence, "logit")
        assert np.array_equal(before[0], evidence.losses)
        assert np.array_equal(before[1], evidence.pieces)

    def test_a_prompt_without_scored_tokens_gives_weights(self) -> None:
        """Short prompts have no evidence; the weights are still weights."""
        nothing = Evidence(np.zeros(MEMBERS), 0, np.zeros((MEMBERS, 0)))
        found = self.weights(nothing, "logit")
        assert np.isfinite(found).all()
        assert abs(found.sum() - 1) < CLOSE

    def test_it_can_be_written_down(self) -> None:
        """A weighting is its parameters: a copy made of them is equal."""
        assert type(self.part)(**self.part.model_dump()) == self.part
        assert self.part.name
        assert self.part.source
