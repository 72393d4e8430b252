"""Prompt losses and fit positions, against the members' own log-probabilities."""

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
    """A prompt, read and scored, without weights."""
    sequence = engine.open(prompt, FUSION)
    sequence.feed(prompt.stream)
    ids = [stream.ids(sequence.text_ids, sequence.text) for stream in sequence.streams if stream]
    vocabularies = [member.vocabulary for member in engine.members]
    scored = PromptScores(vocabularies, engine.view, ids, prompt.texts, fit)
    engine.read_prompt(sequence, scored.callbacks())
    return sequence, scored


def plain(engine: Engine, text: str = TEXT) -> PackPrompt:
    vocabularies = [member.vocabulary for member in engine.members]
    return from_text(text, vocabularies, engine.reference_index)


def by_hand(member: HFMember, ids: list[int]) -> dict[tuple[int, int], float]:
    """Log-probability of every token but the first, by its start and end in the decoded bytes."""
    logps, found, end = own_scores(member, ids), {}, 0
    for index, token in enumerate(ids):
        size = len(member.vocabulary.token_bytes[token] or b"")
        if index:
            found[end, end + size] = float(logps[index - 1, token])
        end += size
    return found


@either_reference
def test_pieces_and_losses_are_sums_over_each_members_own_tokens(reference: int) -> None:
    engine = fusing.fused(PAIR, reference).engine
    sequence, scored = score(engine, plain(engine))
    pieces = scored.pieces()
    assert pieces.shape == (2, len(scored.common) - 1)
    for k, member in enumerate(engine.members):
        assert isinstance(member, HFMember)
        stream = sequence.streams[k]
        assert stream is not None
        ids = stream.ids(sequence.text_ids, sequence.text)
        shift = member.vocabulary.decode(ids).index(TEXT.encode())
        logps = by_hand(member, ids)
        for column, (low, high) in enumerate(pairwise(scored.common)):
            inside = [p for (a, b), p in logps.items() if low <= a - shift and b - shift <= high]
            # No token crosses the end of a piece: both ends are boundaries of the member.
            assert (
                sum(b - a for a, b in logps if low <= a - shift and b - shift <= high) == high - low
            )
            assert pieces[k, column] == pytest.approx(sum(inside), abs=EXACT)
        total = -pieces[k].sum()
        assert scored.losses()[k] == pytest.approx(total / scored.tokens, abs=EXACT)
    assert scored.scored_bytes == scored.common[-1] - scored.common[0]
    assert scored.scored_bytes > 0.8 * len(TEXT.encode())
    named = scored.scored_pieces()
    for piece, (low, high), column in zip(named, pairwise(scored.common), pieces.T, strict=True):
        assert (piece.start, piece.text) == (low, TEXT.encode()[low:high])
        assert piece.losses.tolist() == (-column).tolist()
    assert sum(piece.tokens for piece in named) == scored.tokens


def test_losses_per_own_token() -> None:
    engine = fusing.fused(PAIR, 0).engine
    _, scored = score(engine, plain(engine))
    shared, own = scored.losses(), scored.losses("own")
    assert own[0] == pytest.approx(shared[0])
    assert own[1] != pytest.approx(shared[1])


def test_equal_members_have_equal_losses() -> None:
    one = fusing.member("mistral", "llama", 0)
    engine = fusing.fuse([HFMember(f"m{k}", one.model, one.vocabulary) for k in range(3)]).engine
    _, scored = score(engine, plain(engine))
    assert scored.losses() == pytest.approx([scored.losses()[0]] * 3)


@either_reference
def test_fit_positions_hold_the_log_probability_of_the_next_token(reference: int) -> None:
    engine = fusing.fused(PAIR, reference).engine
    sequence, scored = score(engine, plain(engine))
    own = engine.members[reference]
    assert isinstance(own, HFMember)
    ids = list(plain(engine).stream)
    expected = own_scores(own, ids)
    evidence = scored.evidence("reference")
    assert evidence.scores is not None
    assert evidence.labels is not None
    assert evidence.scores.shape[:2] == (2, len(scored.positions))
    begins = {start: index for index, start, _ in scored.members[reference].spans}
    for t, offset in enumerate(scored.positions):
        index = begins[offset]
        label = evidence.labels[t]
        found = float(evidence.scores[reference, t, label])
        assert found == pytest.approx(float(expected[index - 1, ids[index]]), abs=EXACT)
    assert not scored.fit_positions._pending
    assert sequence.streams


