"""The request of one call: prompts and settings, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from packfuse.causal_lm.arguments import IN_ONE_VOCABULARY, short
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.checks import forbids_tokens, typed_errors
from packfuse.causal_lm.drafts import drafts
from packfuse.constraint import Constraint, as_constraint
from packfuse.errors import ConfigError, PromptError
from packfuse.fusion.gates import gates
from packfuse.fusion.rules import rules
from packfuse.generation.call_arguments import (
    MAX_NEW_TOKENS,
    generation_arguments,
    stop_strings,
)
from packfuse.generation.output.streamers import takes_text
from packfuse.settings import weighting_part
from packfuse.text.chats.chat_template import check_template_arguments, split_final
from packfuse.text.chats.messages import check_messages, check_text
from packfuse.weighting.methods import weightings

__all__ = ["MAX_NEW_TOKENS", "Prompt", "Request", "make_request", "refuse_several"]

Prompt = str | Sequence[dict[str, Any]]

_DRAFTS_OF_GENERATE = ("assistant_model", "prompt_lookup_num_tokens")
_OBJECTS = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn")
"""Arguments that hold code of the caller."""


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
        continue_final_message: Whether answers continue the last message of a chat.
        arguments: Arguments of transformers' `generate`.
        max_time: Time after which generation stops, seconds; None for no limit.
        pins: Arguments that hold or receive token ids: those of the default reference, so that
            `reference="auto"` chooses no other.
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
    continue_final_message: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    max_time: float | None = None
    pins: tuple[str, ...] = ()

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

        Not so for beams, several return sequences, and the drafts of transformers' own arguments.
        """
        several = self.beams > 1 or self.answers_each > 1
        drafts = (self.arguments.get(name) is not None for name in _DRAFTS_OF_GENERATE)
        return not several and not any(drafts)

    @property
    def decodes_in_rows(self) -> bool:
        """Whether every answer can be decoded by itself, in a loop with others.

        Not so for beams, for the drafts of transformers' own arguments, without a cache, and for
        several answers whose processors or criteria are objects of the caller, which may depend on
        the batch.
        """
        several = len(self.prompts) > 1 or self.answers_each > 1
        if self.beams > 1 or self.arguments.get("use_cache") is False:
            return False
        if any(self.arguments.get(name) is not None for name in _DRAFTS_OF_GENERATE):
            return False
        return not (several and any(self.arguments.get(name) for name in _OBJECTS))

    @property
    def records_steps(self) -> bool:
        """Whether the steps of each answer can be recorded: it keeps its place among the others."""
        return self.decodes_in_rows or self.one_row_each

    @property
    def takes_drafts(self) -> bool:
        """Whether the pack's draft method can be used: one answer, token after token."""
        return (
            self.one_row_each
            and len(self.prompts) == 1
            and self.arguments.get("use_cache") is not False
            and self.arguments.get("guidance_scale") in (None, 1)
        )


def make_request(prompt: Any, arguments: Mapping[str, Any], call: CallSettings) -> Request:
    """Check the arguments of a call.

    Args:
        prompt: A text, a chat, or a list of either.
        arguments: Settings of the call, and transformers' generation arguments.
        call: The pack's settings, for what the arguments leave out.

    Raises:
        PromptError: for an empty prompt or list, or a prompt that is neither text nor chat.
        ConfigError: for unknown, unusable or contradictory arguments.
        UnsupportedError: for arguments of transformers that a pack does not honor.
    """
    prompts, single = _prompts(prompt)
    generation = generation_arguments(arguments)
    pins = tuple(
        name
        for name in IN_ONE_VOCABULARY
        if name in generation and not takes_text(generation[name])
    )
    stops = generation.pop("stop_strings", None)
    top = _top_logprobs(arguments.get("top_logprobs"))
    with typed_errors("constraint"):
        constraint = as_constraint(arguments.get("constraint"))
    full_support = constraint is not None or forbids_tokens(generation)
    request = Request(
        prompts=prompts,
        single=single,
        call=replace(_call(arguments, call), full_support=full_support),
        stop=stop_strings(arguments.get("stop"), stops),
        seed=_seed(arguments.get("seed")),
        trace=_flag("trace", arguments.get("trace")) or top is not None,
        top_logprobs=top or 0,
        constraint=constraint,
        template=check_template_arguments(arguments.get("chat_template_kwargs")),
        continue_final_message=_continues(arguments.get("continue_final_message"), prompts),
        max_time=generation.pop("max_time", None),
        arguments=generation,
        pins=pins,
    )
    _check_rows(request)
    if top is not None and not request.records_steps:
        raise ConfigError(
            "top_logprobs are not recorded with beams", hint="leave out num_beams or top_logprobs"
        )
    return request


