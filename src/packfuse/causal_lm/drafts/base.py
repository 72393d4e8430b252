"""The interface of a way to draft: tokens are proposed, and the pack checks them in one pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.candidate_generator import CandidateGenerator

from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import Fusion
from packfuse.fusion.sequence import PackSequence


@dataclass(slots=True)
class DraftStats:
    """What became of the drafts of one answer.

    Attributes:
        rounds: Passes in which a draft was checked.
        drafted: Tokens proposed.
        accepted: Tokens of those that are in the answer.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


class ReadSequences(Protocol):
    """What a drafter sees of the cache of the running call.

    Attributes:
        rows: The sequences read so far; none before the first pass.
        seen: Reference positions read so far.
    """

    rows: list[PackSequence]
    seen: int


@dataclass(slots=True)
class DraftContext:
    """What a drafter works with, for one answer.

    Attributes:
        engine: The pack.
        cache: What the pack has read; without rows before the first pass.
        fusion: How the members are fused.
        settings: The generation settings in force.
        processors: What is done to scores before a token is chosen.
        device: Type of the device that the pack runs on.
        stats: Counts what becomes of the drafts.
    """

    engine: Engine
    cache: ReadSequences
    fusion: Fusion
    settings: GenerationConfig
    processors: LogitsProcessorList
    device: str = "cpu"
    stats: DraftStats = field(default_factory=DraftStats)

    def choose(self, ids: Tensor, logits: Tensor) -> tuple[int, Tensor]:
        """A token after `ids` `[1, n]` as the answer's own are chosen, and the scores `[1, V]`."""
        scores: Any = self.processors(ids, logits) if self.processors else logits  # type: ignore[arg-type]
        if self.settings.do_sample:
            return int(torch.multinomial(scores.softmax(-1), 1)), scores
        return int(scores.argmax(-1)), scores

    def allowed(self, ids: Tensor, draft: Sequence[int]) -> list[int]:
        """The beginning of a draft that no processor forbids."""
        if not self.processors:
            return list(draft)
        kept: list[int] = []
        for token in draft:
            blank = torch.zeros(1, self.engine.reference.columns, device=ids.device)
            scores: Any = self.processors(ids, blank)  # type: ignore[arg-type]
            if torch.isneginf(scores[0, token]):
                break
            kept.append(token)
            ids = torch.cat([ids, ids.new_tensor([[token]])], 1)
        return kept


@dataclass(frozen=True, slots=True)
class Proposal:
    """Drafted tokens, and the scores `[n, V]` they were drawn from if they were drawn."""

    tokens: Sequence[int] = ()
    scores: Tensor | None = None


class Drafter(CandidateGenerator, ABC):
    """Proposes tokens at every round of one answer. What it proposes changes no answer."""

    def __init__(self, context: DraftContext) -> None:
        """Nothing is drafted yet."""
        self.context = context

    @abstractmethod
    def propose(self, ids: Tensor, room: int) -> Proposal:
        """Up to `room` tokens to follow `ids` `[1, n]`, prompt included."""

    @abstractmethod
    def learn(self, drafted: int, accepted: int) -> None:
        """Take in what became of the last proposal, which may have been empty."""

    def get_candidates(self, input_ids: Any, **_: Any) -> tuple[Any, Any]:
        """See transformers' `CandidateGenerator`."""
        limit = self.context.settings.max_length
        # The pack adds a token of its own to every draft.
        room = (input_ids.shape[1] if limit is None else limit) - input_ids.shape[1] - 1
        proposal = self.propose(input_ids, room) if room > 0 else Proposal()
        if not len(proposal.tokens):
            return input_ids, None
        drafted = input_ids.new_tensor([list(proposal.tokens)])
        scores = None if proposal.scores is None else proposal.scores[None]
        return torch.cat([input_ids, drafted], 1), scores

    def update_candidate_strategy(self, input_ids: Any, scores: Tensor, num_matches: int) -> None:
        """See transformers' `CandidateGenerator`."""
        drafted, accepted = scores.shape[1] - 1, int(num_matches)
        stats = self.context.stats
        stats.rounds += drafted > 0
        stats.drafted += drafted
        stats.accepted += accepted
        self.learn(drafted, accepted)


class Draft(BaseModel, ABC):
    """How tokens are proposed.

    A way to draft is one file in this folder: a frozen pydantic model whose fields are its
    parameters. It registers itself by its `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    source: ClassVar[str]

    most: int = Field(default=12, ge=1)
    """Longest draft, tokens. How many pay is learned as the answer is written."""

    @abstractmethod
    def drafter(self, context: DraftContext) -> Drafter:
        """One for an answer."""
