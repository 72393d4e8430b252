"""One member's chat template: a chat as text and as token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from packfuse.errors import PromptError
from packfuse.text.chats.sandbox import TemplateRefusalError, render_template
from packfuse.text.chats.tool_text import Message
from packfuse.text.chats.work_limit import WorkLimitError
from packfuse.text.vocabulary import Vocabulary

_PRIVATE = 0xF0000
"""The first of the characters that have no meaning, of which some mark places in a text."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning; templates read the first two."""


@dataclass(frozen=True, slots=True)
class MemberTemplate:
    """A chat template with what it needs of its tokenizer. Equal ones render equal texts.

    Attributes:
        name: The member's, for errors.
        source: The template.
        special: Names and spellings of special tokens, which templates can write.
        controls: Spellings of the control tokens.
        ends: Spellings of the tokens at the beginning and the end of a text or a turn.
    """

    name: str
    source: str
    special: tuple[tuple[str, str], ...]
    controls: tuple[str, ...]
    ends: tuple[str, ...]

    @classmethod
    def of(cls, vocabulary: Vocabulary, tools: Any = None) -> MemberTemplate:
        """The template of a tokenizer, which can have another one for chats with tools.

        Raises:
            PromptError: if it has several templates and no default.
        """
        tokenizer = vocabulary.tokenizer
        try:
            source = tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            raise PromptError(f"{vocabulary.name} has no chat template to use: {error}") from error
        given: dict[str, Any] = tokenizer.special_tokens_map
        special = tuple((name, str(token)) for name, token in given.items())
        ends = map(vocabulary.spell, (*vocabulary.prefix_ids, *vocabulary.end_ids))
        bos = (str(tokenizer.bos_token),) if tokenizer.bos_token else ()
        ordered = sorted(vocabulary.controls, key=len, reverse=True)
        return cls(
            vocabulary.name, source, special, tuple(ordered), tuple(dict.fromkeys((*ends, *bos)))
        )

    def text(
        self,
        messages: Sequence[Message],
        arguments: Mapping[str, Any],
        *,
        open_end: bool = False,
        generation: bool = True,
    ) -> str:
        """The text of a chat.

        Args:
            messages: Messages as plain data.
            arguments: Further variables for the template.
            open_end: End where the text of one more message of the assistant would begin.
            generation: End with the beginning of an answer.

        Raises:
            TemplateRefusalError: if the template refuses the messages or fails.
            PromptError: if it works longer than any chat needs.
        """
        if not open_end:
            return self._rendered(messages, arguments, generation)
        mark = chr(next(_unused([messages, arguments])))
        final = {"role": "assistant", "content": mark}
        try:
            before, found, _ = self._rendered([*messages, final], arguments, False).rpartition(mark)
            if found:
                return before
        except TemplateRefusalError:
            pass
        # The template has no such message: its text begins where an answer begins.
        return self._rendered(messages, arguments, True)

    def _rendered(
        self, messages: Sequence[Message], arguments: Mapping[str, Any], generation: bool
    ) -> str:
        variables = {
            **dict(self.special),
            "tools": None,
            "documents": None,
            **arguments,
            "messages": [_with_reasoning(message) for message in messages],
            "add_generation_prompt": generation,
        }
        try:
            return render_template(self.source, variables)
        except WorkLimitError as error:
            raise PromptError(
                f"the chat template of {self.name} works longer than any chat needs",
                hint="set another one: tokenizer.chat_template",
            ) from error

    def _spelled(self) -> str:
        """A pattern of every control token; its first characters are looked at first, for speed."""
        if not self.controls:
            return "(?!)"
        first = "".join({re.escape(control[0]) for control in self.controls})
        return f"(?=[{first}])(?:{'|'.join(map(re.escape, self.controls))})"

    def ids(
        self,
        vocabulary: Vocabulary,
        messages: Sequence[Message],
        arguments: Mapping[str, Any],
        *,
        open_end: bool = False,
    ) -> list[int]:
        """`text` as token ids, in which only the template itself writes control tokens.

        Every control token that is spelled in the messages stands between two characters that occur
        nowhere else, and is encoded as text.
        """
        unused = _unused([messages, arguments])
        left, right = chr(next(unused)), chr(next(unused))
        spelled = self._spelled()
        quoted = _replaced([messages, arguments], re.compile(spelled), rf"{left}\g<0>{right}")
        text = self.text(*quoted, open_end=open_end)
        # Templates can separate the two characters from the token between them.
        parts = re.split(f"{left}({spelled}){right}|[{left}{right}]", text)
        return _encode(vocabulary, parts)


def _encode(vocabulary: Vocabulary, parts: Sequence[str | None]) -> list[int]:
    """The ids of a text in parts: text of the template, then a quoted control token, and so on."""
    ids: list[int] = []
    for index, part in enumerate(parts):
        if part and index % 2:
            ids += vocabulary.encode(part)
        elif part:
            ids += vocabulary.encode_template(part, first=index == 0)
    return ids


def _with_reasoning(message: Message) -> Message:
    """A message whose reasoning has both names that templates read."""
    found = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if found is None:
        return dict(message)
    return {"thinking": found, **message, "reasoning_content": found}


def _unused(data: Any) -> count[int]:
    """Code points from one on that no text in plain data has."""
    highest = max((ord(char) for text in _texts(data) for char in set(text)), default=0)
    return count(max(_PRIVATE, highest + 1))


def _texts(data: Any) -> list[str]:
    if isinstance(data, str):
        return [data]
    if isinstance(data, Mapping):
        data = [*data.keys(), *data.values()]
    return [text for item in data for text in _texts(item)] if isinstance(data, list) else []


def _replaced(data: Any, pattern: re.Pattern[str], by: str) -> Any:
    """Plain data with a pattern replaced in every text; names of fields stay."""
    if isinstance(data, str):
        return pattern.sub(by, data)
    if isinstance(data, Mapping):
        return {name: _replaced(item, pattern, by) for name, item in data.items()}
    return [_replaced(item, pattern, by) for item in data] if isinstance(data, list) else data
