"""Chat messages as token ids, under each member's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import get_json_schema

from packfuse.errors import ConfigError, PromptError
from packfuse.text.chats.chat_forms import ChatForm, forms, lost_messages
from packfuse.text.chats.member_template import MemberTemplate
from packfuse.text.chats.messages import check_data, check_messages
from packfuse.text.chats.plain_chat import plain_chat, plain_marks
from packfuse.text.chats.sandbox import TemplateRefusalError
from packfuse.text.chats.tool_text import Message
from packfuse.text.chats.turn_marks import turn_marks
from packfuse.text.marks import between_marks
from packfuse.text.prompt import MemberPrompt, PackPrompt
from packfuse.text.vocabulary import Vocabulary

_OWN_ARGUMENTS = (
    *("messages", "conversation", "chat_template", "add_generation_prompt", "tokenize", "padding"),
    *("continue_final_message", "truncation", "max_length", "return_tensors", "return_dict"),
    *("tokenizer_kwargs", "return_assistant_tokens_mask", "sanitize_control_tokens"),
)
"""Arguments of transformers' `apply_chat_template` that a template does not see."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat as a prompt for the whole pack.

    Attributes:
        prompt: The prompt of every member.
        ids: The reference's token ids.
        marks: By member, the texts with which another turn begins: stop strings.
    """

    prompt: PackPrompt
    ids: list[int]
    marks: tuple[tuple[str, ...], ...]

    def stop(self, weights: Sequence[float] | None = None) -> tuple[str, ...]:
        """The stop strings of all members with a weight above 0; of all without weights."""
        used = [
            mark
            for index, marks in enumerate(self.marks)
            if weights is None or weights[index] > 0
            for mark in marks
        ]
        return tuple(dict.fromkeys(used))


def render_chat(
    messages: Sequence[Any],
    vocabularies: Sequence[Vocabulary],
    reference: int,
    template_arguments: Mapping[str, Any] | None = None,
    *,
    continue_final_message: bool = False,
) -> RenderedChat:
    """Messages under every member's own chat template.

    A member without a template gets `plain_chat`; for the end of a turn, the reference's
    probability is used in place of that member's.

    Args:
        messages: `[{"role": ..., "content": ...}]`.
        vocabularies: One per member.
        reference: Index of the reference among the members.
        template_arguments: Passed to the templates (`tools`, `enable_thinking`, ...).
        continue_final_message: Whether the answer continues the last message, of the assistant,
            which every member then reads in its own tokens.

    Raises:
        PromptError: for malformed messages, or messages that a template refuses.
        ConfigError: for arguments that no template can read.
    """
    checked = check_messages(messages)
    arguments = check_template_arguments(template_arguments)
    chat, begun = checked, ""
    if continue_final_message:
        chat, begun = split_final(checked)
    notes: list[str] = []
    rendered = [
        _render(chat, continue_final_message, vocabulary, arguments, notes)
        for vocabulary in vocabularies
    ]
    prompts = [prompt for prompt, _ in rendered]
    own = prompts[reference]
    if not own.ends_turns:
        # The reference is fed ids, so its plain text becomes fixed ids.
        ids = [*own.fixed, *vocabularies[reference].encode_bytes(own.text)]
        prompts[reference] = own = MemberPrompt(tuple(ids))
        stops = rendered[reference][1]
        notes.append(f"the reference has no chat template; the answer stops at {stops[0]!r}")
    # Some members read marks as control tokens, others as text, so none is scored on them.
    spelled = {name for vocabulary in vocabularies for name in vocabulary.marks.values()}
    texts = [part for m in checked for part in between_marks(m["content"].encode(), spelled)]
    stream = vocabularies[reference].encode(begun)
    prompt = PackPrompt(
        tuple(prompts),
        stream=tuple(stream),
        texts=tuple(texts),
        notes=tuple(dict.fromkeys(notes)),
    )
    marks = tuple(marks for _, marks in rendered)
    return RenderedChat(prompt, [*own.fixed, *stream], marks)


def check_template_arguments(given: Any) -> dict[str, Any]:
    """The arguments for chat templates as plain data, which no later change can reach.

    Raises:
        ConfigError: for anything that no template can read.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"chat_template_kwargs is a {type(given).__name__}", hint="pass a dictionary"
        )
    for name in given:
        if name in _OWN_ARGUMENTS or not isinstance(name, str):
            raise ConfigError(
                f"chat_template_kwargs cannot hold {name!r}",
                hint="it holds what a chat template reads, such as enable_thinking",
            )
    arguments = dict(given)
    if arguments.get("tools") is not None:
        arguments["tools"] = [_described(tool) for tool in arguments["tools"]]
    try:
        return {
            name: check_data(value, f"chat_template_kwargs[{name!r}]", strict=False)
            for name, value in arguments.items()
        }
    except PromptError as error:
        raise ConfigError(error.message, hint=error.hint) from error


