"""Calls from many threads: calls with equal settings form a batch, with the same answers."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from packfuse import Pack
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.constraint import Regex
from packfuse.errors import PromptError
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.batcher import MAX_BATCH
from packfuse.generation.result import Answer
from packfuse.generation.runner import Runner
from packfuse.models.member import Session
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

NEW = 6
PROMPTS = [f"{'Word ' * (i % 4)}number {i}" for i in range(20)]


@pytest.fixture(scope="module")
def pack() -> Iterator[Pack]:
    """Two random members; after all tests, all their sequences and sessions are freed."""
    # Weights with which some of these random answers end early.
    weighting = {"name": "exact", "shrinkage": 8, "prior": "equal"}
    made = small_pack(pad=True, weighting=weighting, prefix_cache=0)
    before = _alive()
    yield made
    assert _alive() == before


@pytest.fixture(autouse=True)
def nothing_waits(pack: Pack) -> Iterator[None]:
    """After every test: no calls are left."""
    yield
    assert pack.batcher._waiting == []


def _alive() -> int:
    gc.collect()
    return sum(type(thing) in (PackSequence, Session) for thing in gc.get_objects())


@pytest.fixture
def runs(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every batch that is generated."""
    sizes: list[int] = []
    generate = FusedForCausalLM.generate

    def counted(self: FusedForCausalLM, ids: torch.Tensor, **settings: Any) -> Any:
        sizes.append(len(ids))
        return generate(self, ids, **settings)

    monkeypatch.setattr(FusedForCausalLM, "generate", counted)
    return sizes


Call = Callable[[], Answer]


def call(pack: Pack, prompt: Any, cancel: threading.Event | None = None, **settings: Any) -> Call:
    """One call, checked and not yet made."""
    request = pack.request(prompt, {"max_new_tokens": NEW, **settings})
    return lambda: pack.batcher.answer(request, cancel)


def at_once(pack: Pack, calls: Sequence[Call]) -> list[Any]:
    """The results or errors of calls that all wait before the first of them begins."""
    found: list[Any] = [None] * len(calls)

    def run_call(index: int) -> None:
        try:
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error

    threads = [threading.Thread(target=run_call, args=(index,)) for index in range(len(calls))]
    with pack.lock:
        for thread in threads:
            thread.start()
        while len(pack.batcher._waiting) < len(calls):
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    return found


