"""Calls from many threads: answers that are decoded together are those of each call alone."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from packfuse import Pack, aio
from packfuse.constraint import Regex
from packfuse.errors import BusyError, ClosedError, MemberError, PromptError
from packfuse.fusion.sequence import PackSequence
from packfuse.generation import assistants
from packfuse.generation.output.result import Answer
from packfuse.generation.runner import Runner
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Session
from packfuse.scheduler.admission import MAX_BYPASSED
from packfuse.scheduler.scheduler import READ_TOKENS
from packfuse.scheduler.task import AnswerTask
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack
from tests.support.steps import Steps, at_once, at_step, settle

NEW = 6
PROMPTS = [f"{'Word ' * (i % 4)}number {i}" for i in range(20)]
CHAT = [{"role": "user", "content": "Hello"}]


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
def nothing_is_left(pack: Pack) -> Iterator[None]:
    """After every test: no calls wait, none runs, and there is no thread."""
    yield
    assert_idle(pack)


def assert_idle(pack: Pack) -> None:
    settle()
    assert (pack.scheduler.waiting, pack.scheduler.running) == (0, 0)
    assert pack.scheduler._thread is None
    assert pack.scheduler._room()._held == {}


def _alive() -> int:
    gc.collect()
    return sum(type(thing) in (PackSequence, Session) for thing in gc.get_objects())


Call = Callable[[], Answer]


def call(pack: Pack, prompt: Any, cancel: threading.Event | None = None, **more: Any) -> Call:
    """One call, checked and not yet made."""
    request = pack.request(prompt, {"max_new_tokens": NEW, **more})
    return lambda: pack.answers(request, cancel)[0]


def begun(pack: Pack, prompt: Any, **more: Any) -> Future[list[Answer]]:
    """The future of a call that is queued, and not waited for."""
    request = pack.request(prompt, {"max_new_tokens": NEW, **more})
    task = AnswerTask(Runner(pack.runtime, request))
    pack.scheduler.submit(task)
    return task.future


def ids(answers: Sequence[Answer]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


def facts(answer: Answer) -> Any:
    """An answer with all of its record but the times, and what is rounded in the trace."""
    steps = [step.text for step in answer.record.trace or ()]
    return (
        answer.text,
        answer.token_ids,
        steps,
        answer.record.model_dump(exclude={"timings", "trace"}),
    )


class Own(LogitsProcessor):
    """A logits processor of the caller, with a state: it forbids the token it saw chosen last."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(input_ids))
        return scores.index_fill(1, input_ids[0, -1:], -torch.inf)


KINDS: list[dict[str, Any]] = [
    {}, {"max_new_tokens": 4}, {"fusion": "unite"}, {"fusion": "mixture", "gate": "safe"},
    {"gate": "nudge"}, {"gate": {"name": "nudge", "threshold": 0.6}, "temperature": 1.0, "seed": 2},
    {"weights": {"long": 0.25, "short": 0.75}}, {"weights": {"short": 1.0}}, {"stop": "e"},
    {"constraint": Regex("[a-z]*( [0-9])?")}, {"trace": True, "top_logprobs": 2},
    {"min_p": 0.01, "seed": 1}, {"temperature": 1.5, "seed": 7}, {"repetition_penalty": 1.5},
    {"num_beams": 2}, {"max_new_tokens": None, "max_length": 40}, {"guidance_scale": 1.5},
    {"prompt_lookup_num_tokens": 2}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 6},
]  # fmt: skip


def test_calls_with_any_settings_share_their_steps(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [{**kind} for kind in KINDS for _ in range(2)]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(settings))]
    own = [Own() for _ in range(4)]
    settings += [{"logits_processor": [one]} for one in own]
    prompts += PROMPTS[:4]
    alone = [
        pack.generate(prompt, **{"max_new_tokens": NEW, **more})
        for prompt, more in zip(prompts, settings, strict=True)
    ]
    steps = Steps(monkeypatch)
    calls = [call(pack, p, **more) for p, more in zip(prompts, settings, strict=True)]
    found = at_once(pack, calls)
    assert list(map(facts, found)) == list(map(facts, alone))
    assert max(steps.sizes) > 4
    assert max(steps.sizes) <= pack.settings.max_rows
    assert {rows for one in own for rows in one.rows} == {1}


