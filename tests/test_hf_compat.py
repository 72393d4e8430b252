"""Names that differ between versions of transformers, whichever of them is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations import sdpa_attention

from packfuse.causal_lm.cache import FusedCache
from packfuse.hf_compat.models import (
    CACHE,
    COMPILE_ERRORS,
    cache_argument,
    compile_hindrance,
    compiled_call,
    grouped_attention,
    isolates_graphs,
    name_cache,
    output_cache,
)
from tests.support import fusing, pico
from tests.support.fusing import Spec


class Doubled(nn.Module):
    """A module that is compiled in no time."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


NAMES = ["cache", "past_key_values"]
PAIR: tuple[Spec, ...] = (("mistral", "llama", 0), ("deepseek", "llama", 1))


class Named(nn.Module):
    """A model with code of its own."""

    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:
        return input_ids, past_key_values


class Nameless(nn.Module):
    def forward(self, input_ids: Any) -> Any:
        return input_ids


def test_models_say_what_they_call_the_cache() -> None:
    assert cache_argument(pico.tiny_model(pico.real_tokenizer("mistral"))) == CACHE
    assert cache_argument(Named()) == "past_key_values"
    assert cache_argument(Nameless()) is None


@pytest.mark.parametrize("name", NAMES)
def test_either_name_is_understood(name: str) -> None:
    arguments: dict[str, Any] = {name: 1, "top_k": 2}
    name_cache(arguments)
    assert arguments == {CACHE: 1, "top_k": 2}


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="are one argument"):
        name_cache({"cache": 1, "past_key_values": 2})


@pytest.mark.parametrize("name", NAMES)
def test_a_fused_model_takes_the_cache_under_either_name(name: str) -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    whole = model(ids).logits[:, -1]
    cache = output_cache(model(ids[:, :-1], use_cache=True))
    assert fusing.gap(model(ids[:, -1:], **{name: cache}).logits[:, -1], whole) < 1e-4
    given = {name: FusedCache(), "max_new_tokens": 4, "do_sample": False}
    assert model.generate(ids, **given).tolist() == model.generate(
        ids, max_new_tokens=4, do_sample=False
    ).tolist()  # fmt: skip


def test_grouped_attention_ends_with_its_last_user() -> None:
    own, key = sdpa_attention.use_gqa_in_sdpa, torch.zeros(1, 1, 4, 8)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    before = own(mask, key, key)
    with grouped_attention():
        with grouped_attention():
            assert sdpa_attention.use_gqa_in_sdpa(mask, key, key)
        assert sdpa_attention.use_gqa_in_sdpa(mask, key, key)
        assert sdpa_attention.use_gqa_in_sdpa(mask, key.to("meta"), key.to("meta")) == before
    assert sdpa_attention.use_gqa_in_sdpa is own


@pytest.mark.parametrize("isolates", [True, False])
def test_graphs_of_one_call_do_not_count_for_another(
    isolates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch counts them by the code of a function (before 2.13)."""
    if isolates and not isolates_graphs():
        pytest.skip("this torch counts graphs by the code of a function")
    monkeypatch.setattr("packfuse.hf_compat.models.isolates_graphs", lambda: isolates)
    assert compile_hindrance(pico.tiny_model(pico.real_tokenizer("mistral"))) is None
    for _ in range(3):
        layer = Doubled()
        call = compiled_call(layer, 2, backend="eager", dynamic=False)
        for rows in (2, 3):
            assert torch.equal(call(values=torch.ones(rows, 2)), 2 * torch.ones(rows, 2))
        with pytest.raises(COMPILE_ERRORS):
            call(values=torch.ones(4, 2))
