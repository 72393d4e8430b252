"""Sampling with a seed: the same answer whatever else happens."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from scipy.stats import chi2

from packfuse import Pack
from packfuse.constraint import Regex
from tests.support.small import small_pack

PROMPTS = ["Hello", "the true lo", "he", "日本 and more"]
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 1.5},
    {"temperature": 1.2, "top_k": 0, "top_p": 0.9},
    {"do_sample": True, "num_return_sequences": 3},
    {"do_sample": True, "num_beams": 3},
    {"do_sample": True, "draft": "reference"},
    {"do_sample": True, "draft": "members"},
    {"do_sample": True, "prompt_lookup_num_tokens": 2},
    {"temperature": 2.0, "constraint": Regex("[a-z ]{6,}")},
]
every_kind = pytest.mark.parametrize("sampling", SAMPLING, ids="-".join)


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(weighting="uniform", prefix_cache=0)


def ids(pack: Pack, prompt: Any, **settings: Any) -> list[tuple[int, ...]]:
    found = pack.generate(prompt, **{"max_new_tokens": 8, "seed": 7, **settings})
    return [answer.token_ids for answer in (found if isinstance(found, list) else [found])]


@contextmanager
def noise(*others: Any) -> Iterator[None]:
    """Threads that draw random numbers, seed torch, and call other packs."""
    over = threading.Event()

    def draw() -> None:
        while not over.is_set():
            torch.rand(3)
            torch.manual_seed(1)
            for other in others:
                other()

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@every_kind
def test_a_seed_gives_one_answer_beside_other_threads(pack: Pack, sampling: dict[str, Any]) -> None:
    alone = ids(pack, PROMPTS[0], **sampling)
    torch.manual_seed(3)
    assert ids(pack, PROMPTS[0], **sampling) == alone
    other = small_pack(weighting="uniform", prefix_cache=0)
    with noise(lambda: other.generate("he", temperature=1.5, seed=1, max_new_tokens=2)):
        assert [ids(pack, PROMPTS[0], **sampling) for _ in range(3)] == [alone] * 3
    assert ids(pack, PROMPTS[0], **{**sampling, "seed": 8}) != alone


@every_kind
def test_torchs_random_numbers_are_left_alone(pack: Pack, sampling: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    ids(pack, PROMPTS[0], **sampling)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "sampling", [s for s in SAMPLING if "prompt_lookup_num_tokens" not in s], ids="-".join
)
def test_rows_of_a_batch_are_those_of_single_calls(pack: Pack, sampling: dict[str, Any]) -> None:
    alone = [row for prompt in PROMPTS for row in ids(pack, prompt, **sampling)]
    assert ids(pack, PROMPTS, **sampling) == alone


def test_drafts_and_padding_change_no_sample(pack: Pack) -> None:
    for seed in range(5):
        usual = ids(pack, PROMPTS[1], temperature=1.5, seed=seed)
        for draft in ("reference", "members", "lookup"):
            assert ids(pack, PROMPTS[1], temperature=1.5, seed=seed, draft=draft) == usual
        (first, *others) = ids(pack, PROMPTS[1], temperature=1.5, seed=seed, num_return_sequences=3)
        assert [first] == usual
        assert len({first, *others}) > 1


def test_seeds_at_the_ends_of_their_range(pack: Pack) -> None:
    found = [
        ids(pack, "Hello", temperature=3.0, seed=s) for s in (0, -1, 2**63, 2**64 - 1, -(2**63))
    ]
    assert len({str(one) for one in found}) > 2


def test_samples_have_the_distribution_of_the_pack(pack: Pack) -> None:
    """The first token of 400 seeds; the test fails by chance once in 10,000 runs."""
    fused = pack.generate("Hello", max_new_tokens=1, trace=True)
    assert fused.record.trace is not None
    sampling: dict[str, Any] = {"max_new_tokens": 1, "temperature": 1.0, "top_k": 4}
    counts = Counter(ids(pack, "Hello", **sampling, seed=seed)[0][0] for seed in range(400))
    inputs = torch.tensor([pack.members[0].vocabulary.encode("Hello")])
    logps = pack.model(inputs).logits[0, -1]
    best = logps.topk(4)
    expected = (best.values.softmax(-1) * 400).tolist()
    observed = [counts[token] for token in best.indices.tolist()]
    assert sum(observed) == 400
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert statistic < chi2.isf(1e-4, 3)
