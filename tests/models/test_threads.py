"""Members that read in parallel give the results that they give one after the other."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from packfuse import Pack
from packfuse.alignment.bytes import Bytes
from packfuse.errors import MemberError
from packfuse.fusion.engine import Engine
from packfuse.fusion.read_plan import execute
from packfuse.models.compute.threads import device_groups, run_parallel
from packfuse.models.hf_member import HFMember
from packfuse.text.prompt import from_text
from packfuse.weighting.methods.uniform import Uniform
from packfuse.weighting.prefill import prefill
from tests.support import fusing
from tests.support.packs import tiny_member

pytestmark = pytest.mark.filterwarnings("ignore::packfuse.errors.ExperimentalWarning")

NAMES = ("mistral", "deepseek", "tekken")
PROMPTS = ["The capital of France is", "one two", "def f(x):\n    return"]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The same number of groups on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trio(**settings: Any) -> tuple[Pack, Pack]:
    """The same members, in parallel and in turn."""
    members = [tiny_member(name) for name in NAMES]
    return tuple(
        Pack(members, weighting="uniform", prefix_cache=0, progress=False, parallel=p, **settings)
        for p in (True, False)
    )  # type: ignore[return-value]


def test_as_many_groups_as_threads() -> None:
    members = [tiny_member(name) for name in NAMES]
    assert device_groups(members, range(3)) == [[0, 2], [1]]
    assert device_groups(members, [0, 2]) == [[0], [2]]
    assert device_groups(members, []) == []
    torch.set_num_threads(1)
    assert device_groups(members, range(3)) == [[0, 1, 2]]
    torch.set_num_threads(8)
    assert device_groups(members, range(3)) == [[0], [1], [2]]


def test_members_of_another_device_share_a_group() -> None:
    """Two on a device that computes nothing, one on the processors."""
    members = [fusing.member(name) for name in NAMES]
    away = [
        HFMember(
            member.name, copy.deepcopy(member.model).to_empty(device="meta"), member.vocabulary
        )
        for member in members[:2]
    ]
    assert device_groups([away[0], members[2], away[1]], range(3)) == [[0, 2], [1]]


@pytest.mark.slow
@pytest.mark.parametrize("draft", [None, "members"])
@pytest.mark.parametrize(
    "arguments", [{}, {"do_sample": True, "seed": 3}, {"num_beams": 2}], ids=str
)
def test_answers_are_the_same(draft: str | None, arguments: dict[str, Any]) -> None:
    packs = trio(draft=draft)
    arguments = {"max_new_tokens": 8, "trace": not (draft or arguments), **arguments}
    for prompt in (PROMPTS[0], PROMPTS):
        found, expected = (pack.generate(prompt, **arguments) for pack in packs)
        many = isinstance(found, list)
        pairs = zip(found, expected, strict=True) if many else [(found, expected)]
        for one, other in pairs:
            assert one.token_ids == other.token_ids
            for step, twin in zip(one.record.trace or (), other.record.trace or (), strict=True):
                # One thread adds up in another order than two.
                assert step.text == twin.text
                assert step.probability == pytest.approx(twin.probability, abs=1e-5)
                assert step.member_probabilities == pytest.approx(
                    twin.member_probabilities, abs=1e-5
                )


def test_members_do_read_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [fusing.member("mistral"), fusing.member("deepseek")]
    engine = Engine(members, 0, Bytes(), parallel=True)
    vocabularies = [member.vocabulary for member in engine.members]
    row, _ = prefill(engine, from_text("one two", vocabularies, 0), Uniform(), fusing.FUSION)
    threads: set[str] = set()
    meeting = threading.Barrier(2, timeout=60)
    read = HFMember.read

    def meet(self: HFMember, requests: Any) -> Any:
        # Broken if one comes only after the other has left.
        meeting.wait()
        threads.add(threading.current_thread().name)
        return read(self, requests)

    monkeypatch.setattr(HFMember, "read", meet)
    engine.advance([row], [engine.reference.encode(" three")], fusing.FUSION)
    assert len(threads) == 2


def test_what_one_raises_comes_when_all_have_read() -> None:
    done: list[str] = []

    def fails(name: str) -> None:
        done.append(name)
        raise MemberError(f"member {name!r} is out of luck")

    for one, other in (("first", "second"), ("second", "first")):
        done.clear()
        with pytest.raises(MemberError, match=rf"member '{one}' is out of luck"):
            run_parallel([partial(fails, one), partial(fails, other)])
        assert sorted(done) == ["first", "second"]
    with pytest.raises(MemberError, match="second"):
        run_parallel([partial(done.append, "fine"), partial(fails, "second")])


def test_a_member_that_fails_in_its_thread_fails_the_call() -> None:
    together, _ = trio()
    broken = together.members[1].model
    hook = broken.model.register_forward_hook(
        lambda _m, inputs, out: 1 / 0 if out.last_hidden_state.shape[1] == 1 else None
    )
    try:
        with pytest.raises(ZeroDivisionError):
            together.generate(PROMPTS[0], max_new_tokens=8)
    finally:
        hook.remove()
    assert together.generate(PROMPTS[0], max_new_tokens=2).token_ids


def test_settings_of_the_callers_thread_hold() -> None:
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    with torch.inference_mode():
        run_parallel([look, look])
    with torch.no_grad():
        run_parallel([look, look])
    assert seen == [(True, False), (True, False), (False, False), (False, False)]
    together, apart = trio()
    with torch.inference_mode():
        found = together.generate(PROMPTS[0], max_new_tokens=6)
    assert found.token_ids == apart.generate(PROMPTS[0], max_new_tokens=6).token_ids


def test_autocast_is_one_threads_and_keeps_members_there(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    read = HFMember.read

    def note(self: HFMember, requests: Any) -> Any:
        threads.add(threading.current_thread().name)
        return read(self, requests)

    monkeypatch.setattr(HFMember, "read", note)
    together, _ = trio()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together.generate(PROMPTS[0], max_new_tokens=3)
    assert len(threads) == 1


def test_lanes_share_the_threads_that_torch_may_use() -> None:
    """Each has its share, and the caller keeps all."""
    seen: list[int] = []

    def look() -> None:
        seen.append(torch.get_num_threads())

    for threads in (2, 6, 1, 2):
        torch.set_num_threads(threads)
        seen.clear()
        run_parallel([look, look])
        assert seen == [max(1, threads // 2)] * 2
        assert torch.get_num_threads() == threads


def test_an_interrupt_waits_for_those_who_are_reading() -> None:
    done: list[str] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)
        done.append("interrupted")

    def read() -> None:
        time.sleep(0.3)
        done.append("read")

    try:
        with pytest.raises(KeyboardInterrupt):
            run_parallel([interrupt, read])
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(done) == ["interrupted", "read"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    run_parallel([lambda: None, lambda: None])
    child = os.fork()
    if child == 0:
        done: list[int] = []
        run_parallel([lambda: done.append(1), lambda: done.append(2)])
        os._exit(0 if sorted(done) == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_to_read_takes_no_thread() -> None:
    execute([], [], parallel=True)
