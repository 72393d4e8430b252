"""Results of a call: answers and chunks, with the record of the fusion."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from packfuse.view.answer_plot import answer_picture
from packfuse.view.document import Theme, View, answer_view
from packfuse.view.picture import Picture

FinishReason = Literal["stop", "length", "time", "criteria", "cancelled"]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(_Plain):
    """Numbers of tokens.

    Attributes:
        prompt_tokens: Tokens of the prompt, in the reference's vocabulary.
        completion_tokens: Tokens of the answer, in the reference's vocabulary.
        total_tokens: Their sum.
        prompt_tokens_by_member: Tokens of the prompt, in each member's own vocabulary.
        cached_tokens: Tokens of the prompt that the reference took from the prefix cache.
        cached_tokens_by_member: The same for each member.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_by_member: dict[str, int]
    cached_tokens: int = 0
    cached_tokens_by_member: dict[str, int] = {}


class Candidates(_Plain):
    """What a member in a server said of the next tokens.

    Attributes:
        named: Most tokens that it named at a place.
        outside: Mean probability of the tokens that it did not name, which is spread over them.
    """

    named: int
    outside: float


class Timings(_Plain):
    """Times of a call. All answers of a batch have the same decoding time.

    Attributes:
        prefill_seconds: Time of reading the prompt.
        weights_seconds: Time of fitting the weights, in addition.
        decode_seconds: Time of generating the answer.
        tokens_per_second: Tokens of the answer per second of decoding.
    """

    prefill_seconds: float
    weights_seconds: float
    decode_seconds: float
    tokens_per_second: float


class Drafts(_Plain):
    """Counts of drafted tokens (speculative decoding).

    Attributes:
        method: The draft method with its parameters.
        rounds: Number of passes that verified a draft.
        drafted: Number of tokens drafted.
        accepted: Number of drafted tokens that were accepted.
    """

    method: dict[str, Any]
    rounds: int
    drafted: int
    accepted: int


class TokenLogprob(_Plain):
    """A token and its log-probability under the pack.

    Attributes:
        text: The token's text; an incomplete character is replaced.
        utf8: The token's bytes; none for a control token.
        logprob: Its log-probability, nats; -9999 for an impossible token, as JSON has no infinity.
    """

    text: str
    utf8: list[int]
    logprob: float


class TraceStep(_Plain):
    """One generated token.

    Attributes:
        text: The token's text.
        probability: Its probability under the pack.
        member_probabilities: Its probability under each member.
        member_choices: The most probable token of each member, as text.
        utf8: The token's bytes; none for a control token.
        logprob: Its log-probability under the pack, nats; -9999 for an impossible token.
        alternatives: The most probable tokens, as many as the call's `top_logprobs`; the first is
            the most probable.
        fused: Whether the gate was open there; with the gate `nudge`, whether the nudger wrote it.
        carried_by: The member that contributed most: its weight times its probability of the token
            is the largest. The reference where the gate was closed; with the gate `nudge`, the
            member that wrote it.
        drafted: Whether a draft had proposed it (speculative decoding), which the pack accepted.
    """

    text: str
    probability: float
    member_probabilities: dict[str, float]
    member_choices: dict[str, str]
    utf8: list[int] = []
    logprob: float = 0.0
    alternatives: list[TokenLogprob] = []
    fused: bool = True
    carried_by: str = ""
    drafted: bool = False

    @property
    def token(self) -> TokenLogprob:
        """The generated token like one of the alternatives."""
        return TokenLogprob(text=self.text, utf8=self.utf8, logprob=self.logprob)


class PromptStep(_Plain):
    """A piece of the prompt on which the members were scored.

    It lies between two neighboring token boundaries that all members share.

    Attributes:
        text: Its text; an incomplete character is replaced.
        utf8: Its bytes.
        start: Number of bytes before it. Between two texts of a prompt, such as two messages, one
            byte is counted.
        tokens: Number of the reference's tokens in it.
        loss: Loss by member on the whole piece, nats; 9999 where it is infinite. Members that did
            not read the prompt are left out.
    """

    text: str
    utf8: list[int]
    start: int
    tokens: int
    loss: dict[str, float]


