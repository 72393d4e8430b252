"""The straddle filter, against a simple twin that follows every hypothesis one by one."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from packfuse.alignment import straddle as straddle_module
from packfuse.alignment.straddle import WINDOW, InnerBoundary, StraddleFilter, StraddleIndex
from packfuse.alignment.straddle_mixture import mix_straddles
from packfuse.alignment.token_pairs import TokenPairs, relate_tokens
from packfuse.text.incremental import IncrementalTokenizer
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing

# Twelve x are one token of the member, and more tokens of the reference than `WINDOW`.
MEMBER = ("the ", "then we", " in", "    if", "\n\n", "café", "123", "x" * 12)
REFERENCE = ("the", " inn", "  ", " if", "ca", "é", "12", "we ", "e")
FRAGMENTS = (
    "the",
    "t",
    "h",
    "e",
    " ",
    "n",
    "we ",
    "  ",
    " if",
    "\n",
    "ca",
    "f",
    "é",
    "12",
    "3",
    " inn",
)
TOLERANCE = 1e-4
CUT = None

Mass = dict[bytes | None, float]
"""Mass by hypothesis: `CUT`, or the bytes that remain of a token that goes on."""


@pytest.fixture(autouse=True, scope="module")
def nothing_dropped() -> Iterator[None]:
    """The twin keeps every hypothesis, however small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(straddle_module, "MIN_SHARE", 0.0)
        yield


@functools.cache
def small() -> tuple[Vocabulary, Vocabulary, StraddleIndex]:
    member, reference = fusing.bpe(*MEMBER, name="member"), fusing.bpe(*REFERENCE, name="reference")
    return (
        member,
        reference,
        StraddleIndex(
            TokenPairs(relate_tokens(member, reference), member, reference), member, reference
        ),
    )


def random_logps(vocabulary: Vocabulary, text: bytes, seed: int) -> Tensor:
    """Random next-token log-probabilities that depend on the text alone, `[columns]`, nats."""
    content = f"{vocabulary.tokenizer.name_or_path} {seed} ".encode() + text
    number = int.from_bytes(hashlib.sha256(content).digest()[:7])
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(vocabulary.columns, generator=generator) * 3).log_softmax(-1)


@dataclass
class Step:
    """The arguments of `StraddleFilter.advance` for one reference token."""

    target: int
    member: Tensor | None
    reference: Tensor
    inner: list[InnerBoundary]
    open_end: bool


def steps(tokens: Sequence[int], seed: int) -> list[Step]:
    """The steps for a text of reference tokens, as the engine makes them."""
    member, reference, _ = small()
    tokenizer, text, found = IncrementalTokenizer(member), b"", []
    tokenizer.update(text)
    for target in tokens:
        low, whole = len(text), tokenizer.whole
        before = random_logps(member, text, seed) if whole else None
        reference_logps = random_logps(reference, text, seed)
        text += reference.token_bytes[target] or b""
        tokenizer.update(text)
        inner = [
            InnerBoundary(text[end:], random_logps(member, text[:end], seed), tokenizer.ids[i + 1])
            for i, end in enumerate(tokenizer.ends[:-1])
            if end > low
        ]
        found.append(Step(target, before, reference_logps, inner, tokenizer.whole))
    return found


def run(found: Sequence[Step]) -> StraddleFilter:
    straddle = StraddleFilter(small()[2])
    for step in found:
        straddle.advance(
            step.target, step.member, step.reference, step.inner, open_end=step.open_end
        )
    return straddle


def mix(straddle: StraddleFilter, carried: Tensor | None, reference_probs: Tensor) -> Tensor:
    """One row, which has a cut or not."""
    own = torch.full_like(reference_probs, torch.nan) if carried is None else carried
    cut = [carried is not None]
    return mix_straddles(own[None], reference_probs[None], cut, [straddle])[0]


# The twin. It uses the two vocabularies, without ranges, caches and sources.


