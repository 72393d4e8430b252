"""Drafts change the number of the members' passes, and nothing else."""

from __future__ import annotations

import functools
import gc
import math
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from packfuse import Pack
from packfuse.causal_lm.drafts import drafts
from packfuse.causal_lm.drafts.base import Draft, DraftContext, Drafter, Proposal
from packfuse.causal_lm.drafts.length import DraftLength
from packfuse.causal_lm.drafts.lookup import repetition
from packfuse.constraint import Regex
from packfuse.errors import ConfigError
from packfuse.generation.output.result import Answer
from packfuse.models.hf_member import HFMember
from packfuse.models.int8 import int8_copy
from packfuse.models.member import Session
from packfuse.settings import PackConfig
from tests.support import pico
from tests.support.packs import tiny_member, tiny_pack, vocabulary
from tests.support.small import small_pack

PROMPT = "one two three four one two three four one two"
NEW = 24

KINDS = {
    "sliding": (("mistral", "gemma3"), ("deepseek", "llama")),
    "recurrent": (("mistral", "llama"), ("deepseek", "qwen3_next")),
    "convolutional": (("mistral", "lfm2"), ("deepseek", "llama")),
    "positions": (("mistral", "gpt2"), ("deepseek", "gemma3")),
}
every_draft = pytest.mark.parametrize("draft", drafts().parts)


class Scripted(Draft):
    """Proposes a known answer, with wrong tokens at given places."""

    name: ClassVar[str] = "scripted"
    source: ClassVar[str] = "these tests"

    answer: tuple[int, ...]
    prompt: int
    plan: tuple[tuple[int, int], ...]
    """By round: the number of tokens, and the index of the wrong one (none if out of range)."""

    def drafter(self, context: DraftContext) -> Drafter:
        return _ScriptedDrafter(context, self)


class _ScriptedDrafter(Drafter):
    def __init__(self, context: DraftContext, draft: Scripted) -> None:
        super().__init__(context)
        self.draft, self.round = draft, 0

    def propose(self, ids: Tensor, room: int) -> Proposal:
        done = ids.shape[1] - self.draft.prompt
        length, wrong = self.draft.plan[self.round % len(self.draft.plan)]
        self.round += 1
        tokens = list(self.draft.answer[done : done + min(length, room)])
        if wrong < len(tokens):
            tokens[wrong] = self.draft.answer[0]
        return Proposal(tokens)

    def update(self, drafted: int, accepted: int) -> None:
        assert 0 <= accepted <= drafted


def pair(kind: str, reference: int = 0, **more: Any) -> Pack:
    """Two members, of which the reference has most of the weight: its drafts are often right."""
    members = [tiny_member(name, arch, seed) for seed, (name, arch) in enumerate(KINDS[kind])]
    names = [member.name for member in members]
    weights = {name: 0.6 if k == reference else 0.4 for k, name in enumerate(names)}
    own = {"reference": names[reference], "weighting": weights, "prefix_cache": 0}
    return tiny_pack(members, **own, **more)


def same(one: Answer, other: Answer) -> None:
    """Equal in all but the time they took and the drafts; probabilities up to rounding."""
    assert one.token_ids == other.token_ids
    left, right = (
        answer.record.model_dump(exclude={"timings", "drafts", "trace"}) for answer in (one, other)
    )
    assert left == right
    for mine, its in zip(one.record.trace or [], other.record.trace or [], strict=True):
        assert mine.text == its.text
        assert mine.member_choices == its.member_choices
        assert mine.probability == pytest.approx(its.probability, abs=1e-4)
        assert mine.member_probabilities == pytest.approx(its.member_probabilities, abs=1e-4)


@functools.cache
def plain(kind: str, reference: int) -> Answer:
    """The answer of such a pack without drafts."""
    return pair(kind, reference).generate(PROMPT, max_new_tokens=NEW, trace=True)