class FusionRecord(_Plain):
    """The record of how one answer was fused, as plain JSON types.

    Attributes:
        members: Names of the members, in the pack's order.
        reference: The member whose tokens were generated.
        fusion: The fusion rule with its parameters.
        weighting: The weighting with its parameters.
        alignment: The alignment with its parameters.
        weights: Weights by member on this prompt; they sum to one.
        skill: In a chat, the weights by member under which the pack prefers right answers to wrong
            ones in worked chats; None for plain texts, and for weightings that do not use them.
        prompt_share: The share of the weights that was fitted to this prompt, 0 to 1; the rest is
            that of `skill` or another prior. None for weights that depend on no prompt.
        sharpness: The power to which fused distributions were raised (weighting "calibrated");
            None for none.
        prompt_loss: Loss by member, nats per reference token; 9999 where it is infinite; None if
            the prompt was not scored. Members whose weight is fixed to 0 read nothing and are left
            out.
        bits_per_byte: The same losses in bits per byte of text; None if not scored.
        scored_tokens: Number of reference tokens on which the losses were computed.
        usage: Numbers of tokens.
        finish_reason: "stop" (an end token or a stop string), "length", "time" (`max_time`),
            "criteria" (a stopping criterion of the call) or "cancelled".
        stop: The stop string that ended the answer, if one did.
        agreed: Share of steps at which all members with a weight above 0 had the same most probable
            token; None if steps were not recorded.
        overruled: Share of steps at which the most probable token of the pack was not that of the
            reference; None if steps were not recorded.
        gate: The gate with its parameters: at which steps the members are fused.
        fused: Share of steps at which the members were fused; at the others the reference decided
            alone. With the gate `nudge`, the share of tokens that the nudger wrote.
        drafts: Counts of drafted tokens; None without drafts.
        candidates: For members in servers that do not give whole distributions, how many tokens
            they named at each place, and the mean probability of the others; None without such.
        scored_places: For members whose servers score one place of a prompt a request, at how many
            places this one was scored; None without such.
        left_out: Members whose servers failed, by name, with the number of tokens of the answer
            that were chosen before; see `PackSettings.on_member_failure`.
        eager_members: Members that decode eagerly though the pack's steps are static, by name, with
            the reason; see `PackSettings.steps`.
        timings: Times in seconds.
        seed: The seed of the call, if it had one.
        constraint: Kind of the constraint: "json_schema", "regex" or "grammar".
        notes: Changes to the prompt and settings that the user should know about.
        trace: One entry per step, if the call requested it.
        prompt_trace: The scored pieces of the prompt in order, if the call requested a trace; all
            pieces of a short prompt, and evenly spread ones of a long prompt. None if the prompt
            was not scored.
    """

    members: list[str]
    reference: str
    fusion: dict[str, Any]
    weighting: dict[str, Any]
    alignment: dict[str, Any]
    weights: dict[str, float]
    skill: dict[str, float] | None = None
    prompt_share: float | None = None
    sharpness: float | None = None
    prompt_loss: dict[str, float] | None
    bits_per_byte: dict[str, float] | None
    scored_tokens: int
    usage: Usage
    finish_reason: FinishReason
    stop: str | None = None
    agreed: float | None = None
    overruled: float | None = None
    gate: dict[str, Any] = {"name": "every"}
    fused: float | None = None
    drafts: Drafts | None = None
    candidates: dict[str, Candidates] | None = None
    scored_places: dict[str, int] | None = None
    left_out: dict[str, int] = {}
    eager_members: dict[str, str] = {}
    timings: Timings
    seed: int | None = None
    constraint: str | None = None
    notes: list[str] = []
    trace: list[TraceStep] | None = None
    prompt_trace: list[PromptStep] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text.

    Attributes:
        text: What was generated, without the prompt and without a stop string.
        record: The record of the fusion.
        token_ids: The generated ids of the reference.
    """

    text: str
    record: FusionRecord
    token_ids: tuple[int, ...]

    def __str__(self) -> str:
        """The text."""
        return self.text

    def __repr__(self) -> str:
        """The beginning of the text, and the weights."""
        count, reason = self.record.usage.completion_tokens, self.record.finish_reason
        weights = ", ".join(f"{name} {share:.2f}" for name, share in self.record.weights.items())
        return f"Answer({_short(self.text)!r}, {count} tokens, {reason}; weights: {weights})"

    def view(self, earlier: Sequence[Answer] = (), theme: Theme = "auto") -> View:
        """The answer to look at: in a notebook, or as a file (`answer.view().save("a.html")`).

        Each token is colored by the member that carried it; pointing at it, or going to it with the
        arrow keys, shows what every member proposed. This needs `trace=True` in the call.

        Args:
            earlier: The answers to earlier turns of the same chat, whose weights are shown as well.
            theme: Colors: "light", "dark", or "auto" for those of the reader's system.

        Raises:
            ConfigError: for an unknown theme.
        """
        return answer_view(self.text, self.record.model_dump(), self._turns(earlier), theme)

    def plot(
        self, path: str | os.PathLike[str] | None = None, earlier: Sequence[Answer] = ()
    ) -> Picture:
        """A picture of the answer for a paper: weights, perplexity along the prompt, and tokens.

        The last two need `trace=True` in the call.

        Args:
            path: A file to write, PNG, SVG or PDF; None to write none.
            earlier: See `view`.

        Returns:
            The picture, which notebooks show; its `figure` is matplotlib's.

        Raises:
            ConfigError: if matplotlib is not installed, or the file cannot be written.
        """
        picture = answer_picture(self.record.model_dump(), self._turns(earlier))
        if path is not None:
            picture.save(path)
        return picture

    def _repr_html_(self) -> str:
        return self.view()._repr_html_()

    def _turns(self, earlier: Sequence[Answer]) -> list[dict[str, float]]:
        return [answer.record.weights for answer in (*earlier, self)]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a streamed answer.

    Attributes:
        text: The next part of the text; may be empty in the last chunk.
        record: The record of the fusion, in the last chunk only.
        trace: The steps since the last chunk, if the call requested a trace.
    """

    text: str
    record: FusionRecord | None = None
    trace: tuple[TraceStep, ...] = ()


_SHORT = 60


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


NO_INFINITY = 9999.0
"""Written for a loss that is infinite: JSON has no infinity."""


def by_name(names: Sequence[str], values: Iterable[float] | None) -> dict[str, float] | None:
    """Values by member name, as finite floats; None stays None. Members with NaN have no value."""
    if values is None:
        return None
    named = zip(names, map(float, values), strict=True)
    return {
        name: value if math.isfinite(value) else NO_INFINITY
        for name, value in named
        if not math.isnan(value)
    }
