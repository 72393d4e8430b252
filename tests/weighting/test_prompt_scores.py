"""Prompt losses and fitting positions, against members asked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from packfuse.alignment.base import ReferenceView
from packfuse.fusion.engine import Engine
from packfuse.fusion.sequence import PackSequence
from packfuse.models.hf_member import HFMember
from packfuse.models.member import ReadCallback
from packfuse.text.prompt import MemberPrompt, PackPrompt, from_text
from packfuse.weighting import prompt_scores as scoring
from packfuse.weighting.fit_positions import FitPositions
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import FitLimits
from packfuse.weighting.prefill import Fit, prefill
from packfuse.weighting.prompt_scores import PromptScores
from tests.support import fusing
from tests.support.fusing import FUSION, Spec

PAIR: tuple[Spec, ...] = (("mistral", "gemma3", 0), ("deepseek", "llama", 1))
TEXT = "The quick brown fox jumps over 1234 lazy dogs.\n\n    x = naïve('中文')  # 😀 twice 😀"
EXACT = 1e-3

either_reference = pytest.mark.parametrize("reference", [0, 1])


def own_scores(member: HFMember, ids: list[int]) -> Tensor:
    """Next-token log-probabilities after every token, by the model itself."""
    logits = member.model(torch.tensor([ids]), use_cache=False).logits[0].detach()
    logits[:, member.vocabulary.size :] = -torch.inf
    return logits.log_softmax(-1)


def score(
    engine: Engine, prompt: PackPrompt, fit: bool = True
) -> tuple[PackSequence, PromptScores]:
    """A prompt, read and scored but not weighed."""
    row = engine.open(prompt, FUSION)
    row.feed(prompt.stream)
    ids = [reader.ids(row.text_ids, row.text) for reader in row.streams if reader]
    vocabularies = [member.vocabulary for member in engine.members]
    scored = PromptScores(vocabularies, engine.view, ids, prompt.texts, fit)
    engine.read_prompt(row, scored.callbacks())
    return row, scored


def plain(engine: Engine, text: str = TEXT) -> PackPrompt:
    vocabularies = [member.vocabulary for member in engine.members]
    return from_text(text, vocabularies, engine.reference_index)


def by_hand(member: HFMember, ids: list[int]) -> dict[tuple[int, int], float]:
    """Log-probability of every token but the first, by where it lies in what the ids spell."""
    said, found, end = own_scores(member, ids), {}, 0
    for index, token in enumerate(ids):
        size = len(member.vocabulary.token_bytes[token] or b"")
        if index:
            found[end, end + size] = float(said[index - 1, token])
        end += size
    return found


@either_reference
def test_pieces_and_losses_are_sums_over_each_members_own_tokens(reference: int) -> None:
    engine = fusing.fused(PAIR, reference).engine
    row, scored = score(engine, plain(engine))
    pieces = scored.pieces()
    assert pieces.shape == (2, len(scored.common) - 1)
    for k, member in enumerate(engine.members):
        assert isinstance(member, HFMember)
        reader = row.streams[k]
        assert reader is not None
        ids = reader.ids(row.text_ids, row.text)
        shift = member.vocabulary.decode(ids).index(TEXT.encode())
        logps = by_hand(member, ids)
        for column, (low, high) in enumerate(pairwise(scored.common)):
            inside = [p for (a, b), p in logps.items() if low <= a - shift and b - shift <= high]
            # Nothing sticks out of a piece: both ends are the member's own.
            assert (
                sum(b - a for a, b in logps if low <= a - shift and b - shift <= high) == high - low
            )
            assert pieces[k, column] == pytest.approx(sum(inside), abs=EXACT)
        total = -pieces[k].sum()
        assert scored.losses()[k] == pytest.approx(total / scored.tokens, abs=EXACT)
    assert scored.scored_bytes == scored.common[-1] - scored.common[0]
    assert scored.scored_bytes > 0.8 * len(TEXT.encode())


def test_own_tokens_may_be_the_measure() -> None:
    engine = fusing.fused(PAIR, 0).engine
    _, scored = score(engine, plain(engine))
    shared, own = scored.losses(), scored.losses("own")
    assert own[0] == pytest.approx(shared[0])
    assert own[1] != pytest.approx(shared[1])


def test_members_of_one_kind_lose_the_same() -> None:
    one = fusing.member("mistral", "llama", 0)
    engine = fusing.fuse([HFMember(f"m{k}", one.model, one.vocabulary) for k in range(3)]).engine
    _, scored = score(engine, plain(engine))
    assert scored.losses() == pytest.approx([scored.losses()[0]] * 3)


@either_reference
def test_fitting_positions_hold_what_members_say_of_the_next_token(reference: int) -> None:
    engine = fusing.fused(PAIR, reference).engine
    row, scored = score(engine, plain(engine))
    own = engine.members[reference]
    assert isinstance(own, HFMember)
    ids = list(plain(engine).stream)
    said = own_scores(own, ids)
    evidence = scored.evidence("reference")
    assert evidence.scores is not None
    assert evidence.labels is not None
    assert evidence.scores.shape[:2] == (2, len(scored.positions))
    side = scored.members[reference]
    begins = {start: index for index, start, _ in side.spans}
    for t, offset in enumerate(scored.positions):
        index = begins[offset]
        label = evidence.labels[t]
        found = float(evidence.scores[reference, t, label])
        assert found == pytest.approx(float(said[index - 1, ids[index]]), abs=EXACT)
    assert not scored.fits._waiting
    assert row.streams


def test_memory_bounds_the_fitting_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fusing.fused(PAIR, 0).engine
    everything = len(score(engine, plain(engine, TEXT * 4))[1].positions)
    # What the widest says is never held.
    held = min(member.vocabulary.columns for member in engine.members)
    monkeypatch.setattr(scoring, "FIT_BYTES", 4 * held * 40)
    few = score(engine, plain(engine, TEXT * 4))[1].positions
    assert len(few) == 40 < everything
    assert few == sorted(set(few))


@pytest.mark.parametrize("order", [1, -1])
def test_nothing_that_the_widest_says_is_held(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fusing.fused(PAIR[::order], 0).engine
    widest = max(range(2), key=lambda k: engine.members[k].vocabulary.columns)
    held: set[int] = set()
    score_one = FitPositions.add

    def add(self: FitPositions, member: int, counts: Sequence[int], logps: Tensor) -> None:
        score_one(self, member, counts, logps)
        held.update(k for said in self._waiting.values() for k in said)

    monkeypatch.setattr(FitPositions, "add", add)
    score(engine, plain(engine))
    assert held == {1 - widest}


@pytest.mark.parametrize("reference", range(3))
def test_scores_are_made_for_who_may_turn_out_best(reference: int) -> None:
    trio: tuple[Spec, ...] = (*PAIR, ("tekken", "llama", 2))
    engines = [fusing.fused(trio, k).engine for k in range(3)]
    engine, widest = engines[reference], 2
    # Long enough for the widest to be asked in parts.
    prompt = plain(engine, 6 * TEXT)
    row = engine.open(prompt, FUSION)
    row.feed(prompt.stream)
    ids = [reader.ids(row.text_ids, row.text) for reader in row.streams if reader]
    vocabularies = [member.vocabulary for member in engine.members]
    asked: list[int] = []

    def view(k: int) -> ReferenceView:
        asked.append(k)
        return engines[k].view

    others = {k: partial(view, k) for k in range(3) if k != reference}
    scored = PromptScores(vocabularies, engine.view, ids, prompt.texts, True, others=others)
    engine.read_prompt(row, scored.callbacks())
    losses = scored.losses()
    # Whoever has read everything by then is compared, and the one that reads last stays possible.
    first = min((0, 1), key=lambda k: float(losses[k]))
    assert set(asked) == {first, widest} - {reference}
    assert min(range(3), key=lambda k: float(losses[k])) in {reference, *asked}
    assert len(asked) == len(set(asked))


def test_only_the_words_of_a_chat_count() -> None:
    engine = fusing.fused(PAIR, 0).engine
    mistral, deepseek = (member.vocabulary for member in engine.members)
    words = (b"Hello there, who are you?", b"A model, I suppose.")
    frame = "{0}:\n{1}\n{0}\n{2}\n{0}"
    texts = [frame.format(name, *(w.decode() for w in words)) for name in ("[one]", "<another>")]
    sides = tuple(
        MemberPrompt((*v.prefix_ids, *v.encode(text)))
        for v, text in zip((mistral, deepseek), texts, strict=True)
    )
    _, scored = score(engine, PackPrompt(sides, texts=words))
    assert scored.common
    for side, vocabulary in zip(scored.members, (mistral, deepseek), strict=True):
        spelled = b"".join(vocabulary.token_bytes[side.ids[i]] or b"" for i, _, _ in side.spans)
        assert all(part in spelled for part in (b"ello there", b" model, I suppose"))
        assert b"[" not in spelled
        assert b"another" not in spelled
    # A piece never reaches from one text into the next.
    edge = len(words[0])
    assert not any(low < edge < high for low, high in scored._edges)


@pytest.mark.parametrize("most", [1, 5, 11])
@either_reference
def test_losses_on_some_of_the_text_and_nothing_else_is_worked_out(
    most: int, reference: int
) -> None:
    engine = fusing.fused(PAIR, reference).engine
    whole = 4 * TEXT
    prompt, text = plain(engine, whole), whole.encode()
    row = engine.open(prompt, FUSION)
    row.feed(prompt.stream)
    ids = [reader.ids(row.text_ids, row.text) for reader in row.streams if reader]
    vocabularies = [member.vocabulary for member in engine.members]
    limits = FitLimits(positions=2, pieces=most)
    scored = PromptScores(vocabularies, engine.view, ids, prompt.texts, True, limits)
    shown: list[list[int]] = [[], []]

    def counted(k: int, callback: ReadCallback, counts: Sequence[int], logps: Tensor) -> None:
        shown[k] += counts
        callback.on_logps(counts, logps)

    callbacks = [
        ReadCallback(partial(counted, k, v), v.counts) for k, v in enumerate(scored.callbacks())
    ]
    engine.read_prompt(row, callbacks)
    edges = scored._edges
    assert len(edges) == most
    assert set(edges) <= set(pairwise(scored.common))
    pieces = scored.pieces()
    for k, member in enumerate(engine.members):
        assert isinstance(member, HFMember)
        own, shift = by_hand(member, ids[k]), member.vocabulary.decode(ids[k]).find(text)
        inside = [
            [value for (low, high), value in own.items() if a <= low - shift and high - shift <= b]
            for a, b in edges
        ]
        assert pieces[k] == pytest.approx([sum(values) for values in inside], abs=EXACT)
        total = -sum(map(sum, inside))
        assert scored.losses("own")[k] == pytest.approx(total / sum(map(len, inside)), abs=EXACT)
        places = {scored.members[k].boundaries[offset] for offset in scored.positions}
        asked = places | set(scored.scored[k])
        assert asked <= set(shown[k])
        # What the answer goes on from is worked out anyway.
        assert all(count > len(ids[k]) - 16 for count in set(shown[k]) - asked)
    assert scored.scored_bytes == sum(high - low for low, high in edges)


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 200))
def test_what_is_scored_stays_as_the_text_grows(most: int, count: int, more: int) -> None:
    before, after = scoring._spread(count, most), scoring._spread(count + more, most)
    assert before == sorted(set(before))
    assert len(before) == min(count, most)
    assert {index for index in after if index < count} <= set(before)
    gaps = np.diff([-1, *before, count])
    assert gaps.max() <= 3 * count / most + 1


def bare(engine: Engine, prompt: PackPrompt, weighting: str) -> Fit:
    return prefill(engine, prompt, weightings().make(weighting), FUSION)[1]


def test_what_a_prompt_said() -> None:
    engine = fusing.fused(PAIR, 0).engine
    fit = bare(engine, plain(engine), "sim")
    assert fit.losses is not None
    assert fit.bits_per_byte is not None
    _, scored = score(engine, plain(engine), fit=False)
    bits = fit.losses * scored.tokens / math.log(2) / scored.scored_bytes
    assert fit.bits_per_byte == pytest.approx(bits)
    assert fit.weights.sum() == pytest.approx(1.0)
    assert fit.weights.argmax() == fit.losses.argmin()
    assert fit.tokens == scored.tokens
    assert fit.prompt_tokens == tuple(len(side.ids) for side in scored.members)


@pytest.mark.parametrize("weighting", ["uniform", "sim", "exact", "opt", "top1"])
def test_a_prompt_that_says_nothing_trusts_all_alike(weighting: str) -> None:
    engine = fusing.fused(PAIR, 0).engine
    vocabularies = [member.vocabulary for member in engine.members]
    silent = PackPrompt(
        tuple(MemberPrompt((*v.prefix_ids, *v.encode("a"))) for v in vocabularies), texts=()
    )
    fit = bare(engine, silent, weighting)
    assert fit.weights == pytest.approx([0.5, 0.5])
    assert fit.losses is None
    assert fit.tokens == 0


def test_a_text_that_a_member_does_not_hold_is_not_scored() -> None:
    engine = fusing.fused(PAIR, 0).engine
    prompt = plain(engine)
    absent = PackPrompt(prompt.members, prompt.stream, (b"not in the prompt",), fresh=True)
    _, scored = score(engine, absent)
    assert scored.tokens == 0
    assert scored.losses() == pytest.approx([0.0, 0.0])
    assert scored.pieces().shape == (2, 0)
    assert np.isfinite(scored.losses()).all()
