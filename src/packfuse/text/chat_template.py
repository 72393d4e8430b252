"""Chat messages as token ids, under each member's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from packfuse.errors import PromptError
from packfuse.text.prompt import MemberPrompt, PackPrompt
from packfuse.text.vocabulary import Vocabulary

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")

PLAIN_STOP = "\n\nUser:"
"""The text with which the next turn of a plain rendering begins: a stop string."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat as a prompt for the whole pack.

    Attributes:
        prompt: The prompt of every member.
        ids: The reference's token ids.
        stop: Stop strings that the rendering needs, if the reference has no chat template and so
            cannot end a turn.
    """

    prompt: PackPrompt
    ids: list[int]
    stop: tuple[str, ...]


def check_messages(messages: Sequence[Any]) -> list[Message]:
    """Copies of the messages, checked: each has a known role and text content.

    Raises:
        PromptError: for an empty list, a missing or unknown role, content that is not text, or
            messages that are all empty.

    Example:
        >>> check_messages([{"role": "user", "content": "Hello!"}])
        [{'role': 'user', 'content': 'Hello!'}]
    """
    if not messages:
        raise PromptError("the list of messages is empty", hint="give at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            raise PromptError(f"message {number} has no role: {message!r}", hint=f"roles: {ROLES}")
        if message["role"] not in ROLES:
            raise PromptError(
                f"message {number} has the role {message['role']!r}",
                hint=f"roles: {', '.join(ROLES)}",
            )
        if not isinstance(message.get("content", ""), str):
            raise PromptError(
                f"message {number} is not text: {type(message['content']).__name__}",
                hint="a pack reads text only",
            )
    if not any(message.get("content") for message in messages):
        raise PromptError("all messages are empty", hint="give at least one character")
    return [dict(message) for message in messages]


def render_chat(
    messages: Sequence[Any],
    vocabularies: Sequence[Vocabulary],
    reference: int,
    template_arguments: dict[str, Any] | None = None,
) -> RenderedChat:
    """Messages under every member's own chat template.

    A member without a template gets `plain_chat`; for the end of a turn, the reference's
    probability is used in place of that member's.

    Args:
        messages: `[{"role": ..., "content": ...}]`.
        vocabularies: One per member.
        reference: Index of the reference among the members.
        template_arguments: Passed to the templates (`tools`, `enable_thinking`, ...).

    Raises:
        PromptError: for malformed messages, or messages that a template refuses.
    """
    checked = check_messages(messages)
    notes: list[str] = []
    prompts = [
        _render(checked, vocabulary, template_arguments or {}, notes) for vocabulary in vocabularies
    ]
    own = prompts[reference]
    stop: tuple[str, ...] = ()
    if not own.ends_turns:
        # The reference is fed ids, so its plain text becomes fixed ids.
        ids = [*own.fixed, *vocabularies[reference].encode_bytes(own.text)]
        prompts[reference] = own = MemberPrompt(tuple(ids))
        stop = (PLAIN_STOP,)
        notes.append(f"the reference has no chat template; the answer stops at {PLAIN_STOP!r}")
    texts = [str(message.get("content") or "").strip().encode() for message in checked]
    prompt = PackPrompt(
        tuple(prompts),
        texts=tuple(text for text in texts if text),
        notes=tuple(dict.fromkeys(notes)),
    )
    return RenderedChat(prompt, list(own.fixed), stop)


def _render(
    messages: list[Message], vocabulary: Vocabulary, arguments: dict[str, Any], notes: list[str]
) -> MemberPrompt:
    """The prompt of one member; what had to be changed is added to `notes`."""
    name = str(vocabulary.tokenizer.name_or_path).rstrip("/").split("/")[-1]
    if not vocabulary.tokenizer.chat_template:
        notes.append(f"{name} has no chat template and reads a plain rendering")
        text = vocabulary.text_prefix + plain_chat(messages).encode()
        return MemberPrompt(vocabulary.prefix_ids, text, ends_turns=False)
    try:
        return MemberPrompt(tuple(_apply(vocabulary, messages, arguments)))
    except (TemplateError, ValueError) as error:
        folded = fold_roles(messages)
        if folded == messages:
            raise PromptError(
                f"the chat template of {name} refuses the messages: {error}"
            ) from error
    try:
        ids = _apply(vocabulary, folded, arguments)
    except (TemplateError, ValueError) as error:
        raise PromptError(f"the chat template of {name} refuses the messages: {error}") from error
    notes.append(f"for {name}, system messages and repeated roles were folded into one turn")
    return MemberPrompt(tuple(ids))


def _apply(vocabulary: Vocabulary, messages: list[Message], arguments: dict[str, Any]) -> list[int]:
    # Fast tokenizers change their settings while they encode, so threads take turns.
    with vocabulary.lock:
        encoded: Any = vocabulary.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            sanitize_control_tokens=True,
            **arguments,
        )
    return list(encoded["input_ids"])


def fold_roles(messages: Sequence[Message]) -> list[Message]:
    r"""Messages with the system text in the first user turn, and turns of one role joined.

    For chat templates that allow neither a system role nor two turns of one role in a row.

    Example:
        >>> system, user = [{"role": r, "content": c} for r, c in (("system", "A"), ("user", "B"))]
        >>> fold_roles([system, user])
        [{'role': 'user', 'content': 'A\n\nB'}]
    """
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    folded: list[Message] = []
    for message in (m for m in messages if m["role"] != "system"):
        if folded and folded[-1]["role"] == message["role"]:
            joined = f"{folded[-1]['content']}\n\n{message['content']}"
            folded[-1] = {**folded[-1], "content": joined}
        else:
            folded.append(dict(message))
    if system and folded and folded[0]["role"] == "user":
        folded[0]["content"] = f"{system}\n\n{folded[0]['content']}"
    elif system:
        folded.insert(0, {"role": "user", "content": system})
    return folded


def plain_chat(messages: Sequence[Message]) -> str:
    r"""The text for a member without a chat template: one paragraph per message.

    Example:
        >>> plain_chat([{"role": "user", "content": "Hello!"}])
        'User: Hello!\n\nAssistant: '
    """
    turns = [f"{m['role'].capitalize()}: {(m.get('content') or '').strip()}" for m in messages]
    return "\n\n".join([*turns, "Assistant: "])
