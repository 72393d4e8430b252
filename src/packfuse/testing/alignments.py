"""Laws of alignments."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from packfuse.alignment.base import Alignment, Pairing
from packfuse.text.vocabulary import Vocabulary

CLOSE = 1e-4


class AlignmentLaws:
    """What every `Alignment` must satisfy.

    Attributes:
        part: The alignment.
        text: Read in both vocabularies.
        seed: Of the random distributions.
    """

    part: Alignment
    text: str = "The capital of France is Paris, isn't it?\n"
    seed: int = 0

    @abstractmethod
    def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
        """A member's vocabulary and the reference's, of different tokenizers."""

    def pairing(self) -> Pairing:
        """The member paired with the reference."""
        return self.part.pair(*self.vocabularies())

    def logps(self, vocabulary: Vocabulary, rows: int = 2) -> Tensor:
        """Random log-probabilities over a vocabulary `[N, columns]`, nats."""
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(rows, vocabulary.columns, generator=generator)
        logits[:, vocabulary.size :] = -torch.inf
        return logits.log_softmax(-1)

    def carried(self) -> Tensor:
        """A member's distributions in the reference vocabulary, at the beginning of a text."""
        member, reference = self.vocabularies()
        pairing = self.pairing()
        rows = list(self.logps(member))
        straddles = [pairing.straddle() for _ in rows]
        return pairing.carry(rows, self.logps(reference), straddles)

    def test_the_same_vocabulary_is_carried_as_it_is(self) -> None:
        """A member with the reference's tokenizer loses nothing."""
        _, reference = self.vocabularies()
        pairing = self.part.pair(reference, reference)
        logps = self.logps(reference)
        straddles = [pairing.straddle() for _ in logps]
        found = pairing.carry(list(logps), self.logps(reference), straddles)
        assert torch.allclose(found.exp(), logps.exp(), atol=CLOSE)

    def test_a_carried_distribution_is_one(self) -> None:
        """`[N, reference columns]`, never NaN, with no more mass than one."""
        _, reference = self.vocabularies()
        found = self.carried()
        assert found.shape == (2, reference.columns)
        assert not found.isnan().any()
        assert (found.logsumexp(-1) < CLOSE).all()

    def test_a_member_without_a_distribution_takes_the_references(self) -> None:
        """Inside one of its characters a member abstains."""
        _, reference = self.vocabularies()
        pairing = self.pairing()
        own = self.logps(reference)
        straddles = [pairing.straddle() for _ in own]
        found = pairing.carry([None, None], own, straddles)
        assert torch.allclose(found.exp(), own.exp(), atol=CLOSE)

    def test_columns_beyond_the_vocabulary_get_no_mass(self) -> None:
        """Padding of the reference's LM head stays impossible."""
        _, reference = self.vocabularies()
        assert torch.isneginf(self.carried()[:, reference.size :]).all()

    def test_arguments_are_not_changed(self) -> None:
        """`carry` writes to nothing that it is given."""
        member, reference = self.vocabularies()
        pairing = self.pairing()
        rows, own = self.logps(member), self.logps(reference)
        before = rows.clone(), own.clone()
        pairing.carry(list(rows), own, [pairing.straddle() for _ in rows])
        assert before[0].equal(rows)
        assert before[1].equal(own)

    def test_it_can_be_written_down(self) -> None:
        """An alignment is its parameters: a copy made of them is equal."""
        assert type(self.part)(**self.part.model_dump()) == self.part
        assert self.part.name
        assert self.part.source