@every_draft
@pytest.mark.parametrize("reference", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_without_drafts(kind: str, reference: int, draft: str) -> None:
    drafted = pair(kind, reference).generate(PROMPT, max_new_tokens=NEW, trace=True, draft=draft)
    usual = plain(kind, reference)
    same(drafted, usual)
    found = drafted.record.drafts
    assert found is not None
    assert found.method["name"] == draft
    assert found.accepted <= found.drafted
    assert draft == "lookup" or found.drafted > 0
    assert usual.record.drafts is None


@pytest.mark.parametrize("seed", range(4))
def test_in_bfloat16_drafts_decide_near_ties_only(seed: int) -> None:
    """Passes over several tokens round otherwise; up to the first other token nothing else does."""
    members = [
        HFMember(name, pico.tiny_pair(name, seed=seed)[0].bfloat16(), vocabulary(name))
        for name in ("mistral", "deepseek")
    ]
    pack = tiny_pack(members)
    usual = pack.generate(PROMPT, max_new_tokens=NEW, trace=True)
    script = Scripted(
        answer=usual.token_ids, prompt=usual.record.usage.prompt_tokens, plan=((7, 8),)
    )
    drafted = pack.generate(PROMPT, max_new_tokens=NEW, trace=True, draft=script)
    assert drafted.record.drafts
    assert drafted.record.drafts.accepted > 0
    for one, other in zip(usual.record.trace or [], drafted.record.trace or [], strict=False):
        assert abs(math.log(one.probability / other.probability)) < 0.3
        if one.text != other.text:
            break


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 8)), min_size=1, max_size=6),
    st.sampled_from([0, 1]),
    st.sampled_from(["  x = [1, 2]\n  y", "Straße, naïve 日本", PROMPT]),
)
@pytest.mark.slow
def test_drafts_that_are_wrong_anywhere(
    kind: str, plan: list[tuple[int, int]], reference: int, prompt: str
) -> None:
    """Sequences are cropped to any length and continued, straddle filters included."""
    pack = pair(kind, reference)
    usual = pack.generate(prompt, max_new_tokens=NEW, trace=True)
    script = Scripted(
        answer=usual.token_ids, prompt=usual.record.usage.prompt_tokens, plan=tuple(plan)
    )
    drafted = pack.generate(prompt, max_new_tokens=NEW, trace=True, draft=script)
    same(drafted, usual)
    right = all(wrong >= length for length, wrong in plan)
    assert drafted.record.drafts is not None
    if right:
        assert drafted.record.drafts.accepted == drafted.record.drafts.drafted


def test_right_drafts_save_passes() -> None:
    pack = pair("sliding")
    usual = pack.generate(PROMPT, max_new_tokens=NEW)
    script = Scripted(
        answer=usual.token_ids, prompt=usual.record.usage.prompt_tokens, plan=((5, 9),)
    )
    found = pack.generate(PROMPT, max_new_tokens=NEW, draft=script).record.drafts
    assert found is not None
    assert (found.rounds, found.accepted) == (NEW // 6, NEW - NEW // 6)


@pytest.mark.parametrize("draft", ["reference", "members"])
@pytest.mark.slow
def test_samples_have_the_packs_distribution(draft: str) -> None:
    """500 samples of two drafted tokens; the test fails by chance once in 10,000 runs."""
    plain, drafted = _draws(None), _draws(draft)
    # Rare samples share one cell, so that every cell has enough samples.
    cells = [cell for cell, count in plain.items() if count >= 15]
    expected = [plain[cell] for cell in cells] + [sum(plain.values())]
    expected[-1] -= sum(expected[:-1])
    observed = [drafted[cell] for cell in cells]
    observed.append(sum(drafted.values()) - sum(observed))
    # Both counts are samples, so the variance is twice that against known probabilities.
    both = [(o, e) for o, e in zip(observed, expected, strict=True) if o + e]
    statistic = sum((o - e) ** 2 / (o + e) for o, e in both)
    assert len(cells) > 3
    assert statistic < chi2.isf(1e-4, len(observed) - 1)


@functools.cache
def _draws(draft: str | None) -> Counter[tuple[int, ...]]:
    """Small vocabularies, and a reference half of whose drafted tokens are rejected."""
    pack = small_pack(weighting="uniform", prefix_cache=0)
    sampling = {"do_sample": True, "top_k": 3, "temperature": 1.5, "max_new_tokens": 3}
    texts = (pack.generate(PROMPT, draft=draft, seed=seed, **sampling) for seed in range(500))
    return Counter(answer.token_ids[1:] for answer in texts)


@every_draft
def test_a_seed_repeats_the_sample(draft: str) -> None:
    pack = pair("sliding")
    first, second = (
        pack.generate(PROMPT, temperature=1.0, seed=5, max_new_tokens=NEW, draft=draft)
        for _ in range(2)
    )
    assert first.token_ids == second.token_ids


@pytest.mark.parametrize("length", range(1, 8))
def test_a_stop_string_inside_an_accepted_draft(length: int) -> None:
    pack = pair("positions")
    usual = pack.generate(PROMPT, max_new_tokens=NEW)
    stop = usual.text[len(usual.text) // 2 :][:length]
    expected = pack.generate(PROMPT, max_new_tokens=NEW, stop=stop)
    assert expected.record.finish_reason == "stop"
    script = Scripted(
        answer=usual.token_ids, prompt=usual.record.usage.prompt_tokens, plan=((7, 9),)
    )
    found = pack.generate(PROMPT, max_new_tokens=NEW, stop=stop, draft=script)
    assert (found.text, found.record.finish_reason) == (expected.text, "stop")
    chunks = list(pack.stream(PROMPT, max_new_tokens=NEW, stop=stop, draft=script))
    assert "".join(chunk.text for chunk in chunks) == expected.text


@every_draft
def test_drafts_with_a_constraint(draft: str) -> None:
    """The prompt repeats itself, and the constraint forbids to continue like it."""
    pack = pair("sliding")
    held = {"constraint": Regex("( three four one){3} three x"), "max_new_tokens": 60}
    drafted = pack.generate(PROMPT, draft=draft, **held)
    assert drafted.text == " three four one three four one three four one three x"
    same(drafted, pack.generate(PROMPT, **held))


@pytest.mark.parametrize("processing", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}])
@every_draft
def test_scores_are_processed_before_drafts_are_compared(
    draft: str, processing: dict[str, Any]
) -> None:
    pack = pair("sliding")
    usual = pack.generate(PROMPT, max_new_tokens=NEW, **processing)
    same(pack.generate(PROMPT, max_new_tokens=NEW, draft=draft, **processing), usual)


