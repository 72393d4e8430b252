"""One call of a front end: a turn of a chat, with tools or not, or the completion of a text."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from packfuse.constraint import JsonSchema
from packfuse.errors import ConfigError
from packfuse.generation.output.result import Answer, Chunk, TraceStep
from packfuse.generation.request import Request
from packfuse.pack import Pack
from packfuse.text.reply_tags import Reasoning
from packfuse.tools.protocol import constraint_of, render
from packfuse.tools.reply import Reply, ReplyDelta, ReplyParser
from packfuse.tools.tool import ToolChoice, parse_tool_choice, parse_tools


class DeltaMaker:
    """Makes the deltas of a streamed answer from its chunks."""

    def __init__(self, parser: ReplyParser) -> None:
        """Before the first chunk."""
        self._parser = parser
        self._steps: tuple[TraceStep, ...] = ()

    def deltas(self, chunk: Chunk) -> Iterator[ReplyDelta]:
        """The deltas that a chunk completes; the last chunk completes all."""
        self._steps += chunk.trace
        deltas = self._parser.feed(chunk.text)
        if chunk.record is not None:
            deltas = itertools.chain(deltas, self._parser.finish(chunk.record))
        for delta in deltas:
            yield replace(delta, trace=self._steps)
            self._steps = ()


class Completion:
    """The continuation of a text."""

    def __init__(self, pack: Pack, prompt: str, **arguments: Any) -> None:
        """Check the call; nothing runs yet.

        Args:
            pack: The pack.
            prompt: The text.
            **arguments: As for `Pack.generate`.

        Raises:
            PromptError: for an unusable prompt.
            ConfigError: for unusable arguments.
        """
        self.pack = pack
        self.request: Request = pack.request(prompt, arguments)

    def parser(self) -> ReplyParser:
        """A parser for the answer; a completion is text only."""
        return ReplyParser(calling=False, plain=True)

    def answer(self, cancel: threading.Event | None = None) -> Reply:
        """The whole answer; calls from several threads are decoded together.

        Args:
            cancel: Setting it stops generation within one step.

        Raises:
            ConfigError: for several return sequences; see `answers`.
        """
        self.request.one_answer("this call")
        return self.answers(cancel)[0]

    def answers(self, cancel: threading.Event | None = None) -> list[Reply]:
        """All answers, as many as the call has return sequences; see `answer`."""
        return self.replies(self.pack.answers(self.request, cancel))

    def replies(self, answers: Sequence[Answer]) -> list[Reply]:
        """The replies that answers to this call are."""
        return [self.parser().parse(answer.text, answer.record) for answer in answers]

    def stream(self, cancel: threading.Event | None = None) -> Iterator[ReplyDelta]:
        """Stream the answer; closing the iterator stops generation within one step."""
        maker = DeltaMaker(self.parser())
        with closing(self.pack.run_stream(self.request, cancel)) as chunks:
            for chunk in chunks:
                yield from maker.deltas(chunk)


def complete(
    pack: Pack, prompts: Sequence[str], cancel: threading.Event | None = None, **arguments: Any
) -> list[Reply]:
    """Continue several texts.

    Args:
        pack: The pack.
        prompts: The texts.
        cancel: Setting it stops generation within one step.
        **arguments: As for `Pack.generate`.

    Returns:
        The replies in the order of the texts; with several return sequences, all those to the first
        text, then those to the second.

    Raises:
        PromptError: for an unusable prompt, or no prompts.
        ConfigError: for unusable arguments.
    """
    if len(prompts) == 1:
        return Completion(pack, prompts[0], **arguments).answers(cancel)
    request = pack.request(list(prompts), arguments)
    answers = pack.answers(request, cancel)
    return [ReplyParser(calling=False, plain=True).parse(a.text, a.record) for a in answers]


class Turn(Completion):
    """The next turn of a chat, with tools and structured answers.

    Attributes:
        choice: The tools that may be called.
        messages: The messages for the members' chat templates, with tools and calls as text.
    """

    def __init__(
        self,
        pack: Pack,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        """Check the call; nothing runs yet.

        Args:
            pack: The pack.
            messages: Messages in OpenAI's format, with the roles system, user, assistant (with
                `tool_calls`) and tool.
            tools: Tools in OpenAI's format, `{"type": "function", "function": {...}}`.
            tool_choice: See `packfuse.tools.tool.parse_tool_choice`.
            parallel_tool_calls: Whether the answer may have several calls; see there.
            response_format: `{"type": "json_schema", "json_schema": {"schema": {...}}}`,
                `{"type": "json_object"}`, or a JSON schema.
            **arguments: As for `Pack.generate`.

        Raises:
            PromptError: for unusable messages.
            ConfigError: for unusable tools or arguments, or two constraints at once.
        """
        self.choice: ToolChoice = parse_tool_choice(
            tool_choice, parse_tools(tools), parallel_tool_calls
        )
        schema = _schema(response_format)
        constraints = [c for c in (schema, arguments.get("constraint")) if c is not None]
        if len(constraints) > 1 or (constraints and self.choice.mode == "any"):
            raise ConfigError(
                "an answer can have one constraint only",
                hint="pass one of constraint, response_format and a forced tool call",
            )
        # A constrained answer cannot have calls.
        if not constraints:
            arguments["constraint"] = constraint_of(self.choice)
        elif schema is not None:
            arguments["constraint"] = schema
        continued = arguments.get("continue_final_message") is True
        self.messages = render(messages, self.choice, schema, continued=continued)
        self._calling = not constraints and self.choice.mode != "none"
        super().__init__(pack, self.messages, **arguments)  # type: ignore[arg-type]

    def parser(self) -> ReplyParser:
        """A parser for the answer: reasoning, text and calls."""
        vocabularies = self.pack.runtime.vocabularies
        marks = tuple(dict.fromkeys(mark for v in vocabularies for mark in v.reasoning_marks))
        return ReplyParser(
            calling=self._calling,
            forced=self._calling and self._forced,
            thinking=self._thinking(marks),
            marks=marks,
            harmony=not self._forced and any(v.speaks_harmony for v in vocabularies),
            problem=self.choice.problem,
        )

    @property
    def prompt_tokens(self) -> int:
        """How much of the pack's context window the rendered chat takes."""
        return self.pack.count_tokens(
            self.messages,
            continue_final_message=self.request.continue_final_message,
            **self.request.template,
        )

    def _thinking(self, marks: Sequence[Reasoning]) -> bool | Reasoning:
        """Whether the answer begins inside of reasoning, or the marks of it."""
        if self._forced:
            return False
        if not self.request.continue_final_message:
            return self.pack.runtime.opens_reasoning or False
        begun = self.messages[-1]["content"]
        return next((m for m in marks if m.opening in begun and m.closing not in begun), False)

    @property
    def _forced(self) -> bool:
        """Whether the answer is constrained from its first token on."""
        free = self._calling and self.choice.mode == "auto"
        return self.request.constraint is not None and not free


def _schema(response_format: Mapping[str, Any] | None) -> JsonSchema | None:
    """The schema of a `response_format`; None for text.

    Raises:
        ConfigError: for an unknown format.
    """
    if response_format is None or response_format.get("type") == "text":
        return None
    kind = response_format.get("type")
    if kind == "json_object":
        return JsonSchema({"type": "object"})
    if kind == "json_schema" and "json_schema" in response_format:
        inner = response_format["json_schema"]
        return JsonSchema(inner.get("schema", inner))
    if kind is not None and "properties" in response_format:
        return JsonSchema(response_format)
    raise ConfigError(
        f"{dict(response_format)!r} is not a response format",
        hint='write {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}',
    )
