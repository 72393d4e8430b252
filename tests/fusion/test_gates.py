"""Gates: at which positions the members are fused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.fusion.gates import gates
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.gates.every import Every
from packfuse.fusion.gates.safe import Safe
from packfuse.fusion.pooling import FusedPosition
from packfuse.fusion.sequence import PackSequence
from packfuse.settings import PackConfig
from packfuse.text.continuation import Continuation
from tests.support import fusing
from tests.support.packs import tiny_members, tiny_pack

PROMPT = "one two three four one two three  four\n    one"
NEW = 24


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Two tiny members; the reference's first choice is often not the fused one."""
    weights = {"mistral": 0.4, "deepseek": 0.6}
    return tiny_pack(
        tiny_members(["mistral", "deepseek"]),
        reference="mistral",
        weighting=weights,
        prefix_cache=0,
    )


def positions(
    pack: Pack, gate: Any, forced: Continuation | None = None
) -> list[tuple[FusedPosition, int, float]]:
    """Every position of an answer: (position, token, least probability of a token boundary).

    The answer is greedy, or `forced`.
    """
    seen: list[tuple[FusedPosition, float]] = []

    def watch(row: PackSequence, position: FusedPosition) -> None:
        cuts = [r.straddle.cut for r in row.streams if r and r.straddle]
        seen.append((position, min(cuts, default=1.0)))

    model = pack.model
    weights = torch.tensor([0.4, 0.6])
    cache = fusing.cache(model, observer=watch, gate=gates().make(gate), forward_weights=weights)
    head = forced.head if forced else model.engine.reference.encode(PROMPT)
    ids, written = torch.tensor([head]), list[int]()
    for step in range(len(forced.new) if forced else NEW):
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        if forced:
            ids = torch.tensor([[forced.new[step]]])
        written.append(int(ids))
    return [(position, token, cut) for (position, cut), token in zip(seen, written, strict=True)]


def test_members_are_fused_where_the_gate_is_open_and_nowhere_else(pack: Pack) -> None:
    opened = 0
    for position, _, cut in positions(pack, "safe"):
        own = position.logps[0]
        fused = pack.runtime.parts.rule.fuse(position.logps[:, None], torch.tensor([[0.4, 0.6]]))[0]
        first = position.logps.argmax(-1).tolist()
        expected = cut >= 0.5 and first[0] != first[1]
        assert position.is_fused == expected
        assert position.fused.equal(fused if expected else own)
        opened += expected
    assert 0 < opened <= NEW


@pytest.mark.parametrize("gate", [Safe(), Every()])
def test_the_score_of_a_text_is_the_sum_over_its_positions(pack: Pack, gate: Gate) -> None:
    """At each position: the fused log-probability if the gate is open, else the reference's."""
    text = " one two\n    three, four:\tseven  eight"
    vocabulary = pack.members[0].vocabulary
    asked = Continuation.of(vocabulary, PROMPT, text)
    ids = torch.tensor([[*asked.head, *asked.new[:-1]]])
    with torch.no_grad():
        logits = pack.members[0].model(ids, use_cache=False).logits
    bare = logits[0, len(asked.head) - 1 :, : vocabulary.size].log_softmax(-1)
    total, opened = 0.0, 0
    forced = positions(pack, "every", asked)
    for (position, token, cut), own in zip(forced, bare, strict=True):
        best = position.logps.argmax(-1).tolist()
        is_open = {"every": True, "safe": cut >= 0.5 and best[0] != best[1]}[gate.name]
        opened += is_open
        total += float(position.fused[token] if is_open else own[token])
    assert gate.name == "every" or 0 < opened < len(asked.new)
    assert pack.score(PROMPT, text, gate=gate) == pytest.approx(total, abs=1e-3)
    setting = replace(Setting.of(pack), gate=gate)
    scores = (
        ScoringSystem(pack, {"gated": setting}).scored_prompts(PROMPT, [text]).under(setting).scores
    )
    assert scores.logps[0, 0] == pytest.approx(total, abs=1e-3)
    assert scores.fused[0, 0] == pytest.approx(opened / len(asked.new))


def test_every_position_is_fused_by_default(pack: Pack) -> None:
    record = pack.generate(PROMPT, max_new_tokens=NEW).record
    assert (record.gate, record.fused) == ({"name": "every"}, 1.0)
    assert all(position.is_fused for position, _, _ in positions(pack, "every"))


@pytest.mark.parametrize("draft", [None, "reference", "members", "auto"])
def test_the_record_has_the_fused_share_and_drafts_do_not_change_it(
    pack: Pack, draft: str | None
) -> None:
    usual = pack.generate(PROMPT, max_new_tokens=NEW, gate="safe")
    found = pack.generate(PROMPT, max_new_tokens=NEW, gate="safe", draft=draft)
    assert found.token_ids == usual.token_ids
    assert found.record.fused == usual.record.fused
    assert found.record.fused is not None
    assert 0 <= found.record.fused < 1
    assert found.record.gate["name"] == "safe"


class Shut(Gate):
    """A gate that is never open."""

    name: ClassVar[str] = "shut"
    source: ClassVar[str] = "this test"

    def opens(
        self, logps: Tensor, weights: Tensor, reference_logps: Tensor, at_boundary: Tensor
    ) -> Tensor:
        return torch.zeros_like(at_boundary)


def test_with_a_gate_that_never_opens_the_reference_answers_alone(pack: Pack) -> None:
    shut = pack.generate(PROMPT, max_new_tokens=NEW, gate=Shut())
    alone = {"mistral": 1.0, "deepseek": 0.0}
    own = pack.generate(PROMPT, max_new_tokens=NEW, weights=alone)
    assert shut.token_ids == own.token_ids
    assert shut.record.fused == 0
    # The same gate applies to scores.
    assert pack.score(PROMPT, " two", gate=Shut()) == pytest.approx(
        pack.score(PROMPT, " two", weights=alone), abs=1e-4
    )


@given(st.data())
def test_gates_by_their_definitions(data: st.DataObject) -> None:
    members, count, size = (data.draw(st.integers(1, 4)) for _ in range(3))
    seed = data.draw(st.integers(0, 2**31))
    made = torch.Generator().manual_seed(seed)
    logps = torch.randn(members, count, size, generator=made).log_softmax(-1)
    weights = (torch.rand(count, members, generator=made) > 0.4).float()
    at_boundary = torch.rand(count, generator=made) > 0.4
    reference = data.draw(st.integers(0, members - 1))
    own = logps[reference]
    safe = Safe().opens(logps, weights, own, at_boundary).tolist()
    for n in range(count):
        best = int(own[n].argmax())
        differs = any(
            int(logps[k, n].argmax()) != best for k in range(members) if weights[n, k] > 0
        )
        assert safe[n] == (bool(at_boundary[n]) and differs)
    assert Every().opens(logps, weights, own, at_boundary).all()


def test_gates_are_settings(pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"unknown gate 'saef'.*did you mean 'safe'"):
        pack.generate(PROMPT, gate="saef")
    with pytest.raises(ConfigError, match="gate 'safe': least"):
        pack.generate(PROMPT, gate={"name": "safe", "least": 0})
    config = PackConfig.check({"members": ["a"], "gate": {"name": "safe"}})
    assert gates().make(config.gate) == Safe()