def test_an_answer_cancelled_in_the_middle_of_a_draft() -> None:
    pack, cancel = pair("sliding"), threading.Event()
    usual = pack.generate(PROMPT, max_new_tokens=NEW)

    class Cancelling(Scripted):
        name: ClassVar[str] = "cancelling"

        def drafter(self, context: DraftContext) -> Drafter:
            drafter = super().drafter(context)
            propose = drafter.propose

            def cancelled(ids: Tensor, room: int) -> Proposal:
                if ids.shape[1] > self.prompt + 6:
                    cancel.set()
                return propose(ids, room)

            drafter.propose = cancelled  # type: ignore[method-assign]
            return drafter

    before = _sessions()
    draft = Cancelling(
        answer=usual.token_ids, prompt=usual.record.usage.prompt_tokens, plan=((3, 9),)
    )
    request = pack.request(PROMPT, {"max_new_tokens": NEW, "draft": draft})
    chunks = list(pack.run_stream(request, cancel))
    record = chunks[-1].record
    assert record is not None
    assert record.finish_reason == "cancelled"
    text = "".join(chunk.text for chunk in chunks)
    assert usual.text.startswith(text)
    assert 6 < record.usage.completion_tokens < NEW
    assert _sessions() == before


def _sessions() -> int:
    gc.collect()
    return sum(type(item) is Session for item in gc.get_objects())


