"""A prompt that is prepared for generation: read by every member and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packfuse.causal_lm.arguments import first_id
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.fusion.sequence import PackSequence
from packfuse.text.chats.chat_template import RenderedChat
from packfuse.text.prompt import PackPrompt
from packfuse.weighting.methods.base import FitLimits, Weights
from packfuse.weighting.prefill import PromptReading
from packfuse.weighting.worked_chats import Skill


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How a prompt is scored.

    Attributes:
        limits: How much of the prompt is scored.
        fit_positions: Whether distributions at fit positions are needed, besides losses.
        weights: `[K]`, if they do not depend on the prompt; members with weight 0 do not read it.
    """

    limits: FitLimits
    fit_positions: bool
    weights: Weights | None = None


@dataclass(slots=True)
class PreparedPrompt:
    """A prompt that every member has read.

    Attributes:
        index: Index of the prompt in the request.
        reference: Index of the reference.
        ids: The prompt in the reference's tokens.
        prompt: The prompt in every member's tokens.
        chat: The rendered chat; None for a plain text.
        reading: The members' reading of the prompt.
        started: When fitting the weights began, by `time.perf_counter`.
        stop: Stop strings, with those that end the turn in a chat; known with the weights.
        skill: The members' skill as assistants, if the weights depend on it.
    """

    index: int
    reference: int
    ids: list[int]
    prompt: PackPrompt
    chat: RenderedChat | None
    reading: PromptReading
    started: float
    stop: tuple[str, ...] = ()
    skill: Skill | None = None

    @property
    def sequence(self) -> PackSequence:
        """The sequence at the end of the prompt."""
        return self.reading.sequence


def padded(rows: Sequence[Sequence[int]], model: FusedForCausalLM) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their attention mask, `[B, width]`."""
    width = max(map(len, rows))
    pad = first_id(model.config.pad_token_id) or 0
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)
