"""Rows that grow, close, shrink and fork say what rows say that went there directly."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from packfuse.causal_lm.cache import FusedCache
from packfuse.fusion.engine import Engine
from packfuse.fusion.sequence import PackSequence
from packfuse.models.hf_member import HFMember
from packfuse.text.prompt import MemberPrompt, PackPrompt, blank, from_ids, from_text
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from packfuse.weighting.prefill import prefill
from tests.support import fusing, pico
from tests.support.fusing import FUSION, PROMPT, Spec, gap

EXACT = 2e-4
PAIR: tuple[Spec, ...] = (("mistral", "gemma3", 0), ("deepseek", "llama", 1))
STATEFUL: tuple[Spec, ...] = (("mistral", "lfm2", 0), ("deepseek", "llama", 1))
TEXT = "Paris is big.\n\n    x = 42  # 中文 naïve\n👩\u200d👧"

packs = pytest.mark.parametrize("specs", [PAIR, STATEFUL], ids=["sliding", "conv"])
either_reference = pytest.mark.parametrize("reference", [0, 1])


def engine_of(specs: tuple[Spec, ...], reference: int) -> Engine:
    return fusing.fused(specs, reference).engine


def vocabularies(engine: Engine) -> list[Vocabulary]:
    return [member.vocabulary for member in engine.members]


def fresh(engine: Engine) -> PackSequence:
    return engine.open(blank(vocabularies(engine), engine.reference_index), FUSION)


def directly(engine: Engine, ids: Sequence[int]) -> Tensor:
    return engine.advance([fresh(engine)], [ids], FUSION)[0, -1]


def ids_of(engine: Engine, text: str = TEXT) -> list[int]:
    """Text and control tokens: prefix, words, an end in the middle, words."""
    own = engine.reference
    body = own.encode_bytes(own.text_prefix + text.encode())
    end = own.end_ids[0]
    return [*own.prefix_ids, *body[: len(body) // 2], end, end, *body[len(body) // 2 :]]


@packs
@either_reference
@settings(max_examples=8)
@given(data=st.data())
def test_any_way_of_advancing_ends_in_the_same_place(
    specs: tuple[Spec, ...], reference: int, data: st.DataObject
) -> None:
    """Appends of all sizes, crops across control tokens, forks; two rows in step."""
    engine = engine_of(specs, reference)
    ids = ids_of(engine)
    rows = [fresh(engine), fresh(engine)]
    at = [0, 0]
    for _ in range(data.draw(st.integers(1, 6))):
        parts = []
        for index, row in enumerate(rows):
            if at[index] and data.draw(st.integers(0, 2)) == 0:
                lost = data.draw(st.integers(1, at[index]))
                row.crop(lost)
                at[index] -= lost
            if data.draw(st.integers(0, 3)) == 0:
                rows[index] = row.fork()
            size = data.draw(st.sampled_from([1, 1, 1, 2, 5, 15]))
            if at[index] + size > len(ids):
                rows[index], at[index] = fresh(engine), 0
            parts.append(ids[at[index] : at[index] + size])
            at[index] += size
        found = engine.advance(rows, parts, FUSION)[:, -1]
        for index, row in enumerate(rows):
            assert row.ids == ids[: at[index]]
            assert gap(found[index], directly(engine, ids[: at[index]])) < EXACT


@packs
@either_reference
def test_every_crop(specs: tuple[Spec, ...], reference: int) -> None:
    engine = engine_of(specs, reference)
    ids = ids_of(engine)
    whole = fresh(engine)
    engine.advance([whole], [ids], FUSION)
    for lost in range(1, len(ids)):
        row = whole.fork()
        row.crop(lost)
        assert row.ids == ids[: len(ids) - lost]
        assert row.fused_logps is None
        again = engine.advance([row], [ids[len(ids) - lost :]], FUSION)[0, -1]
        assert gap(again, directly(engine, ids)) < EXACT
    row = whole.fork()
    row.crop(len(ids))
    assert gap(engine.advance([row], [ids], FUSION)[0, -1], directly(engine, ids)) < EXACT


@either_reference
def test_a_row_that_is_over_rests_until_more_follows(reference: int) -> None:
    engine = engine_of(PAIR, reference)
    end = engine.reference.end_ids[0]
    ids, row = ids_of(engine, "Paris is big."), fresh(engine)
    said = engine.advance([row], [ids], FUSION, endings={end})
    for _ in range(3):
        assert engine.advance([row], [[end]], FUSION, endings={end}).equal(said)
    assert row.unread == [end] * 3
    assert row.ids == ids
    row.crop(1)
    assert row.unread == [end] * 2
    more = engine.reference.encode(" And on")
    found = engine.advance([row], [more], FUSION, endings={end})[0, -1]
    assert row.unread == []
    assert gap(found, directly(engine, [*ids, end, end, *more])) < EXACT
    row.crop(len(more) + 1)
    assert row.ids == [*ids, end]


@either_reference
def test_watchers_see_what_is_fused(reference: int) -> None:
    engine = engine_of(PAIR, reference)
    ids, seen = ids_of(engine, "Paris is big."), []
    rows = [fresh(engine), fresh(engine)]
    watched = fusing.observed(lambda *seen_now: seen.append(seen_now))
    fused = engine.advance(rows, [ids, ids[:9]], watched, 3)
    assert len(seen) == 6
    sizes = [len(ids), len(ids[:9])]
    expected = [size - 2 + turn for turn in range(3) for size in sizes]
    assert [place.tokens_read for _, place in seen] == expected
    for row, place in seen:
        index, logps, pooled = rows.index(row), place.logps, place.fused
        assert any(pooled.equal(position) for position in fused[index])
        assert logps.shape == (2, engine.reference.columns)
        assert gap(FUSION.rule.fuse(logps[:, None], torch.tensor([[0.5, 0.5]]))[0], pooled) < 1e-5


@either_reference
def test_a_member_without_weight_stops_reading(reference: int) -> None:
    engine = engine_of(PAIR, reference)
    prompt = from_text(PROMPT, vocabularies(engine), engine.reference_index)
    name = engine.members[reference].name
    alone = weightings().make(
        {"name": "fixed", "weights": {m.name: float(m.name == name) for m in engine.members}}
    )
    row, fit = prefill(engine, prompt, alone, FUSION)
    assert fit.weights.tolist() == [float(k == reference) for k in (0, 1)]
    assert row.streams[1 - reference] is None
    own = engine.members[reference]
    assert isinstance(own, HFMember)
    ids = list(prompt.stream)
    for _ in range(5):
        logits = own.model(torch.tensor([ids])).logits[0, -1].detach()
        logits[own.vocabulary.size :] = -torch.inf
        assert row.fused_logps is not None
        assert gap(row.fused_logps, logits.log_softmax(-1)) < EXACT
        ids.append(int(row.fused_logps.argmax()))
        engine.advance([row], [ids[-1:]], FUSION)


def test_members_are_read_in_their_own_words() -> None:
    """What reaches a member: its own beginning, no dummy space of the reference's, ends by role."""
    engine = engine_of(PAIR, 0)
    mistral, deepseek = vocabularies(engine)
    row = fresh(engine)
    body = [*mistral.encode_bytes(b" Hello"), 2, *mistral.encode("there")]
    row.feed([*mistral.prefix_ids, *body])
    own, other = row.streams
    assert own is not None
    assert other is not None
    assert own.ids(row.text_ids, row.text) == [1, *body]
    assert other.ids(row.text_ids, row.text) == [
        *deepseek.encode("Hello"), deepseek.end_ids[0], *deepseek.encode("there"),
    ]  # fmt: skip
    engine = engine_of(PAIR, 1)
    row = fresh(engine)
    row.feed(deepseek.encode("Hello"))
    other = row.streams[0]
    assert other is not None
    assert other.ids(row.text_ids, row.text) == [1, *mistral.encode_bytes(b" Hello")]