def _described(tool: Any) -> Any:
    """A tool with what some templates cannot do without: a description and parameters."""
    if callable(tool):
        try:
            tool = get_json_schema(tool)
        except Exception as error:
            raise ConfigError(f"{tool!r} is no tool: {error}") from error
    if not isinstance(tool, Mapping):
        raise ConfigError(f"{tool!r} is no tool", hint="pass a function or its JSON schema")
    inner = tool.get("function", tool)
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{inner!r} is no function of a tool", hint="pass a JSON schema")
    missing = {"description": "", "parameters": {"type": "object", "properties": {}}}
    filled = {**missing, **{name: value for name, value in inner.items() if value is not None}}
    return {**tool, "function": filled} if "function" in tool else filled


def split_final(messages: list[Message]) -> tuple[list[Message], str]:
    """The messages before the last one, and the text of that, which the answer continues.

    Raises:
        PromptError: if the last message is not text of the assistant.
    """
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        kind = "tool calls" if last.get("tool_calls") else f"the role {last['role']!r}"
        raise PromptError(
            f"the last message has {kind}, so there is nothing to continue",
            hint="end the chat with the beginning of the answer, of the role assistant",
        )
    return messages[:-1], last["content"]


def _render(
    messages: list[Message],
    open_end: bool,
    vocabulary: Vocabulary,
    arguments: dict[str, Any],
    notes: list[str],
) -> tuple[MemberPrompt, tuple[str, ...]]:
    """The prompt of one member and its turn marks; what had to be changed is added to `notes`."""
    name = vocabulary.name
    if not vocabulary.tokenizer.chat_template:
        notes.append(f"{name} has no chat template and reads a plain rendering")
        text = vocabulary.text_prefix + plain_chat(messages).encode()
        return MemberPrompt(vocabulary.prefix_ids, text, ends_turns=False), plain_marks(messages)
    template = MemberTemplate.of(vocabulary, arguments.get("tools"))
    form, ids = _first_whole(messages, open_end, vocabulary, template, arguments)
    if form.change:
        notes.append(f"for {name}, {form.change}")
    left_out = lost_messages(messages, form, template, arguments, open_end)
    notes += [f"the chat template of {name} leaves out {place}" for place in left_out]
    return MemberPrompt(tuple(ids)), turn_marks(template)


def _first_whole(
    messages: list[Message],
    open_end: bool,
    vocabulary: Vocabulary,
    template: MemberTemplate,
    arguments: dict[str, Any],
) -> tuple[ChatForm, list[int]]:
    """The first form of the messages that a template renders as a whole, and its token ids.

    If there is none, the one of which the least is lost.

    Raises:
        PromptError: if the template refuses all forms.
    """
    refusal: TemplateRefusalError | None = None
    least: tuple[int, ChatForm, list[int]] | None = None
    for form in forms(messages):
        try:
            lost = lost_messages(messages, form, template, arguments, open_end)
            if least is None or len(lost) < least[0]:
                ids = template.ids(vocabulary, form.apply(messages), arguments, open_end=open_end)
                least = (len(lost), form, ids)
        except TemplateRefusalError as error:
            refusal = refusal or error
        if least is not None and least[0] == 0:
            break
    if least is None:
        raise PromptError(
            f"the chat template of {template.name} refuses the messages: {refusal}"
        ) from refusal
    return least[1], least[2]
