"""The settings of both papers against their formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from packfuse import Pack
from packfuse.alignment.mined import Mined
from packfuse.generation.prepared import ScoreOptions
from packfuse.generation.request import make_request
from packfuse.generation.runner import Runner
from packfuse.text.prompt import from_text
from packfuse.weighting.methods.base import FitLimits, Weighting
from packfuse.weighting.methods.opt import Opt
from packfuse.weighting.methods.sim import Sim
from packfuse.weighting.prefill import prefill
from tests.support import oracles_papers as papers
from tests.support.packs import tiny_members, tiny_pack

PROMPT = "The quick brown fox jumps over the lazy dog.\nIt was 1234 days ago, naïve café!"
STEPS = 20
TRIPLE = ("deepseek", "mistral", "tekken")


class Case:
    """Tiny models that share the reference "mistral", and the same models for the oracle."""

    def __init__(self, names: Sequence[str], seed: int, sure: Sequence[float] = ()) -> None:
        """`sure` is by member, how far apart its logits are."""
        self.members = tiny_members(names, seed)
        for member, factor in zip(self.members, sure, strict=bool(sure)):
            with torch.no_grad():
                member.model.get_output_embeddings().weight.mul_(factor)
        self.models = [papers.Model(m.model, m.vocabulary) for m in self.members]
        self.reference = names.index("mistral")

    def pack(self, **settings) -> Pack:
        return tiny_pack(self.members, reference="mistral", **settings)


def after_prompt(
    pack: Pack, weighting: Weighting, prompt: str = PROMPT
) -> tuple[list[float], Tensor]:
    """Weights, and the fused distribution after the prompt."""
    engine = pack.model.engine
    vocabularies = [member.vocabulary for member in engine.members]
    row, fit = prefill(
        engine,
        from_text(prompt, vocabularies, engine.reference_index),
        weighting,
        pack.runtime.call,
    )
    assert row.fused_logps is not None
    return fit.weights.tolist(), row.fused_logps.exp()


AS_PUBLISHED = Mined(controls="drop")


def as_dict(row: Tensor) -> dict[int, float]:
    return {token: p for token, p in enumerate(row.tolist()) if p > 0}


@pytest.mark.parametrize(
    ("names", "seed"),
    [(("mistral", "deepseek"), 2), (("tekken", "mistral"), 8), (TRIPLE, 1)],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("k", [10, 3])
def test_unite_is_the_papers(names: tuple[str, ...], seed: int, k: int):
    case = Case(names, seed)
    expected = papers.unite(case.models, case.reference, PROMPT, k, STEPS)
    rule = {"name": "unite", "k": k}
    pack = case.pack(fusion=rule, weighting="uniform", alignment="prefix")
    _, fused = after_prompt(pack, pack.runtime.parts.weighting)
    assert as_dict(fused) == pytest.approx(expected.distributions[0], abs=1e-5)
    found = pack.generate(PROMPT, max_new_tokens=STEPS)
    assert list(found.token_ids) == expected.ids
    # words from outside the reference's vocabulary have won along the way
    assert expected.foreign > 0


def faithful(**settings) -> Opt:
    whole: dict[str, Any] = dict.fromkeys(("positions", "candidates", "pieces"))
    return Opt(shrinkage=0, normalize="own", **whole, **settings)


def oracle(case: Case, pack: Pack) -> papers.PackLLM:
    engine = pack.model.engine
    everything = range(engine.reference.columns)
    maps = [pairing.map_ids(everything) for pairing in engine.pairings]
    return papers.PackLLM(case.models, case.reference, maps)


PACKLLM = [
    (("mistral", "deepseek"), (1, 1)),
    (("deepseek", "mistral"), (0.3, 0.6)),
    (("mistral", "tekken"), (0.01, 1)),  # the second is of no use
    (TRIPLE, (0.5, 0.2, 0.4)),
]
some_packs = pytest.mark.parametrize(
    ("names", "sure"), PACKLLM, ids=lambda value: "-".join(map(str, value))
)


@some_packs
@pytest.mark.parametrize("early_stop", [True, False], ids=["stop", "go on"])
def test_packllm_opt_is_the_papers(names: Sequence[str], sure: Sequence[float], early_stop: bool):
    case = Case(names, 1, sure)
    weighting = faithful(early_stop=early_stop)
    pack = case.pack(fusion="packllm", weighting=weighting, alignment=AS_PUBLISHED)
    paper = oracle(case, pack)
    weights, fused = after_prompt(pack, weighting)
    assert weights == pytest.approx(paper.opt(PROMPT, early_stop=early_stop), abs=1e-9)
    expected = paper.pooled(case.models[case.reference].read(PROMPT), weights)
    torch.testing.assert_close(fused[: len(expected)].double(), expected, atol=1e-6, rtol=1e-4)
    found = pack.generate(PROMPT, max_new_tokens=STEPS)
    assert list(found.token_ids) == paper.write(PROMPT, weights, STEPS)


@some_packs
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_packllm_sim_is_the_papers(names: Sequence[str], sure: Sequence[float], tau: float):
    case = Case(names, 1, sure)
    weighting = Sim(tau=tau, shrinkage=0, normalize="own")
    pack = case.pack(fusion="packllm", weighting=weighting, alignment=AS_PUBLISHED)
    paper = oracle(case, pack)
    weights, _ = after_prompt(pack, weighting)
    assert weights == pytest.approx(paper.sim(PROMPT, tau), abs=1e-5)
    found = pack.generate(PROMPT, max_new_tokens=STEPS)
    assert list(found.token_ids) == paper.write(PROMPT, weights, STEPS)


def test_a_long_prompt_is_fitted_in_full():
    """More positions than are kept by default."""
    case = Case(("deepseek", "mistral"), 1, (0.3, 0.6))
    prompt = PROMPT * 6
    pack = case.pack(fusion="packllm", weighting=faithful(), alignment=AS_PUBLISHED)
    paper = oracle(case, pack)
    assert len(case.models[case.reference].read(prompt)) - 1 > (FitLimits().positions or 0)
    weights, _ = after_prompt(pack, faithful(), prompt)
    assert weights == pytest.approx(paper.opt(prompt, early_stop=True), abs=1e-9)
    limited, _ = after_prompt(pack, faithful().model_copy(update={"positions": 1}), prompt)
    assert limited != weights


def test_members_are_scored_over_the_references_vocabulary():
    """The paper's perplexity: of mapped tokens, normalized over what the reference can say."""
    case = Case(TRIPLE, 1, (0.5, 0.2, 0.4))
    pack = case.pack(fusion="packllm", weighting=faithful(), alignment=AS_PUBLISHED)
    paper = oracle(case, pack)
    ids = case.models[case.reference].read(PROMPT)
    expected = paper.losses(ids, paper.logits(ids))
    record = pack.generate(PROMPT, max_new_tokens=1).record
    assert record.scored_tokens == len(ids) - 1
    assert record.prompt_loss is not None
    assert list(record.prompt_loss.values()) == pytest.approx(expected, abs=1e-4)


def test_the_reference_is_chosen_by_what_members_make_of_the_text():
    """Mapped tokens would speak for the reference at hand."""
    case = Case(("mistral", "deepseek"), 1, (0.3, 0.2))
    pack = tiny_pack(case.members, weighting="sim", alignment=AS_PUBLISHED)
    runner = Runner(pack.runtime, make_request(PROMPT, {}, pack.runtime.call))
    item = runner._read(0, PROMPT, 0, ScoreOptions(FitLimits(), fit_positions=False))
    found = runner._own_losses(item)
    assert found is not None
    reading = case.pack(weighting="sim").generate(PROMPT, max_new_tokens=1).record
    assert found.tolist() == pytest.approx(list((reading.prompt_loss or {}).values()))
    assert item.reading.losses is not None
    assert found[1] != pytest.approx(item.reading.losses[1])
    assert runner._better_reference(item) == found.argmin()
