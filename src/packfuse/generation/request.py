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
from packfuse.text.chat_template import check_template_arguments, split_final
from packfuse.text.messages import check_messages, check_text
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
        constraint: The constraint on the answers, for constrained decoding.
        template: Arguments for the chat templates.
        continue_final_message: Whether answers continue the last message of a chat.
        arguments: Arguments of transformers' `generate`.
    """

    prompts: list[Prompt]
    single: bool
    call: CallSettings
    stop: tuple[str, ...] = ()
    seed: int | None = None
    trace: bool = False
    constraint: Constraint | None = None
    template: dict[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
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
    def one_row_each(self) -> bool:
        """Whether each prompt has one row of the batch, at the same index in every step.

        Only then can steps be recorded. Not so for beams, several return sequences, and the drafts
        of transformers' own arguments.
        """
        several = ("num_beams", "num_return_sequences")
        drafting = ("assistant_model", "prompt_lookup_num_tokens")
        return all(self.arguments.get(n, 1) in (None, 1) for n in several) and not any(
            self.arguments.get(n) for n in drafting
        )


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
    return Request(
        prompts=prompts,
        single=single,
        call=replace(_call(rest, call), full_support=constraint is not None),
        stop=_stop(rest.pop("stop", None)),
        seed=rest.pop("seed", None),
        trace=bool(rest.pop("trace", False)),
        constraint=constraint,
        template=check_template_arguments(rest.pop("chat_template_kwargs", None)),
        continue_final_message=_continues(rest.pop("continue_final_message", None), prompts),
        arguments=_sampling(rest),
    )


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


def _continues(given: Any, prompts: Sequence[Prompt]) -> bool:
    """Whether the answers continue the last messages of chats, which end with the assistant's."""
    if given is None or given is False:
        return False
    if given is not True:
        raise ConfigError(f"continue_final_message={given!r} is no bool", hint="pass True or False")
    for prompt in prompts:
        if isinstance(prompt, str):
            raise ConfigError(
                "continue_final_message is for chats", hint="a text is continued in any case"
            )
        split_final(list(prompt))
    return True


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for item in strings:
        if not isinstance(item, str) or not item:
            raise ConfigError(f"{item!r} cannot be a stop string", hint="leave it out")
        check_text(item, "a stop string")
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