def test_memory_bounds_the_fit_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fusing.fused(PAIR, 0).engine
    everything = len(score(engine, plain(engine, TEXT * 4))[1].positions)
    # The distributions of the largest vocabulary are never held.
    held = min(member.vocabulary.columns for member in engine.members)
    monkeypatch.setattr(scoring, "FIT_BYTES", 4 * held * 40)
    few = score(engine, plain(engine, TEXT * 4))[1].positions
    assert len(few) == 40 < everything
    assert few == sorted(set(few))


@pytest.mark.parametrize("order", [1, -1])
def test_no_distributions_of_the_largest_vocabulary_are_held(
    order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fusing.fused(PAIR[::order], 0).engine
    widest = max(range(2), key=lambda k: engine.members[k].vocabulary.columns)
    held: set[int] = set()
    score_one = FitPositions.add

    def add(self: FitPositions, member: int, counts: Sequence[int], logps: Tensor) -> None:
        score_one(self, member, counts, logps)
        held.update(k for rows in self._pending.values() for k in rows)

    monkeypatch.setattr(FitPositions, "add", add)
    score(engine, plain(engine))
    assert held == {1 - widest}


@pytest.mark.parametrize("reference", range(3))
def test_scores_are_computed_for_members_that_may_become_the_reference(reference: int) -> None:
    trio: tuple[Spec, ...] = (*PAIR, ("tekken", "llama", 2))
    engines = [fusing.fused(trio, k).engine for k in range(3)]
    engine, widest = engines[reference], 2
    # Long enough for the largest vocabulary to be read in several chunks.
    prompt = plain(engine, 6 * TEXT)
    sequence = engine.open(prompt, FUSION)
    sequence.feed(prompt.stream)
    ids = [stream.ids(sequence.text_ids, sequence.text) for stream in sequence.streams if stream]
    vocabularies = [member.vocabulary for member in engine.members]
    requested: list[int] = []

    def view(k: int) -> ReferenceView:
        requested.append(k)
        return engines[k].view

    others = {k: partial(view, k) for k in range(3) if k != reference}
    scored = PromptScores(vocabularies, engine.view, ids, prompt.texts, True, others=others)
    engine.read_prompt(sequence, scored.callbacks())
    losses = scored.losses()
    # Those that have read all the text are compared; the one that reads last is always possible.
    first = min((0, 1), key=lambda k: float(losses[k]))
    assert set(requested) == {first, widest} - {reference}
    assert min(range(3), key=lambda k: float(losses[k])) in {reference, *requested}
    assert len(requested) == len(set(requested))


def test_only_the_messages_of_a_chat_are_scored() -> None:
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
    for own, vocabulary in zip(scored.members, (mistral, deepseek), strict=True):
        spelled = b"".join(vocabulary.token_bytes[own.ids[i]] or b"" for i, _, _ in own.spans)
        assert all(part in spelled for part in (b"ello there", b" model, I suppose"))
        assert b"[" not in spelled
        assert b"another" not in spelled
    # A piece never reaches from one text into the next.
    edge = len(words[0])
    assert not any(low < edge < high for low, high in scored._bounds)


@pytest.mark.parametrize("limit", [1, 5, 11])
@either_reference
def test_losses_on_some_pieces_and_nothing_else_is_computed(limit: int, reference: int) -> None:
    engine = fusing.fused(PAIR, reference).engine
    whole = 4 * TEXT
    prompt, text = plain(engine, whole), whole.encode()
    sequence = engine.open(prompt, FUSION)
    sequence.feed(prompt.stream)
    ids = [stream.ids(sequence.text_ids, sequence.text) for stream in sequence.streams if stream]
    vocabularies = [member.vocabulary for member in engine.members]
    limits = FitLimits(positions=2, pieces=limit)
    scored = PromptScores(vocabularies, engine.view, ids, prompt.texts, True, limits)
    shown: list[list[int]] = [[], []]

    def counted(k: int, callback: ReadCallback, counts: Sequence[int], logps: Tensor) -> None:
        shown[k] += counts
        callback.on_logps(counts, logps)

    callbacks = [
        ReadCallback(partial(counted, k, v), v.counts) for k, v in enumerate(scored.callbacks())
    ]
    engine.read_prompt(sequence, callbacks)
    bounds = scored._bounds
    assert len(bounds) == limit
    assert set(bounds) <= set(pairwise(scored.common))
    pieces = scored.pieces()
    for k, member in enumerate(engine.members):
        assert isinstance(member, HFMember)
        own, shift = by_hand(member, ids[k]), member.vocabulary.decode(ids[k]).find(text)
        inside = [
            [value for (low, high), value in own.items() if a <= low - shift and high - shift <= b]
            for a, b in bounds
        ]
        assert pieces[k] == pytest.approx([sum(values) for values in inside], abs=EXACT)
        total = -sum(map(sum, inside))
        assert scored.losses("own")[k] == pytest.approx(total / sum(map(len, inside)), abs=EXACT)
        places = {scored.members[k].boundaries[offset] for offset in scored.positions}
        requested = places | set(scored.scored[k])
        assert requested <= set(shown[k])
        # The distributions at the end of the prompt are computed anyway, for generation.
        assert all(count > len(ids[k]) - 2 * sequence.window for count in set(shown[k]) - requested)
    assert scored.scored_bytes == sum(high - low for low, high in bounds)


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 200))
def test_the_spread_stays_as_the_text_grows(limit: int, count: int, more: int) -> None:
    before, after = scoring._spread(count, limit), scoring._spread(count + more, limit)
    assert before == sorted(set(before))
    assert len(before) == min(count, limit)
    assert {index for index in after if index < count} <= set(before)
    gaps = np.diff([-1, *before, count])
    assert gaps.max() <= 3 * count / limit + 1


