"""Models that are loaded already, in all the wrappers that people have."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import (  # type: ignore[import-untyped]
    cpu_offload,
    dispatch_model,
    init_empty_weights,
)
from torch import nn
from transformers import LlamaForCausalLM, pipeline

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError
from tests.support import pico
from tests.support.quick import quick

PROMPT = "The capital of France is"


def pair(seed: int = 0) -> tuple[Any, Any]:
    return pico.tiny_pair("mistral", seed=seed)


def answer(models: Any, **settings: Any) -> list[int]:
    pack = Pack.from_pretrained(models, progress=False, **settings)
    ids: list[int] = pack.generate(PROMPT, max_new_tokens=8).token_ids
    return ids


def _compiled(model: Any) -> Any:
    return torch.compile(model)


def _compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def _offloaded(model: Any) -> Any:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def _partly_offloaded(model: Any) -> Any:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    import tempfile

    return dispatch_model(
        model,
        places,
        main_device="cpu",
        offload_dir=tempfile.mkdtemp(),
        force_hooks=True,
    )


@pytest.mark.parametrize("draft", [None, "reference"])
@pytest.mark.parametrize(
    "wrapper",
    quick([_compiled, nn.DataParallel, _partly_offloaded, _compiled_in_place, _offloaded], 3),
)
@pytest.mark.filterwarnings("ignore:a pack runs a compiled model:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_wrapped_model_answers_like_the_model(
    wrapper: Callable[[Any], Any], draft: str | None
) -> None:
    expected = answer([pair(), pico.tiny_pair("deepseek")], reference="auto")
    model, tokenizer = pair()
    found = answer([(wrapper(model), tokenizer), pico.tiny_pair("deepseek")], draft=draft)
    assert found == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_wrapper_of_torch_compile_is_said_to_be_left_out() -> None:
    model, tokenizer = pair()
    with pytest.warns(RuntimeWarning, match="compiled=True"):
        answer([(torch.compile(model), tokenizer)])


def test_pairs_come_as_tuples_lists_and_pipelines() -> None:
    model, tokenizer = pair()
    expected = answer([(model, tokenizer)])
    assert answer([[model, tokenizer]]) == expected
    assert answer([pipeline("text-generation", model=model, tokenizer=tokenizer)]) == expected


@pytest.mark.parametrize(
    ("models", "error", "reason"),
    [
        (lambda m, t: [m, t], ConfigError, "comes with its tokenizer"),
        (lambda m, t: [m], ConfigError, "comes with its tokenizer"),
        (lambda m, t: (m, t), ConfigError, "comes with its tokenizer"),
        (lambda m, t: [(m,)], ConfigError, "is not a loaded model"),
        (lambda m, t: [(t, m)], ConfigError, "is not a loaded model"),
        (lambda m, t: [(m, m)], ConfigError, "not a tokenizer"),
        (lambda m, t: [None], ConfigError, "None is not a model"),
        (lambda m, t: [t], ConfigError, "is not a model"),
        (lambda m, t: [(m, t), "name"], ConfigError, "cannot be mixed"),
        (lambda m, t: [(nn.Linear(1, 1), t)], LoadError, "Linear is not a transformers model"),
        (lambda m, t: pipeline("text-generation", model=m, tokenizer=t), ConfigError, "a list"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_way(
    models: Callable[[Any, Any], Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        Pack.from_pretrained(models(*pair()), progress=False)


def test_a_model_without_weights_is_refused() -> None:
    model, tokenizer = pair()
    with init_empty_weights():
        empty = LlamaForCausalLM(model.config)
    with pytest.raises(LoadError, match="weights are not loaded"):
        Pack.from_pretrained([(empty, tokenizer)], progress=False)


def test_offloaded_members_draft_with_their_own_weights(tmp_path: Path) -> None:
    folder = pico.save_tiny(tmp_path / "one", "mistral")
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    entry = {"model": str(folder), "device_map": places, "offload_folder": tmp_path / "disk"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert answer([entry], draft="reference") == answer([str(folder)])
