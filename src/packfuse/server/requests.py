"""Checked requests of the API: their calls of the pack, and the responses to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from packfuse.pack import Pack
from packfuse.server.fields import Fields, chat_fields, completion_fields
from packfuse.server.packs import fingerprint
from packfuse.server.prompts import messages_of, prompts_of
from packfuse.server.replies import Heading, chat_response, completion_response
from packfuse.server.streams import ChatStream, TextStream
from packfuse.tools.reply import Reply
from packfuse.tools.turn import Completion, Turn

TEXT_TOKENS = 16
"""Most tokens of a text completion, if the request does not say: OpenAI's default."""


class ApiRequest(ABC):
    """A checked request; nothing runs yet.

    Attributes:
        fields: Its fields.
        calls: The calls of the pack, one a prompt.
        heading: What the response begins with.
        stream_kind: Makes the chunks of a streamed answer.
    """

    stream_kind: ClassVar[type[ChatStream | TextStream]]
    fields: Fields
    calls: Sequence[Completion]
    heading: Heading

    @abstractmethod
    def __init__(self, pack: Pack, name: str, body: Mapping[str, Any], max_tokens: int) -> None:
        """Check a request.

        Args:
            pack: The pack.
            name: The pack's name.
            body: The request's body.
            max_tokens: Most tokens of an answer, if the request does not say.

        Raises:
            RequestError: naming a field that is unknown, malformed or not supported.
            PackError: for prompts and arguments that the pack cannot use.
        """

    @abstractmethod
    def response(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The response that has these answers, call by call."""

    @property
    def each(self) -> int:
        """Number of answers to each prompt."""
        return self.calls[0].request.answers_each


class ChatRequest(ApiRequest):
    """A chat completion."""

    stream_kind = ChatStream

    def __init__(self, pack: Pack, name: str, body: Mapping[str, Any], max_tokens: int) -> None:
        """See `ApiRequest`."""
        self.fields = chat_fields(body, max_tokens)
        self.calls = [Turn(pack, messages_of(body.get("messages")), **self.fields.arguments)]
        self.heading = Heading.new("chatcmpl", name, fingerprint(pack))

    def response(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """See `ApiRequest`."""
        return chat_response(self.heading, replies, self.fields)


class TextRequest(ApiRequest):
    """A completion of texts."""

    stream_kind = TextStream

    def __init__(
        self, pack: Pack, name: str, body: Mapping[str, Any], max_tokens: int = TEXT_TOKENS
    ) -> None:
        """See `ApiRequest`."""
        self.fields = completion_fields(body, max_tokens)
        prompts = prompts_of(pack, body.get("prompt"))
        self.calls = [Completion(pack, prompt, **self.fields.arguments) for prompt in prompts]
        self.heading = Heading.new("cmpl", name, fingerprint(pack))

    def response(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """See `ApiRequest`."""
        return completion_response(self.heading, replies, self.fields, self.each)