@given(
    st.text(st.sampled_from("the quick brown 12 中文\n"), min_size=4, max_size=300),
    st.tuples(st.none() | st.integers(0, 40), st.none() | st.integers(0, 40)),
    st.sampled_from([0, 1]),
)
def test_a_budget_bounds_the_places_of_a_member(
    text: str, budgets: tuple[int | None, int | None], reference: int
) -> None:
    """Nothing is read; whole pieces are chosen, and fit positions cost no further place."""
    engine = fusing.fused(PAIR, reference).engine
    vocabularies = [member.vocabulary for member in engine.members]
    ids = [vocabulary.encode(text) for vocabulary in vocabularies]
    every, some = (
        PromptScores(vocabularies, engine.view, ids, (text.encode(),), fit=True, budgets=own)
        for own in ((), budgets)
    )
    for k, budget in enumerate(budgets):
        needed = some.unscored(k) | some.fit_positions.needed[k]
        assert some.places[k] == len(needed)
        assert budget is None or len(needed) <= budget
        assert set(some.scored[k]) <= set(every.scored[k])
    if budgets == (None, None):
        assert some.scored == every.scored
        assert some.positions == every.positions
    elif None not in budgets and all(
        budget is not None and len(own) <= budget
        for budget, own in zip(budgets, every.scored, strict=True)
    ):
        assert some.scored == every.scored


def bare(engine: Engine, prompt: PackPrompt, weighting: str) -> Fit:
    return prefill(engine, prompt, weightings().make(weighting), FUSION)[1]


def test_the_fit_of_a_prompt() -> None:
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
    assert fit.prompt_tokens == tuple(len(one.ids) for one in scored.members)


@pytest.mark.parametrize("weighting", ["uniform", "sim", "exact", "opt", "top1"])
def test_a_prompt_without_text_gives_equal_weights(weighting: str) -> None:
    engine = fusing.fused(PAIR, 0).engine
    vocabularies = [member.vocabulary for member in engine.members]
    empty = PackPrompt(
        tuple(MemberPrompt((*v.prefix_ids, *v.encode("a"))) for v in vocabularies), texts=()
    )
    fit = bare(engine, empty, weighting)
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
