"""One call of a pack: what was asked, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from packfuse.causal_lm.drafts.base import Draft
from packfuse.constraint import Constraint, as_constraint
from packfuse.errors import ConfigError, PromptError
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.gates.every import Every
from packfuse.fusion.rules.base import Rule
from packfuse.registry import drafts, gates, rules, weightings
from packfuse.weighting.methods.base import Weighting

Prompt = str | Sequence[dict[str, Any]]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")

MAX_NEW_TOKENS = 256
"""How long an answer may get unless the call says otherwise."""


@dataclass(slots=True)
class Request:
    """A checked call.

    Attributes:
        prompts: Plain texts or chats.
        single: Whether one prompt was given, not a list of them.
        rule: The fusion rule of this call.
        weighting: The weighting of this call.
        stop: Stop strings.
        seed: Seed of the random numbers.
        trace: Whether to record every step.
        constraint: What the answers are held to.
        draft: How tokens are drafted, if they are.
        gate: Where the members are fused.
        template: Arguments for the chat templates.
        arguments: For transformers' `generate`, under its own names.
    """

    prompts: list[Prompt]
    single: bool
    rule: Rule
    weighting: Weighting
    stop: tuple[str, ...] = ()
    seed: int | None = None
    trace: bool = False
    constraint: Constraint | None = None
    draft: Draft | None = None
    gate: Gate = field(default_factory=Every)
    template: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def joins(self, other: Request) -> bool:
        """Whether both can be answered as one batch: the same settings, and no randomness to share.

        Objects of the caller's own (processors, streamers) may count what they see, and stay alone.
        """
        own = {"prompts", "single"}
        alike = [item.name for item in fields(self) if item.name not in own]
        return (
            self._common
            and other._common
            and all(getattr(self, name) == getattr(other, name) for name in alike)
        )

    @property
    def _common(self) -> bool:
        own = all(map(_plain, self.arguments.values()))
        # These count padding.
        padded = any(self.arguments.get(name) for name in ("max_length", "min_length"))
        return self.single and self.observable and own and not padded and self.seed is None

    @property
    def observable(self) -> bool:
        """Whether row i stays row i, one position a step, so that steps can be recorded."""
        plain = ("num_beams", "num_return_sequences")
        drafting = ("assistant_model", "prompt_lookup_num_tokens")
        return all(self.arguments.get(n, 1) in (None, 1) for n in plain) and not any(
            self.arguments.get(n) for n in drafting
        )


def make_request(
    prompt: Any,
    arguments: Mapping[str, Any],
    *,
    rule: Rule,
    weighting: Weighting,
    draft: Draft | None = None,
    gate: Gate | None = None,
) -> Request:
    """Turn the arguments of a call into a request.

    Args:
        prompt: A text, a chat, or a list of either.
        arguments: Pack settings and transformers' generation arguments.
        rule: The pack's own rule.
        weighting: The pack's own weighting.
        draft: The pack's own way to draft.
        gate: The pack's own gate.

    Raises:
        PromptError: for an empty prompt or list, or something that is neither text nor chat.
        ConfigError: for unknown settings or an unusable stop list.
    """
    rest = dict(arguments)
    prompts, single = _prompts(prompt)
    fusion, weigh, weights = (rest.pop(name, None) for name in ("fusion", "weighting", "weights"))
    if weights is not None:
        weigh = {"name": "fixed", "weights": weights}
    elif isinstance(weigh, Mapping) and "name" not in weigh:
        weigh = {"name": "fixed", "weights": dict(weigh)}
    return Request(
        prompts=prompts,
        single=single,
        rule=rule if fusion is None else rules().make(fusion),
        weighting=weighting if weigh is None else weightings().make(weigh),
        stop=_stop(rest.pop("stop", None)),
        seed=rest.pop("seed", None),
        trace=bool(rest.pop("trace", False)),
        constraint=as_constraint(rest.pop("constraint", None)),
        draft=make_draft(rest.pop("draft")) if "draft" in rest else draft,
        gate=gates().make(rest.pop("gate", None) or gate or "every"),
        template=dict(rest.pop("chat_template_kwargs", None) or {}),
        arguments=_sampling(rest),
    )


def make_draft(spec: Any) -> Draft | None:
    """A way to draft by its name, with parameters, or as an object; None and "none" for none.

    Raises:
        ConfigError: for an unknown name or a bad parameter.
    """
    return None if spec in (None, "none") else drafts().make(spec)


def _prompts(prompt: Any) -> tuple[list[Prompt], bool]:
    if isinstance(prompt, str):
        return [_text(prompt)], True
    if not isinstance(prompt, Sequence):
        raise PromptError(f"a prompt is text or a list of messages, not {type(prompt).__name__}")
    if not prompt:
        raise PromptError("the list of prompts is empty", hint="give at least one prompt")
    if all(isinstance(item, Mapping) for item in prompt):
        return [list(prompt)], True
    chats = (str, Sequence)
    if any(not isinstance(item, chats) or isinstance(item, bytes) for item in prompt):
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
    given = (stop,) if isinstance(stop, str) else tuple(stop)
    for item in given:
        if not isinstance(item, str) or not item:
            raise ConfigError(f"{item!r} cannot be a stop string", hint="leave empty ones out")
    return given


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return isinstance(value, bool | int | float | str | None)


def _sampling(arguments: dict[str, Any]) -> dict[str, Any]:
    """Sample when a sampling argument asks for it; a temperature of 0 means greedy."""
    if arguments.get("temperature") == 0:
        arguments = {k: v for k, v in arguments.items() if k not in _SAMPLING}
        arguments["do_sample"] = False
    elif "do_sample" not in arguments:
        arguments["do_sample"] = any(arguments.get(name) is not None for name in _SAMPLING)
    lengths = ("max_new_tokens", "max_length", "generation_config")
    if not any(arguments.get(name) is not None for name in lengths):
        arguments["max_new_tokens"] = MAX_NEW_TOKENS
    return arguments
