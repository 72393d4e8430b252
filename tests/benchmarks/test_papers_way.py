"""The baseline of the speed benchmark writes what the papers' settings of a pack write."""

from __future__ import annotations

import pytest

from benchmarks.parts.papers import MINED, PUBLISHED, PapersWay
from packfuse.weighting.methods import weightings
from tests.support.packs import tiny_members, tiny_pack

PROMPT = "The quick brown fox jumps over the lazy dog.\nIt was 1234 days ago, naïve café!"
TOKENS = 24


@pytest.mark.parametrize(
    "names", [("mistral", "deepseek"), ("tekken", "mistral"), ("deepseek", "mistral", "tekken")]
)
def test_the_papers_way_is_a_packs(names: tuple[str, ...]):
    members = tiny_members(names, seed=1)
    # Random members are hopeless; the surer of two gets nothing at all.
    for member in members:
        member.model.get_output_embeddings().weight.data.mul_(0.4)
    way = PapersWay(members, names.index("mistral"))
    pack = tiny_pack(
        members, reference="mistral", alignment=MINED, weighting=weightings().make(PUBLISHED)
    )
    found = pack.generate(PROMPT, min_new_tokens=TOKENS, max_new_tokens=TOKENS)
    weights = way.weights(way.read(PROMPT))
    assert sum(weight > 0 for weight in weights) > 1
    assert list(found.record.weights.values()) == pytest.approx(weights, abs=1e-9)
    assert way.write(PROMPT, TOKENS) == list(found.token_ids)