@functools.cache
def all_partners() -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for target in range(small()[1].columns):
        for token_id in small()[2].pairs.partners(target).tolist():
            found[token_id].append(target)
    return found


def flows(target: int, step: Step) -> Iterator[tuple[int, float]]:
    """The member tokens that are paired with the target, and the mass that each sends to it."""
    assert step.member is not None
    for token_id, targets in all_partners().items():
        if target in targets:
            total = sum(float(step.reference[t].exp()) for t in targets)
            share = float(step.reference[target].exp()) / total if len(targets) > 1 else 1.0
            yield token_id, float(step.member[token_id].exp()) * share


@functools.cache
def follows(rest: bytes) -> list[int]:
    """Reference tokens that can come next when the text goes on with `rest`."""
    reference = small()[1]
    longer = {ids[0] for token, ids in reference.ids_of.items() if token.startswith(rest)}
    first = reference.first_token(rest)
    return sorted(longer | ({first} if first is not None else set()))


def consistent(target: int, rest: bytes) -> bool:
    reference = small()[1]
    text = (reference.token_bytes[target] or b"") + rest
    return target in (reference.first_token(text), reference.first_token(text + b"a"))


def move(hypothesis: bytes | None, mass: float, step: Step) -> Iterator[tuple[bytes | None, float]]:
    """One hypothesis over one reference token, up to the first boundary inside the token."""
    member, reference, _ = small()
    token = reference.token_bytes[step.target]
    assert token is not None
    if hypothesis is CUT:
        for token_id, share in flows(step.target, step) if step.member is not None else ():
            spelled = member.token_bytes[token_id]
            if spelled is not None and spelled.startswith(token) and len(spelled) > len(token):
                yield spelled[len(token) :], mass * share
            else:
                yield CUT, mass * share
        return
    options = follows(hypothesis)
    if step.target not in options:
        return
    total = sum(float(step.reference[t].exp()) for t in options)
    share = mass * float(step.reference[step.target].exp()) / total
    if hypothesis.startswith(token) and len(hypothesis) > len(token):
        yield hypothesis[len(token) :], share
    elif token.startswith(hypothesis):
        yield CUT, share


def cross(mass: float, step: Step, at: int = 0) -> Iterator[tuple[bytes | None, float]]:
    """Mass that ended inside the token, over the member's other boundaries inside it."""
    if at == len(step.inner):
        if step.open_end:
            yield CUT, mass
        return
    member, place = small()[0], step.inner[at]
    longer = {
        token[len(place.pending) :]: float(place.logps[ids[0]].exp())
        for token, ids in member.ids_of.items()
        if token.startswith(place.pending) and len(token) > len(place.pending)
    }
    longer = {rest: p for rest, p in longer.items() if consistent(step.target, rest)}
    own = float(place.logps[place.token].exp())
    total = own + sum(longer.values())
    for rest, p in longer.items():
        yield rest, mass * p / total
    yield from cross(mass * own / total, step, at + 1)


def follow(found: Sequence[Step]) -> Mass:
    """All hypotheses after the last `WINDOW` tokens, from the first one on that allows any."""
    window = found[-WINDOW:]
    for start in range(len(window)):
        now = follow_all(window[start:])
        total = sum(now.values())
        if total > 0:
            return {hypothesis: mass / total for hypothesis, mass in now.items() if mass > 0}
    return {CUT: 1.0} if not found or found[-1].open_end else {}


def follow_all(found: Sequence[Step]) -> Mass:
    """The mass of all hypotheses after some tokens, with a cut before the first."""
    now: Mass = {CUT: 1.0}
    for step in found:
        after: Mass = defaultdict(float)
        for hypothesis, mass in now.items():
            for moved, share in move(hypothesis, mass, step):
                for final, part in cross(share, step) if moved is CUT else [(moved, share)]:
                    after[final] += part
        now = after
    return now


@st.composite
def texts(draw: st.DrawFn, most: int = 14) -> list[int]:
    """Reference tokens: the encoding of each fragment, or sometimes its single bytes."""
    reference = small()[1]
    fragments = draw(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=most))
    return [
        index
        for text in fragments
        for index in (reference.encode(text) if draw(st.integers(0, 5)) else text.encode())
    ]


