"""Continuations of a text scored under many settings, in one reading by the members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from packfuse.alignment.base import Alignment
from packfuse.alignment.token_pairs import Progress
from packfuse.evaluation.panel import Panel, Said, total
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.weigh import Survey
from packfuse.models.member import Member
from packfuse.text.continuation import Continuation, bare
from packfuse.text.prompt import from_ids, from_text
from packfuse.weighting.methods.base import Weighting, Weights, equal
from packfuse.weighting.methods.fixed import Fixed
from packfuse.weighting.prefill import Fit, prefill


class Method(NamedTuple):
    """How members are combined, whom to trust, and where."""

    rule: Rule
    weighting: Weighting
    gate: Gate


@dataclass(slots=True)
class Scores:
    """What S settings make of n texts after one context.

    Attributes:
        logps: Log-probability of each text, `[S, n]`, nats.
        sizes: Bytes scored of each, `[n]`.
        exact: Whether these are the bytes of the text and no others, `[n]`.
        greedy: Whether each text is what greedy decoding would write, `[S, n]`.
        impossible: Tokens that had no probability and count `IMPOSSIBLE`, `[S, n]`.
        fused: Share of each text's tokens at which the setting's gate was open, `[S, n]`.
        first: What each setting would write first after the context, by setting.
        weights: `[S, K]`.
        tokens: Reference tokens read, context included.
        fit: What the context said about the members.
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
        progress: Progress | None = None,
    ) -> None:
        """Pair the members; `methods` are by setting."""
        self.methods = list(methods)
        self.engine = Engine(members, reference, alignment, self.methods[0].rule, progress)
        own = ([method.rule for method in methods], [method.gate for method in methods])
        self.panel = Panel(self.engine, *own)
        self.engine.pooling = self.panel
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
        opening = self.panel.look([item.new[0] for item in asked])
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
            weights=self.panel.weights,
            tokens=len(asked[0].head) + sum(len(item.new) for item in asked),
            fit=fit,
        )

    def weigh(self, context: str) -> Fit:
        """What the members make of a context; nothing is scored after it."""
        plain = from_text(bare(context), self._vocabularies, self.engine.reference_index).stream
        return self._read(plain)[1]

    def _read(self, ids: Sequence[int]) -> tuple[PackSequence, Fit]:
        """Read the context and fit all weights to it: a row that stands at its end."""
        prompt = from_ids(ids, self._vocabularies, self.engine.reference_index)
        weights = dict(self._given)
        even = Fixed(weights=tuple(equal(len(self._vocabularies))))
        row, fit = None, None
        for survey in self._surveys():
            row, fit = prefill(self.engine, prompt, survey)
            weights.update(
                {int(label): survey.answer(label, len(even.weights)) for label in survey.asked}
            )
        if row is None or fit is None:
            row, fit = prefill(self.engine, prompt, even)
        self.panel.weights = np.stack([weights[at] for at in range(len(self.methods))])
        return row, fit

    def _surveys(self) -> Iterator[Survey]:
        """The weightings that are fitted, in groups that want the same evidence."""
        kinds = {
            at: (method.weighting.normalize, method.weighting.limits)
            for at, method in enumerate(self.methods)
            if at not in self._given
        }
        for kind in dict.fromkeys(kinds.values()):
            asked = {
                str(at): (self.methods[at].weighting, self.methods[at].rule.pool)
                for at, own in kinds.items()
                if own == kind
            }
            yield Survey(normalize=kind[0], asked=asked)

    def follow(
        self, head: Sequence[int], new: Sequence[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Reference ids scored after others, to which weights are fitted.

        Returns:
            By setting `[S]`: log-probability in nats, and whether greedy decoding would write them.
        """
        row, _ = self._read(head)
        places = [self.panel.look(new[:1]), *self._follow(row, new)]
        return total(places)[0], _greedy(places, new)

    def _follow(self, row: PackSequence, new: Sequence[int]) -> list[Said]:
        """Go on from a row; the places after the first of the new ids."""
        if len(new) == 1:
            return []
        self.panel.ask([[token] for token in new[1:]])
        self.engine.advance([row], [new[:-1]], len(new) - 1)
        return self.panel.said


def _column(said: Said, column: int) -> Said:
    """What was said of one of the tokens asked about."""
    return replace(said, logps=said.logps[:, column : column + 1])


def _greedy(said: Sequence[Said], tokens: Sequence[int]) -> NDArray[np.bool_]:
    """Whether these tokens are the likeliest ones at every place, by setting."""
    hits = [place.first == token for place, token in zip(said, tokens, strict=True)]
    found: NDArray[np.bool_] = np.stack(hits).min(0)
    return found
