"""Carrying distributions between vocabularies, against simple twins made of dictionaries."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from packfuse.alignment import alignments
from packfuse.alignment.base import Pairing
from packfuse.alignment.bytes import Bytes
from packfuse.alignment.pairings import Same
from packfuse.alignment.spelling import spelled_bytes
from packfuse.alignment.token_pairs import CONTEXTS, FLOOR, Pairs, TokenPairs, relate_tokens
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing

TOLERANCE = 1e-5
seeds = st.integers(0, 2**32 - 1)


@functools.cache
def small() -> tuple[Vocabulary, Vocabulary]:
    """A member and a reference with some equal tokens, and tokens that begin others."""
    member = fusing.bpe("the ", "then", " in", "\n\n", "    ", "café", "12", name="member")
    reference = fusing.bpe("the", " inn", "\n", "  ", "ca", "é", "123", name="reference")
    return member, reference


@functools.cache
def marked() -> tuple[Vocabulary, Vocabulary]:
    """Both have marks and turns of their own, and one mark is in both."""
    member = fusing.bpe(
        "the ", "<thi", "[C", name="member", controls=("<end>", "<think>", "</tool>", "<turn>")
    )
    reference = fusing.bpe(
        "the", "think", "</", name="reference", controls=("<end>", "[CALL]", "</tool>", "<role>")
    )
    return member, reference


both = pytest.mark.parametrize("vocabularies", [small, marked], ids=["text", "marks"])


@functools.cache
def small_pairs() -> Pairs:
    return relate_tokens(*small())


@functools.cache
def real() -> tuple[Vocabulary, Vocabulary, TokenPairs]:
    """Mistral as the member: bytes with two ids, and a quarter of the tokens of DeepSeek."""
    member, reference = fusing.vocabulary("mistral"), fusing.vocabulary("deepseek")
    pairing = Bytes().pair(member, reference)
    return member, reference, pairing.token_pairs  # type: ignore[attr-defined]


def distribution(columns: int, seed: int, spread: float = 3.0, size: int | None = None) -> Tensor:
    """A random distribution `[columns]`; ids from `size` on have probability 0."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(columns, generator=generator) * spread
    scores[columns if size is None else size :] = -torch.inf
    return scores.softmax(-1)


def carried_by_hand(
    pairs: Pairs, vocabularies: tuple[Vocabulary, Vocabulary], member: Tensor, reference: Tensor
) -> dict[int, float]:
    """Every member token splits its mass among its partners by the reference's probabilities.

    Where the reference gives all partners probability 0, the first choice takes all of it: the
    partner with the same bytes, else the longest beginning, else the shortest continuation.
    """
    partners: dict[int, list[int]] = defaultdict(list)
    for token_id, target in pairs.tolist():
        partners[token_id].append(target)
    carried: dict[int, float] = defaultdict(float)
    for token_id, targets in partners.items():
        size = len(spelled_bytes(vocabularies[0], token_id) or b"")
        sizes = {t: len(spelled_bytes(vocabularies[1], t) or b"") for t in targets}
        shorter = [t for t in targets if sizes[t] <= size]
        first = (
            max(shorter, key=sizes.__getitem__) if shorter else min(targets, key=sizes.__getitem__)
        )
        chance = {t: float(reference[t]) + FLOOR * (t == first) for t in targets}
        for target in targets:
            share = chance[target] / sum(chance.values())
            carried[target] += float(member[token_id]) * share
    return carried


