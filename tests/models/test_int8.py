"""Quantized copies: of layers that the kernel can compute, used only where they agree."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from packfuse.errors import MemberError
from packfuse.models.hf_member import HFMember
from packfuse.models.int8 import Int8Linear, drafting_copy, int8_copy
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico
from tests.support.bytelevel import byte_tokenizer
from tests.support.packs import tiny_members, tiny_pack

TOKENIZER = byte_tokenizer(300)
PROMPT = "The capital of France is"


def _member(width: int = 32, **changes: Any) -> HFMember:
    """A tiny Llama with feed-forward layers of a width."""
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "intermediate_size": width,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        **changes,
    }
    return HFMember("one", _drawn(settings), Vocabulary(TOKENIZER, 320))


def _drawn(settings: dict[str, Any]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    usual = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**usual, **settings})).eval()


@pytest.mark.parametrize("width", [16, 17, 24, 31, 40, 48, 50, 96])
def test_only_layers_of_a_width_that_the_kernel_reads_are_quantized(width: int) -> None:
    member = _member(width)
    copied = int8_copy(member)
    down = copied.model.model.layers[0].mlp.down_proj
    assert isinstance(down, Int8Linear) == (width % 16 == 0)
    ids = torch.tensor([member.vocabulary.encode(PROMPT)])
    with torch.no_grad():
        exact, nearly = (one.model(ids).logits for one in (member, copied))
    assert float((exact - nearly).abs().max()) < 0.1 * float(exact.abs().max())


@pytest.mark.parametrize("shape", [(1, 3, 32), (2, 1, 32), (4, 32)])
def test_inputs_need_not_be_contiguous(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(32, 48)
    hidden = torch.randn(*shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    assert not hidden.is_contiguous()
    expected = linear(hidden)
    assert torch.allclose(Int8Linear(linear)(hidden), expected, atol=0.1)


class _Looks(nn.Linear):
    """A layer beside a linear one that looks at the weights of that."""

    def forward(self, hidden: Tensor) -> Tensor:
        other: Any = self.other
        found: Tensor = other(hidden.to(other.weight.dtype))
        return found


def test_a_copy_that_cannot_run_is_not_used_and_said_once() -> None:
    member = _member()
    layer = member.model.model.layers[0].mlp
    looking = _Looks(1, 1)
    looking.other = layer.gate_proj
    layer.gate_proj = looking
    with pytest.warns(RuntimeWarning, match=r"member 'one' drafts with its own weights.*weight"):
        assert drafting_copy(member) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert drafting_copy(member) is None


def test_a_copy_that_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    (member,) = tiny_members(["mistral"])

    def broken(hidden: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
        return torch.full((len(hidden), len(weight)), 1e37, dtype=torch.bfloat16)

    monkeypatch.setattr("packfuse.models.int8.int8_linear", broken)
    with pytest.raises(MemberError, match="of the probability differs"):
        int8_copy(member)
    with pytest.warns(RuntimeWarning, match="own weights"):
        assert drafting_copy(member) is None


def test_answers_are_the_same_where_no_copy_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny_pack(tiny_members(["mistral", "deepseek"])).generate(PROMPT, max_new_tokens=8)
    monkeypatch.setattr("packfuse.models.int8._problem", lambda *_: "it does not agree")
    pack = tiny_pack(tiny_members(["mistral", "deepseek"]), draft="reference")
    with pytest.warns(RuntimeWarning, match="it does not agree"):
        found = pack.generate(PROMPT, max_new_tokens=8)
    assert found.token_ids == expected.token_ids


def test_quantized_weights_stay_as_they_are() -> None:
    """Members of torchao draft with their own weights."""
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    member = _member()
    model = member.model
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    copied = int8_copy(HFMember("one", model, member.vocabulary))
    assert not any(isinstance(module, Int8Linear) for module in copied.model.model.modules())
    pair = pico.tiny_pair("mistral")
    torchao.quantize_(pair[0], torchao.Int8WeightOnlyConfig())
    plain = tiny_pack([HFMember("one", pair[0], Vocabulary(pair[1], pico.padded_size(pair[1])))])
    drafted = tiny_pack(plain.members, draft="reference")
    one, other = (p.generate(PROMPT, max_new_tokens=8).token_ids for p in (plain, drafted))
    assert one == other
