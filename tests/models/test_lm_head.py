"""Selected logits equal those of the whole model, for many model families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from packfuse.hf_compat.models import output_cache
from packfuse.models.compute.lm_head import LMHead
from tests.support import small
from tests.support.heads import COLUMNS, FAMILIES, family
from tests.support.scripted import Scripted

IDS = torch.randint(0, COLUMNS, (3, 7), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.tensor([0, 6, 8, 13, 13, 20, 1])

every_family = pytest.mark.parametrize("name", FAMILIES)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(IDS).logits
    return out


@every_family
def test_selected_positions_have_the_models_logits(name: str) -> None:
    model = family(name)
    lm_head = LMHead(model)
    assert lm_head.replaceable
    for count in range(len(POSITIONS) + 1):
        selected = logits(lm_head.select(POSITIONS[:count]))
        assert selected.shape == (1, count, COLUMNS)
        expected = logits(model).flatten(0, 1)[POSITIONS[:count]]
        assert torch.allclose(selected[0], expected, atol=1e-5)


@every_family
def test_body_and_lm_head_run_one_after_the_other(name: str) -> None:
    """Soft caps and scales are applied, and the model is not altered."""
    model = family(name)
    lm_head, expected = LMHead(model), logits(model).flatten(0, 1)
    children = dict(model.named_modules())
    if name == "falcon-h1, multiplied":
        # Its forward reads a factor from its body.
        assert not lm_head.separable
        return
    assert lm_head.separable
    body, hidden = lm_head.body(POSITIONS)
    logits(body)
    for some in (POSITIONS, POSITIONS[:1], POSITIONS[:0]):
        assert torch.allclose(lm_head.logits(hidden()[: len(some)]), expected[some], atol=1e-5)
    assert dict(model.named_modules()) == children
    assert logits(model).flatten(0, 1).equal(expected)


def test_what_is_done_between_body_and_head_keeps_them_together() -> None:
    class Between(LlamaForCausalLM):
        def forward(self, *arguments: Any, **given: Any) -> Any:
            output = self.model(*arguments, **given)
            return CausalLMOutputWithPast(logits=self.lm_head(output.last_hidden_state / 7))

    class Asking(LlamaForCausalLM):
        def forward(self, *arguments: Any, **given: Any) -> Any:
            output = self.model(*arguments, **given)
            return CausalLMOutputWithPast(
                logits=self.lm_head(output[0]) + len(output_cache(output))
            )

    config: Any = family("llama").config
    assert not LMHead(Between(config).eval()).separable
    assert not LMHead(Asking(config).eval()).separable
    assert LMHead(Between(config).eval()).replaceable


@every_family
def test_the_model_stays_as_it_was(name: str) -> None:
    model = family(name)
    before, own = logits(model), model.get_output_embeddings()
    children = dict(model.named_modules())
    twin = LMHead(model).select(POSITIONS)
    assert logits(twin).shape != before.shape
    assert model.get_output_embeddings() is own
    assert dict(model.named_modules()) == children
    assert logits(model).equal(before)
    assert twin.get_input_embeddings() is model.get_input_embeddings()


def test_hooks_on_the_head_still_run() -> None:
    model = family("llama")
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: output * 2)
    selected = logits(LMHead(model).select(POSITIONS))
    assert torch.allclose(selected[0], logits(model).flatten(0, 1)[POSITIONS], atol=1e-5)


def test_a_forward_that_was_put_into_the_object_is_left_alone() -> None:
    """It is bound to the object for which it was made, and would use the LM head of that object."""
    model = family("llama")
    model.forward = model.forward
    assert not LMHead(model).replaceable


def test_a_model_without_a_head_of_its_own_is_left_alone() -> None:
    assert not LMHead(Scripted(small.vocabulary("long"), str)).replaceable


def test_a_head_deeper_inside_is_left_alone() -> None:
    class Deep(LlamaForCausalLM):
        def get_output_embeddings(self) -> Any:
            return self.model.embed_tokens

    config: Any = family("llama").config
    assert not LMHead(Deep(config)).replaceable