def test_a_beginning_of_sequence_is_read_once() -> None:
    """Both members have one of their own, and the reference's opens the stream."""
    members = [fusing.member("mistral", "llama", 0), fusing.member("mistral", "gemma3", 1)]
    engine = fusing.fuse(members).engine
    row = fresh(engine)
    row.feed([1, 415, 5565])
    for reader in row.streams:
        assert reader is not None
        assert reader.ids(row.text_ids, row.text) == [1, 415, 5565]


def test_control_tokens_that_a_member_knows_by_name_are_those() -> None:
    one = fusing.bpe("the", name="one", controls=("<end>", "<turn>", "<odd>"))
    other = fusing.bpe("then", name="other", controls=("<stop>", "<turn>"))
    members = [small(vocabulary, seed) for seed, vocabulary in enumerate((one, other))]
    engine = fusing.fuse(members).engine
    row = fresh(engine)
    ids = [one.controls[name] for name in ("<turn>", "<end>", "<odd>")]
    row.feed([*one.encode("a"), *ids])
    reader = row.streams[1]
    assert reader is not None
    assert reader.fixed == [
        *other.encode("a"), other.controls["<turn>"], other.end_ids[0], *other.encode("<odd>"),
    ]  # fmt: skip


def small(vocabulary: Vocabulary, seed: int) -> HFMember:
    tokenizer = vocabulary.tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    model = pico.tiny_model(tokenizer, "llama", seed)
    return HFMember(
        tokenizer.name_or_path, model, Vocabulary(tokenizer, pico.padded_size(tokenizer))
    )