@pytest.mark.parametrize("count", [2, 3])
def test_every_return_sequence_is_a_row_with_its_own_random_numbers(pack: Pack, count: int) -> None:
    more = {"do_sample": True, "temperature": 2.0, "seed": 3, "num_return_sequences": count}
    request = pack.request(PROMPTS[0], {"max_new_tokens": NEW, **more, "trace": True})
    found = pack.answers(request)
    assert ids(found) == ids(Runner(pack.runtime, request).run())
    assert len(set(ids(found))) == count
    first = pack.generate(PROMPTS[0], max_new_tokens=NEW, temperature=2.0, seed=3)
    assert found[0].token_ids == first.token_ids
    assert all(len(answer.record.trace or ()) == len(answer.token_ids) for answer in found)


def test_chats_and_texts_share_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    own = small_pack(template=TEMPLATE)
    prompts = [CHAT, PROMPTS[0], [{"role": "user", "content": "Bye"}], PROMPTS[1]]
    alone = [own.generate(prompt, max_new_tokens=NEW) for prompt in prompts]
    steps = Steps(monkeypatch)
    assert ids(at_once(own, [call(own, prompt) for prompt in prompts])) == ids(alone)
    assert max(steps.sizes) == 4


def test_text_and_chats_have_their_own_stop_strings(pack: Pack) -> None:
    """Without a template, a chat ends where the next turn would begin; a text does not."""
    ban: dict[str, Any] = {
        "constraint": Regex("(a|\n\nUser:)b"),
        "bad_words_ids": [pack.members[0].vocabulary.encode("a")],
    }
    alone = [pack.generate(prompt, max_new_tokens=20, **ban) for prompt in (PROMPTS[0], CHAT)]
    assert [answer.text for answer in alone] == ["\n\nUser:b", ""]
    calls = [call(pack, prompt, max_new_tokens=20, **ban) for prompt in (PROMPTS[0], CHAT)]
    assert ids(at_once(pack, calls)) == ids(alone)
    assert ids(pack.generate([PROMPTS[0], CHAT], max_new_tokens=20, **ban)) == ids(alone)


# Joining and leaving.


