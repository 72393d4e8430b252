"""The main job on the real starter pack: two models of different families, one text."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import pipeline

from packfuse import Pack
from packfuse.text.prompt import from_text
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.losses import prompt_loss
from packfuse.weighting.prompt_scores import PromptScores

if TYPE_CHECKING:
    from packfuse.models.member import Member
    from packfuse.weighting.methods.base import Evidence

pytestmark = pytest.mark.starter

PROMPTS = (
    "The capital of France is",
    "def factorial(n):\n    if n == 0:\n        return 1\n",
    "Question: A train travels 60 miles in 1.5 hours. How fast is it?\nAnswer:",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist",
)


@pytest.fixture(scope="module")
def pack(starter: Pack) -> Pack:
    """The starter pack with its default settings."""
    return starter


@pytest.fixture(scope="module")
def members(pack: Pack) -> list[Member]:
    """Its two members."""
    return pack.members


def test_the_pack_answers(pack: Pack) -> None:
    answer = pack.generate("The capital of France is", max_new_tokens=8)
    assert "Paris" in answer.text
    assert set(answer.record.weights) == {"SmolLM2-135M-Instruct", "gemma-3-270m"}
    assert min(answer.record.weights.values()) > 0


@pytest.mark.parametrize("reference", ["SmolLM2-135M-Instruct", "gemma-3-270m"])
@pytest.mark.parametrize(
    "prompt", ["def factorial(n):\n    if n == 0:", "class Stack:\n    def __init__(self):"]
)
@pytest.mark.slow
def test_generated_python_has_sound_indentation(members, reference: str, prompt: str) -> None:
    lines = (
        prompt + Pack(members, reference=reference).generate(prompt, max_new_tokens=40).text
    ).split("\n")
    # The length limit cuts the last statement; everything before it has to be Python.
    whole = "\n".join(lines[:-1]).rstrip()
    while whole.endswith((":", "else")):
        whole = whole.rsplit("\n", 1)[0].rstrip()
    assert whole.count("\n") >= prompt.count("\n") + 2
    ast.parse(whole)


@pytest.mark.parametrize("reference", ["SmolLM2-135M-Instruct", "gemma-3-270m"])
@pytest.mark.parametrize(
    "prompt",
    ["Die schönsten Städte Österreichs sind", "中国的首都是", "🦊🐻🐼 are emoji. More emoji: 🐶🐱"],
)
@pytest.mark.slow
def test_no_character_is_broken_while_streaming(members, reference: str, prompt: str) -> None:
    pack = Pack(members, reference=reference)
    chunks = [chunk.text for chunk in pack.stream(prompt, max_new_tokens=14)]
    whole = pack.generate(prompt, max_new_tokens=14)
    assert "".join(chunks) == whole.text
    # Only a character that the length limit cut may be incomplete, at the very end.
    assert "\ufffd" not in "".join(chunks).rstrip("\ufffd")
    assert not any("\ufffd" in chunk for chunk in chunks[:-1])


def test_a_pack_of_one_says_what_the_model_says_alone(members) -> None:
    for member in members:
        ids = torch.tensor([[*member.vocabulary.prefix_ids, *member.vocabulary.encode(PROMPTS[0])]])
        alone = member.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        answer = Pack([member]).generate(PROMPTS[0], max_new_tokens=12)
        assert answer.token_ids == tuple(alone[0, ids.shape[1] :].tolist())


def _evidence(pack: Pack, prompt: str) -> Evidence:
    """What the real members made of a prompt."""
    engine = pack.model.engine
    vocabularies = [member.vocabulary for member in pack.members]
    plain = from_text(prompt, vocabularies, engine.reference_index)
    row = engine.open(plain, pack.runtime.call)
    row.feed(plain.stream)
    ids = [reader.ids(row.text_ids, row.text) for reader in row.streams if reader]
    scoring = PromptScores(vocabularies, engine.view, ids, plain.texts, fit=True)
    engine.read_prompt(row, scoring.callbacks())
    return scoring.evidence("reference")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("pool", ["logit", "linear"])
def test_exact_is_never_worse_than_opt_on_real_logits(pack: Pack, prompt: str, pool: str) -> None:
    evidence = _evidence(pack, prompt)
    loss = prompt_loss(evidence, pool)
    assert loss is not None
    plain = {"shrinkage": 0.0}
    exact = weightings().make({"name": "exact", **plain}).fit(evidence, pool)
    opt = weightings().make({"name": "opt", **plain}).fit(evidence, pool)
    assert loss.value(exact) <= loss.value(opt) + 1e-9


def test_chat_ends_by_itself(pack: Pack) -> None:
    messages = [{"role": "user", "content": "Say hello in one short sentence."}]
    answer = pack.generate(messages, max_new_tokens=60)
    assert answer.record.finish_reason == "stop"
    assert answer.record.reference == "SmolLM2-135M-Instruct"
    assert "<|im_end|>" not in answer.text
    assert any("no chat template" in note for note in answer.record.notes)


def test_control_tokens_in_user_text_stay_text(pack: Pack) -> None:
    text = "The tag <|im_end|> and <end_of_turn> and <eos> are words here. Repeat:"
    record = pack.generate(text, max_new_tokens=1).record
    for member in pack.members:
        ids = [*member.vocabulary.prefix_ids, *member.vocabulary.encode(text)]
        assert record.usage.prompt_tokens_by_member[member.name] == len(ids)
        assert member.vocabulary.decode(ids).decode() == text


def test_a_transformers_pipeline_runs_on_the_pack(pack: Pack) -> None:
    generator = pipeline("text-generation", model=pack.model, tokenizer=pack.tokenizer)
    text = generator("The capital of France is", max_new_tokens=6, do_sample=False)
    assert "Paris" in text[0]["generated_text"]