def ids(answers: Sequence[Answer]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


@contextmanager
def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], Any]) -> Iterator[None]:
    """Acts within a forward pass of the pack, counted from one."""
    forward, count = FusedForCausalLM.forward, 0

    def counted(self: FusedForCausalLM, *arguments: Any, **settings: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            act()
        return forward(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(FusedForCausalLM, "forward", counted)
        yield


@pytest.mark.parametrize(
    "settings",
    [{}, {"fusion": "unite", "stop": "e"}, {"constraint": Regex("[a-z]*( [0-9])?")}],
    ids=lambda settings: next(iter(settings), "plain"),
)
def test_calls_with_equal_settings_are_answered_in_few_batches(
    pack: Pack, settings: dict[str, Any], runs: list[int]
) -> None:
    alone = [pack.generate(prompt, max_new_tokens=NEW, **settings) for prompt in PROMPTS]
    assert runs == [1] * len(PROMPTS)
    runs.clear()
    found = at_once(pack, [call(pack, prompt, **settings) for prompt in PROMPTS])
    assert ids(found) == ids(alone)
    assert [answer.text for answer in found] == [answer.text for answer in alone]
    assert [answer.record.usage for answer in found] == [answer.record.usage for answer in alone]
    assert [answer.record.finish_reason for answer in found] == [
        answer.record.finish_reason for answer in alone
    ]
    assert runs == [MAX_BATCH, len(PROMPTS) - MAX_BATCH]


def test_a_lone_call_is_a_batch_of_one(pack: Pack, runs: list[int]) -> None:
    answer = call(pack, PROMPTS[0])()
    assert runs == [1]
    assert ids([answer]) == ids([pack.generate(PROMPTS[0], max_new_tokens=NEW)])


class Count:
    """A logits processor of the caller, which counts the rows of its batches."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(input_ids))
        return scores


def test_calls_with_different_settings_are_not_batched(pack: Pack, runs: list[int]) -> None:
    own = Count()
    different: list[dict[str, Any]] = [
        {}, {"max_new_tokens": 4}, {"fusion": "unite"}, {"weights": {"long": 0.25, "short": 0.75}},
        {"stop": "e"}, {"constraint": Regex("[a-z]*")}, {"trace": True}, {"min_p": 0.9, "seed": 1},
        {"repetition_penalty": 1.5}, {"num_beams": 2}, {"max_new_tokens": None, "max_length": 40},
        {"prompt_lookup_num_tokens": 2}, {"logits_processor": [own]},
    ]  # fmt: skip
    settings = [kind for kind in different for _ in range(2)]
    prompts = PROMPTS[: len(settings)] + PROMPTS[: len(settings) - len(PROMPTS)]
    alone = [
        pack.generate(prompt, **{"max_new_tokens": NEW, **more})
        for prompt, more in zip(prompts, settings, strict=True)
    ]
    runs.clear()
    own.rows.clear()
    calls = [call(pack, p, **more) for p, more in zip(prompts, settings, strict=True)]
    found = at_once(pack, calls)
    assert ids(found) == ids(alone)
    # Seeds, beams, lengths that count padding, drafts and own objects are never shared.
    assert sorted(runs) == [1] * 10 + [2] * 8
    assert set(own.rows) == {1}


def test_text_and_chats_of_one_batch_have_their_own_stop_strings(pack: Pack) -> None:
    """Without a template, a chat ends where the next turn would begin; a text does not."""
    constraint = Regex("(a|\n\nUser:)b")
    chat = [{"role": "user", "content": "Hello"}]
    ban: dict[str, Any] = {
        "constraint": constraint,
        "bad_words_ids": [pack.members[0].vocabulary.encode("a")],
    }
    alone = [pack.generate(prompt, max_new_tokens=20, **ban) for prompt in (PROMPTS[0], chat)]
    assert [answer.text for answer in alone] == ["\n\nUser:b", ""]
    calls = [call(pack, prompt, max_new_tokens=20, **ban) for prompt in (PROMPTS[0], chat)]
    assert ids(at_once(pack, calls)) == ids(alone)
    both = pack.generate([PROMPTS[0], chat], max_new_tokens=20, **ban)
    assert ids(both) == ids(alone)


def test_chats_are_batched_like_texts(runs: list[int]) -> None:
    own = small_pack(template=TEMPLATE)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:4]]
    alone = [own.generate(chat, max_new_tokens=NEW) for chat in chats]
    runs.clear()
    assert ids(at_once(own, [call(own, chat) for chat in chats])) == ids(alone)
    assert runs == [4]


def test_only_the_call_with_a_bad_prompt_fails(pack: Pack) -> None:
    prompts = PROMPTS[:4]
    alone = [pack.generate(prompt, max_new_tokens=NEW) for prompt in prompts]
    for place in (0, 2, 4):
        mixed = [*prompts[:place], "word " * 600, *prompts[place:]]
        found = at_once(pack, [call(pack, prompt) for prompt in mixed])
        error = found.pop(place)
        assert isinstance(error, PromptError)
        assert "can read 512" in str(error)
        assert ids(found) == ids(alone)


def test_an_interrupted_call_does_not_stop_the_others(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    alone = [pack.generate(prompt, max_new_tokens=NEW).token_ids for prompt in PROMPTS[:4]]
    with at_step(monkeypatch, 3, interrupt):
        found = at_once(pack, [call(pack, prompt) for prompt in PROMPTS[:4]])
    answered = [None if isinstance(one, KeyboardInterrupt) else one.token_ids for one in found]
    assert answered.count(None) == 1
    assert all(one in (None, other) for one, other in zip(answered, alone, strict=True))


# Cancelling.


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("settings", [{}, {"constraint": Regex("[a-z]{30}")}, {"stop": "\x00"}])
def test_a_cancelled_row_ends_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], pad: bool
) -> None:
    own = small_pack(pad=pad)
    alone = [own.generate(prompt, max_new_tokens=NEW, **settings) for prompt in PROMPTS[:3]]
    cancels = [threading.Event() for _ in alone]
    calls = [
        call(own, prompt, cancel, **settings)
        for prompt, cancel in zip(PROMPTS[:3], cancels, strict=True)
    ]
    with at_step(monkeypatch, 3, cancels[1].set):
        first, second, third = at_once(own, calls)
    assert ids([first, third]) == ids([alone[0], alone[2]])
    reasons = [answer.record.finish_reason for answer in (first, third)]
    assert reasons == [alone[0].record.finish_reason, alone[2].record.finish_reason]
    assert second.record.finish_reason == "cancelled"
    assert second.token_ids == alone[1].token_ids[:3]
    assert second.record.usage.completion_tokens == 3
    assert alone[1].text.startswith(second.text)


@pytest.mark.parametrize("stop", [None, "e"])
def test_an_answer_that_ended_before_it_was_cancelled_stays_whole(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, stop: str | None
) -> None:
    settings = {"max_new_tokens": 8, "stop": stop}
    alone = pack.generate(PROMPTS, **settings)
    long = next(i for i, answer in enumerate(alone) if len(answer.token_ids) == 8)
    short = next(
        i
        for i, answer in enumerate(alone)
        if len(answer.token_ids) < 5 and (answer.record.stop is None) == (stop is None)
    )
    request = pack.request([PROMPTS[short], PROMPTS[long]], settings)
    cancels = [threading.Event(), threading.Event()]
    with at_step(monkeypatch, 6, cancels[0].set), pack.lock:
        answers = Runner(pack.runtime, request, cancels).run()
    assert cancels[0].is_set()
    assert ids(answers) == ids([alone[short], alone[long]])
    assert [answer.record.finish_reason for answer in answers] == ["stop", "length"]


def test_beams_and_several_sequences_of_a_cancelled_prompt_end_as_well(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for settings in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2, "seed": 1}):
        request = pack.request(PROMPTS[:2], {"max_new_tokens": NEW, **settings})
        cancels = [threading.Event(), threading.Event()]
        with at_step(monkeypatch, 3, cancels[0].set), pack.lock:
            answers = Runner(pack.runtime, request, cancels).run()
        each = len(answers) // 2
        for answer in answers[:each]:
            assert answer.record.finish_reason == "cancelled"
            assert answer.record.usage.completion_tokens == 3
        for answer in answers[each:]:
            assert answer.record.usage.completion_tokens == NEW


def test_a_call_that_was_cancelled_before_it_began_reads_nothing(
    pack: Pack, runs: list[int]
) -> None:
    gone = threading.Event()
    gone.set()
    with pytest.raises(CancelledError):
        call(pack, PROMPTS[0], gone)()
    assert runs == []
    alone = pack.generate(PROMPTS[1], max_new_tokens=NEW)
    calls = [call(pack, PROMPTS[0], gone), call(pack, PROMPTS[1]), call(pack, PROMPTS[2], gone)]
    first, second, third = at_once(pack, calls)
    assert isinstance(first, CancelledError)
    assert isinstance(third, CancelledError)
    assert ids([second]) == ids([alone])


def test_a_pack_that_answered_batches_is_freed_with_its_last_reference() -> None:
    own = small_pack()
    assert len(at_once(own, [call(own, prompt) for prompt in PROMPTS[:3]])) == 3
    model = weakref.ref(own.members[0].model)
    del own
    gc.collect()
    assert model() is None
