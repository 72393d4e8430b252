"""Reads a prompt with every member, fits the weights, and fuses the position after the prompt.

Each member reads the prompt in one pass. The pass gives the scores that weights are fitted to, the
distribution after the prompt, and the KV cache that generation starts from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from packfuse.alignment.base import ReferenceView
from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import Fusion, FusionSettings
from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Pause
from packfuse.text.prompt import PackPrompt
from packfuse.weighting.methods.base import Evidence, FitLimits, Weighting, Weights, equal
from packfuse.weighting.prefix_cache import PrefixCache
from packfuse.weighting.prefix_reuse import PrefixReuse
from packfuse.weighting.prompt_scores import PromptScores
from packfuse.weighting.worked_chats import Skill

OtherViews = Mapping[int, Callable[[], ReferenceView]]
"""By member, a function that returns its view, for members that may become the reference."""


@dataclass(frozen=True, slots=True)
class Fit:
    """The members' weights on one prompt, with losses, token counts and times.

    Attributes:
        weights: `[K]`.
        losses: Prompt losses `[K]`, nats per reference token; None if the prompt was not scored.
        bits_per_byte: The same losses in bits per byte of text, `[K]`; None if not scored.
        tokens: Number of reference tokens scored.
        places: By member, the number of places of the prompt at which it was scored.
        prompt_tokens: By member, the length of the prompt in the member's own tokens.
        cached_tokens: By member, how many of these tokens the prefix cache supplied.
        prefill_seconds: Time of the members' passes over the prompt.
        weights_seconds: Time of fitting the weights, in addition.
    """

    weights: Weights
    losses: Weights | None
    bits_per_byte: Weights | None
    tokens: int
    places: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    prefill_seconds: float
    weights_seconds: float


@dataclass(slots=True)
class PromptReading:
    """A prompt that every member has read; it has no weights and no fused position yet.

    Attributes:
        sequence: The sequence at the end of the prompt.
        scores: The members' scores of the prompt; None if it was not scored or has no text.
        cached_tokens: By member, how many of its tokens the prefix cache supplied.
        seconds: Time of reading, without the time for scores at fit positions.
    """

    sequence: PackSequence
    scores: PromptScores | None
    cached_tokens: tuple[int, ...]
    seconds: float

    @property
    def losses(self) -> Weights | None:
        """Prompt losses `[K]`, nats per reference token; None if nothing was scored."""
        return self.scores.losses() if self.scores and self.scores.tokens else None

    def evidence(self, normalize: str = "reference") -> Evidence | None:
        """What weights are fitted to; None without scores.

        Args:
            normalize: Unit of the losses: nats per "reference" token, or per "own" token.
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
    weights: Weights | None = None,
    pause: Pause | None = None,
) -> PromptReading:
    """Read a prompt with every member, or with those that will have weight.

    Args:
        engine: The members and the reference.
        prompt: The prompt.
        fusion: How the position after the prompt will be fused.
        score: Whether the prompt is scored (for weights or for the record).
        fit_positions: Whether distributions at fit positions are needed, too.
        limits: How much of the prompt is scored.
        others: Further views for which the prefix cache keeps scores.
        prefixes: The prefix cache; None for none.
        weights: `[K]`, if they do not depend on the prompt: members with weight 0 do not read it,
            but for the reference. Without distributions at fit positions.
        pause: Interrupts the members' reads; None to read without a pause.

    Raises:
        PromptError: if the prompt is too long for a member that reads it.
        MemberError: if a member fails.
    """
    sequence = engine.open(prompt, fusion, weights)
    started = time.perf_counter()
    sequence.feed(prompt.stream)
    scores = None
    if prompt.texts and score:
        if prefixes is None or (limits or FitLimits()).candidates is None:
            others = None
        scores = _plan_scores(engine, prompt, sequence, fit_positions, limits, others)
    with engine.lock:  # the prefix cache is for one thread at a time
        reuse = None if prefixes is None else PrefixReuse(prefixes, engine, sequence, scores)
        callbacks = scores.callbacks() if scores else [None] * len(engine.members)
        if reuse:
            reuse.begin(callbacks)
        engine.read_prompt(sequence, callbacks, pause)
        if reuse:
            reuse.keep()
    seconds = time.perf_counter() - started - (scores.fit_positions.seconds if scores else 0)
    cached = reuse.cached if reuse else (0,) * len(engine.members)
    return PromptReading(sequence, scores, cached, seconds)


