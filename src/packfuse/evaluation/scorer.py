"""Log-probabilities of continuations under many settings, in one forward pass of the members."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from packfuse.alignment.base import Alignment
from packfuse.evaluation.multi_fusion import FusedTokens, MultiFusion, total
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.pooling import FusedPosition, PositionCallback
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Member
from packfuse.progress import ProgressCallback
from packfuse.settings import HeadsName
from packfuse.text.continuation import Continuation, bare
from packfuse.text.prompt import PackPrompt, from_ids, from_text
from packfuse.weighting.methods.base import FitLimits, Weighting, Weights, equal
from packfuse.weighting.prefill import Fit, PromptReading, finish, fit_weights, read_prompt
from packfuse.weighting.prefix_cache import PrefixCache

TextObserver = Callable[[int | None, FusedPosition], None]
"""Called with the number of a text and a position of it."""
_TOGETHER = 8
"""Most texts that are read at the same time: each has a KV cache of its own."""


class Method(NamedTuple):
    """A rule, a weighting and a gate."""

    rule: Rule
    weighting: Weighting
    gate: Gate


@dataclass(slots=True)
class Scores:
    """The scores of n texts after one context, under S settings of K members.

    Attributes:
        logps: Log-probability of each text, `[S, n]`, nats.
        sizes: Bytes scored of each text, `[n]`.
        exact: Whether these are the bytes of the text and no others, `[n]`.
        greedy: Whether greedy decoding would generate the text, `[S, n]`.
        impossible: Tokens without probability, each of which counts `IMPOSSIBLE`, `[S, n]`.
        fused: Share of each text's tokens at which the setting's gate was open, `[S, n]`.
        first: Bytes of the most probable token after the context, `[S]`.
        weights: The members' weights, `[S, K]`.
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
    """Scores texts in one reference vocabulary and one alignment, under any number of methods."""

    def __init__(
        self,
        members: Sequence[Member],
        reference: int,
        alignment: Alignment,
        methods: Sequence[Method],
        progress: ProgressCallback | None = None,
        *,
        heads: HeadsName = "full",
        parallel: bool = False,
        prefixes: PrefixCache | None = None,
    ) -> None:
        """Align the members; `methods` are by setting, others as in `Engine`.

        With a prefix cache, what contexts have in common is read once.
        """
        self.methods, self._prefixes = list(methods), prefixes
        self.engine = Engine(
            members, reference, alignment, progress, heads=heads, parallel=parallel
        )
        self.fusion = MultiFusion(
            [m.rule for m in methods],
            [m.gate for m in methods],
            [m.weighting.sharpening for m in methods],
        )
        self._vocabularies = [member.vocabulary for member in members]
        names = [member.name for member in members]
        self._constant = {
            at: constant
            for at, method in enumerate(self.methods)
            if (constant := method.weighting.for_members(names)) is not None
        }

    def score(
        self, context: str, texts: Sequence[str], observer: TextObserver | None = None
    ) -> Scores:
        """Score each text after `context`; weights are fitted to the context.

        Args:
            context: The context.
            texts: What is scored after it.
            observer: Called with every position of a text; with None for the number of the text at
                the position after the context, which all texts share.

        Raises:
            PromptError: for an empty context, or one that is too long for a member.
            ConfigError: for an empty text.
            MemberError: if a member fails.
        """
        items = [Continuation.of(self.engine.reference, context, text) for text in texts]
        sequence, fit = self._read(items[0].head, _of_text(observer, None))
        first = self.fusion.at_last_position([item.new[0] for item in items])
        rest: list[list[FusedTokens]] = []
        for start in range(0, len(items), _TOGETHER):
            part = [item.new for item in items[start : start + _TOGETHER]]
            observers = [_of_text(observer, start + at) for at in range(len(part))]
            rest += self._extend([sequence.fork() for _ in part], part, observers)
        scored = [[_column(first, column), *found] for column, found in enumerate(rest)]
        sums = [total(positions) for positions in scored]
        return Scores(
            logps=np.stack([logps for logps, _ in sums], 1),
            sizes=[item.size for item in items],
            exact=[item.exact for item in items],
            greedy=np.stack([_greedy(p, i.new) for p, i in zip(scored, items, strict=True)], 1),
            impossible=np.stack([missing for _, missing in sums], 1),
            fused=np.stack([np.mean([p.fused for p in positions], 0) for positions in scored], 1),
            first=[self.engine.reference.decode([int(token)]) for token in first.first],
            weights=self.fusion.weights,
            tokens=len(items[0].head) + sum(len(item.new) for item in items),
            fit=fit,
        )

    def weigh(self, context: str) -> Fit:
        """The members' losses on a context, without a continuation.

        Raises:
            PromptError: for an empty context, or one that is too long for a member.
            MemberError: if a member fails.
        """
        plain = from_text(bare(context), self._vocabularies, self.engine.reference_index).stream
        return self._read(plain)[1]

    def _read(
        self, ids: Sequence[int], observer: PositionCallback | None = None
    ) -> tuple[PackSequence, Fit]:
        """Read the context and fit all weights to it; the returned sequence holds the context."""
        self.fusion.observer = observer
        prompt = from_ids(ids, self._vocabularies, self.engine.reference_index)
        weights, reading = dict(self._constant), None
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
        self.engine.refresh()
        return read_prompt(
            self.engine,
            prompt,
            self.fusion,
            fit_positions=scores and several,
            limits=limits,
            prefixes=self._prefixes,
        )

    def _fitted(self) -> dict[FitLimits, dict[int, Method]]:
        """The methods whose weights are fitted, by the part of the context that they read."""
        groups: dict[FitLimits, dict[int, Method]] = {}
        for at, method in enumerate(self.methods):
            if at not in self._constant:
                groups.setdefault(method.weighting.limits, {})[at] = method
        return groups

    def score_ids(
        self, head: Sequence[int], new: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Score reference token ids `new` after `head`; weights are fitted to `head`.

        Returns:
            By setting, `[S]`: the log-probability in nats, and whether greedy decoding would
            generate the ids.

        Raises:
            PromptError: for an empty head, or one that is too long for a member.
            MemberError: if a member fails.
        """
        sequence, _ = self._read(head)
        first = self.fusion.at_last_position(new[:1])
        positions = [first, *self._extend([sequence], [new], [None])[0]]
        return total(positions)[0], _greedy(positions, new)

    def _extend(
        self,
        sequences: Sequence[PackSequence],
        new: Sequence[Sequence[int]],
        observers: Sequence[PositionCallback | None],
    ) -> list[list[FusedTokens]]:
        """Extend sequences by `new`; by sequence, the results at the positions of `new[1:]`."""
        fusions = [self.fusion.along(ids[1:], own) for ids, own in zip(new, observers, strict=True)]
        longer = [at for at, ids in enumerate(new) if len(ids) > 1]
        self.engine.advance_each(
            [sequences[at] for at in longer],
            [new[at][:-1] for at in longer],
            [fusions[at] for at in longer],
            [len(new[at]) - 1 for at in longer],
        )
        return [fusion.results for fusion in fusions]


def _of_text(observer: TextObserver | None, text: int | None) -> PositionCallback | None:
    return None if observer is None else lambda _, position: observer(text, position)


def _column(position: FusedTokens, column: int) -> FusedTokens:
    """The results of one target token."""
    return replace(position, logps=position.logps[:, column : column + 1])


def _greedy(positions: Sequence[FusedTokens], tokens: Sequence[int]) -> NDArray[np.bool_]:
    """Whether the tokens are the most probable ones at every position, by setting `[S]`."""
    hits = [position.first == token for position, token in zip(positions, tokens, strict=True)]
    greedy: NDArray[np.bool_] = np.stack(hits).min(0)
    return greedy