@pytest.mark.parametrize("kind", ["answer", "stream", "beams", "drafts"])
def test_a_newcomer_does_not_wait_for_a_running_answer(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = small_pack(prefix_cache=0)
    own: dict[str, dict[str, Any]] = {
        "beams": {"num_beams": 2},
        "drafts": {"draft": "reference"},
    }
    more = {"max_new_tokens": 60, "constraint": Regex("[a-z ]{200}"), **own.get(kind, {})}
    alone, short = pack.generate("Hello", **more), pack.generate("the lo", max_new_tokens=3)
    found: list[Future[list[Answer]]] = []
    order: list[str] = []

    def arrive() -> None:
        found.append(begun(pack, "the lo", max_new_tokens=3))
        found[0].add_done_callback(lambda _: order.append("newcomer"))

    with at_step(monkeypatch, 5, arrive):
        if kind == "stream":
            text = "".join(chunk.text for chunk in pack.stream("Hello", **more))
        else:
            text = pack.generate("Hello", **more).text
    order.append("first")
    assert (text, ids(found[0].result())) == (alone.text, ids([short]))
    assert order == ["newcomer", "first"]
    assert_idle(pack)


def test_a_long_prompt_is_read_between_the_steps_of_running_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = small_pack(context=2048, prefix_cache=0)
    long = "word " * 300
    alone = [pack.generate("Hello", max_new_tokens=200), pack.generate(long, max_new_tokens=2)]
    reads: list[int] = []
    found: list[Future[list[Answer]]] = []
    forward = HFMember._forward

    def counted(member: HFMember, chunks: Any, *rest: Any) -> Any:
        reads.append(max(len(chunk.ids) for chunk in chunks))
        return forward(member, chunks, *rest)

    monkeypatch.setattr(HFMember, "_forward", counted)
    with at_step(monkeypatch, 4, lambda: found.append(begun(pack, long, max_new_tokens=2))):
        first = pack.generate("Hello", max_new_tokens=200)
    assert ids([first, *found[0].result()]) == ids(alone)
    assert max(reads) == READ_TOKENS
    # Between any two long reads of a member, the running answer got a step of every member.
    places = [i for i, size in enumerate(reads) if size == READ_TOKENS]
    assert len(places) > 4
    assert all(1 in reads[one:other] for one, other in itertools.pairwise(places))


def test_drafts_are_for_an_answer_that_is_alone() -> None:
    pack = small_pack(prefix_cache=0, draft="reference")
    plain = small_pack(prefix_cache=0)
    alone = pack.generate(PROMPTS[0], max_new_tokens=20)
    assert alone.record.drafts is not None
    found = at_once(pack, [call(pack, prompt, max_new_tokens=20) for prompt in PROMPTS[:3]])
    assert [answer.record.drafts for answer in found] == [None] * 3
    assert all("no drafts" in " ".join(answer.record.notes) for answer in found)
    assert ids(found) == ids([plain.generate(p, max_new_tokens=20) for p in PROMPTS[:3]])
    assert found[0].token_ids == alone.token_ids


# Failures.


class Failing(LogitsProcessor):
    """A processor of the caller that fails at one step, and has no other effect."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.after -= 1
        if self.after < 0:
            raise ZeroDivisionError("mine")
        return scores


class FailingCriteria(StoppingCriteria):
    """A criterion that fails at one step, and never ends an answer."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.after -= 1
        if self.after < 0:
            raise ZeroDivisionError("mine")
        return torch.zeros(len(input_ids), dtype=torch.bool)


class FailingStreamer(BaseStreamer):
    """A streamer that fails at one step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def put(self, value: torch.Tensor) -> None:
        self.after -= 1
        if self.after < 0:
            raise ZeroDivisionError("mine")

    def end(self) -> None:
        pass


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria", "streamer"])
def test_the_error_of_a_processor_ends_its_own_answer_only(
    pack: Pack, where: str, after: int
) -> None:
    alone = [pack.generate(prompt, max_new_tokens=NEW) for prompt in PROMPTS[:4]]
    calls = [call(pack, prompt) for prompt in PROMPTS[:4]]
    own: dict[str, Any] = {
        "logits_processor": [Failing(after)],
        "stopping_criteria": [FailingCriteria(after)],
        "streamer": FailingStreamer(after),
    }
    calls.insert(2, call(pack, "x", **{where: own[where]}))
    found = at_once(pack, calls)
    assert isinstance(found.pop(2), ZeroDivisionError)
    assert ids(found) == ids(alone)


def test_a_member_that_fails_for_one_sequence_ends_this_one_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = small_pack(prefix_cache=0)
    alone = [pack.generate(prompt, max_new_tokens=NEW) for prompt in PROMPTS[:4]]
    poisoned = tuple(pack.members[1].vocabulary.encode("poison"))
    forward = HFMember._forward

    def broken(member: HFMember, chunks: Any, *rest: Any) -> Any:
        for chunk in chunks:
            session = chunk.request.session
            if session.length > len(poisoned) and tuple(session.ids[: len(poisoned)]) == poisoned:
                raise MemberError(f"member {member.name!r} gave NaN logits")
        return forward(member, chunks, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(HFMember, "_forward", broken)
        calls = [call(pack, prompt) for prompt in PROMPTS[:4]]
        calls.insert(1, call(pack, "poison in this well"))
        found = at_once(pack, calls)
    assert isinstance(found.pop(1), MemberError)
    assert ids(found) == ids(alone)
    assert_idle(pack)


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


def test_an_error_in_a_list_ends_the_other_prompts(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    with pytest.raises(PromptError, match="can read 512"):
        pack.generate(["word " * 600, *PROMPTS], max_new_tokens=400)
    assert_idle(pack)
    assert steps.count < 20


# Cancelling.


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("more", [{}, {"constraint": Regex("[a-z]{30}")}, {"stop": "\x00"}])
def test_a_cancelled_row_ends_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], pad: bool
) -> None:
    own = small_pack(pad=pad)
    alone = [own.generate(prompt, max_new_tokens=30, **more) for prompt in PROMPTS[:3]]
    cancels = [threading.Event() for _ in alone]
    calls = [
        call(own, prompt, cancel, max_new_tokens=30, **more)
        for prompt, cancel in zip(PROMPTS[:3], cancels, strict=True)
    ]
    with at_step(monkeypatch, 6, cancels[1].set):
        first, second, third = at_once(own, calls)
    assert list(map(facts, [first, third])) == list(map(facts, [alone[0], alone[2]]))
    assert second.record.finish_reason == "cancelled"
    count = len(second.token_ids)
    assert 0 < count <= 6
    assert second.token_ids == alone[1].token_ids[:count]
    assert second.record.usage.completion_tokens == count
    assert alone[1].text.startswith(second.text)


@pytest.mark.parametrize("more", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_beams_and_several_sequences_of_a_cancelled_prompt_end_as_well(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    request = pack.request(PROMPTS[0], {"max_new_tokens": 40, "min_new_tokens": 40, **more})
    cancel = threading.Event()
    with at_step(monkeypatch, 3, cancel.set):
        answers = pack.answers(request, cancel)
    for answer in answers:
        assert answer.record.finish_reason == "cancelled"
        assert answer.record.usage.completion_tokens == 3


def test_a_call_that_was_cancelled_before_it_began_reads_nothing(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = pack.generate(PROMPTS[1], max_new_tokens=NEW)
    gone = threading.Event()
    gone.set()
    reads: list[int] = []
    read = HFMember.read

    def counted(*arguments: Any) -> Any:
        reads.append(1)
        return read(*arguments)

    monkeypatch.setattr(HFMember, "read", counted)
    with pytest.raises(CancelledError):
        call(pack, PROMPTS[0], gone)()
    assert reads == []
    calls = [call(pack, PROMPTS[0], gone), call(pack, PROMPTS[1]), call(pack, PROMPTS[2], gone)]
    first, second, third = at_once(pack, calls)
    assert isinstance(first, CancelledError)
    assert isinstance(third, CancelledError)
    assert ids([second]) == ids([alone])


def test_a_prompt_that_is_cancelled_while_it_is_read_is_read_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = small_pack(context=2048, prefix_cache=0)
    cancel, chunks = threading.Event(), []
    forward = HFMember._forward

    def counted(member: HFMember, read: Any, *rest: Any) -> Any:
        chunks.append(max(len(chunk.ids) for chunk in read))
        if len(chunks) == 2:
            cancel.set()
        return forward(member, read, *rest)

    monkeypatch.setattr(HFMember, "_forward", counted)
    with pytest.raises(CancelledError):
        call(pack, "word " * 380, cancel)()
    assert len(chunks) == 2
    assert_idle(pack)


@pytest.mark.parametrize("kind", ["answer", "beams", "error", "stream"])
def test_a_call_leaves_the_event_of_its_caller_as_it_was(pack: Pack, kind: str) -> None:
    cancel = threading.Event()
    prompt = "word " * 600 if kind == "error" else PROMPTS[0]
    beams = {"num_beams": 2} if kind == "beams" else {}
    request = pack.request(prompt, {"max_new_tokens": NEW, **beams})
    if kind == "error":
        with pytest.raises(PromptError):
            pack.answers(request, cancel)
    elif kind == "stream":
        list(pack.run_stream(request, cancel))
    else:
        pack.answers(request, cancel)
    assert not cancel.is_set()


@pytest.mark.parametrize("kind", ["skill", "list"])
def test_running_answers_go_on_while_many_short_prompts_are_read(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assistants, "_known", {})
    monkeypatch.setattr(assistants, "_load", lambda *_: None)
    pack = small_pack(template=TEMPLATE, context=2048, prefix_cache=0)
    chat, prompts = [{"role": "user", "content": "a"}], [f"number {i}" for i in range(12)]
    ends: list[int] = []
    steps = Steps(monkeypatch)

    def ask() -> None:
        more: dict[str, Any] = {"num_beams": 2} if kind == "list" else {}
        pack.generate(chat if kind == "skill" else prompts, max_new_tokens=1, **more)
        ends.append(steps.count)

    thread = threading.Thread(target=ask)
    with at_step(monkeypatch, 4, thread.start):
        pack.generate("Hello", max_new_tokens=100, min_new_tokens=100)
    thread.join()
    assert 10 < ends[0] - 4 < 60
    settle()


@pytest.mark.parametrize("kind", ["score", "weigh"])
def test_running_answers_go_on_while_a_long_prompt_is_scored(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = small_pack(context=2048, prefix_cache=0)
    long = "word " * 300

    def ask() -> Any:
        found = pack.score(long, " the") if kind == "score" else pack.weigh(long).weights
        ends.append(steps.count)
        return found

    ends: list[int] = []
    steps = Steps(monkeypatch)
    alone = ask()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    with at_step(monkeypatch, 4, thread.start):
        answer = pack.generate("Hello", max_new_tokens=100, min_new_tokens=100)
    thread.join()
    assert len(answer.token_ids) == 100
    assert found[0] == pytest.approx(alone) if kind == "score" else found[0].keys() == alone.keys()
    # Ten parts of the prompt and more, each followed by a step of the running answer.
    assert ends[1] - ends[0] > 10
    settle()


# Bounds.


def test_no_more_rows_run_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = small_pack(max_rows=3, prefix_cache=0)
    alone = [pack.generate(prompt, max_new_tokens=12) for prompt in PROMPTS[:8]]
    steps = Steps(monkeypatch)
    calls = [call(pack, prompt, max_new_tokens=12) for prompt in PROMPTS[:8]]
    assert ids(at_once(pack, calls)) == ids(alone)
    assert max(steps.sizes) == 3
    # More return sequences than rows are decoded when nothing else runs.
    request = pack.request("a", {"num_return_sequences": 4, "do_sample": True, "max_new_tokens": 3})
    assert len(pack.answers(request)) == 4


def test_short_prompts_are_read_together_and_long_ones_between_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = small_pack(prefix_cache=0, context=2048)
    prompts = ["ab", "the true", "the lo " * 30, "ab", "true lo"]
    alone = [pack.generate(prompt, max_new_tokens=20) for prompt in prompts]
    steps = Steps(monkeypatch)
    with pack.lock:
        futures = [begun(pack, prompt, max_new_tokens=20) for prompt in prompts]
    assert ids([future.result()[0] for future in futures]) == ids(alone)
    # The long one is in the middle of the queue: the two before it begin at once, and it is read
    # in several parts before the two behind it, while they are decoded.
    before, *_ = (list(group) for _, group in itertools.groupby(steps.sizes))
    assert before == [2] * len(before)
    assert len(before) > 2
    assert max(steps.sizes) == 5


def test_answers_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = small_pack(max_cache=1, prefix_cache=0)
    alone = [pack.generate(prompt, max_new_tokens=NEW) for prompt in PROMPTS[:4]]
    steps = Steps(monkeypatch)
    assert ids(at_once(pack, [call(pack, prompt) for prompt in PROMPTS[:4]])) == ids(alone)
    assert set(steps.sizes) == {1}


def test_a_long_answer_is_not_kept_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers pass one that waits for memory, but only so often."""
    pack = small_pack(prefix_cache=0)
    pack.generate("a", max_new_tokens=2)
    size = pack.scheduler._room().bytes_per_token
    pack.scheduler._room().max_bytes = int(60 * size)
    monkeypatch.setattr(pack.scheduler, "_learn", lambda _: 2)
    begun_with: list[int] = []
    rows = Runner.rows

    def recorded(runner: Runner, *arguments: Any) -> Any:
        begun_with.append(runner.request.arguments["max_new_tokens"])
        return rows(runner, *arguments)

    monkeypatch.setattr(Runner, "rows", recorded)
    lengths = [30, 50, *[3] * 30]
    with pack.lock:
        futures = [begun(pack, "ab", max_new_tokens=n, min_new_tokens=n) for n in lengths]
    assert [len(future.result()[0].token_ids) for future in futures] == lengths
    assert begun_with[0] == 30
    assert begun_with.index(50) == 1 + MAX_BYPASSED
    assert_idle(pack)


def test_too_many_waiting_prompts_are_refused() -> None:
    pack = small_pack(max_waiting=3, prefix_cache=0)
    with pack.lock:
        first = [begun(pack, prompt) for prompt in PROMPTS[:3]]
        with pytest.raises(BusyError, match="3 prompts wait") as caught:
            begun(pack, PROMPTS[3])
        assert caught.value.waiting == 3
        # A list that is longer than the queue is taken if nothing waits.
    assert [len(future.result()) for future in first] == [1, 1, 1]
    assert len(pack.generate(PROMPTS, max_new_tokens=2)) == len(PROMPTS)
    assert_idle(pack)


# The life of the thread.


def test_a_closed_pack_ends_its_calls_and_refuses_others() -> None:
    pack = small_pack()
    running: list[Future[list[Answer]]] = []
    with pack:
        running.append(begun(pack, "Hello", max_new_tokens=400, min_new_tokens=400))
        for chunk in pack.stream("the lo", max_new_tokens=400):
            assert chunk.text is not None
            break
    for future in running:
        assert future.result()[0].record.finish_reason == "cancelled"
    with pytest.raises(ClosedError):
        pack.generate("Hello")
    assert_idle(pack)


def test_a_pack_that_answered_is_freed_with_its_last_reference() -> None:
    own = small_pack()
    assert len(at_once(own, [call(own, prompt) for prompt in PROMPTS[:3]])) == 3
    model = weakref.ref(own.members[0].model)
    assert_idle(own)
    del own
    gc.collect()
    assert model() is None


def test_two_event_loops_use_one_pack(pack: Pack) -> None:
    alone = [pack.generate(prompt, max_new_tokens=NEW).text for prompt in PROMPTS]
    found: dict[int, list[str]] = {}

    async def ask() -> list[str]:
        requests = [pack.request(prompt, {"max_new_tokens": NEW}) for prompt in PROMPTS]
        calls = [aio.call(partial(pack.answers, own)) for own in requests]
        return [answers[0].text for answers in await asyncio.gather(*calls)]

    def loop(index: int) -> None:
        found[index] = asyncio.run(ask())

    threads = [threading.Thread(target=loop, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: alone, 1: alone}


def test_autocast_is_that_of_the_calling_thread(pack: Pack) -> None:
    plain = pack.generate(PROMPTS[0], max_new_tokens=NEW, trace=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = pack.generate(PROMPTS[0], max_new_tokens=NEW, trace=True)

    def under_autocast() -> Answer:
        with torch.autocast("cpu", torch.bfloat16):
            return call(pack, PROMPTS[0], trace=True)()

    found = at_once(pack, [under_autocast, call(pack, PROMPTS[0], trace=True), under_autocast])

    def first(answer: Answer) -> float:
        return (answer.record.trace or [])[0].probability

    assert first(cast) != first(plain)
    assert [first(answer) for answer in found] == [first(cast), first(plain), first(cast)]


# Any schedule.


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[int, str, dict[str, Any], int | None]]:
    """Arrivals by step, with a prompt, settings, and the step at which the call is cancelled."""
    arrivals = st.tuples(
        st.integers(1, 12),
        st.sampled_from(PROMPTS),
        st.fixed_dictionaries(
            {"max_new_tokens": st.integers(1, 10)},
            optional={
                "fusion": st.sampled_from(["packllm", "unite", "mixture"]),
                "seed": st.integers(0, 5),
                "temperature": st.sampled_from([0, 1.0, 2.0]),
                "stop": st.sampled_from(["e", "a"]),
                "repetition_penalty": st.just(1.3),
                "constraint": st.just(Regex("[a-z ]*")),
                "failing": st.integers(0, 4),
                "num_beams": st.just(2),
            },
        ),
        st.none() | st.integers(1, 16),
    )
    found = draw(st.lists(arrivals, min_size=1, max_size=7))
    for _, _, more, _ in found:
        # What is sampled without a seed is not the same twice.
        if more.get("temperature"):
            more.setdefault("seed", 0)
        if more.get("num_beams"):
            more.pop("constraint", None)
    return found


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(schedule=schedules(), rows=st.sampled_from([2, 16]))
def test_any_schedule_gives_the_answers_of_each_call_alone(
    pack: Pack, schedule: list[Any], rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack.scheduler._room(), "max_rows", rows)
        calls, alone = [], []
        for _, prompt, more, _ in schedule:
            own = dict(more)
            failing = own.pop("failing", None)
            alone.append(pack.generate(prompt, **own))
            if failing is not None:
                own["logits_processor"] = [Failing(failing)]
            calls.append((pack.request(prompt, own), threading.Event()))
        futures: dict[int, Future[list[Answer]]] = {}

        def act(step: int) -> None:
            for index, ((arrival, *_, cancelled), (request, cancel)) in enumerate(
                zip(schedule, calls, strict=True)
            ):
                if index not in futures and step >= arrival:
                    futures[index] = submitted(pack, request, cancel)
                if cancelled is not None and step >= cancelled:
                    cancel.set()

        Steps(patch, act)
        # One answer that runs through, so that there are steps.
        pack.generate("the lo", max_new_tokens=20, min_new_tokens=20)
    assert len(futures) == len(schedule)
    for index, expected in enumerate(alone):
        check_outcome(futures[index], expected, *schedule[index][2:])
    assert_idle(pack)


def check_outcome(
    future: Future[list[Answer]], alone: Answer, more: dict[str, Any], cancelled: int | None
) -> None:
    """A call has its own answer, or ended for its own reason."""
    try:
        found = future.result(60)[0]
    except CancelledError:
        assert cancelled is not None
    except ZeroDivisionError:
        assert more.get("failing") is not None
    else:
        if found.record.finish_reason == "cancelled":
            assert cancelled is not None
            whole = bool(more.get("num_beams"))
            assert whole or found.token_ids == alone.token_ids[: len(found.token_ids)]
        elif more.get("failing") is None:
            assert facts(found) == facts(alone)


def submitted(pack: Pack, request: Any, cancel: threading.Event) -> Future[list[Answer]]:
    """The future of a checked call, however it is decoded."""
    task = pack.task(request, cancel)
    pack.scheduler.submit(task)
    return task.future


def test_a_caller_that_waits_has_no_openmp_threads(pack: Pack) -> None:
    """Idle OpenMP threads beside those of the scheduler would make every step slower."""
    counts: list[int] = []

    def count() -> None:
        """Count the threads of this process once it stays the same: pools end a moment late."""
        found: list[int] = [-1]
        while len(found) < 5 or len(set(found[-5:])) > 1:
            time.sleep(0.05)
            found.append(psutil.Process().num_threads())
        counts.append(found[-1])

    def call() -> None:
        torch.set_num_threads(2)
        count()
        torch.ones(1_000_000).exp()
        count()
        pack.generate(PROMPTS[0], max_new_tokens=2)
        settle()
        count()

    pack.generate(PROMPTS[0], max_new_tokens=2)
    settle()
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    before, computed, after = counts
    assert (computed, after) == (before + 1, before)
