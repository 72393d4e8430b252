"""The streamers of transformers in a call of a pack."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from packfuse.generation.output.trace import TraceRecorder
from packfuse.text.detokenizer import StreamDetokenizer


class AnswerStreamer(BaseStreamer):
    """A streamer for the ids of one answer."""

    def begin(self, detokenizer: StreamDetokenizer, recorder: TraceRecorder | None = None) -> None:
        """Called before the first ids.

        Args:
            detokenizer: Decodes the ids of the answer.
            recorder: Records the steps of the answer, in row 0; None if nothing is recorded.
        """
        raise NotImplementedError


class TextAdapter(AnswerStreamer):
    """Hands a `TextStreamer` the text of an answer.

    The streamer's own tokenizer decodes the prompt only: the ids of an answer are those of the
    reference, which may be another member for every prompt.
    """

    def __init__(self, streamer: TextStreamer) -> None:
        """Wrap a streamer."""
        self._streamer = streamer
        self._prompt_seen = False

    def begin(self, detokenizer: StreamDetokenizer, recorder: TraceRecorder | None = None) -> None:
        """See `AnswerStreamer`."""
        self._detokenizer = detokenizer

    def put(self, value: Tensor) -> None:
        """Called with the ids of one step; the first call has the prompt."""
        ids = value.flatten().tolist()
        if self._prompt_seen:
            self._emit(self._detokenizer.push(ids))
        elif not self._streamer.skip_prompt:
            tokenizer = self._detokenizer.vocabulary.tokenizer
            self._emit(str(tokenizer.decode(ids, **self._streamer.decode_kwargs)))
        self._prompt_seen = True

    def end(self) -> None:
        """Called after the last ids."""
        self._streamer.on_finalized_text(self._detokenizer.finish(), stream_end=True)

    def _emit(self, text: str) -> None:
        if text:
            self._streamer.on_finalized_text(text)


def takes_text(streamer: Any) -> bool:
    """Whether a streamer takes text, and so works with any reference."""
    return isinstance(streamer, TextStreamer) and type(streamer).put is TextStreamer.put


def adapted(streamer: BaseStreamer | None) -> BaseStreamer | None:
    """The streamer that a call runs with, for the one that it was given.

    Streamers of text get the pack's text; others get the reference's ids, as from any model.
    """
    return TextAdapter(streamer) if takes_text(streamer) else streamer  # type: ignore[arg-type]