def fit_weights(
    reading: PromptReading, weighting: Weighting, pool: str, skill: Skill | None = None
) -> Weights:
    """Weights `[K]` for a prompt that has been read; those of an empty prompt without scores.

    Args:
        reading: The prompt, with distributions at fit positions if the weighting needs them.
        weighting: A weighting whose weights depend on the prompt.
        pool: `Rule.pool` of the fusion rule: "logit" or "linear".
        skill: The members' skill, in a chat; see `Evidence`.
    """
    count = len(reading.sequence.streams)
    if count == 1:
        return equal(1)
    evidence = reading.evidence(weighting.normalize)
    if evidence is None:
        known = None if skill is None else skill.weights
        nothing = Evidence(np.zeros(count), 0, np.zeros((count, 0)), skill=known)
        return weighting.fit(nothing, pool)
    if skill is not None and reading.scores is not None:
        per_token = reading.scores.scored_bytes / max(evidence.tokens, 1)
        usual = skill.usual_losses * per_token
        evidence = replace(evidence, skill=skill.weights, usual_losses=usual)
    return weighting.fit(evidence, pool)


def finish(
    engine: Engine, reading: PromptReading, weights: Weights, fusion: Fusion, started: float
) -> Fit:
    """Set the weights of a sequence and fuse the position after its prompt.

    Args:
        engine: The members and the reference.
        reading: The prompt.
        weights: `[K]`.
        fusion: How the position is fused.
        started: When fitting began, by `time.perf_counter`.
    """
    apply_weights(reading.sequence, weights, engine)
    scores = reading.scores
    fitting = time.perf_counter() - started + (scores.fit_positions.seconds if scores else 0)
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
        places=tuple(scores.places) if scores else (0,) * len(streams),
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
        engine: The members and the reference.
        prompt: The prompt.
        weighting: How the members are weighted.
        fusion: How the position after the prompt is fused.
        score: Whether the prompt is scored even if the weighting does not need it.
        others: Further views for which the prefix cache keeps scores.
        prefixes: The prefix cache; None for none.

    Returns:
        The sequence at the end of the prompt, with its weights, and the fit.

    Raises:
        PromptError: if the prompt is too long for a member.
        MemberError: if a member fails.
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
        weights=given,
    )
    started = time.perf_counter()
    weights = given if given is not None else fit_weights(reading, weighting, fusion.rule.pool)
    return reading.sequence, finish(engine, reading, weights, fusion, started)


def needs_fit_positions(weighting: Weighting, engine: Engine, pool: str) -> bool:
    """Whether a weighting needs the members' distributions at fit positions, besides losses."""
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
    ids = [
        stream.ids(sequence.text_ids, sequence.text) if stream else None
        for stream in sequence.streams
    ]
    # In a plain prompt, a member that is fed the reference's ids is scored on these ids.
    mapped = [p if prompt.fresh and p.same_ids else None for p in engine.pairings]
    texts = prompt.texts
    if all(pairing for pairing, own in zip(mapped, ids, strict=True) if own is not None):
        texts = (engine.reference.decode(sequence.ids),)
    budgets = [member.max_scored_places for member in engine.members]
    return PromptScores(
        vocabularies, engine.view, ids, texts, fit_positions, limits, mapped, others, budgets
    )


def leave_out(sequence: PackSequence, k: int, engine: Engine) -> None:
    """Let a sequence go on without member number `k`, which is not the reference.

    The others keep the proportions of their weights.
    """
    weights = torch.ones(len(sequence.streams)) if sequence.weights is None else sequence.weights
    rest = weights.clone()
    rest[k] = 0
    if not rest.sum():
        rest[engine.reference_index] = 1
    apply_weights(sequence, (rest / rest.sum()).tolist(), engine)
    sequence.saved_states.clear()
    sequence.filters_ready = False


def apply_weights(
    sequence: PackSequence, weights: Sequence[float] | Weights, engine: Engine
) -> None:
    """Set a sequence's weights, and drop the streams of members with weight 0.

    Such a member reads nothing more, and its KV cache is freed. The reference always stays.
    """
    sequence.weights = torch.tensor(np.asarray(weights), dtype=torch.float32)
    for k, weight in enumerate(weights):
        if weight == 0 and k != engine.reference_index:
            sequence.streams[k] = None
