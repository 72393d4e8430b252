"""Streamers of transformers in `Pack.generate`, and the trace of streams."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.tools import Completion, Turn
from tests.support import packs
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

CHAT = [{"role": "user", "content": "hello"}]


class Kept(TextStreamer):
    """Keeps what it would print."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.parts: list[str] = []
        self.ends = 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.parts.append(text)
        self.ends += stream_end


class Ids(BaseStreamer):
    """Keeps ids."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        self.ids.append(value.flatten().tolist())

    def end(self) -> None:
        self.ends += 1


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE)


@pytest.mark.parametrize("prompt", ["hello the", CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("settings", [{}, {"stop": "e"}, {"draft": "lookup"}], ids=str)
def test_a_text_streamer_gets_the_answer(pack: Pack, prompt: Any, settings: Any) -> None:
    expected = pack.generate(prompt, max_new_tokens=30, **settings).text
    bare, whole = Kept(pack.tokenizer, skip_prompt=True), Kept(pack.tokenizer)
    for streamer in (bare, whole):
        answer = pack.generate(prompt, max_new_tokens=30, streamer=streamer, **settings)
        assert answer.text == expected
        assert streamer.ends == 1
    assert "".join(bare.parts) == expected
    assert "".join(whole.parts).endswith(expected)
    assert "hello" in "".join(whole.parts).removesuffix(expected)


def test_a_text_streamer_gets_text_whoever_is_the_reference() -> None:
    members = packs.tiny_members(["deepseek", "mistral"])
    pack = packs.tiny_pack(members, reference="auto")
    for text in ("The capital of France is", "for i in range(10):", "Once upon a time"):
        streamer = Kept(members[0].tokenizer, skip_prompt=True)
        answer = pack.generate(text, max_new_tokens=8, streamer=streamer)
        assert "".join(streamer.parts) == answer.text
        plain = pack.generate(text, max_new_tokens=8)
        assert (answer.text, answer.record.reference) == (plain.text, plain.record.reference)


def test_an_iterator_in_another_thread(pack: Pack) -> None:
    streamer = TextIteratorStreamer(pack.tokenizer, skip_prompt=True, timeout=30)
    expected = pack.generate("hello", max_new_tokens=12).text
    thread = threading.Thread(
        target=pack.generate,
        args=("hello",),
        kwargs={"max_new_tokens": 12, "streamer": streamer},
    )
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


def test_any_other_streamer_gets_ids(pack: Pack) -> None:
    streamer = Ids()
    answer = pack.generate("hello", max_new_tokens=6, streamer=streamer)
    assert [i for ids in streamer.ids[1:] for i in ids] == list(answer.token_ids)
    assert streamer.ends == 1


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        (["hello", "he"], {}),
        ("hello", {"num_beams": 2}),
        ("hello", {"num_return_sequences": 2, "do_sample": True}),
    ],
)
def test_a_streamer_is_for_one_answer(pack: Pack, prompt: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="streamer"):
        pack.generate(prompt, streamer=Ids(), **settings)
    with pytest.raises(ConfigError, match="streamer"):
        list(pack.stream("hello", streamer=Ids()))


@pytest.mark.parametrize("settings", [{}, {"stop": "e"}, {"draft": "lookup"}], ids=str)
def test_the_trace_of_a_stream_comes_with_its_text(pack: Pack, settings: dict[str, Any]) -> None:
    settings |= {"max_new_tokens": 30, "top_logprobs": 3}
    whole = pack.generate("hello the", **settings).record.trace or []
    chunks = list(pack.stream("hello the", **settings))
    assert [step.text for chunk in chunks for step in chunk.trace] == [s.text for s in whole]
    for kind, prompt in ((Completion, "hello the"), (Turn, CHAT)):
        deltas = list(kind(pack, prompt, **settings).stream())  # type: ignore[arg-type]
        reply = deltas[-1].reply
        assert reply is not None
        steps = [step for delta in deltas for step in delta.trace]
        assert steps == reply.record.trace
        assert sum(bool(delta.trace) for delta in deltas) > 1 or len(deltas) < 3


def test_alternatives_are_the_most_probable_tokens(pack: Pack) -> None:
    record = pack.generate("hello the", max_new_tokens=5, top_logprobs=4).record
    assert record.trace is not None
    for step in record.trace:
        assert [other.logprob for other in step.alternatives] == sorted(
            (other.logprob for other in step.alternatives), reverse=True
        )
        assert len(step.alternatives) == 4
        assert step.alternatives[0] == step.token  # greedy
        assert torch.tensor(step.logprob).exp().item() == pytest.approx(step.probability)
    assert pack.generate("hello", max_new_tokens=2).record.trace is None


@pytest.mark.parametrize("top", [-1, 1.5, True, "3"])
def test_impossible_numbers_of_alternatives(pack: Pack, top: Any) -> None:
    with pytest.raises(ConfigError, match="top_logprobs"):
        pack.generate("hello", top_logprobs=top)


def test_alternatives_need_one_answer(pack: Pack) -> None:
    with pytest.raises(ConfigError, match="top_logprobs"):
        pack.generate("hello", top_logprobs=2, num_beams=2)
