"""Carrying distributions between vocabularies, against slow twins made of dictionaries."""

from __future__ import annotations

import functools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from packfuse.alignment.base import Same
from packfuse.alignment.bytes import Bytes
from packfuse.alignment.token_pairs import CONTEXTS, Pairs, TokenPairs, relate_tokens
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing

TOLERANCE = 1e-5
seeds = st.integers(0, 2**32 - 1)


@functools.cache
def small() -> tuple[Vocabulary, Vocabulary]:
    """A member and a reference that agree on some words, and nest others."""
    member = fusing.bpe("the ", "then", " in", "\n\n", "    ", "café", "12", name="member")
    reference = fusing.bpe("the", " inn", "\n", "  ", "ca", "é", "123", name="reference")
    return member, reference


@functools.cache
def small_pairs() -> Pairs:
    return relate_tokens(*small())


@functools.cache
def real() -> tuple[Vocabulary, Vocabulary, TokenPairs]:
    """Mistral as a member of DeepSeek: bytes with two ids, a hundred thousand tokens more."""
    member, reference = fusing.vocabulary("mistral"), fusing.vocabulary("deepseek")
    pairing = Bytes().pair(member, reference)
    return member, reference, pairing.relation  # type: ignore[attr-defined]


def distribution(columns: int, seed: int, spread: float = 3.0, size: int | None = None) -> Tensor:
    """A random distribution `[columns]`; none of it from `size` on."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(columns, generator=generator) * spread
    scores[columns if size is None else size :] = -torch.inf
    return scores.softmax(-1)


def carried_slowly(pairs: Pairs, member: Tensor, reference: Tensor) -> dict[int, float]:
    """Every member token splits its mass among its partners by the reference's belief in them.

    Nothing arrives where the reference believes in none of them.
    """
    partners: dict[int, list[int]] = defaultdict(list)
    for mine, target in pairs.tolist():
        partners[mine].append(target)
    carried: dict[int, float] = defaultdict(float)
    for mine, targets in partners.items():
        reference_logps = sum(float(reference[target]) for target in targets)
        for target in targets:
            share = (
                1.0 if len(targets) == 1 else float(reference[target]) / (reference_logps or 1.0)
            )
            carried[target] += float(member[mine]) * share
    return carried


def first_written(vocabulary: Vocabulary, token: bytes) -> set[int]:
    """What a tokenizer writes first for some bytes, over all that may follow."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        first = vocabulary.first_token(token)
        return set() if first is None else {first}
    contexts = [""] if text[-1].isalnum() else CONTEXTS
    return {vocabulary.encode(text + context)[0] for context in contexts}


def test_pairs_are_what_the_tokenizers_write_first() -> None:
    member, reference = small()
    expected: set[tuple[int, int]] = set()
    for token, ids in member.ids_of.items():
        expected |= {(mine, target) for mine in ids for target in first_written(reference, token)}
    for token, ids in reference.ids_of.items():
        expected |= {(mine, target) for target in ids for mine in first_written(member, token)}
    expected |= {(member.end_ids[0], reference.end_ids[0])}
    assert {tuple(pair) for pair in small_pairs().tolist()} == expected


def test_swapping_the_vocabularies_swaps_the_pairs() -> None:
    member, reference = small()
    swapped = relate_tokens(reference, member)
    assert sorted((mine, target) for target, mine in swapped.tolist()) == sorted(
        (mine, target) for mine, target in small_pairs().tolist()
    )


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    relate_tokens(*small(), lambda done, total: seen.append((done, total)))
    total = sum(len(vocabulary.ids_of) for vocabulary in small())
    assert seen[-1] == (total, total)