@given(tokens=texts(), seed=st.integers(0, 1000))
def test_the_filter_is_the_twin(tokens: list[int], seed: int) -> None:
    found = steps(tokens, seed)
    assert_is_the_twin(found)


@given(tokens=texts(), seed=st.integers(0, 1000), kept=st.sampled_from([0.05, 0.3, 0.9]))
def test_the_filter_is_the_twin_where_tokens_are_impossible(
    tokens: list[int], seed: int, kept: float
) -> None:
    """A model that is sure of a token gives all others probability 0."""
    found = steps(tokens, seed)
    generator = torch.Generator().manual_seed(seed)
    for step in found:
        if step.member is not None:
            impossible = torch.rand(step.member.shape, generator=generator) > kept
            step.member = step.member.masked_fill(impossible, -torch.inf)
    assert_is_the_twin(found)


def assert_is_the_twin(found: Sequence[Step]) -> None:
    straddle, expected = run(found), follow(found)
    actual = Mass(straddle.alive.items())
    actual[CUT] = straddle.cut
    for hypothesis in (*actual, *expected):
        mass = expected.get(hypothesis, 0.0)
        assert actual.get(hypothesis, 0.0) == pytest.approx(mass, abs=TOLERANCE)


@given(tokens=texts(), seed=st.integers(0, 1000))
def test_the_mixture_is_the_twins_and_sums_to_one(tokens: list[int], seed: int) -> None:
    reference = small()[1]
    found = steps(tokens, seed)
    text = reference.decode(tokens)
    reference_probs = random_logps(reference, text, seed).exp()
    carried = random_logps(reference, b"carried" + text, seed).exp() if found[-1].open_end else None
    mixed = mix(run(found), carried, reference_probs)
    expected = follow(found)
    if not expected:
        assert torch.equal(mixed, reference_probs)
        return
    assert float(mixed.sum()) == pytest.approx(1.0, abs=1e-5)
    by_hand = torch.zeros_like(reference_probs)
    for hypothesis, mass in expected.items():
        if hypothesis is CUT:
            assert carried is not None
            by_hand += mass * carried
        else:
            options = follows(hypothesis)
            probs = reference_probs[options]
            by_hand[options] += mass * probs / probs.sum()
    assert torch.allclose(mixed, by_hand / by_hand.sum(), atol=TOLERANCE)


@given(tokens=texts(most=25), seed=st.integers(0, 1000))
def test_a_cold_restart_is_the_running_filter(tokens: list[int], seed: int) -> None:
    found = steps(tokens, seed)
    running, cold = run(found), run(found[-WINDOW:])
    assert running.cut == pytest.approx(cold.cut, abs=1e-9)
    assert running.alive == pytest.approx(cold.alive, abs=1e-9)


def test_a_straddle_longer_than_the_window_is_given_up() -> None:
    found = steps(small()[1].encode("x" * 10), 0)
    assert len(found) == 10 > WINDOW
    running, cold = run(found), run(found[-WINDOW:])
    assert len(cold.alive) > 1
    assert running.alive == pytest.approx(cold.alive, abs=1e-9)


@given(tokens=texts(), more=texts(), seed=st.integers(0, 1000))
def test_a_copy_is_independent(tokens: list[int], more: list[int], seed: int) -> None:
    found = steps([*tokens, *more], seed)
    first = run(found[: len(tokens)])
    cut, alive = first.cut, dict(first.alive)
    twin = first.copy()
    for step in found[len(tokens) :]:
        twin.advance(step.target, step.member, step.reference, step.inner, open_end=step.open_end)
    assert (first.cut, first.alive) == (cut, alive)
    whole = run(found)
    assert twin.cut == pytest.approx(whole.cut, abs=1e-9)
    assert twin.alive == pytest.approx(whole.alive, abs=1e-9)