def first_encoded(vocabulary: Vocabulary, token: bytes) -> set[int]:
    """The first tokens of the encodings of some bytes, over all contexts."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        first = vocabulary.first_token(token)
        return set() if first is None else {first}
    contexts = [""] if text[-1].isalnum() else CONTEXTS
    return {vocabulary.encode(text + context)[0] for context in contexts}


def spelled(owner: Vocabulary, other: Vocabulary) -> list[tuple[bytes, int]]:
    """Text tokens, and control tokens inside answers that the other has to spell."""
    text = [(token, token_id) for token, ids in owner.ids_of.items() for token_id in ids]
    marks = {"<think>", "</tool>", "[CALL]"} - set(other.controls)
    return text + [(name.encode(), i) for name, i in owner.controls.items() if name in marks]


@both
def test_partners_are_the_first_tokens_of_encodings(
    vocabularies: Callable[[], tuple[Vocabulary, Vocabulary]],
) -> None:
    member, reference = vocabularies()
    expected = {
        (token_id, target)
        for token, token_id in spelled(member, reference)
        for target in first_encoded(reference, token)
    }
    for token, target in spelled(reference, member):
        expected |= {(token_id, target) for token_id in first_encoded(member, token)}
    expected |= {
        (member.controls[name], reference.controls[name])
        for name in ("<end>", "</tool>")
        if name in member.controls
    }
    assert {tuple(pair) for pair in relate_tokens(member, reference).tolist()} == expected


def test_swapping_the_vocabularies_swaps_the_pairs() -> None:
    member, reference = small()
    swapped = relate_tokens(reference, member)
    assert sorted((token_id, target) for target, token_id in swapped.tolist()) == sorted(
        (token_id, target) for token_id, target in small_pairs().tolist()
    )


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    relate_tokens(*small(), lambda done, total: seen.append((done, total)))
    total = sum(len(vocabulary.ids_of) for vocabulary in small())
    assert seen[-1] == (total, total)


@given(seed=seeds, spread=st.sampled_from([0.5, 3.0, 20.0]))
@example(seed=17, spread=20.0)  # the partners of a token have probability 0
@example(seed=982, spread=20.0)  # nearly 0: 2.7e-11 becomes 2e-12
@both
def test_carrying_equals_the_simple_twin(
    vocabularies: Callable[[], tuple[Vocabulary, Vocabulary]], seed: int, spread: float
) -> None:
    member, reference = vocabularies()
    pairs = small_pairs() if vocabularies is small else relate_tokens(member, reference)
    member_probs = distribution(member.columns, seed, spread)
    reference_probs = distribution(reference.columns, seed + 1, spread)
    carried = TokenPairs(pairs, member, reference).carry(member_probs[None], reference_probs[None])
    carried = carried[0]
    expected = carried_by_hand(
        pairs, (member, reference), member_probs.double(), reference_probs.double()
    )
    for target, mass in enumerate(carried.tolist()):
        assert mass == pytest.approx(expected[target], rel=1e-4, abs=1e-9)


@given(seed=seeds)
def test_flow_is_the_parts_of_carry(seed: int) -> None:
    member, reference = small()
    token_pairs = TokenPairs(small_pairs(), member, reference)
    member_probs = distribution(member.columns, seed)
    reference_probs = distribution(reference.columns, seed + 1)
    carried = token_pairs.carry(member_probs[None], reference_probs[None])[0]
    for target in range(reference.columns):
        tokens, mass = token_pairs.flow(
            target, member_probs.log().numpy(), reference_probs.log().numpy()
        )
        assert tokens.tolist() == sorted(
            token_id for token_id, other in small_pairs().tolist() if other == target
        )
        assert float(mass.sum()) == pytest.approx(float(carried[target]), rel=1e-4, abs=1e-12)


def test_rows_of_a_batch_are_independent() -> None:
    member, reference = small()
    token_pairs = TokenPairs(small_pairs(), member, reference)
    member_probs = torch.stack([distribution(member.columns, seed) for seed in range(3)])
    reference_probs = torch.stack([distribution(reference.columns, 9 + seed) for seed in range(3)])
    together = token_pairs.carry(member_probs, reference_probs)
    for row in range(3):
        alone = token_pairs.carry(member_probs[row : row + 1], reference_probs[row : row + 1])[0]
        assert torch.allclose(together[row], alone, atol=1e-7)


def test_real_vocabularies_carry_like_the_simple_twin() -> None:
    member, reference, token_pairs = real()
    pairs = np.stack([token_pairs._tokens.numpy(), _targets(token_pairs)], 1)
    member_probs = distribution(member.columns, 1, size=member.size)
    reference_probs = distribution(reference.columns, 2, size=reference.size)
    carried = token_pairs.carry(member_probs[None], reference_probs[None])[0]
    expected = carried_by_hand(
        pairs, (member, reference), member_probs.double(), reference_probs.double()
    )
    found = dict(enumerate(carried.tolist()))
    assert max(abs(found[target] - expected[target]) for target in found) < TOLERANCE


def _targets(token_pairs: TokenPairs) -> Pairs:
    counts = np.diff(token_pairs._starts)
    return np.repeat(np.arange(len(counts)), counts)


def test_every_byte_string_has_partners_on_both_sides() -> None:
    for vocabularies in (small(), real()[:2]):
        member, reference = vocabularies
        token_pairs = real()[2] if vocabularies != small() else TokenPairs(small_pairs(), *small())
        for ids in reference.ids_of.values():
            assert all(len(token_pairs.partners(target)) for target in ids)
        related = set(token_pairs._tokens.tolist())
        assert all(token_id in related for ids in member.ids_of.values() for token_id in ids)


def test_mass_of_tokens_with_the_same_bytes_is_added_up() -> None:
    member, reference, token_pairs = real()
    ids = list(member.ids_of[b"1"])
    reference_probs = distribution(reference.columns, 0)[None]
    member_probs = torch.zeros(3, member.columns)
    member_probs[0, ids] = torch.tensor([0.25, 0.5])
    member_probs[[1, 2], ids] = 1.0
    together, one, byte = token_pairs.carry(member_probs, reference_probs.expand(3, -1))
    assert float(together.sum()) == pytest.approx(0.75, abs=1e-6)
    assert torch.allclose(together, 0.25 * one + 0.5 * byte, atol=1e-7)
    [target] = reference.ids_of[b"1"]
    assert float(one[target]) > 0
    assert float(byte[target]) > 0


def test_the_first_choice_is_the_token_that_the_tokenizer_produces() -> None:
    """Mistral as the reference has two tokens for `.`, and its tokenizer produces one of them."""
    reference, member, _ = real()
    token_pairs = Bytes().pair(member, reference).token_pairs  # type: ignore[attr-defined]
    characters = [chr(code) for code in range(33, 127)]
    assert all(len(reference.ids_of[c.encode()]) == 2 for c in characters)
    member_probs = torch.zeros(len(characters), member.columns)
    for row, character in enumerate(characters):
        member_probs[row, member.ids_of[character.encode()][0]] = 1.0
    impossible = torch.zeros(len(characters), reference.columns)
    carried = token_pairs.carry(member_probs, impossible)
    assert carried.argmax(1).tolist() == [reference.encode(c)[0] for c in characters]
    assert torch.allclose(carried.sum(1), torch.ones(len(characters)))


def test_ends_are_paired_by_role() -> None:
    member, reference, token_pairs = real()
    member_probs = torch.zeros(1, member.columns)
    member_probs[0, member.end_ids[0]] = 1.0
    reference_probs = distribution(reference.columns, 1)[None]
    assert int(token_pairs.carry(member_probs, reference_probs)[0].argmax()) == reference.end_ids[0]
    # Other control tokens have no partners.
    for index in member.control_ids - set(member.end_ids):
        member_probs = torch.zeros(1, member.columns)
        member_probs[0, index] = 1.0
        assert float(token_pairs.carry(member_probs, reference_probs).sum()) == 0.0


def test_an_end_that_is_text_is_paired_as_text() -> None:
    member = fusing.bpe(name="member")
    reference = Vocabulary(fusing.bpe("x", name="reference").tokenizer, end_ids=[10])
    assert reference.end_ids == (256, 10)
    pairs = {tuple(pair) for pair in relate_tokens(member, reference).tolist()}
    assert (256, 256) in pairs
    assert (10, 10) in pairs
    assert (256, 10) not in pairs


@pytest.mark.parametrize("hedge", [0.0, 0.01])
@given(seed=seeds, spread=st.sampled_from([0.5, 3.0, 30.0]))
def test_carried_distributions_sum_to_one(hedge: float, seed: int, spread: float) -> None:
    member, reference = small()
    pairing = Bytes(hedge=hedge).pair(member, reference)
    member_logps = [distribution(member.columns, seed + i, spread).log() for i in range(2)]
    reference_probs = torch.stack(
        [distribution(reference.columns, seed - i, spread) for i in (1, 2)]
    )
    carried = pairing.carry(
        [*member_logps, None], torch.cat([reference_probs, reference_probs[:1]]).log(), [None] * 3
    )
    assert not carried.isnan().any()
    assert torch.allclose(carried.exp().sum(-1), torch.ones(3), atol=1e-5)
    # A row without a member's distribution is the reference's.
    assert torch.allclose(carried[2].exp(), reference_probs[0], atol=1e-6)


def test_real_distributions_carried_sum_to_one() -> None:
    member, reference, _ = real()
    for source, target in ((member, reference), (reference, member)):
        pairing = Bytes().pair(source, target)
        member_logps = distribution(source.columns, 3, size=source.size).log()
        reference_logps = distribution(target.columns, 4, size=target.size).log()
        carried = pairing.carry([member_logps], reference_logps[None], [None])
        assert float(carried.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        assert torch.isneginf(carried[0, target.size :]).all()


def test_a_distribution_over_the_references_tokenizer_is_kept() -> None:
    vocabulary = fusing.vocabulary("mistral")
    pairing = Bytes().pair(vocabulary, vocabulary)
    assert isinstance(pairing, Same)
    member_logps = distribution(vocabulary.columns, 5, size=vocabulary.size).log()
    reference_logps = distribution(vocabulary.columns, 6, size=vocabulary.size).log()
    assert torch.equal(
        pairing.carry([member_logps], reference_logps[None], [None])[0], member_logps
    )
    assert pairing.map_ids([5, 2, 1]) == [5, 2, 1]


@pytest.mark.parametrize(("own_columns", "reference_columns"), [(270, 300), (300, 270)])
def test_padding_may_differ_between_members_of_one_family(
    own_columns: int, reference_columns: int
) -> None:
    tokenizer = fusing.bpe("the").tokenizer
    member, reference = (
        Vocabulary(tokenizer, own_columns, [10]),
        Vocabulary(tokenizer, reference_columns),
    )
    pairing = Bytes().pair(member, reference)
    assert isinstance(pairing, Same)
    member_logps = distribution(own_columns, 7, size=member.size).log()
    carried = pairing.carry([member_logps], torch.zeros(1, reference_columns), [None])[0]
    assert carried.shape == (reference_columns,)
    assert torch.equal(carried[: member.size], member_logps[: member.size])
    assert torch.isneginf(carried[member.size :]).all()


def test_control_tokens_may_differ_between_members_of_one_family() -> None:
    """A base model has fewer control tokens than the chat model that was made of it."""
    base = fusing.bpe("the", name="base", controls=("<end>", "<bos>"))
    chat = fusing.bpe("the", name="chat", controls=("<end>", "<bos>", "<turn>"))
    size = base.size
    pairing = Bytes().pair(base, chat)
    assert isinstance(pairing, Same)
    member_logps = distribution(base.columns, 8).log()
    carried = pairing.carry([member_logps], torch.zeros(1, chat.columns), [None])[0]
    assert torch.equal(carried[:size], member_logps)
    assert math.isinf(float(carried[size]))
    assert pairing.map_control(size - 1) == [size - 1]
    assert base.decode(pairing.map_control(size)) == b"<turn>"
    back = Bytes().pair(chat, base)
    member_logps = distribution(chat.columns, 8).log()
    own = distribution(size, 9).log()
    carried = back.carry([member_logps], own[None], [None])[0]
    # For what the base model cannot write, the chat model abstains.
    abstained = member_logps[size] + own
    assert torch.allclose(carried, torch.logaddexp(member_logps[:size], abstained))
    impossible = member_logps.index_fill(0, torch.tensor([size]), -torch.inf)
    assert torch.equal(back.carry([impossible], own[None], [None])[0], impossible[:size])


def pairing_of(alignment: Any, member: Vocabulary, reference: Vocabulary) -> Pairing:
    pairing: Pairing = alignments().make(alignment).pair(member, reference)
    return pairing


@pytest.mark.parametrize(
    "alignment",
    [{"name": "bytes", "hedge": 0}, "prefix", "mined"],
    ids=["bytes", "prefix", "mined"],
)
@given(seed=seeds, share=st.sampled_from([0.0, 0.3, 0.999, 1.0]))
def test_mass_that_cannot_be_carried_is_the_references(
    alignment: Any, seed: int, share: float
) -> None:
    member, reference = marked()
    pairing = pairing_of(alignment, member, reference)
    member_probs = distribution(member.columns, seed)
    own = distribution(reference.columns, seed + 1).log()[None]
    turn = member.controls["<turn>"]
    member_probs[turn] = 0.0
    member_probs /= member_probs.sum()
    plain = pairing.carry([member_probs.log()], own, [None])[0].exp()
    used = pairing.used_ids() if alignment in ("prefix", "mined") else None
    # Tokens that stand for none of the reference have no effect, on the share either.
    text = 1.0 if used is None else float(member_probs[used].sum())
    member_probs *= 1 - share
    member_probs[turn] = share
    carried = pairing.carry([member_probs.log()], own, [None])[0].exp()
    share = share / (share + (1 - share) * text)
    assert torch.allclose(carried, (1 - share) * plain + share * own[0].exp(), atol=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
def test_without_marks_distributions_are_carried_as_they_were(swapped: bool) -> None:
    """To the bit, where no member and no reference has any mass on control tokens."""
    member, reference = real()[1::-1] if swapped else real()[:2]
    assert member.marks or reference.marks
    now = Bytes().pair(member, reference)
    pairs = cast("Any", now).token_pairs
    pairs = np.stack([pairs._tokens.numpy(), _targets(pairs)], 1)
    text = ~np.isin(pairs[:, 0], list(member.marks)) & ~np.isin(pairs[:, 1], list(reference.marks))
    assert not text.all()
    before = TokenPairs(pairs[text], member, reference)
    probs = []
    for vocabulary in (member, reference):
        found = distribution(vocabulary.columns, 1, size=vocabulary.size)
        found[sorted(vocabulary.control_ids)] = 0
        probs.append((found[None] / found.sum()).log().exp())
    expected = before.carry(probs[0], probs[1])
    expected /= expected.sum(-1, keepdim=True)
    expected.lerp_(probs[1], 0.01).log_()
    assert torch.equal(now.carry([probs[0][0].log()], probs[1].log(), [None]), expected)


def test_tensors_are_copied_to_a_device_once() -> None:
    token_pairs = TokenPairs(small_pairs(), *small())
    meta = token_pairs.on(torch.device("meta"))
    assert meta is token_pairs.on(torch.device("meta"))
    assert token_pairs.on(torch.device("cpu")) is token_pairs
    member_probs = torch.zeros(1, small()[0].columns, device="meta")
    reference_probs = torch.zeros(1, small()[1].columns, device="meta")
    assert token_pairs.carry(member_probs, reference_probs).device.type == "meta"
