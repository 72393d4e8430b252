"""The calls of a pack: answers, streams, scores, weights and counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

from packfuse.causal_lm.checks import check_call
from packfuse.causal_lm.constraint_processor import check_writable
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.errors import ConfigError
from packfuse.generation.call_arguments import SCORE, WEIGH, only
from packfuse.generation.identity import described, described_html, identity_of
from packfuse.generation.length import context_window, longest_ids, prompt_length
from packfuse.generation.output.result import Answer, Chunk
from packfuse.generation.output.streamers import AnswerStreamer
from packfuse.generation.request import Request, make_request
from packfuse.generation.roles import check_in_roles, in_roles
from packfuse.generation.runner import Runner
from packfuse.generation.runtime import Runtime
from packfuse.generation.weigh import Weighing, compare_weightings
from packfuse.models.member import Member, Pause
from packfuse.process import PackLock
from packfuse.scheduler.scheduler import Scheduler
from packfuse.scheduler.streaming import check_stream, stream_answer
from packfuse.scheduler.task import AnswerTask, Cancellation, Task, WholeTask
from packfuse.settings import PackConfig, PackSettings
from packfuse.text.chats.messages import check_text

T = TypeVar("T")


class PackCalls:
    """What can be asked of loaded members; `packfuse.Pack` loads, saves and copies them as well.

    Attributes:
        runtime: Members, engines, caches and the lock, as calls use them.
        settings: How the members are fused and run.
        scheduler: Runs the calls of all threads.
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: PackSettings | None = None,
        *,
        config: PackConfig | None = None,
        progress: bool = True,
        **overrides: Any,
    ) -> None:
        """Make a pack of loaded members; `from_pretrained` loads them.

        Args:
            members: At least one.
            settings: See `PackSettings`, whose fields say what each means.
            config: What the members were loaded from, for `save_config`.
            progress: Show progress of what takes long.
            **overrides: Fields of `PackSettings` that count instead of those in `settings`. Parts
                are given by name, as `{"name": ..., parameter: ...}`, or as objects.

        Raises:
            ConfigError: for unknown names or parameters, and those that exclude each other.
            WeightsError: for fixed weights that do not fit the members.
        """
        self.settings = (settings or PackSettings()).replace(**overrides)
        self.runtime = Runtime(members, self.settings, progress=progress)
        self.scheduler = Scheduler(self.runtime)
        self._config = config
        self.runtime.model(self.runtime.default_reference)

    def __repr__(self) -> str:
        """The members with their numbers of parameters, and how they are fused."""
        return described(self.runtime)

    def _repr_html_(self) -> str:
        """The members as a table, for notebooks."""
        return described_html(self.runtime)

    @property
    def members(self) -> list[Member]:
        """The members, in order."""
        return self.runtime.members

    @property
    def names(self) -> list[str]:
        """The members' names."""
        return self.runtime.names

    @property
    def lock(self) -> PackLock:
        """Held while members compute."""
        return self.runtime.lock

    @property
    def default_reference(self) -> int:
        """Index of the reference where no prompt decides."""
        return self.runtime.default_reference

    def fused(self, reference: int) -> FusedForCausalLM:
        """The pack as a transformers model over the vocabulary of member number `reference`.

        Raises:
            ConfigError: if the pack's gate gives another member the lead.
        """
        in_roles(self.runtime.call, self.members, self.names[reference])
        return self.runtime.model(reference)

    @property
    def model(self) -> FusedForCausalLM:
        """The pack as a transformers model, in the default reference's tokens."""
        return self.runtime.model(self.default_reference)

    @property
    def tokenizer(self) -> Any:
        """The default reference's tokenizer."""
        return self.members[self.default_reference].tokenizer

    @property
    def context_window(self) -> int:
        """The longest prompt that all members can read, as `count_tokens` counts.

        It is the smallest of the members' windows.
        """
        return context_window(self.runtime)

    def forget(self) -> None:
        """Empty the prefix cache, and drop all else that was made from the members' weights.

        The next prompt is read from its beginning. Changes of members are noticed without it, but
        for edits of single weights through `.data`.
        """
        with self.lock:
            if self.runtime.prefixes is not None:
                self.runtime.prefixes.clear()
            for member in self.members:
                member.forget()

    def generate(self, prompt: Any, **arguments: Any) -> Any:
        """Answer a prompt, a chat, or a list of either.

        Args:
            prompt: Text; messages `[{"role": ..., "content": ...}]`; or a list of texts or chats.
            **arguments: transformers' generation arguments by their own names, and `stop`, `seed`,
                `trace`, `top_logprobs`, `fusion`, `weighting`, `weights`, `draft`, `gate`,
                `chat_template_kwargs`, `continue_final_message` (True: the answer continues the
                last message of the chat, the assistant's), `constraint` (a JSON schema, a pydantic
                model, `Regex` or `Grammar` of `packfuse.constraint`). Sampling keeps the 50 most
                probable tokens unless `top_k` says otherwise, as in transformers; `top_k=0` keeps
                all. Arguments that hold or receive token ids mean those of the default reference,
                which is used then.

        Returns:
            An `Answer` (`.text`, `.record`) for one prompt, a list of them for a list. With
            `num_return_sequences`, a list: all answers to the first prompt, then those to the
            second.

        Raises:
            PromptError: for an empty or malformed prompt, or one that is too long.
            ConfigError: for arguments that are unknown, unusable or without effect; nothing has
                been read then.
            UnsupportedError: for arguments of transformers that a pack does not honor.
            WeightsError: for unusable weights.
        """
        request = self.request(prompt, arguments)
        answers = self.answers(request)
        return answers[0] if request.single and request.answers_each == 1 else answers

    def stream(self, prompt: Any, **arguments: Any) -> Iterator[Chunk]:
        """Answer one prompt or chat piece by piece.

        Args:
            prompt: Text or messages.
            **arguments: As in `generate`.

        Yields:
            Chunks whose texts joined are the whole text; the last one carries the record. Closing
            the iterator stops generation within one step.

        Raises:
            ConfigError: for several prompts, beams or return sequences.
        """
        return self.run_stream(self.request(prompt, arguments))

    def request(self, prompt: Any, arguments: Mapping[str, Any]) -> Request:
        """A checked call, for front ends that run it themselves; see `generate`."""
        request = make_request(prompt, arguments, self.runtime.call_with_draft)
        check_in_roles(
            request.call, arguments, self.names, request.pins, self.runtime.default_reference
        )
        request.call = in_roles(request.call, self.members, self.settings.reference)
        request.call.weighting.for_members(self.names)
        check_call(self.model, request.arguments)
        if request.constraint is not None:
            reference = self.members[self.runtime.reference_of(request.call)]
            check_writable(reference.vocabulary, request.constraint)
        return request

    def answers(self, request: Request, cancel: threading.Event | None = None) -> list[Answer]:
        """All answers of a checked call, prompt by prompt; see `generate`.

        Args:
            request: The call, from `request`.
            cancel: Setting it ends the answers within one step.

        Raises:
            CancelledError: if it was cancelled before the first token.
            BusyError: if too many prompts wait already.
        """
        if not request.decodes_in_rows:
            return self.scheduler.run(self.task(request, cancel))[0]
        runner = self._runner(request, cancel)
        tasks = [AnswerTask(runner, index) for index in range(len(request.prompts))]
        return [answer for found in self.scheduler.run(*tasks) for answer in found]

    def task(
        self,
        request: Request,
        cancel: threading.Event | None = None,
        streamers: Sequence[AnswerStreamer] = (),
    ) -> Task[list[Answer]]:
        """A checked call of one prompt as a task for `scheduler.submit`, which does not wait.

        Args:
            request: The call, from `request`.
            cancel: Setting it ends the answers within one step.
            streamers: One for each answer, called with its ids; none to stream nothing.
        """
        runner = self._runner(request, cancel)
        if request.decodes_in_rows and len(request.prompts) == 1:
            return AnswerTask(runner, 0, streamers)
        streamer = streamers[0] if streamers else None
        return WholeTask(lambda pause: runner.run(streamer, pause), runner.cancels[0])

    def run_stream(
        self, request: Request, cancel: threading.Event | None = None
    ) -> Generator[Chunk]:
        """See `stream`; setting `cancel` stops generation within one step."""
        check_stream(request)
        return stream_answer(
            self.scheduler, lambda streamer: self.task(request, cancel, [streamer])
        )

    def _whole(self, runner: Runner, work: Callable[[], T]) -> T:
        """The result of work that reads prompts; other calls go on while it does."""

        def paused(pause: Pause) -> T:
            runner.pause = pause
            return work()

        return self.scheduler.run(WholeTask(paused, runner.cancels[0]))[0]

    def _runner(self, request: Request, cancel: threading.Event | None = None) -> Runner:
        return Runner(self.runtime, request, [Cancellation(cancel)] * len(request.prompts))

    def close(self) -> None:
        """End running calls within one step, and refuse new ones."""
        self.scheduler.close()

    def __enter__(self) -> Self:
        """The pack, which is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()

    def count_tokens(
        self, prompt: Any, *, continue_final_message: bool = False, **template: Any
    ) -> int:
        """How much of `context_window` a prompt takes: all members can read what is not longer.

        Members need different numbers of tokens for one text, and may have windows of different
        sizes. This is the count of the member with the least room: what its own tokens take of its
        own window, as a share of `context_window`, rounded up. With windows of one size it is the
        largest of the members' counts.

        Args:
            prompt: Text, which may be empty, or messages as they are rendered for an answer.
            continue_final_message: Whether the answer continues the last message.
            **template: Arguments for the chat template.

        Raises:
            PromptError: for malformed messages.
        """
        if isinstance(prompt, str) and not check_text(prompt, "the prompt"):
            return 0
        return prompt_length(
            self.runtime, prompt, template, continue_final_message=continue_final_message
        )

    def count_ids(self, text: str) -> list[int]:
        """As many token ids as `count_tokens` counts, for tools that count by tokenizing.

        They are of the member that counts most, with its control tokens before the text.
        """
        return longest_ids(self.runtime, text)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that answers depend on besides the call, as plain JSON, for caches.

        Members enter by the content of their models and tokenizers, as they are now: equal in every
        process that loads the same files, another after an edit, under another adapter, quantized.
        The first use reads all weights once; later uses take milliseconds.
        """
        return identity_of(self.runtime, self._config)

    def score(self, prompt: str, continuation: str, **arguments: Any) -> float:
        """Log-probability of `continuation` after `prompt` under the fused model, nats.

        What exactly is scored is lm-eval's definition, in the reference's tokens; see
        `packfuse.text.continuation`. Weights are fitted to the prompt.

        Args:
            prompt: Text.
            continuation: Text after it.
            **arguments: `fusion`, `weighting`, `weights` and `gate`, as in `generate`.

        Raises:
            PromptError: if either is empty.
            ConfigError: for other arguments, which have no effect on a score.
        """
        if not continuation:
            raise ConfigError("the continuation is empty", hint="give at least one character")
        check_text(continuation, "the continuation")
        only(arguments, SCORE, "score")
        request = self.request(prompt, arguments)
        runner = self._runner(request)
        return self._whole(runner, lambda: runner.score(continuation))

    def weigh(
        self, prompt: Any, weightings: Sequence[Any] | None = None, **arguments: Any
    ) -> Weighing:
        """The members' weights on a prompt, under several weightings; nothing is generated.

        Args:
            prompt: Text or messages.
            weightings: By name or with parameters; by default all that need no parameters.
            **arguments: `fusion` and `chat_template_kwargs`, as in `generate`.

        Raises:
            PromptError: for an empty or malformed prompt, or one that is too long.
            ConfigError: for unknown settings, or several prompts.
        """
        only(arguments, WEIGH, "weights")
        request = make_request(prompt, arguments, self.runtime.call)
        if not request.single:
            raise ConfigError("one prompt is weighed at a time", hint="give a text or one chat")
        runner = self._runner(request)
        return self._whole(runner, lambda: compare_weightings(runner, weightings))
