"""Continuations of a text scored under many settings, in one reading by the members."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from packfuse.alignment.base import Alignment
from packfuse.evaluation.multi_fusion import FusedTokens, MultiFusion, total
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Member
from packfuse.progress import ProgressCallback
from packfuse.settings import HeadsName
from packfuse.text.continuation import Continuation, bare
from packfuse.text.prompt import PackPrompt, from_ids, from_text
from packfuse.weighting.methods.base import FitLimits, Weighting, Weights, equal
from packfuse.weighting.prefill import Fit, PromptReading, finish, fit_weights, read_prompt


class Method(NamedTuple):
    """How members are combined and weighted, and where."""

    rule: Rule
    weighting: Weighting
    gate: Gate


@dataclass(slots=True)
class Scores:
    """The scores of n texts after one context, under S settings.

    Attributes:
        logps: Log-probability of each text, `[S, n]`, nats.
        sizes: Bytes scored of each, `[n]`.
        exact: Whether these are the bytes of the text and no others, `[n]`.
        greedy: Whether each text is what greedy decoding would write, `[S, n]`.
        impossible: Tokens that had no probability and count `IMPOSSIBLE`, `[S, n]`.
        fused: Share of each text's tokens at which the setting's gate was open, `[S, n]`.
        first: The most probable token after the context, by setting.
        weights: `[S, K]`.
        tokens: Reference tokens read, context included.
        fit: The members' losses on the context.
    """

    logps: NDArray[np.float64]
    sizes: list[int]
    exact: list[bool]
    greedy: NDArray[np.bool_]
    impossible: NDArray[np.int64]
    fused: NDArray[np.float64]
    first: list[bytes]
    weights: Weights
    tokens: int
    fit: Fit


class Scorer:
    """One reference and one alignment; any number of rules with their weightings."""

    def __init__(
        self,
        members: Sequence[Member],
        reference: int,
        alignment: Alignment,
        methods: Sequence[Method],
        progress: ProgressCallback | None = None,
        *,
        heads: HeadsName = "full",
    ) -> None:
        """Pair the members; `methods` are by setting, `heads` as in `Engine`."""
        self.methods = list(methods)
        self.engine = Engine(members, reference, alignment, progress, heads=heads)
        self.fusion = MultiFusion([m.rule for m in methods], [m.gate for m in methods])
        self._vocabularies = [member.vocabulary for member in members]
        names = [member.name for member in members]
        self._given = {
            at: given
            for at, method in enumerate(self.methods)
            if (given := method.weighting.for_members(names)) is not None
        }

    def score(self, context: str, texts: Sequence[str]) -> Scores:
        """Score each text after `context`; weights are fitted to the context.

        Raises:
            PromptError: for an empty context, or one that is too long for a member.
            ConfigError: for an empty text.
            MemberError: if a member fails.
        """
        asked = [Continuation.of(self.engine.reference, context, text) for text in texts]
        row, fit = self._read(asked[0].head)
        opening = self.fusion.at_last_position([item.new[0] for item in asked])
        said = [
            [_column(opening, column), *self._follow(row.fork(), item.new)]
            for column, item in enumerate(asked)
        ]
        sums = [total(places) for places in said]
        return Scores(
            logps=np.stack([logps for logps, _ in sums], 1),
            sizes=[item.size for item in asked],
            exact=[item.exact for item in asked],
            greedy=np.stack([_greedy(p, i.new) for p, i in zip(said, asked, strict=True)], 1),
            impossible=np.stack([missing for _, missing in sums], 1),
            fused=np.stack([np.mean([place.fused for place in places], 0) for places in said], 1),
            first=[self.engine.reference.decode([int(token)]) for token in opening.first],
            weights=self.fusion.weights,
            tokens=len(asked[0].head) + sum(len(item.new) for item in asked),
            fit=fit,
        )

    def weigh(self, context: str) -> Fit:
        """The members' losses on a context; nothing is scored after it."""
        plain = from_text(bare(context), self._vocabularies, self.engine.reference_index).stream
        return self._read(plain)[1]

    def _read(self, ids: Sequence[int]) -> tuple[PackSequence, Fit]:
        """Read the context and fit all weights to it: a sequence at its end."""
        prompt = from_ids(ids, self._vocabularies, self.engine.reference_index)
        weights, reading = dict(self._given), None
        for limits, group in self._fitted().items():
            scores = any(m.weighting.needs_scores(m.rule.pool) for m in group.values())
            reading = self._read_once(prompt, limits, scores)
            for at, method in group.items():
                weights[at] = fit_weights(reading, method.weighting, method.rule.pool)
        reading = reading or self._read_once(prompt, None, scores=False)
        even = equal(len(self._vocabularies))
        fit = finish(self.engine, reading, even, self.fusion, time.perf_counter())
        self.fusion.weights = np.stack([weights[at] for at in range(len(self.methods))])
        return reading.sequence, fit

    def _read_once(
        self, prompt: PackPrompt, limits: FitLimits | None, scores: bool
    ) -> PromptReading:
        several = len(self._vocabularies) > 1
        return read_prompt(
            self.engine, prompt, self.fusion, fit_positions=scores and several, limits=limits
        )

    def _fitted(self) -> dict[FitLimits, dict[int, Method]]:
        """The settings whose weights are fitted, in groups that look at as much of the context."""
        groups: dict[FitLimits, dict[int, Method]] = {}
        for at, method in enumerate(self.methods):
            if at not in self._given:
                groups.setdefault(method.weighting.limits, {})[at] = method
        return groups

    def follow(
        self, head: Sequence[int], new: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Reference ids scored after others, to which weights are fitted.

        Returns:
            By setting `[S]`: log-probability in nats, and whether greedy decoding would write them.
        """
        row, _ = self._read(head)
        places = [self.fusion.at_last_position(new[:1]), *self._follow(row, new)]
        return total(places)[0], _greedy(places, new)

    def _follow(self, row: PackSequence, new: Sequence[int]) -> list[FusedTokens]:
        """Extend a sequence; the positions after the first of the new ids."""
        if len(new) == 1:
            return []
        self.fusion.look_at([[token] for token in new[1:]])
        self.engine.advance([row], [new[:-1]], self.fusion, len(new) - 1)
        return self.fusion.found


def _column(said: FusedTokens, column: int) -> FusedTokens:
    """The findings on one of the tokens looked at."""
    return replace(said, logps=said.logps[:, column : column + 1])


def _greedy(said: Sequence[FusedTokens], tokens: Sequence[int]) -> NDArray[np.bool_]:
    """Whether these tokens are the likeliest ones at every place, by setting."""
    hits = [place.first == token for place, token in zip(said, tokens, strict=True)]
    found: NDArray[np.bool_] = np.stack(hits).min(0)
    return found
