"""Linear layers by oneDNN give the results of torch's own linear layer."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from packfuse.models.compute import onednn
from packfuse.models.compute.onednn import OneDNNLinear, product
from packfuse.models.int8 import int8_copy
from packfuse.models.member import Read
from tests.support import fusing
from tests.support.packs import tiny_member, tiny_pack

IDS = [3, 20, 7, 9, 41, 5, 6]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_any_sizes(count: int, out: int, width: int, biased: bool) -> None:
    given, weight, bias = noise(count, width), noise(out, width), noise(out) if biased else None
    found = product(given, weight, bias)
    assert found.is_contiguous()
    expected = given.double() @ weight.double().t() + (0 if bias is None else bias.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out", [49152, 50257])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 33, 130])
def test_large_weights(count: int, out: int) -> None:
    """Of the sizes for which oneDNN has other ways than for small ones."""
    given, weight = noise(count, 96), noise(out, 96)
    expected = given.double() @ weight.double().t()
    torch.testing.assert_close(product(given, weight).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many vectors each product had."""
    counts: list[int] = []

    def count(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        counts.append(len(given))
        return product(given, weight, bias)

    monkeypatch.setattr(onednn, "product", count)
    return counts


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 6), (1, 70, 6)])
def test_layers_of_every_shape(counted: list[int], shape: tuple[int, ...], bias: bool) -> None:
    layer, given = nn.Linear(6, 10, bias=bias), noise(*shape)
    expected = layer(given).detach()
    with OneDNNLinear(), torch.no_grad():
        found = layer(given)
    assert counted == [given.numel() // 6]
    torch.testing.assert_close(found, expected)


def test_what_it_is_not_for_goes_its_usual_way(counted: list[int]) -> None:
    layer = nn.Linear(6, 10)
    with OneDNNLinear(), torch.no_grad():
        layer(torch.empty(0, 6))
        layer.double()(noise(2, 6).double())
        nn.Linear(6, 10, dtype=torch.bfloat16)(noise(2, 6).bfloat16())
        nn.Linear(6, 10, device="meta")(torch.empty(2, 6, device="meta"))
        functional.linear(noise(2, 6), noise(6))
        functional.linear(noise(2, 6), noise(6, 3).t())
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            layer(noise(2, 6))
        for bias in (noise(20)[::2], noise(1).expand(10), noise(1), noise(5, 10)):
            given = noise(5, 6)
            found = functional.linear(given, layer.weight, bias)
            assert torch.allclose(found, given @ layer.weight.t() + bias, atol=1e-5)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            layer(noise(2, 7))
    with OneDNNLinear():
        layer(noise(2, 6))
    with torch.no_grad():
        layer(noise(2, 6))
    assert counted == []


def test_gradients_are_the_same() -> None:
    layer, given = nn.Linear(6, 10), noise(3, 6).requires_grad_()
    layer(given).square().sum().backward()
    assert given.grad is not None
    expected = given.grad.clone()
    with OneDNNLinear():
        layer(given).square().sum().backward()
    torch.testing.assert_close(given.grad, 2 * expected)


def test_other_threads_go_on_as_they_did(counted: list[int]) -> None:
    layer = nn.Linear(6, 10)
    with OneDNNLinear(), torch.no_grad():
        other = threading.Thread(target=torch.no_grad()(lambda: layer(noise(2, 6))))
        other.start()
        other.join()
    assert counted == []


def test_members_read_with_it(counted: list[int]) -> None:
    """Every linear layer, its hooks included; the copies in 8-bit integers have none."""
    one = fusing.member("mistral")
    model: Any = one.model
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    seen: list[Any] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: seen.append(1))
    found = one.read([Read(one.open(), IDS, len(IDS))])[0]
    hook.remove()
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    assert counted == [len(IDS)] * len(layers)
    assert seen == [1]
    # Columns without a token have no probability.
    expected = expected.masked_fill(found.isneginf(), -torch.inf).log_softmax(-1)
    assert fusing.gap(found, expected) < 1e-4
    light = int8_copy(one)
    counted.clear()
    light.read([Read(light.open(), IDS, 1)])
    assert counted == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"num_beams": 2}, {"draft": "lookup"}], ids=str)
def test_answers_are_those_without_it(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, counted: list[int]
) -> None:
    pack = tiny_pack([tiny_member("mistral"), tiny_member("deepseek")])
    for prompt in ("one two three one two", ["one two", "The capital of France is"]):
        counted.clear()
        found = pack.generate(prompt, max_new_tokens=12, **arguments)
        assert len(counted) > 50
        with monkeypatch.context() as patch:
            counted.clear()
            patch.setattr(onednn, "ENABLED", False)
            plain = pack.generate(prompt, max_new_tokens=12, **arguments)
            assert counted == []
        both = (found, plain) if isinstance(found, list) else ([found], [plain])
        assert [one.token_ids for one in both[0]] == [other.token_ids for other in both[1]]
