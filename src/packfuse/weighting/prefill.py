"""Reads a prompt with every member, fits weights to what was read, and fuses the next position.

One pass of each member serves all three; generation goes on from the caches it leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from packfuse.alignment.base import ReferenceView
from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import Fusion, FusionSettings
from packfuse.fusion.sequence import PackSequence
from packfuse.text.prompt import PackPrompt
from packfuse.weighting.methods.base import Evidence, FitLimits, Weighting, Weights, equal
from packfuse.weighting.prefix_cache import PrefixCache
from packfuse.weighting.prefix_reuse import PrefixReuse
from packfuse.weighting.prompt_scores import PromptScores

OtherViews = Mapping[int, Callable[[], ReferenceView]]
"""By member, its view, if the prompt may be read again with it as the reference."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The members' weights on one prompt, and what they were fitted to.

    Attributes:
        weights: `[K]`.
        losses: `[K]` nats per reference token; None if the prompt was not scored.
        bits_per_byte: `[K]`, on the same text; None likewise.
        tokens: Reference tokens scored.
        prompt_tokens: Length of the prompt by member, each in its own tokens.
        cached_tokens: How many of those came out of the prefix cache.
        prefill_seconds: Time of the members' prompt passes.
        weights_seconds: Time of fitting the weights on top of that.
    """

    weights: Weights
    losses: Weights | None
    bits_per_byte: Weights | None
    tokens: int
    prompt_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    prefill_seconds: float
    weights_seconds: float


@dataclass(slots=True)
class PromptReading:
    """A prompt that every member has read; weights and the fused position are still missing.

    Attributes:
        sequence: At the end of the prompt.
        scores: The members' scores of the prompt; None if none were wanted or there is no text.
        cached_tokens: By member, how many of its tokens came out of the prefix cache.
        seconds: Time that it took, scores at fit positions not counted.
    """

    sequence: PackSequence
    scores: PromptScores | None
    cached_tokens: tuple[int, ...]
    seconds: float

    @property
    def losses(self) -> Weights | None:
        """`[K]` nats per reference token; None if nothing was scored."""
        return self.scores.losses() if self.scores and self.scores.tokens else None

    def evidence(self, normalize: str = "reference") -> Evidence | None:
        """What weights are fitted to; None without scores.

        Args:
            normalize: Whether losses are per "reference" token or per "own" token.
        """
        return self.scores.evidence(normalize) if self.scores else None


def read_prompt(
    engine: Engine,
    prompt: PackPrompt,
    fusion: Fusion,
    *,
    score: bool = True,
    fit_positions: bool = False,
    limits: FitLimits | None = None,
    others: OtherViews | None = None,
    prefixes: PrefixCache | None = None,
) -> PromptReading:
    """Read a prompt with every member.

    Args:
        engine: The members and the reference.
        prompt: What to read.
        fusion: How the position after the prompt will be fused.
        score: Whether the prompt is scored (for weights or for the record).
        fit_positions: Whether distributions at fit positions are wanted, too.
        limits: How many of them.
        others: Views for which the prefix cache shall keep scores as well.
        prefixes: The prefix cache.

    Raises:
        PromptError: if the prompt is too long for a member.
        MemberError: if a member fails.
    """
    sequence = engine.open(prompt, fusion)
    started = time.perf_counter()
    sequence.feed(prompt.stream)
    scores = None
    if prompt.texts and score:
        if prefixes is None or (limits or FitLimits()).candidates is None:
            others = None
        scores = _plan_scores(engine, prompt, sequence, fit_positions, limits, others)
    reuse = None if prefixes is None else PrefixReuse(prefixes, engine, sequence, scores)
    callbacks = scores.callbacks() if scores else [None] * len(engine.members)
    if reuse:
        reuse.begin(callbacks)
    engine.read_prompt(sequence, callbacks)
    if reuse:
        reuse.keep()
    seconds = time.perf_counter() - started - (scores.fits.seconds if scores else 0)
    cached = reuse.cached if reuse else (0,) * len(engine.members)
    return PromptReading(sequence, scores, cached, seconds)


def fit_weights(reading: PromptReading, weighting: Weighting, pool: str) -> Weights:
    """Weights `[K]` for a prompt that has been read; equal ones where there is nothing to fit to.

    Args:
        reading: With scores at fit positions if the weighting needs them.
        weighting: How to weigh; not one whose weights are given.
        pool: "logit" or "linear", whichever the fusion rule is.
    """
    count = len(reading.sequence.streams)
    evidence = None if count == 1 else reading.evidence(weighting.normalize)
    return equal(count) if evidence is None else weighting.fit(evidence, pool)


def finish(
    engine: Engine, reading: PromptReading, weights: Weights, fusion: Fusion, started: float
) -> Fit:
    """Set the weights of a sequence and fuse the position after its prompt.

    Args:
        engine: As for `read_prompt`, likewise `fusion`.
        reading: The prompt.
        weights: `[K]`.
        fusion: How to fuse.
        started: When fitting began, by `time.perf_counter`.
    """
    apply_weights(reading.sequence, weights, engine)
    scores = reading.scores
    fitting = time.perf_counter() - started + (scores.fits.seconds if scores else 0)
    engine.fuse_prompt([reading.sequence], fusion)
    streams = reading.sequence.streams
    lengths = tuple(stream.session.length if stream else 0 for stream in streams)
    losses, bits = reading.losses, None
    if scores is not None and losses is not None:
        bits = losses * scores.tokens / (np.log(2) * max(1, scores.scored_bytes))
    return Fit(
        weights=weights,
        losses=losses,
        bits_per_byte=bits,
        tokens=scores.tokens if scores else 0,
        prompt_tokens=lengths,
        cached_tokens=reading.cached_tokens,
        prefill_seconds=reading.seconds,
        weights_seconds=fitting,
    )


def prefill(
    engine: Engine,
    prompt: PackPrompt,
    weighting: Weighting,
    fusion: FusionSettings,
    *,
    score: bool = True,
    others: OtherViews | None = None,
    prefixes: PrefixCache | None = None,
) -> tuple[PackSequence, Fit]:
    """Read a prompt, fit the weights to it, and fuse the position after it.

    Args:
        engine: As for `read_prompt`, likewise `prompt`, `others` and `prefixes`.
        prompt: What to read.
        weighting: How to weigh.
        fusion: How to fuse.
        score: Score the prompt for the record even where the weighting does not need it.
        others: Views for which the prefix cache shall keep scores as well.
        prefixes: The prefix cache.

    Returns:
        A sequence at the end of the prompt with its weights set, and the fit.
    """
    given = weighting.for_members([member.name for member in engine.members])
    reading = read_prompt(
        engine,
        prompt,
        fusion,
        score=score or given is None,
        fit_positions=needs_fit_positions(weighting, engine, fusion.rule.pool),
        limits=weighting.limits,
        others=others,
        prefixes=prefixes,
    )
    started = time.perf_counter()
    weights = given if given is not None else fit_weights(reading, weighting, fusion.rule.pool)
    return reading.sequence, finish(engine, reading, weights, fusion, started)


def needs_fit_positions(weighting: Weighting, engine: Engine, pool: str) -> bool:
    """Whether a weighting looks at the members' distributions, not at their losses alone."""
    members = [member.name for member in engine.members]
    fitted = len(members) > 1 and weighting.for_members(members) is None
    return fitted and weighting.needs_scores(pool)


def _plan_scores(
    engine: Engine,
    prompt: PackPrompt,
    sequence: PackSequence,
    fit_positions: bool,
    limits: FitLimits | None,
    others: OtherViews | None,
) -> PromptScores:
    vocabularies = [member.vocabulary for member in engine.members]
    ids = [stream.ids(sequence.text_ids, sequence.text) for stream in sequence.streams if stream]
    # In a plain prompt, a member with the reference's ids is scored token by token.
    mapped = [p if prompt.stream and p.same_ids else None for p in engine.pairings]
    texts = prompt.texts
    if all(mapped):
        texts = (engine.reference.decode(sequence.ids),)
    return PromptScores(
        vocabularies, engine.view, ids, texts, fit_positions, limits, mapped, others
    )


def apply_weights(
    sequence: PackSequence, weights: Sequence[float] | Weights, engine: Engine
) -> None:
    """Set a sequence's weights; a member with weight 0 stops reading and frees its KV cache."""
    sequence.weights = torch.tensor(np.asarray(weights), dtype=torch.float32)
    for k, weight in enumerate(weights):
        if weight == 0 and k != engine.reference_index:
            sequence.streams[k] = None