@given(seed=seeds, spread=st.sampled_from([0.5, 3.0, 20.0]))
@example(seed=17, spread=20.0)  # disbelieves all partners of a token
@example(seed=982, spread=20.0)  # nearly so: 2.7e-11 becomes 2e-12
def test_carrying_is_the_slow_twin(seed: int, spread: float) -> None:
    member, reference = small()
    said = distribution(member.columns, seed, spread)
    believed = distribution(reference.columns, seed + 1, spread)
    carried = TokenPairs(small_pairs(), member, reference).carry(said[None], believed[None])[0]
    expected = carried_slowly(small_pairs(), said.double(), believed.double())
    for target, mass in enumerate(carried.tolist()):
        # Shares of a token whose partners are believed at 1e-38 are lost to single precision.
        assert mass == pytest.approx(expected[target], rel=1e-4, abs=1e-9)


@given(seed=seeds)
def test_flow_is_the_parts_of_carry(seed: int) -> None:
    member, reference = small()
    relation = TokenPairs(small_pairs(), member, reference)
    said = distribution(member.columns, seed)
    believed = distribution(reference.columns, seed + 1)
    carried = relation.carry(said[None], believed[None])[0]
    for target in range(reference.columns):
        tokens, mass = relation.flow(target, said.log(), believed.log())
        assert tokens.tolist() == sorted(
            mine for mine, other in small_pairs().tolist() if other == target
        )
        assert float(mass.sum()) == pytest.approx(float(carried[target]), rel=1e-4, abs=1e-12)


def test_rows_of_a_batch_are_carried_alone() -> None:
    member, reference = small()
    relation = TokenPairs(small_pairs(), member, reference)
    said = torch.stack([distribution(member.columns, seed) for seed in range(3)])
    believed = torch.stack([distribution(reference.columns, 9 + seed) for seed in range(3)])
    together = relation.carry(said, believed)
    for row in range(3):
        alone = relation.carry(said[row : row + 1], believed[row : row + 1])[0]
        assert torch.allclose(together[row], alone, atol=1e-7)


def test_real_vocabularies_carry_as_the_slow_twin() -> None:
    member, reference, relation = real()
    pairs = np.stack([relation._tokens.numpy(), _targets(relation)], 1)
    said = distribution(member.columns, 1, size=member.size)
    believed = distribution(reference.columns, 2, size=reference.size)
    carried = relation.carry(said[None], believed[None])[0]
    expected = carried_slowly(pairs, said.double(), believed.double())
    found = dict(enumerate(carried.tolist()))
    assert max(abs(found[target] - expected[target]) for target in found) < TOLERANCE


def _targets(relation: TokenPairs) -> Pairs:
    counts = np.diff(relation._starts)
    return np.repeat(np.arange(len(counts)), counts)


def test_every_byte_string_has_partners_on_both_sides() -> None:
    for vocabularies in (small(), real()[:2]):
        member, reference = vocabularies
        relation = real()[2] if vocabularies != small() else TokenPairs(small_pairs(), *small())
        for ids in reference.ids_of.values():
            assert all(len(relation.partners(target)) for target in ids)
        related = set(relation._tokens.tolist())
        assert all(mine in related for ids in member.ids_of.values() for mine in ids)


def test_mass_of_tokens_with_the_same_bytes_is_added_up() -> None:
    member, reference, relation = real()
    ids = list(member.ids_of[b"1"])
    believed = distribution(reference.columns, 0)[None]
    said = torch.zeros(3, member.columns)
    said[0, ids] = torch.tensor([0.25, 0.5])
    said[[1, 2], ids] = 1.0
    together, one, byte = relation.carry(said, believed.expand(3, -1))
    assert float(together.sum()) == pytest.approx(0.75, abs=1e-6)
    assert torch.allclose(together, 0.25 * one + 0.5 * byte, atol=1e-7)
    [target] = reference.ids_of[b"1"]
    assert float(one[target]) > 0
    assert float(byte[target]) > 0


