"""Steps as CUDA graphs. Where there is a device, this file is the test of all of them."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from packfuse import Pack
from packfuse.models.compute.graphs import CudaGraphs, first_cause, waiting_place
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Read
from packfuse.models.static_member import StaticMember
from tests.support import fusing, pico

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
IDS = [1, *range(300, 420)]
SYNC = "called a synchronizing CUDA operation"


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modes that are set, on machines without a device."""
    found: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", found.append)
    return found


def test_a_step_that_waits_is_found_by_its_line(modes: list[Any]) -> None:
    """As torch tells it, by warnings; those of other threads, and other warnings, do not count."""

    def step(message: str, *, elsewhere: bool = False) -> tuple[Tensor, ...]:
        if elsewhere:
            thread = threading.Thread(target=step, args=(message,))
            thread.start()
            thread.join()
        else:
            warnings.warn(message, UserWarning, 1)
        return ()

    assert waiting_place(lambda: step("something else")) is None
    assert waiting_place(lambda: step(SYNC, elsewhere=True)) is None
    assert str(waiting_place(lambda: step(SYNC))).startswith("test_cuda_graphs.py, line ")
    with pytest.raises(ZeroDivisionError):
        waiting_place(lambda: (torch.tensor(1 // 0),))
    assert modes == ["warn", 0] * 4
    with pytest.warns(UserWarning, match="something else"):
        step("something else")


def test_the_cause_of_an_error_is_the_first_one() -> None:
    def fail() -> None:
        try:
            try:
                raise ValueError("first")
            finally:
                raise RuntimeError("the capture failed")
        except RuntimeError as error:
            raise KeyError("last") from error

    with pytest.raises(KeyError) as found:
        fail()
    assert str(first_cause(found.value.__cause__ or found.value)) == "first"


@contextmanager
def waiting(model: Any) -> Iterator[None]:
    """A context in which the first layer of a model waits for the device."""
    layer = model.model.layers[0].mlp
    run: Callable[[Tensor], Tensor] = layer.forward

    def forward(hidden: Tensor) -> Tensor:
        return run(hidden) if float(hidden.sum()) < torch.inf else hidden

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def on_cuda(arch: str = "llama") -> HFMember:
    """A tiny member on the device; a model of its own."""
    model: Any = pico.tiny_pair("mistral", arch)[0]
    return HFMember("one", model.to("cuda"), fusing.vocabulary("mistral"))


def is_usable() -> None:
    """Random numbers can be drawn on the device, memory can be released, graphs be captured."""
    torch.rand(3, device="cuda")
    torch.cuda.empty_cache()
    ones = torch.ones(3, device="cuda")
    replay = CudaGraphs(ones.device)(lambda: (ones * 2,))
    ones += 1
    assert replay()[0].tolist() == [4, 4, 4]


@needs_cuda
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_steps_read_like_passes(arch: str) -> None:
    plain = on_cuda(arch)
    one = StaticMember(plain)
    sessions = [one.open() for _ in range(3)]
    one.read([Read(s, IDS[k : k + 5 + k]) for k, s in enumerate(sessions)])
    for news in ([1, 1, 1], [2, 1, 4], [1, 1, 1], [1, 3, 1], [1, 1, 1]):
        reads = [
            Read(s, IDS[k + s.length : k + s.length + n], n)
            for k, (s, n) in enumerate(zip(sessions, news, strict=True))
        ]
        for request, logps in zip(reads, one.read(reads), strict=True):
            whole = list(request.session.ids)
            expected = plain.read([Read(plain.open(), whole, request.keep)])[0]
            assert fusing.gap(logps, expected) < 1e-3
    assert one.refused is None
    one.forget()
    one.read([Read(sessions[0], IDS[40:41])])
    assert one.refused is None


@needs_cuda
def test_a_model_that_waits_is_read_eagerly() -> None:
    plain = on_cuda()
    one = StaticMember(plain)
    session = one.open()
    with waiting(plain.model):
        one.read([Read(session, IDS[:9])])
        with pytest.warns(RuntimeWarning, match=r"it waits for the device \(test_cuda_graphs"):
            (logps,) = one.read([Read(session, IDS[9:10])])
    assert fusing.gap(logps, plain.read([Read(plain.open(), IDS[:10])])[0]) < 1e-3
    is_usable()


@needs_cuda
def test_a_capture_that_fails_leaves_the_device_usable() -> None:
    """`synchronize` is not among the waits that torch reports."""
    ones = torch.ones(3, device="cuda")

    def step() -> tuple[Tensor, ...]:
        torch.cuda.synchronize()
        return (ones * torch.rand(3, device="cuda"),)

    before, capture = torch.cuda.current_stream(), CudaGraphs(ones.device)
    with pytest.raises(RuntimeError) as found:
        capture(step)
    assert "captur" in str(first_cause(found.value))
    assert torch.cuda.current_stream() == before
    is_usable()
    with pytest.raises(ZeroDivisionError):
        capture(lambda: (ones * (1 // 0),))
    assert capture(lambda: (ones * 3,))()[0].tolist() == [3, 3, 3]


@needs_cuda
def test_graphs_are_captured_by_any_thread_and_after_all_are_gone() -> None:
    ones = torch.ones(3, device="cuda")
    capture = CudaGraphs(ones.device)
    found: list[Any] = []
    for scale in (2, 3):
        thread = threading.Thread(target=lambda s=scale: found.append(capture(lambda: (ones * s,))))
        thread.start()
        thread.join()
        assert found[-1]()[0].tolist() == [scale] * 3
        found.clear()
        gc.collect()
        assert not capture._graphs


@needs_cuda
@pytest.mark.parametrize(
    "arguments", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}], ids=str
)
@pytest.mark.parametrize("settings", [{}, {"draft": "reference"}, {"heads": "pruned"}], ids=str)
def test_answers_are_those_of_eager_steps(arguments: Any, settings: Any) -> None:
    pairs = [pico.tiny_pair("mistral", "llama"), pico.tiny_pair("tekken", "gemma3")]
    models: list[Any] = [model for model, _ in pairs]
    for model in models:
        model.to("cuda")
    static, eager = (
        Pack.from_pretrained(pairs, steps=steps, progress=False, **settings)
        for steps in ("auto", "eager")
    )
    assert all(isinstance(member, StaticMember) for member in static.members)
    for prompt in ("The capital of France", ["def add(a, b):", "Two and two are", "one"]):
        found, expected = (
            pack.generate(prompt, max_new_tokens=12, **arguments) for pack in (static, eager)
        )
        pairs_of = (
            zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
        )
        assert all(one.token_ids == other.token_ids for one, other in pairs_of)
    assert static.generate("one", max_new_tokens=1).record.eager_members == {}


@needs_cuda
def test_memory_is_freed_with_the_pack() -> None:
    member, found = on_cuda(), list[int]()
    # The first pack also leaves the workspaces of cuBLAS behind, once for the process.
    for _ in range(4):
        pack = Pack([member], progress=False)
        pack.generate("The capital of France", max_new_tokens=4)
        used = torch.cuda.memory_allocated()
        pack.close()
        del pack
        gc.collect()
        found.append(torch.cuda.memory_allocated())
        assert found[-1] < used
    assert max(found[1:]) - found[0] < 2**20
