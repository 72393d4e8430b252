"""The filter over straddled tokens, against a twin that follows every hypothesis by hand."""

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

from packfuse.alignment import joints
from packfuse.alignment.joints import InnerBoundaries, InnerBoundary
from packfuse.alignment.straddle import WINDOW, Straddle
from packfuse.alignment.token_pairs import TokenPairs, relate_tokens
from packfuse.text.incremental import IncrementalTokenizer
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing

# A run of x is one token of the member's and more of the reference's than the filter looks back.
MEMBER = ("the ", "then we", " in", "    if", "\n\n", "café", "123", "x" * 12)
REFERENCE = ("the", " inn", "  ", " if", "ca", "é", "12", "we ", "e")
PIECES = (
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
        patch.setattr(joints, "LEAST", 0.0)
        yield


@functools.cache
def small() -> tuple[Vocabulary, Vocabulary, InnerBoundaries]:
    member, reference = fusing.bpe(*MEMBER, name="member"), fusing.bpe(*REFERENCE, name="reference")
    return (
        member,
        reference,
        InnerBoundaries(
            TokenPairs(relate_tokens(member, reference), member, reference), member, reference
        ),
    )


def reference_logps(vocabulary: Vocabulary, text: bytes, seed: int) -> Tensor:
    """Some next-token log-probabilities that depend on the text alone, `[columns]`."""
    content = f"{vocabulary.tokenizer.name_or_path} {seed} ".encode() + text
    number = int.from_bytes(hashlib.sha256(content).digest()[:7])
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(vocabulary.columns, generator=generator) * 3).log_softmax(-1)


@dataclass
class Step:
    """What a filter is told about one reference token."""

    target: int
    member: Tensor | None
    reference: Tensor
    inner: list[InnerBoundary]
    open_end: bool


def steps(tokens: Sequence[int], seed: int) -> list[Step]:
    """What the engine tells about a text of reference tokens."""
    member, reference, _ = small()
    path, text, found = IncrementalTokenizer(member), b"", []
    path.update(text)
    for target in tokens:
        low, whole = len(text), path.whole
        before = reference_logps(member, text, seed) if whole else None
        believed = reference_logps(reference, text, seed)
        text += reference.token_bytes[target] or b""
        path.update(text)
        inner = [
            InnerBoundary(text[end:], reference_logps(member, text[:end], seed), path.ids[i + 1])
            for i, end in enumerate(path.ends[:-1])
            if end > low
        ]
        found.append(Step(target, before, believed, inner, path.whole))
    return found


def run(found: Sequence[Step]) -> Straddle:
    straddle = Straddle(small()[2])
    for step in found:
        straddle.advance(
            step.target, step.member, step.reference, step.inner, open_end=step.open_end
        )
    return straddle


# The twin. It knows the two vocabularies, no ranges, no caches, no sources.


@functools.cache
def all_partners() -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for target in range(small()[1].columns):
        for mine in small()[2].relation.partners(target).tolist():
            found[mine].append(target)
    return found


def flows(target: int, step: Step) -> Iterator[tuple[int, float]]:
    """Member tokens that begin what the target begins, and the mass that each sends to it."""
    assert step.member is not None
    for mine, targets in all_partners().items():
        if target in targets:
            total = sum(float(step.reference[t].exp()) for t in targets)
            share = float(step.reference[target].exp()) / total if len(targets) > 1 else 1.0
            yield mine, float(step.member[mine].exp()) * share


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
    """One hypothesis over one reference token; what ends here ends at its first boundary inside."""
    member, reference, _ = small()
    token = reference.token_bytes[step.target]
    assert token is not None
    if hypothesis is CUT:
        for mine, share in flows(step.target, step) if step.member is not None else ():
            said = member.token_bytes[mine]
            if said is not None and said.startswith(token) and len(said) > len(token):
                yield said[len(token) :], mass * share
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
    """Mass that ended inside the token, over the member's remaining boundaries in it."""
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
    """All hypotheses after the last `WINDOW` tokens."""
    now: Mass = {CUT: 1.0}
    for step in found[-WINDOW:]:
        after: Mass = defaultdict(float)
        for hypothesis, mass in now.items():
            for moved, share in move(hypothesis, mass, step):
                for final, part in cross(share, step) if moved is CUT else [(moved, share)]:
                    after[final] += part
        now = after
    total = sum(now.values())
    if total == 0:
        return {CUT: 1.0} if not found or found[-1].open_end else {}
    return {hypothesis: mass / total for hypothesis, mass in now.items() if mass > 0}