def test_ends_are_paired_by_role() -> None:
    member, reference, relation = real()
    said = torch.zeros(1, member.columns)
    said[0, member.end_ids[0]] = 1.0
    believed = distribution(reference.columns, 1)[None]
    assert int(relation.carry(said, believed)[0].argmax()) == reference.end_ids[0]
    # Other control tokens have no partners.
    for index in member.control_ids - set(member.end_ids):
        said = torch.zeros(1, member.columns)
        said[0, index] = 1.0
        assert float(relation.carry(said, believed).sum()) == 0.0


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
    said = [distribution(member.columns, seed + i, spread).log() for i in range(2)]
    believed = torch.stack([distribution(reference.columns, seed - i, spread) for i in (1, 2)])
    carried = pairing.carry([*said, None], torch.cat([believed, believed[:1]]).log(), [None] * 3)
    assert not carried.isnan().any()
    assert torch.allclose(carried.exp().sum(-1), torch.ones(3), atol=1e-5)
    # Whoever has nothing to say echoes the reference.
    assert torch.allclose(carried[2].exp(), believed[0], atol=1e-6)


def test_real_distributions_carried_sum_to_one() -> None:
    member, reference, _ = real()
    for source, target in ((member, reference), (reference, member)):
        pairing = Bytes().pair(source, target)
        said = distribution(source.columns, 3, size=source.size).log()
        believed = distribution(target.columns, 4, size=target.size).log()
        carried = pairing.carry([said], believed[None], [None])
        assert float(carried.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        assert torch.isneginf(carried[0, target.size :]).all()


def test_a_member_with_the_references_tokenizer_says_what_it_says() -> None:
    vocabulary = fusing.vocabulary("mistral")
    pairing = Bytes().pair(vocabulary, vocabulary)
    assert isinstance(pairing, Same)
    said = distribution(vocabulary.columns, 5, size=vocabulary.size).log()
    believed = distribution(vocabulary.columns, 6, size=vocabulary.size).log()
    assert torch.equal(pairing.carry([said], believed[None], [None])[0], said)
    assert pairing.map_ids([5, 2, 1]) == [5, 2, 1]


@pytest.mark.parametrize(("mine", "theirs"), [(270, 300), (300, 270)])
def test_padding_may_differ_between_members_of_one_family(mine: int, theirs: int) -> None:
    tokenizer = fusing.bpe("the").tokenizer
    member, reference = Vocabulary(tokenizer, mine, [10]), Vocabulary(tokenizer, theirs)
    pairing = Bytes().pair(member, reference)
    assert isinstance(pairing, Same)
    said = distribution(mine, 7, size=member.size).log()
    carried = pairing.carry([said], torch.zeros(1, theirs), [None])[0]
    assert carried.shape == (theirs,)
    assert torch.equal(carried[: member.size], said[: member.size])
    assert torch.isneginf(carried[member.size :]).all()


def test_control_tokens_may_differ_between_members_of_one_family() -> None:
    """A base model has fewer control tokens than the chat model that was made of it."""
    base = fusing.bpe("the", name="base", controls=("<end>", "<bos>"))
    chat = fusing.bpe("the", name="chat", controls=("<end>", "<bos>", "<turn>"))
    size = base.size
    pairing = Bytes().pair(base, chat)
    assert isinstance(pairing, Same)
    said = distribution(base.columns, 8).log()
    carried = pairing.carry([said], torch.zeros(1, chat.columns), [None])[0]
    assert torch.equal(carried[:size], said)
    assert math.isinf(float(carried[size]))
    assert pairing.map_control(size - 1) == [size - 1]
    assert base.decode(pairing.map_control(size)) == b"<turn>"
    back = Bytes().pair(chat, base)
    said = distribution(chat.columns, 8).log()
    assert torch.equal(back.carry([said], torch.zeros(1, size), [None])[0], said[:size])


def test_tensors_are_copied_to_a_device_once() -> None:
    relation = TokenPairs(small_pairs(), *small())
    meta = relation.on(torch.device("meta"))
    assert meta is relation.on(torch.device("meta"))
    assert relation.on(torch.device("cpu")) is relation
    said = torch.zeros(1, small()[0].columns, device="meta")
    believed = torch.zeros(1, small()[1].columns, device="meta")
    assert relation.carry(said, believed).device.type == "meta"
