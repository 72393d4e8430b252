"""Any number of threads over every entrance of one pack: each answer is the one it gives alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.llms.packfuse import PackFuse
from transformers import pipeline

from packfuse import Pack
from tests.support import packs
from tests.support.quick import quick

LENGTH = 8
PROMPTS = (
    "The capital of France is",
    "The capital of Italy is",
)
CALLS: tuple[dict[str, Any], ...] = (
    {},
    {"fusion": "unite"},
    {"fusion": "mixture", "gate": "safe"},
    {"weights": {"mistral": 0.3, "deepseek": 0.7}},
    {"weighting": "uniform", "draft": "lookup"},
    {"temperature": 1.2, "seed": 5},
    {"num_beams": 2},
    {"constraint": {"enum": ["yes", "no"]}},
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"reference": "auto", "gate": "safe", "draft": "lookup", "heads": "pruned"},
    {},
)
Job = Callable[[], Any]


def jobs(pack: Pack) -> dict[str, Job]:
    """Calls through every entrance, under every kind of settings of a call."""
    llm = PackFuseLLM(pack=pack, max_tokens=LENGTH)
    chat = ChatPackFuse(pack=pack, max_tokens=LENGTH)
    index = PackFuse(pack=pack, max_new_tokens=LENGTH)
    model, tokenizer = pack.model, pack.tokenizer
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    greedy: dict[str, Any] = {"max_new_tokens": LENGTH, "do_sample": False}
    found: dict[str, Job] = {}
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        messages = [{"role": "user", "content": prompt}]
        found |= {
            f"model {number}": lambda ids=ids: model.generate(ids, **greedy).tolist(),
            f"forward {number}": lambda ids=ids: model(ids).logits.argmax(-1).tolist(),
            f"pipeline {number}": lambda prompt=prompt: pipe(prompt, **greedy),
            f"score {number}": lambda prompt=prompt: round(pack.score(prompt, " Paris"), 3),
            f"weigh {number}": lambda prompt=prompt: list(pack.weigh(prompt).weights),
            f"llm {number}": lambda prompt=prompt: llm.invoke(prompt),
            f"chat {number}": lambda prompt=prompt: chat.invoke(prompt).content,
            f"index {number}": lambda prompt=prompt: index.complete(prompt).text,
            f"chat stream {number}": lambda prompt=prompt: "".join(
                chunk.text for chunk in chat.stream(prompt)
            ),
        }
        for at, call in enumerate(CALLS):
            found[f"generate {number}.{at}"] = lambda prompt=prompt, call=call: (
                pack.generate(prompt, max_new_tokens=LENGTH, **call).text
            )
            if "num_beams" not in call:
                found[f"stream {number}.{at}"] = lambda messages=messages, call=call: "".join(
                    chunk.text for chunk in pack.stream(messages, max_new_tokens=LENGTH, **call)
                )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", quick(SETTINGS, 1), ids=lambda own: "-".join(own) or "defaults"
)
def test_answers_are_the_solo_ones(settings: dict[str, Any]) -> None:
    pack = packs.tiny_pack(packs.tiny_members(["mistral", "deepseek"]), **settings)
    own = jobs(pack)
    alone = {name: job() for name, job in own.items()}
    order = [*own, *reversed(own)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda name: (name, own[name]()), order))
    assert [name for name, answer in together if answer != alone[name]] == []