@st.composite
def texts(draw: st.DrawFn, most: int = 14) -> list[int]:
    """Reference tokens: words as it writes them, and now and then single bytes of them."""
    reference = small()[1]
    pieces = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=most))
    return [
        index
        for piece in pieces
        for index in (reference.encode(piece) if draw(st.integers(0, 5)) else piece.encode())
    ]


@given(tokens=texts(), seed=st.integers(0, 1000))
def test_the_filter_is_the_twin(tokens: list[int], seed: int) -> None:
    found = steps(tokens, seed)
    straddle, expected = run(found), follow(found)
    actual: Mass = {CUT: straddle.cut}
    for rest, mass in straddle.alive.items():
        actual[rest] = mass
    for hypothesis in (*actual, *expected):
        mass = expected.get(hypothesis, 0.0)
        assert actual.get(hypothesis, 0.0) == pytest.approx(mass, abs=TOLERANCE)


@given(tokens=texts(), seed=st.integers(0, 1000))
def test_the_mixture_is_the_twins_and_sums_to_one(tokens: list[int], seed: int) -> None:
    reference = small()[1]
    found = steps(tokens, seed)
    text = reference.decode(tokens)
    believed = reference_logps(reference, text, seed).exp()
    carried = (
        reference_logps(reference, b"carried" + text, seed).exp() if found[-1].open_end else None
    )
    mixed = run(found).mix(carried, believed)
    expected = follow(found)
    if mixed is None:
        assert not expected
        return
    assert float(mixed.sum()) == pytest.approx(1.0, abs=1e-5)
    by_hand = torch.zeros_like(believed)
    for hypothesis, mass in expected.items():
        if hypothesis is CUT:
            assert carried is not None
            by_hand += mass * carried
        else:
            options = follows(hypothesis)
            by_hand[options] += mass * believed[options] / believed[options].sum()
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
def test_a_copy_goes_its_own_way(tokens: list[int], more: list[int], seed: int) -> None:
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


def test_at_first_there_is_only_the_cut() -> None:
    straddle = run([])
    assert straddle.trivial
    believed = reference_logps(small()[1], b"", 0).exp()
    carried = reference_logps(small()[1], b"carried", 0).exp()
    mixed = straddle.mix(carried, believed)
    assert mixed is not None
    assert torch.allclose(mixed, carried, atol=1e-6)


def test_a_token_that_the_member_would_have_merged_stays_alive() -> None:
    """ "the" may be the beginning of the member's "the "; a space, or its rest, comes next."""
    member, reference, _ = small()
    said = torch.full((member.columns,), -20.0)
    said[member.ids_of[b"the "][0]] = 0.0
    found = steps(reference.encode("the"), 0)
    found[0].member = said.log_softmax(-1)
    straddle = run(found)
    assert straddle.alive[b" "] > 0.99
    believed = torch.full((reference.columns,), 1.0 / reference.columns)
    mixed = straddle.mix(torch.zeros_like(believed), believed)
    assert mixed is not None
    options = [i for i, token in enumerate(reference.token_bytes) if token and token[:1] == b" "]
    assert float(mixed[options].sum()) == pytest.approx(1.0, abs=1e-5)


def test_inside_a_character_nothing_ends() -> None:
    reference = small()[1]
    found = steps([*reference.encode("caf"), 0xC3], 0)
    straddle = run(found)
    assert straddle.cut == 0.0
    assert set(straddle.alive) <= {b"\xa9"}


def test_a_control_token_forgets_everything() -> None:
    reference = small()[1]
    found = steps(reference.encode("the in"), 0)
    straddle = run(found)
    straddle.advance(reference.end_ids[0], None, found[0].reference, [], open_end=True)
    assert straddle.trivial


@pytest.mark.parametrize("prefix", [b"", b"t", b"the", b"the ", b"\xff", b"zz"])
def test_ranges_hold_what_begins_with_a_prefix(prefix: bytes) -> None:
    words = sorted({b"", b"t", b"the", b"the ", b"then", b"u", b"\xff", b"\xff\xff", b"z"})
    low, high = joints._prefix_range(words, prefix)
    assert words[low:high] == [word for word in words if word.startswith(prefix)]
