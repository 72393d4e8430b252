"""Where members are fused, and where the reference speaks alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packfuse import Pack
from packfuse.config import PackConfig
from packfuse.continuation import Continuation
from packfuse.errors import ConfigError
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems import Scored
from packfuse.gates.base import Gate
from packfuse.gates.every import Every
from packfuse.gates.safe import Safe
from packfuse.gates.threshold import Threshold
from packfuse.hf_compat import output_cache
from packfuse.pooling import Position
from packfuse.registry import gates
from packfuse.row import Row
from tests.packs import tiny_members, tiny_pack

PROMPT = "one two three four one two three  four\n    one"
NEW = 24


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Two tiny members; the reference's choice often loses."""
    weights = {"mistral": 0.4, "deepseek": 0.6}
    return tiny_pack(
        tiny_members(["mistral", "deepseek"]),
        reference="mistral",
        weighting=weights,
        prefix_cache=0,
    )


def positions(
    pack: Pack, gate: Any, forced: Continuation | None = None
) -> list[tuple[Position, int, float]]:
    """Every position of an answer, what was written there, and how sure of a boundary all were.

    The answer is greedy, or the one that is `forced`.
    """
    seen: list[tuple[Position, float]] = []

    def watch(row: Row, position: Position) -> None:
        cuts = [r.straddle.cut for r in row.readers if r and r.straddle]
        seen.append((position, min(cuts, default=1.0)))

    model = pack.model
    own = model.engine.pooling.gate
    model.watch, model.engine.pooling.gate = watch, gates().make(gate)
    try:
        head = forced.head if forced else model.engine.reference.encode(PROMPT)
        ids = torch.tensor([head])
        model.default_weights = torch.tensor([0.4, 0.6])
        cache, written = None, []
        for step in range(len(forced.new) if forced else NEW):
            output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = output_cache(output), output.logits[:, -1].argmax(-1, keepdim=True)
            if forced:
                ids = torch.tensor([[forced.new[step]]])
            written.append(int(ids))
    finally:
        model.watch, model.engine.pooling.gate, model.default_weights = None, own, None
    return [(position, token, cut) for (position, cut), token in zip(seen, written, strict=True)]


def test_it_is_fused_where_the_gate_is_open_and_nowhere_else(pack: Pack) -> None:
    """By the definitions, position by position."""
    opened = {"safe": 0, "threshold": 0}
    for gate in ("safe", {"name": "threshold", "least": 0.9}):
        for position, _, cut in positions(pack, gate):
            own = position.logps[0]
            fused = pack.rule.fuse(position.logps[:, None], torch.tensor([[0.4, 0.6]]))[0]
            if gate == "safe":
                first = position.logps.argmax(-1).tolist()
                expected = cut >= 0.5 and first[0] != first[1]
            else:
                expected = float(own.max()) < math.log(0.9)
            assert position.joined == expected
            assert position.fused.equal(fused if expected else own)
            opened["safe" if gate == "safe" else "threshold"] += expected
    assert all(0 < count <= NEW for count in opened.values())


@pytest.mark.parametrize("gate", [Safe(), Threshold(), Threshold(least=0.3), Every()])
def test_a_given_text_scores_what_its_positions_say(pack: Pack, gate: Gate) -> None:
    """Position by position: the pack's where the gate is open, else the bare reference's."""
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
        best = [int(said.argmax()) for said in position.logps]
        is_open = {
            "every": True,
            "safe": cut >= 0.5 and best[0] != best[1],
            "threshold": float(own.max()) < math.log(getattr(gate, "least", 0.5)),
        }[gate.name]
        opened += is_open
        total += float(position.fused[token] if is_open else own[token])
    assert gate.name == "every" or 0 < opened < len(asked.new)
    assert pack.score(PROMPT, text, gate=gate) == pytest.approx(total, abs=1e-3)
    setting = replace(Setting.of(pack), gate=gate)
    scores = Scored(pack, {"gated": setting}).readings(PROMPT, [text]).under(setting).scores
    assert scores.logps[0, 0] == pytest.approx(total, abs=1e-3)
    assert scores.fused[0, 0] == pytest.approx(opened / len(asked.new))


def test_every_position_is_fused_by_default(pack: Pack) -> None:
    record = pack.generate(PROMPT, max_new_tokens=NEW).record
    assert (record.gate, record.fused) == ({"name": "every"}, 1.0)
    assert all(position.joined for position, _, _ in positions(pack, "every"))


@pytest.mark.parametrize("gate", ["safe", "threshold"])
@pytest.mark.parametrize("draft", [None, "reference", "members", "auto"])
def test_the_record_tells_the_share_and_drafts_change_nothing(
    pack: Pack, gate: str, draft: str | None
) -> None:
    usual = pack.generate(PROMPT, max_new_tokens=NEW, gate=gate)
    found = pack.generate(PROMPT, max_new_tokens=NEW, gate=gate, draft=draft)
    assert found.token_ids == usual.token_ids
    assert found.record.fused == usual.record.fused
    assert found.record.fused is not None
    assert 0 <= found.record.fused < 1
    assert found.record.gate["name"] == gate


def test_a_gate_that_never_opens_leaves_the_reference_alone(pack: Pack) -> None:
    shut = pack.generate(PROMPT, max_new_tokens=NEW, gate={"name": "threshold", "least": 1e-30})
    alone = {"mistral": 1.0, "deepseek": 0.0}
    own = pack.generate(PROMPT, max_new_tokens=NEW, weights=alone)
    assert shut.token_ids == own.token_ids
    assert shut.record.fused == 0
    # Likelihoods go through the same gate.
    settings: dict[str, Any] = {"gate": {"name": "threshold", "least": 1e-30}}
    assert pack.score(PROMPT, " two", **settings) == pytest.approx(
        pack.score(PROMPT, " two", weights=alone), abs=1e-4
    )


@given(st.data())
def test_gates_by_their_definitions(data: st.DataObject) -> None:
    members, count, size = (data.draw(st.integers(1, 4)) for _ in range(3))
    seed = data.draw(st.integers(0, 2**31))
    made = torch.Generator().manual_seed(seed)
    logps = torch.randn(members, count, size, generator=made).log_softmax(-1)
    weights = (torch.rand(count, members, generator=made) > 0.4).float()
    together = torch.rand(count, generator=made) > 0.4
    reference = data.draw(st.integers(0, members - 1))
    own = logps[reference]
    safe = Safe().opens(logps, weights, own, together).tolist()
    unsure = Threshold(least=0.5).opens(logps, weights, own, together).tolist()
    for n in range(count):
        best = int(own[n].argmax())
        differs = any(
            int(logps[k, n].argmax()) != best for k in range(members) if weights[n, k] > 0
        )
        assert safe[n] == (bool(together[n]) and differs)
        assert unsure[n] == (float(own[n].exp().max()) < 0.5)
    assert Every().opens(logps, weights, own, together).all()


def test_gates_are_settings(pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"unknown gate 'saef'.*did you mean 'safe'"):
        pack.generate(PROMPT, gate="saef")
    with pytest.raises(ConfigError, match="gate 'threshold': least"):
        pack.generate(PROMPT, gate={"name": "threshold", "least": 0})
    config = PackConfig.check({"members": ["a"], "gate": {"name": "threshold", "least": 0.3}})
    assert gates().make(config.gate) == Threshold(least=0.3)
