"""lm-eval's HFLM takes a pack as it is: likelihoods and generation, offline, on tasks in memory."""

from __future__ import annotations

from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest
import torch
from lm_eval import simple_evaluate  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.task import ConfigurableTask  # type: ignore[import-untyped]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

from packfuse.causal_lm.model import FusedForCausalLM
from tests.support import fusing
from tests.support.fusing import PROMPT, SHORT, Spec

pytestmark = pytest.mark.filterwarnings("ignore:.*")

PAIR: tuple[Spec, ...] = (("mistral", "gemma3", 0), ("deepseek", "llama", 1))
ANSWERS = [("The capital of France is", 0), ("One and one is", 1), ("def add(a, b):\n", 0)]
CHOICES = [
    [" Paris", " Rome"],
    [" three", " two, as everyone knows"],
    ["    return a + b", " 你好"],
]
PAIRS = [(q, c) for (q, _), choices in zip(ANSWERS, CHOICES, strict=True) for c in choices]
QUESTIONS = [
    {"question": question, "choices": choices, "answer": answer}
    for (question, answer), choices in zip(ANSWERS, CHOICES, strict=True)
]

either_reference = pytest.mark.parametrize("reference", [0, 1])


def harness(model: FusedForCausalLM, rows: int = 2) -> HFLM:
    return HFLM(pretrained=model, tokenizer=fusing.tokenizer(model), batch_size=rows)


def request(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def by_hand(model: FusedForCausalLM, context: list[int], new: list[int]) -> tuple[float, bool]:
    """The log-probability of `new` after `context`, in one row alone, and whether it is greedy."""
    logits = model(torch.tensor([[*context, *new[:-1]]])).logits[0, len(context) - 1 :]
    wanted = torch.tensor(new)
    greedy = bool(logits.argmax(-1).equal(wanted))
    return float(logits.gather(1, wanted[:, None]).sum()), greedy


@either_reference
def test_loglikelihood(reference: int) -> None:
    """Rows of several lengths in one batch, padded on the right."""
    model = fusing.fused(PAIR, reference)
    requests = [request("loglikelihood", *pair) for pair in PAIRS]
    for rows in (1, 4):
        lm = harness(model, rows)
        found = lm.loglikelihood(requests, disable_tqdm=True)
        for pair, (logp, greedy) in zip(PAIRS, found, strict=True):
            expected, is_greedy = by_hand(model, *lm._encode_pair(*pair))
            assert logp == pytest.approx(expected, abs=1e-2)
            assert greedy == is_greedy


def test_a_greedy_continuation_is_recognized() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    written = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :].tolist()
    lm = harness(model)
    for new, expected in ((written, True), ([*written[:2], written[2] + 1], False)):
        tokens = (("", ""), ids[0].tolist(), new)
        [(logp, greedy)] = lm._loglikelihood_tokens([tokens], disable_tqdm=True)
        assert greedy == expected
        assert logp == pytest.approx(by_hand(model, ids[0].tolist(), new)[0], abs=1e-2)


@either_reference
def test_rolling_loglikelihood(reference: int) -> None:
    model = fusing.fused(PAIR, reference)
    text = "A text that is scored from its first word on."
    lm = harness(model)
    [found] = lm.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True)
    expected, _ = by_hand(model, [lm.prefix_token_id], lm.tok_encode(text))
    assert found == pytest.approx(expected, abs=1e-2)


@either_reference
def test_generate_until(reference: int) -> None:
    model = fusing.fused(PAIR, reference)
    tokenizer = fusing.tokenizer(model)
    settings = {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False}
    requests = [request("generate_until", text, settings) for text in (PROMPT, SHORT, "a")]
    found = harness(model).generate_until(requests, disable_tqdm=True)
    for text, answer in zip((PROMPT, SHORT, "a"), found, strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert answer == tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.slow
def test_a_whole_evaluation() -> None:
    model = fusing.fused(PAIR)
    task = ConfigurableTask(
        config={
            "task": "tiny",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(QUESTIONS)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "target_delimiter": "",
        }
    )
    lm = harness(model)
    results = simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)
    right = 0
    for question, answer in ANSWERS:
        scores = [by_hand(model, *lm._encode_pair(*p))[0] for p in PAIRS if p[0] == question]
        right += scores.index(max(scores)) == answer
    assert results["results"]["tiny"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
