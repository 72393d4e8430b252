"""Members are tested when they are loaded: reading in steps and in batches must not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV32Config,
    JambaConfig,
    MambaConfig,
    MiniMaxConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
    ZambaConfig,
)

from packfuse import Pack
from packfuse.errors import LoadError, TokenizerError
from packfuse.models.hf_member import HFMember
from packfuse.models.loading.self_test import self_test
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico
from tests.support.bytelevel import byte_tokenizer

TOKENIZER = byte_tokenizer(300)
USUAL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def _model(config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return model


WRONG: dict[str, Callable[[], Any]] = {
    "jamba": lambda: JambaConfig(
        **USUAL,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        num_experts=2,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    "zamba": lambda: ZambaConfig(
        **{**USUAL, "num_hidden_layers": 6},
        attn_layer_period=3,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
        n_mamba_heads=1,
    ),
    "recurrent_gemma": lambda: RecurrentGemmaConfig(
        **{**USUAL, "num_hidden_layers": 3}, lru_width=32, attention_window_size=16
    ),
    "minimax": lambda: MiniMaxConfig(
        **USUAL,
        head_dim=16,
        num_local_experts=2,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_architectures_that_differ_in_steps_or_batches_are_refused(kind: str) -> None:
    model = _model(WRONG[kind]())
    with pytest.raises(LoadError, match=f"{type(model).__name__}") as caught:
        Pack.from_pretrained([(model, TOKENIZER)], progress=False)
    assert "Mamba, RWKV" not in str(caught.value)


@pytest.mark.parametrize("kind", pico.ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_architectures_pass(kind: str, dtype: torch.dtype) -> None:
    model: Any = pico.tiny_model(TOKENIZER, kind)
    model = model.to(dtype)
    self_test(HFMember("one", model, Vocabulary(TOKENIZER, model.config.vocab_size)))


@pytest.mark.parametrize("context", [1, 2, 3, 5, 6])
def test_a_small_window_is_no_problem(context: int) -> None:
    pair = pico.tiny_model(TOKENIZER, context=context), TOKENIZER
    assert Pack.from_pretrained([pair], progress=False).context_window == context


@pytest.mark.parametrize("size", [64, 256, 299])
def test_a_tokenizer_that_is_wider_than_its_model_is_refused(size: int) -> None:
    model = pico.draw(
        "llama", 0, vocab_size=size, max_position_embeddings=64, tie_word_embeddings=False
    )
    with pytest.raises(TokenizerError, match=rf"3\d\d tokens.*{size}"):
        Pack.from_pretrained([(model, TOKENIZER)], progress=False)


def test_an_embedding_that_is_smaller_than_the_logits_is_found() -> None:
    model = pico.tiny_model(TOKENIZER)
    model.model.embed_tokens = torch.nn.Embedding(200, pico.HIDDEN)
    with pytest.raises(LoadError, match=r"member 'member'.*first tokens"):
        Pack.from_pretrained([(model, TOKENIZER)], progress=False)


def test_weights_that_are_not_numbers_are_found() -> None:
    model = pico.tiny_model(TOKENIZER)
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(LoadError, match="NaN"):
        Pack.from_pretrained([(model, TOKENIZER)], progress=False)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1), "does not take"),
        (
            lambda: RwkvConfig(
                vocab_size=320, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2
            ),
            "does not take",
        ),
        (lambda: DeepseekV32Config(**USUAL), "unsupported kind of KV cache: DynamicIndexedLayer"),
    ],
)
def test_a_cache_that_a_pack_cannot_use_is_named(config: Callable[[], Any], reason: str) -> None:
    model = _model(config())
    with pytest.raises(LoadError, match=reason) as caught:
        HFMember("one", model, Vocabulary(TOKENIZER, 320))
    assert "RWKV" not in caught.value.hint
