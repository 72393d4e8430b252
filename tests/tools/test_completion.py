"""Completions of texts, token counts, and the identity of a pack."""

from __future__ import annotations

import json
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch

from packfuse import Pack
from packfuse.constraint import Regex
from packfuse.errors import ConfigError, PromptError
from packfuse.tools import Completion, complete
from tests.support.bytelevel import save_small
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack
from tests.tools.test_turn import both


def test_a_completion_is_text_only() -> None:
    pack = small_pack()
    constraint = Regex("<think>a</think>\n<tool_call>\nb")
    reply = both(Completion(pack, "Begin: ", constraint=constraint, max_new_tokens=60))
    assert (reply.text, reply.reasoning) == ("<think>a</think>\n<tool_call>\nb", "")
    assert (reply.calls, reply.broken, reply.finish_reason) == ((), (), "stop")


def test_several_completions_are_those_of_single_calls() -> None:
    pack = small_pack()
    prompts = ["One", "Two words here", "def f(x):\n"]
    alone = [Completion(pack, prompt, max_new_tokens=8).answer().text for prompt in prompts]
    assert [reply.text for reply in complete(pack, prompts, max_new_tokens=8)] == alone
    assert [reply.text for reply in complete(pack, prompts[:1], max_new_tokens=8)] == alone[:1]
    with pytest.raises(PromptError, match="empty"):
        complete(pack, [])
    with pytest.raises(PromptError, match="empty"):
        complete(pack, ["One", ""])


def test_one_event_cancels_all_completions_of_a_call() -> None:
    cancelled = threading.Event()
    cancelled.set()
    for prompts in (["One"], ["One", "Two"]):
        with pytest.raises(CancelledError):
            complete(small_pack(), prompts, cancelled)


def test_a_stream_that_was_cancelled_before_it_began_raises() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        list(Completion(small_pack(), "One").stream(cancelled))


def test_a_stream_is_cancelled_from_outside_within_a_step() -> None:
    cancel, deltas = threading.Event(), []
    completion = Completion(small_pack(), "One", constraint=Regex("[a-z]{900}"), max_new_tokens=400)
    for delta in completion.stream(cancel):
        cancel.set()
        deltas.append(delta)
    reply = deltas[-1].reply
    assert reply is not None
    assert reply.finish_reason == "cancelled"
    assert reply.text == "".join(delta.text for delta in deltas)
    assert 0 < len(reply.text) < 400


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {}])
def test_a_stream_answers_one_prompt_without_beams(settings: dict[str, Any]) -> None:
    prompt: Any = "One" if settings else ["One", "Two"]
    with pytest.raises(ConfigError, match="one prompt, without beams"):
        list(small_pack().stream(prompt, **settings))


def test_the_length_of_a_chat_is_that_of_its_rendering() -> None:
    pack = small_pack(template=TEMPLATE)
    chat = [{"role": "user", "content": "hello there"}]
    answer = pack.generate(chat, max_new_tokens=1)
    assert pack.count_tokens(chat) == max(answer.record.usage.prompt_tokens_by_member.values())
    assert pack.count_tokens("hello") == 3
    assert pack.count_tokens("") == 0
    with pytest.raises(PromptError, match="robot"):
        pack.count_tokens([{"role": "robot", "content": "x"}])


def test_the_identity_of_a_pack_is_what_its_answers_depend_on(tmp_path: Any) -> None:
    save_small(tmp_path / "a", 300, 0)

    def load(*names: str, **settings: Any) -> Pack:
        folders = [tmp_path / name for name in names]
        return Pack.from_pretrained(folders, progress=False, **settings)

    one, again = load("a"), load("a")
    assert one.identity == again.identity == json.loads(json.dumps(one.identity))
    others = [
        load("a", fusion="unite"), load("a", weighting="sim"),
        load("a", reference="a"), load("a", dtype="bfloat16"),
        load("a", "a"),
    ]  # fmt: skip
    identities = [json.dumps(pack.identity, sort_keys=True) for pack in [one, *others]]
    assert len(set(identities)) == len(identities)


def test_packs_of_objects_are_told_apart_by_what_they_hold() -> None:
    one, same, other = small_pack(), small_pack(), small_pack()
    first = dict(one.identity)
    with torch.no_grad():
        other.members[0].model.lm_head.weight[5] += 1.0
    assert first != other.identity
    assert first == one.identity == same.identity
