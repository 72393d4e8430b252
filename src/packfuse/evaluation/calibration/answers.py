"""The members' distributions at the tokens of answers, collected in one pass of the members.

A calibration evaluates the pool under hundreds of parameters. So each member reads each question
once, and what it says at the answers' tokens is kept, compressed: the candidates of a token are
every member's most probable tokens, the token itself, and a sample of all others.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.fusion.pooling import FusedPosition
from packfuse.text.continuation import Continuation
from packfuse.weighting.methods.losses import FLOOR

TOP = 48
"""Most probable tokens of each member that are kept at a position."""
SAMPLES = 48
"""Tokens that are drawn from all others, to stand for them."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """What K members say at the T tokens of a question's n answers.

    Attributes:
        logps: Log-probabilities of the candidates, `[K, T, C]`, nats, at least `FLOOR`.
        counts: Log of the number of tokens that each candidate stands for, `[T, C]`; -inf for
            padding.
        labels: Index of the candidate that is the answer's token, `[T]`.
        answers: Index of the answer that each token belongs to, `[T]`.
        sizes: Bytes scored of each answer, `[n]`.
        weights: The members' weights on this prompt under the pack's own weighting, `[K]`.
        reference: Index of the reference.
        logp: Log-probability of each answer under the pack's own setting, `[n]`, nats.
    """

    logps: Array
    counts: Array
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    sizes: list[int]
    weights: Array
    reference: int
    logp: Array

    def of_answer(self, index: int) -> AnswerScores:
        """The same with the tokens of one answer alone; `sizes` and `logp` stay."""
        at = self.answers == index
        return AnswerScores(
            self.logps[:, at],
            self.counts[at],
            self.labels[at],
            self.answers[at],
            self.sizes,
            self.weights,
            self.reference,
            self.logp,
        )

    def dump(self) -> dict[str, Any]:
        """Plain JSON types, which `load` reads; log-probabilities in float32."""
        return {
            "shape": list(self.logps.shape),
            "logps": _packed(self.logps),
            "counts": _packed(self.counts),
            "labels": self.labels.tolist(),
            "answers": self.answers.tolist(),
            "sizes": self.sizes,
            "weights": self.weights.tolist(),
            "reference": self.reference,
            "logp": self.logp.tolist(),
        }

    @classmethod
    def load(cls, data: dict[str, Any]) -> AnswerScores:
        """The scores that `dump` wrote down."""
        shape = tuple(data["shape"])
        return cls(
            _unpacked(data["logps"]).reshape(shape),
            _unpacked(data["counts"]).reshape(shape[1:]),
            np.array(data["labels"], np.int64),
            np.array(data["answers"], np.int64),
            data["sizes"],
            np.array(data["weights"]),
            data["reference"],
            np.array(data["logp"]),
        )


def collect(
    system: ScoringSystem, reference: int, prompt: str, answers: Sequence[str]
) -> AnswerScores:
    """Score answers after a prompt, by the pack and by each member at each token.

    Args:
        system: Scores the pack's setting, and nothing else.
        reference: Index of the member in whose tokens answers are scored.
        prompt: The prompt.
        answers: The answers, as they continue the prompt.

    Raises:
        PromptError: if the prompt is empty, or too long for a member.
        MemberError: if a member fails.
    """
    vocabulary = system.pack.members[reference].vocabulary
    tokens = [Continuation.of(vocabulary, prompt, answer).new for answer in answers]
    collector = _Collector(tokens)
    scores = system.scorer(reference).score(prompt, answers, collector)
    logps, counts, labels, owners = collector.joined()
    return AnswerScores(
        logps, counts, labels, owners, scores.sizes, scores.weights[0], reference, scores.logps[0]
    )


class _Position(NamedTuple):
    logps: Array
    counts: Array
    label: int
    answer: int


class _Collector:
    """Compresses the members' distributions at the tokens of answers."""

    def __init__(self, tokens: Sequence[Sequence[int]]) -> None:
        self._tokens = tokens
        self._found: list[list[_Position]] = [[] for _ in tokens]

    def __call__(self, answer: int | None, position: FusedPosition) -> None:
        """Take the next position of an answer, or for None the first one, which all share."""
        for index in range(len(self._tokens)) if answer is None else [answer]:
            known = self._found[index]
            token = self._tokens[index][len(known)]
            # The position after the prompt is drawn once for all answers.
            seed = sum(map(len, self._tokens[:index])) + len(known) if known else 0
            known.append(_Position(*compress(position.logps, token, seed), index))

    def joined(self) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
        """`AnswerScores.logps`, `counts`, `labels` and `answers`."""
        positions = list(itertools.chain.from_iterable(self._found))
        width = max(len(found.counts) for found in positions)
        logps = [_padded(found.logps, width, FLOOR) for found in positions]
        counts = [_padded(found.counts, width, -np.inf) for found in positions]
        return (
            np.stack(logps, 1),
            np.stack(counts),
            np.array([found.label for found in positions], np.int64),
            np.array([found.answer for found in positions], np.int64),
        )


def compress(logps: Tensor, label: int, seed: int = 0) -> tuple[Array, Array, int]:
    """Candidates of one position, from which any log-linear pool can be normalized.

    Kept are each member's `TOP` most probable tokens and the label. Of the others, `SAMPLES` are
    drawn with replacement, with probabilities q in proportion to the members' mean probability. A
    token that is drawn stands for `1 / (SAMPLES · q)` tokens. So for all powers θ the normalizer

        Σ_kept exp(Σ_k θ_k log p_k(c)) + Σ_drawn exp(Σ_k θ_k log p_k(c)) / (SAMPLES · q(c))

    is right on average, and it is a log-sum-exp of linear functions of θ: convex.

    Args:
        logps: The members' log-probabilities, `[K, V]`, nats.
        label: The token that came next.
        seed: Of the draw.

    Returns:
        Log-probabilities of C candidates `[K, C]`, the logs of the numbers of tokens that they
        stand for `[C]`, and the index of the label.
    """
    kept = logps.topk(min(TOP, logps.shape[-1]), -1).indices.flatten()
    kept = torch.cat([kept, kept.new_tensor([label])]).unique()
    rest = logps.exp().mean(0).index_fill_(0, kept, 0.0).double()
    counts = torch.zeros(len(kept), dtype=torch.float64)
    if float(rest.sum()) > 0:
        generator = torch.Generator().manual_seed(seed)
        share = (rest / rest.sum()).cpu()
        offsets = torch.rand(SAMPLES, generator=generator, dtype=torch.float64)
        # One in each part of equal probability, so that fewer draws say as much.
        places = (torch.arange(SAMPLES) + offsets) / SAMPLES
        drawn = torch.searchsorted(share.cumsum(0), places).clamp(max=len(share) - 1)
        drawn = drawn[share[drawn] > 0]
        counts = torch.cat([counts, -(share[drawn] * SAMPLES).log()])
        at = torch.cat([kept, drawn.to(kept.device)])
    else:
        at = kept
    found = logps[:, at].double().clamp(min=FLOOR).cpu().numpy()
    return found, counts.numpy(), int((kept < label).sum())


def _padded(values: Array, width: int, value: float) -> Array:
    gap = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
    return np.pad(values, gap, constant_values=value)


def _packed(values: Array) -> str:
    return base64.b64encode(values.astype(np.float32).tobytes()).decode()


def _unpacked(text: str) -> Array:
    return np.frombuffer(base64.b64decode(text), np.float32).astype(np.float64)