@given(many=st.lists(st.tuples(texts(), st.integers(0, 1000)), min_size=1, max_size=4))
def test_rows_are_mixed_together_as_each_alone(many: list[tuple[list[int], int]]) -> None:
    """Some with a cut, some without, some without a filter."""
    reference = small()[1]
    filters, cuts, carried, probs = [], [], [], []
    for tokens, seed in many:
        found = steps(tokens, seed)
        filters.append(run(found) if seed % 4 else None)
        cuts.append(found[-1].open_end if found else True)
        own = random_logps(reference, b"carried", seed).exp()
        carried.append(own if cuts[-1] else torch.full_like(own, torch.nan))
        probs.append(random_logps(reference, b"reference", seed).exp())
    own, reference_probs = torch.stack(carried), torch.stack(probs)
    together = mix_straddles(own, reference_probs, cuts, filters)
    for row, (straddle, cut) in enumerate(zip(filters, cuts, strict=True)):
        here = slice(row, row + 1)
        alone = mix_straddles(own[here], reference_probs[here], [cut], [straddle])
        assert torch.allclose(together[here], alone, atol=1e-7)


def test_at_the_beginning_there_is_only_the_cut() -> None:
    straddle = run([])
    assert straddle.trivial
    reference_probs = random_logps(small()[1], b"", 0).exp()
    carried = random_logps(small()[1], b"carried", 0).exp()
    mixed = mix(straddle, carried, reference_probs)
    assert torch.allclose(mixed, carried, atol=1e-6)


def test_a_token_that_the_member_would_have_merged_is_a_straddle() -> None:
    """After "the", the member may be inside its token "the ": then a space comes next."""
    member, reference, _ = small()
    scores = torch.full((member.columns,), -20.0)
    scores[member.ids_of[b"the "][0]] = 0.0
    found = steps(reference.encode("the"), 0)
    found[0].member = scores.log_softmax(-1)
    straddle = run(found)
    assert straddle.alive[b" "] > 0.99
    reference_probs = torch.full((reference.columns,), 1.0 / reference.columns)
    mixed = mix(straddle, torch.zeros_like(reference_probs), reference_probs)
    options = [i for i, token in enumerate(reference.token_bytes) if token and token[:1] == b" "]
    assert float(mixed[options].sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_straddle_after_an_impossible_token_is_followed() -> None:
    """What was impossible before says nothing of the token after it."""
    member, reference, _ = small()
    sure = torch.full((2, member.columns), -torch.inf)
    sure[0, member.ids_of[b"\n"][0]] = 0.0  # and the text goes on with "e"
    sure[1, member.ids_of[b"then we"][0]] = 0.0
    found = steps(reference.encode("e") + reference.encode("the"), 0)
    assert len(found) == 2
    for step, logps in zip(found, sure, strict=True):
        step.member = logps
    straddle = run(found)
    assert (straddle.cut, straddle.alive) == (0.0, {b"n we": 1.0})


def test_no_token_of_the_member_ends_inside_a_character() -> None:
    reference = small()[1]
    found = steps([*reference.encode("caf"), 0xC3], 0)
    straddle = run(found)
    assert straddle.cut == 0.0
    assert set(straddle.alive) <= {b"\xa9"}


def test_a_control_token_resets_the_filter() -> None:
    reference = small()[1]
    found = steps(reference.encode("the in"), 0)
    straddle = run(found)
    straddle.advance(reference.end_ids[0], None, found[0].reference, [], open_end=True)
    assert straddle.trivial


@pytest.mark.parametrize("prefix", [b"", b"t", b"the", b"the ", b"\xff", b"zz"])
def test_a_prefix_range_holds_the_words_with_that_prefix(prefix: bytes) -> None:
    words = sorted({b"", b"t", b"the", b"the ", b"then", b"u", b"\xff", b"\xff\xff", b"z"})
    low, high = straddle_module._prefix_range(words, prefix)
    assert words[low:high] == [word for word in words if word.startswith(prefix)]