def _top_logprobs(top: Any) -> int | None:
    """A checked `top_logprobs`."""
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 0):
        raise ConfigError(f"top_logprobs={top!r} is not a number of tokens", hint="0 or more")
    return top if top is None else int(top)


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


def _check_rows(request: Request) -> None:
    """Refuse what works for one answer at a time only, where there are several.

    Raises:
        ConfigError: naming the argument.
    """
    several = len(request.prompts) > 1 or request.answers_each > 1 or request.beams > 1
    for name in ("streamer", "assistant_model", "prompt_lookup_num_tokens"):
        if request.arguments.get(name) is not None and several:
            raise ConfigError(
                f"{name} is for one prompt with one answer, without beams",
                hint=f"leave out {name}, or make one call a prompt",
            )


def _call(arguments: Mapping[str, Any], call: CallSettings) -> CallSettings:
    """The settings of the call: those in its arguments, and the pack's."""
    fusion, weighting, weights, gate = (
        arguments.get(name) for name in ("fusion", "weighting", "weights", "gate")
    )
    changes: dict[str, Any] = {}
    if fusion is not None:
        with typed_errors("fusion"):
            changes["rule"] = rules().make(fusion)
    if weights is not None:
        with typed_errors("weights"):
            changes["weighting"] = weightings().make({"name": "fixed", "weights": weights})
    elif weighting is not None:
        with typed_errors("weighting"):
            changes["weighting"] = weightings().make(weighting_part(weighting))
    if gate is not None:
        with typed_errors("gate"):
            changes["gate"] = gates().make(gate)
    if "draft" in arguments:
        draft = arguments["draft"]
        none = draft is None or (isinstance(draft, str) and draft == "none")
        with typed_errors("draft"):
            changes["draft"] = None if none else drafts().make(draft)
    return replace(call, **changes)


def _prompts(prompt: Any) -> tuple[list[Prompt], bool]:
    if isinstance(prompt, str):
        return [_text(prompt)], True
    if not isinstance(prompt, Sequence):
        raise PromptError(f"a prompt is text or a list of messages, not {type(prompt).__name__}")
    if not prompt:
        raise PromptError("the list of prompts is empty", hint="give at least one prompt")
    if all(isinstance(item, Mapping) for item in prompt):
        return [check_messages(prompt)], True
    kinds = (str, Sequence)
    if any(not isinstance(item, kinds) or isinstance(item, bytes) for item in prompt):
        raise PromptError(
            "a batch holds texts or chats", hint="do not mix them with single messages"
        )
    checked: list[Prompt] = [
        _text(item) if isinstance(item, str) else check_messages(item) for item in prompt
    ]
    return checked, False


def _text(prompt: str) -> str:
    if not prompt:
        raise PromptError("the prompt is empty", hint="give at least one character")
    return check_text(prompt, "the prompt")


def _seed(seed: Any) -> int | None:
    """A seed as a number that is not negative."""
    if seed is None:
        return None
    if hasattr(seed, "item"):
        seed = seed.item()
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ConfigError(
            f"seed={short(seed)} cannot be used", hint="it is a whole number of at most 64 bits"
        )
    return seed


def _continues(given: Any, prompts: Sequence[Prompt]) -> bool:
    """Whether the answers continue the last messages of chats, which end with the assistant's."""
    if not _flag("continue_final_message", given):
        return False
    for prompt in prompts:
        if isinstance(prompt, str):
            raise ConfigError(
                "continue_final_message is for chats", hint="a text is continued in any case"
            )
        split_final(list(prompt))
    return True


def _flag(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigError(f"{name}={short(value)} cannot be used", hint="it is True or False")
