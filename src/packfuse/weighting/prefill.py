"""Weights for a prompt: one pass of every member, whose caches generation then goes on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from packfuse.fusion.engine import Engine
from packfuse.fusion.sequence import PackSequence
from packfuse.text.prompt import PackPrompt
from packfuse.weighting.fit_positions import ReferenceView
from packfuse.weighting.methods.base import Weighting, Weights
from packfuse.weighting.prefix_reuse import PrefixReuse
from packfuse.weighting.prompt_scores import PromptScores


@dataclass(frozen=True, slots=True)
class Fit:
    """What one prompt said about the members.

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


def prefill(
    engine: Engine,
    prompt: PackPrompt,
    weighting: Weighting,
    score: bool = True,
    others: Mapping[int, Callable[[], ReferenceView]] | None = None,
) -> tuple[PackSequence, Fit]:
    """Read a prompt with every member, and decide how far each is trusted on it.

    Args:
        engine: The pack.
        prompt: What to read.
        weighting: How to weigh.
        score: Score the prompt for the record even where the weighting does not need it.
        others: By member, its view, if the prompt may be read again with it as the reference: the
            prefix cache then has the scores for fitting.

    Returns:
        A row that stands at the end of the prompt with its weights set, and the fit.
    """
    row = engine.open(prompt)
    names = [member.name for member in engine.members]
    given = weighting.for_members(names)
    fit = given is None and len(names) > 1 and weighting.needs_scores(engine.rule.pool)
    started = time.perf_counter()
    row.feed(prompt.stream)
    scoring = None
    if prompt.texts and (score or given is None):
        scoring = _scoring(engine, prompt, row, weighting, fit, others)
    recall = None if engine.prefixes is None else PrefixReuse(engine.prefixes, engine, row, scoring)
    callbacks = scoring.callbacks() if scoring else [None] * len(names)
    if recall:
        recall.begin(callbacks)
    engine.prefill(row, callbacks)
    read = time.perf_counter() - (scoring.fits.seconds if scoring else 0)
    weights = given if given is not None else _weigh(engine, weighting, scoring)
    if recall:
        recall.keep()
    apply_weights(row, weights, engine)
    fitted = time.perf_counter()
    engine.settle([row])
    lengths = tuple(reader.session.length if reader else 0 for reader in row.readers)
    cached = recall.cached if recall else (0,) * len(names)
    return row, _fit(scoring, weights, (lengths, cached), read - started, fitted - read)


def _scoring(
    engine: Engine,
    prompt: PackPrompt,
    row: PackSequence,
    weighting: Weighting,
    fit: bool,
    others: Mapping[int, Callable[[], ReferenceView]] | None,
) -> PromptScores:
    """Plan the scoring of a fed row."""
    vocabularies = [member.vocabulary for member in engine.members]
    ids = [reader.ids(row.stream, row.text) for reader in row.readers if reader]
    # In a plain prompt, members may stand in for the reference token by token.
    mapped = [p if prompt.stream and p.same_ids else None for p in engine.pairings]
    texts = prompt.texts
    if all(mapped):
        texts = (engine.reference.decode(row.ids),)
    limits = weighting.limits
    if engine.prefixes is None or limits.candidates is None:
        others = None
    return PromptScores(vocabularies, engine.view, ids, texts, fit, limits, mapped, others)


def _weigh(engine: Engine, weighting: Weighting, scoring: PromptScores | None) -> Weights:
    count = len(engine.members)
    if scoring is None or count == 1:
        return np.full(count, 1 / count)
    return weighting.fit(scoring.evidence(weighting.normalize), engine.rule.pool)


def apply_weights(row: PackSequence, weights: Sequence[float] | Weights, engine: Engine) -> None:
    """Set a row's weights; a member without weight stops reading and frees its cache."""
    row.weights = torch.tensor(np.asarray(weights), dtype=torch.float32)
    for k, weight in enumerate(weights):
        if weight == 0 and k != engine.reference_index:
            row.readers[k] = None


def _fit(
    scoring: PromptScores | None,
    weights: Weights,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    prefill_seconds: float,
    weights_seconds: float,
) -> Fit:
    if scoring is None or scoring.tokens == 0:
        return Fit(weights, None, None, 0, *lengths, prefill_seconds, weights_seconds)
    losses = scoring.losses()
    bits = losses * scoring.tokens / (np.log(2) * max(1, scoring.scored_bytes))
    return Fit(weights, losses, bits, scoring.tokens, *lengths, prefill_seconds, weights_seconds)
