"""The request of one call: prompts and settings, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.drafts import drafts
from packfuse.constraint import Constraint, as_constraint
from packfuse.errors import ConfigError, PromptError
from packfuse.fusion.gates import gates
from packfuse.fusion.rules import rules
from packfuse.settings import weighting_part
from packfuse.weighting.methods import weightings

Prompt = str | Sequence[dict[str, Any]]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")

MAX_NEW_TOKENS = 256
"""Default for the maximum length of an answer, in tokens."""


@dataclass(slots=True)
class Request:
    """A checked call.

    Attributes:
        prompts: Plain texts or chats.
        single: Whether one prompt was given, not a list.
        call: How the members are fused and weighted, and how tokens are drafted.
        stop: Stop strings.
        seed: Random seed; None for none.
        trace: Whether to record every step.
        top_logprobs: Number of the most probable tokens that are recorded at every step.
        constraint: The constraint on the answers, for constrained decoding.
        template: Arguments for the chat templates.
        arguments: Arguments of transformers' `generate`.
    """

    prompts: list[Prompt]
    single: bool
    call: CallSettings
    stop: tuple[str, ...] = ()
    seed: int | None = None
    trace: bool = False
    top_logprobs: int = 0
    constraint: Constraint | None = None
    template: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def can_batch_with(self, other: Request) -> bool:
        """Whether both can be answered as one batch: equal settings, and no seed.

        Requests with objects of the caller (processors, streamers) are answered alone, since such
        objects may have a state.
        """
        settings = [item.name for item in fields(self) if item.name not in ("prompts", "single")]
        return (
            self._can_batch
            and other._can_batch
            and all(getattr(self, name) == getattr(other, name) for name in settings)
        )

    @property
    def _can_batch(self) -> bool:
        plain = all(map(_is_plain, self.arguments.values()))
        # transformers counts padding in these lengths.
        counts_padding = any(self.arguments.get(name) for name in ("max_length", "min_length"))
        unseeded = self.seed is None
        return self.single and self.one_row_each and plain and not counts_padding and unseeded

    @property
    def answers_each(self) -> int:
        """Number of answers to each prompt (`num_return_sequences`)."""
        return _count(self.arguments, "num_return_sequences")

    def one_answer(self, what: str) -> None:
        """Refuse a request of several answers to a prompt.

        Args:
            what: What has room for one answer only, for the error.

        Raises:
            ConfigError: naming the setting.
        """
        refuse_several(self.arguments, what)

    @property
    def beams(self) -> int:
        """Number of beams; 1 without beam search."""
        return _count(self.arguments, "num_beams")

    @property
    def one_row_each(self) -> bool:
        """Whether each prompt has one row of the batch, at the same index in every step.

        Only then can steps be recorded. Not so for beams, several return sequences, and the drafts
        of transformers' own arguments.
        """
        drafting = ("assistant_model", "prompt_lookup_num_tokens")
        several = self.beams > 1 or self.answers_each > 1
        return not several and not any(self.arguments.get(name) for name in drafting)


def make_request(prompt: Any, arguments: Mapping[str, Any], call: CallSettings) -> Request:
    """Check the arguments of a call.

    Args:
        prompt: A text, a chat, or a list of either.
        arguments: Settings of the call, and transformers' generation arguments.
        call: The pack's settings, for what the arguments leave out.

    Raises:
        PromptError: for an empty prompt or list, or a prompt that is neither text nor chat.
        ConfigError: for unknown settings or an unusable stop list.
    """
    rest = dict(arguments)
    prompts, single = _prompts(prompt)
    constraint = as_constraint(rest.pop("constraint", None))
    top = _top_logprobs(rest)
    request = Request(
        prompts=prompts,
        single=single,
        call=replace(_call(rest, call), full_support=constraint is not None),
        stop=_stop(rest.pop("stop", None)),
        seed=rest.pop("seed", None),
        trace=bool(rest.pop("trace", False)) or top is not None,
        top_logprobs=top or 0,
        constraint=constraint,
        template=dict(rest.pop("chat_template_kwargs", None) or {}),
        arguments=_sampling(rest),
    )
    if top is not None and not request.one_row_each:
        raise ConfigError(
            "top_logprobs are not recorded with beams or several return sequences",
            hint="ask for one answer, or leave out top_logprobs",
        )
    if request.arguments.get("streamer") is not None and (
        not request.single or request.beams > 1 or request.answers_each > 1
    ):
        raise ConfigError(
            "a streamer is for one prompt and one answer, without beams",
            hint="leave out streamer, or call generate for each prompt",
        )
    return request


def _top_logprobs(rest: dict[str, Any]) -> int | None:
    """Take `top_logprobs` out of the arguments of a call."""
    top = rest.pop("top_logprobs", None)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 0):
        raise ConfigError(f"top_logprobs={top!r} is not a number of tokens", hint="0 or more")
    return top


def refuse_several(arguments: Mapping[str, Any], what: str) -> None:
    """Refuse arguments of a call that ask for several answers to a prompt.

    Args:
        arguments: Arguments of `Pack.generate`.
        what: What has room for one answer only, for the error.

    Raises:
        ConfigError: naming the argument.
    """
    if (count := _count(arguments, "num_return_sequences")) > 1:
        raise ConfigError(
            f"{what} has room for one answer, and num_return_sequences={count} asks for several",
            hint="use generate, or leave it out",
        )


def _count(arguments: Mapping[str, Any], name: str) -> int:
    """A number in the arguments or their `generation_config`; 1 if neither has it."""
    config = arguments.get("generation_config")
    return arguments.get(name) or getattr(config, name, None) or 1


def _call(rest: dict[str, Any], call: CallSettings) -> CallSettings:
    """Take the settings of the call out of its arguments."""
    fusion, weighting, weights, gate = (
        rest.pop(name, None) for name in ("fusion", "weighting", "weights", "gate")
    )
    changes: dict[str, Any] = {}
    if fusion is not None:
        changes["rule"] = rules().make(fusion)
    if weights is not None:
        changes["weighting"] = weightings().make({"name": "fixed", "weights": weights})
    elif weighting is not None:
        changes["weighting"] = weightings().make(weighting_part(weighting))
    if gate is not None:
        changes["gate"] = gates().make(gate)
    if "draft" in rest:
        draft = rest.pop("draft")
        changes["draft"] = None if draft in (None, "none") else drafts().make(draft)
    return replace(call, **changes)


def _prompts(prompt: Any) -> tuple[list[Prompt], bool]:
    if isinstance(prompt, str):
        return [_text(prompt)], True
    if not isinstance(prompt, Sequence):
        raise PromptError(f"a prompt is text or a list of messages, not {type(prompt).__name__}")
    if not prompt:
        raise PromptError("the list of prompts is empty", hint="give at least one prompt")
    if all(isinstance(item, Mapping) for item in prompt):
        return [list(prompt)], True
    kinds = (str, Sequence)
    if any(not isinstance(item, kinds) or isinstance(item, bytes) for item in prompt):
        raise PromptError(
            "a batch holds texts or chats", hint="do not mix them with single messages"
        )
    return [_text(item) if isinstance(item, str) else list(item) for item in prompt], False


def _text(prompt: str) -> str:
    if not prompt:
        raise PromptError("the prompt is empty", hint="give at least one character")
    return prompt


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for item in strings:
        if not isinstance(item, str) or not item:
            raise ConfigError(f"{item!r} cannot be a stop string", hint="leave it out")
    return strings


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, None, or a list of these."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | None)


def _sampling(arguments: dict[str, Any]) -> dict[str, Any]:
    """Set `do_sample` from the sampling arguments (temperature 0 is greedy), and the length."""
    if arguments.get("temperature") == 0:
        arguments = {k: v for k, v in arguments.items() if k not in _SAMPLING}
        arguments["do_sample"] = False
    elif "do_sample" not in arguments:
        arguments["do_sample"] = any(arguments.get(name) is not None for name in _SAMPLING)
    lengths = ("max_new_tokens", "max_length", "generation_config")
    if not any(arguments.get(name) is not None for name in lengths):
        arguments["max_new_tokens"] = MAX_NEW_TOKENS
    return arguments
