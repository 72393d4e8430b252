"""The interface of a draft method: it proposes tokens, and the pack verifies them in one pass."""

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

from packfuse.causal_lm.drafts.length import DraftLength
from packfuse.causal_lm.processors import FiniteScores
from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import Fusion
from packfuse.fusion.sequence import PackSequence
from packfuse.models.logps import best_tokens
from packfuse.models.step_times import StepTimes, step_costs


@dataclass(slots=True)
class DraftStats:
    """Counts of the drafts of one answer.

    Attributes:
        rounds: Number of passes that verified a draft.
        drafted: Number of tokens drafted.
        accepted: Number of drafted tokens that were accepted.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0


class ReadSequences(Protocol):
    """The part of a call's cache that drafters use.

    Attributes:
        prompts: Prompts that have been read, before the first forward pass.
        sequences: The sequences of the batch; empty before the first forward pass.
        length: Number of positions read so far, left padding included.
    """

    prompts: list[PackSequence]
    sequences: list[PackSequence]
    length: int


@dataclass(slots=True)
class DraftContext:
    """What a drafter needs to know about the answer that is being generated.

    Attributes:
        engine: The members and the reference.
        cache: The sequence that the pack has read so far.
        fusion: How the members are fused.
        settings: The generation settings in force.
        processors: The logits processors of the call.
        device: Type of the device that the pack runs on.
        stats: Counts of the drafts, updated in every round.
        times: By member, how long its steps take; empty where that was not measured.
    """

    engine: Engine
    cache: ReadSequences
    fusion: Fusion
    settings: GenerationConfig
    processors: LogitsProcessorList
    device: str = "cpu"
    stats: DraftStats = field(default_factory=DraftStats)
    times: Sequence[StepTimes] = ()

    def draft_length(
        self, cost: float, max_draft_tokens: int, *, prior: float = 0.8
    ) -> DraftLength:
        """What chooses the lengths of drafts, at the prices of this device.

        Args:
            cost: Cost of drafting one token, in decoding steps of the pack.
            max_draft_tokens: Longest draft, in tokens.
            prior: Acceptance rate that is assumed before anything was drafted.
        """
        steps = step_costs(self.times) if self.times else ()
        return DraftLength(cost, max_draft_tokens, self.device, prior, steps)

    def step_share(self, k: int, reading: Sequence[int]) -> float:
        """The share of member k in the time of a step of the members `reading`."""
        if not self.times:
            return 1 / len(reading)
        return self.times[k][0] / sum(self.times[other][0] for other in reading)

    def choose(self, ids: Tensor, logits: Tensor) -> tuple[int, Tensor]:
        """Choose the next token as `generate` does.

        Args:
            ids: The text so far, `[1, n]`.
            logits: Logits of the next token, `[1, V]`.

        Returns:
            The token, and the processed scores that it was chosen from, `[1, V]`.
        """
        scores: Any = self.processors(ids, logits) if self.processors else logits  # type: ignore[arg-type]
        if self.settings.do_sample:
            return int(torch.multinomial(scores.softmax(-1), 1)), scores
        return int(best_tokens(scores)), scores

    def allowed_prefix(self, ids: Tensor, draft: Sequence[int]) -> list[int]:
        """The longest prefix of a draft after `ids` `[1, n]` that no logits processor forbids."""
        processors = self.processors
        if isinstance(processors, FiniteScores):
            processors = processors.shaping
        if not processors:
            return list(draft)
        kept: list[int] = []
        for token in draft:
            blank = torch.zeros(1, self.engine.reference.columns, device=ids.device)
            scores: Any = processors(ids, blank)  # type: ignore[arg-type]
            if torch.isneginf(scores[0, token]):
                break
            kept.append(token)
            ids = torch.cat([ids, ids.new_tensor([[token]])], 1)
        return kept


@dataclass(frozen=True, slots=True)
class Proposal:
    """A draft.

    Attributes:
        tokens: The drafted tokens.
        scores: The scores that they were sampled from, `[n, V]`; None if they were not sampled.
    """

    tokens: Sequence[int] = ()
    scores: Tensor | None = None


class Drafter(CandidateGenerator, ABC):
    """Proposes tokens for one answer, in rounds. Proposals change the speed, not the answer."""

    def __init__(self, context: DraftContext) -> None:
        """Start a new answer."""
        self.context = context

    @abstractmethod
    def propose(self, ids: Tensor, room: int) -> Proposal:
        """Propose the next tokens.

        Args:
            ids: The text so far, prompt included, `[1, n]`.
            room: Maximum number of tokens.
        """

    @abstractmethod
    def update(self, drafted: int, accepted: int) -> None:
        """Called with the numbers of drafted and accepted tokens of the last proposal.

        Both are 0 for an empty proposal.
        """

    def get_candidates(self, input_ids: Any, **_: Any) -> tuple[Any, Any]:
        """See transformers' `CandidateGenerator`."""
        limit = self.context.settings.max_length
        # After a draft, the pack always adds one token.
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
        self.update(drafted, accepted)


class Draft(BaseModel, ABC):
    """How tokens are drafted.

    In float32, greedy answers with drafts are those without, token for token. In bfloat16 and
    float16 a pass over several tokens rounds otherwise than single steps, so that of two tokens
    with nearly the same probability the other one may be generated.

    Each draft method is one file in this folder: a frozen pydantic model whose fields are its
    parameters. The registry finds it by its `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """The name in settings: `draft="<name>"`."""
    source: ClassVar[str]
    """The paper or program that the method is from."""

    max_draft_tokens: int = Field(default=12, ge=1)
    """Longest draft, in tokens. Shorter drafts are chosen while few drafted tokens are accepted."""

    @abstractmethod
    def drafter(self, context: DraftContext) -> Drafter:
        """A drafter for one answer."""