def test_half_a_character_before_a_control_token_is_not_lost() -> None:
    engine = engine_of(PAIR, 1)
    mistral, deepseek = vocabularies(engine)
    row = fresh(engine)
    row.feed([*deepseek.encode("a"), deepseek.ids_of[b"\xe4"][0], deepseek.end_ids[0]])
    reader = row.streams[0]
    assert reader is not None
    assert mistral.decode(reader.fixed) == b" a\xe4"
    assert reader.fixed[-1] == mistral.end_ids[0]


def test_templates_that_stand_before_the_stream() -> None:
    """A chat: every member has its own fixed ids, and the row counts the prompt's tokens."""
    engine = engine_of(PAIR, 0)
    mistral, deepseek = vocabularies(engine)
    fixed = [1, *mistral.encode_bytes(b" User: hi")]
    sides = (MemberPrompt(tuple(fixed)), MemberPrompt(tuple(deepseek.encode("<user>hi"))))
    prompt = PackPrompt(sides, texts=(b"hi",))
    row, fit = prefill(engine, prompt, weightings().make("uniform"), FUSION)
    assert fit.prompt_tokens == tuple(len(side.fixed) for side in sides)
    model = fusing.fused(PAIR, 0)
    row.offset = len(fixed) - len(row.ids)
    assert row.length == len(fixed)
    cache = FusedCache(model.call, [row])
    found = model.generate(
        torch.tensor([fixed]), past_key_values=cache, max_new_tokens=6, do_sample=False
    )
    again = prefill(engine, prompt, weightings().make("uniform"), FUSION)[0]
    written = []
    for _ in range(6):
        assert again.fused_logps is not None
        written.append(int(again.fused_logps.argmax()))
        engine.advance([again], [written[-1:]], FUSION)
    assert found[0, len(fixed) :].tolist() == written


@pytest.mark.parametrize("alignment", ["bytes", "mined", "prefix"])
def test_a_member_that_cannot_end_a_turn_leaves_that_to_the_reference(alignment: str) -> None:
    engine = fusing.fused(PAIR, 0, alignment=alignment).engine
    mistral, deepseek = vocabularies(engine)
    fixed = (1, *mistral.encode_bytes(b" User: hi"))
    text = b"User: hi\n\nAssistant: "
    prompt = PackPrompt((MemberPrompt(fixed), MemberPrompt((), text, ends_turns=False)))
    seen: list[Tensor] = []
    watched = fusing.observed(lambda _, place: seen.append(place.logps))
    row = engine.open(prompt, watched)
    engine.read_prompt(row, [None, None])
    engine.fuse_prompt([row], watched)
    engine.advance([row], [mistral.encode("a")], watched)
    for own, carried in seen:
        ends = list(mistral.end_ids)
        assert torch.allclose(own[ends], carried[ends], atol=1e-5)
        assert float(carried.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert deepseek.end_ids


def test_texts_for_scoring_lie_between_control_tokens() -> None:
    engine = engine_of(PAIR, 0)
    mistral = vocabularies(engine)[0]
    ids = [
        1,
        *mistral.encode_bytes(b" Hello there"),
        2,
        *mistral.encode("\n"),
        1,
        1,
        *mistral.encode("you"),
    ]
    assert from_ids(ids, vocabularies(engine), 0).texts == (b"Hello there", b"you")