@pytest.mark.parametrize("more", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_no_drafts_with_beams_and_several_sequences(more: dict[str, Any]) -> None:
    pack = pair("sliding")
    found = pack.generate(PROMPT, max_new_tokens=4, seed=1, draft="auto", **more)
    plain = pack.generate(PROMPT, max_new_tokens=4, seed=1, **more)
    for one, other in zip(
        *(x if isinstance(x, list) else [x] for x in (found, plain)), strict=True
    ):
        assert one.token_ids == other.token_ids
        assert one.record.drafts is None
        assert any(note.startswith("no drafts") for note in one.record.notes)


def test_no_drafts_in_a_batch() -> None:
    pack = pair("sliding", draft="auto")
    together = pack.generate([PROMPT, "two"], max_new_tokens=6)
    for prompt, answer in zip([PROMPT, "two"], together, strict=True):
        assert answer.token_ids == pack.generate(prompt, max_new_tokens=6).token_ids
        assert answer.record.drafts is None
        assert any(note.startswith("no drafts") for note in answer.record.notes)


@pytest.mark.parametrize("limit", [1, 2, 3])
@every_draft
def test_an_answer_is_as_long_as_it_may_be(draft: str, limit: int) -> None:
    pack = pair("recurrent")
    found = pack.generate(PROMPT, max_new_tokens=limit, draft=draft)
    assert len(found.token_ids) == limit
    assert found.record.finish_reason == "length"


def test_an_end_inside_a_draft_ends_the_answer() -> None:
    pack = pair("sliding")
    end = pack.model.engine.reference.end_ids[0]
    usual = pack.generate(PROMPT, max_new_tokens=NEW)
    held = Regex("( three four one){2}")
    ended = pack.generate(PROMPT, max_new_tokens=NEW, constraint=held)
    assert ended.token_ids[-1] == end
    length = usual.record.usage.prompt_tokens
    script = Scripted(answer=(*ended.token_ids, 5, 6, 7), prompt=length, plan=((6, 9),))
    assert (
        pack.generate(PROMPT, max_new_tokens=NEW, constraint=held, draft=script).token_ids
        == ended.token_ids
    )


def test_the_draft_of_the_pack_and_of_a_call(tmp_path: Path) -> None:
    pack = pair("sliding", draft={"name": "lookup", "min_match": 2})
    assert pack.generate(PROMPT, max_new_tokens=2).record.drafts is not None
    assert pack.generate(PROMPT, max_new_tokens=2, draft=None).record.drafts is None
    assert pack.generate(PROMPT, max_new_tokens=2, draft="none").record.drafts is None
    with pytest.raises(ConfigError, match=r"unknown draft method 'look'.*did you mean 'lookup'"):
        pack.generate(PROMPT, draft="look")
    with pytest.raises(ConfigError, match="draft method 'lookup': min_match"):
        pack.generate(PROMPT, draft={"name": "lookup", "min_match": 0})
    folder = pico.save_tiny(tmp_path / "one", "mistral")
    settings: dict[str, Any] = {
        "members": [str(folder)],
        "draft": {"name": "auto", "max_draft_tokens": 5},
    }
    PackConfig.check(settings).write(tmp_path / "pack.yaml")
    loaded = Pack.from_config(tmp_path / "pack.yaml", progress=False)
    loaded.save_config(tmp_path / "again.yaml")
    assert PackConfig.read(tmp_path / "again.yaml").draft == {"name": "auto", "max_draft_tokens": 5}


@pytest.mark.parametrize("arch", ["llama", "gemma3", "lfm2", "qwen3_next", "gpt2"])
def test_a_quantized_copy_is_close_to_its_member_and_does_not_change_it(arch: str) -> None:
    own = pico.tiny_pair("mistral", arch, 3)[0]
    member = HFMember("one", own, vocabulary("mistral"))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    copied = int8_copy(member)
    assert int8_copy(member) is copied
    ids = torch.tensor([vocabulary("mistral").encode(PROMPT)])
    with torch.no_grad():
        exact, nearly = (model(ids).logits for model in (own, copied.model))
    assert float((exact - nearly).abs().mean() / exact.abs().mean()) < 0.05
    assert (arch == "gpt2") == bool(exact.equal(nearly)) or arch == "gpt2"
    assert all(value.equal(before[name]) for name, value in own.state_dict().items())
    shared = {id(p) for p in own.parameters()}
    assert all(id(p) in shared for p in copied.model.parameters())


def test_a_quantized_copy_is_freed_with_its_member() -> None:
    member = HFMember("one", pico.tiny_pair("mistral", "llama", 9)[0], vocabulary("mistral"))
    gone = weakref.ref(int8_copy(member).model)
    assert gone() is not None
    del member
    gc.collect()
    assert gone() is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 6))
def test_the_longest_and_last_repetition_is_found(
    ids: list[int], min_match: int, more: int
) -> None:
    max_match, count = min_match + more, len(ids)
    matches = [
        (size, end)
        for end in range(1, count)
        for size in range(min_match, min(max_match, end) + 1)
        if ids[end - size : end] == ids[count - size :]
    ]
    expected = (0, []) if not matches else (max(matches)[0], ids[max(matches)[1] :])
    assert repetition(ids, min_match, max_match) == expected


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=60))
def test_the_draft_length_stays_within_its_limits(rounds: list[tuple[int, int]]) -> None:
    length = DraftLength(cost=0.1, max_draft_tokens=12)
    for drafted, accepted in rounds:
        length.update(drafted, min(drafted, accepted))
        assert 0 <= length.best() <= 12


def test_the_draft_length_follows_the_acceptance_rate() -> None:
    right, wrong = (
        DraftLength(cost=0.1, max_draft_tokens=12),
        DraftLength(cost=0.1, max_draft_tokens=12),
    )
    for _ in range(30):
        right.update(12, 12)
        wrong.update(4, 0)
    assert right.best() == 12
    assert wrong.best() == 0
    lengths = []
    for _ in range(400):
        lengths.append(wrong.best())
        wrong.update(lengths[-1], 0)
    # Now and then it drafts a single token again.
    assert 10 < sum(lengths[100:]) < 100
    assert max(lengths[100:]) == 1
