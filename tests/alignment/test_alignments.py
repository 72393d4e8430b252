"""The alignments of the papers: maps of real tokenizers, and packs of three in every setting."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from packfuse import Pack
from packfuse.alignment import alignments, mined, prefix
from packfuse.alignment.base import Pairing
from packfuse.alignment.lexicon import END, Lexicon, equal_tokens, writable
from packfuse.alignment.mined import Mined, mine, nearest
from packfuse.alignment.pairings import Mapped, Same
from packfuse.alignment.prefix import Prefix, first_tokens
from packfuse.fusion.rules import rules
from packfuse.text.chats.chat_template import render_chat
from packfuse.text.prompt import MemberPrompt
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.uniform import Uniform
from packfuse.weighting.prefill import prefill
from tests.support.packs import tiny_members, tiny_pack, vocabulary

NAMES = ("mistral", "deepseek", "tekken")
CHAT = [{"role": "user", "content": "Hello there, what is the time?"}]
TEXT = "The quick brown fox, naïve, jumps:\n    12 over 狗 and 日本語."

Map = NDArray[np.int64]


@pytest.fixture(scope="module")
def reference() -> Vocabulary:
    return vocabulary("mistral")


@pytest.fixture(scope="module", params=["deepseek", "tekken"])
def member(request: pytest.FixtureRequest) -> Vocabulary:
    return vocabulary(request.param)


@pytest.fixture(scope="module")
def mined_map(member: Vocabulary, reference: Vocabulary) -> Map:
    return table_of(Mined().pair(member, reference), reference)


@pytest.fixture(scope="module")
def prefix_map(member: Vocabulary, reference: Vocabulary) -> Map:
    return first_tokens(member, reference)


def table_of(pairing: Pairing, reference: Vocabulary) -> Map:
    return np.array(pairing.map_ids(range(reference.columns)))


def one(owner: Vocabulary, text: str | bytes) -> int:
    """The id of the token with exactly these bytes."""
    return owner.ids_of[text if isinstance(text, bytes) else text.encode()][0]


def some_ids(owner: Vocabulary, lacking: Vocabulary, count: int) -> list[int]:
    """Ids of text tokens that `lacking` does not have, spread over the vocabulary."""
    ids = [own[0] for word, own in owner.ids_of.items() if word not in lacking.ids_of]
    return [ids[round(i)] for i in np.linspace(0, len(ids) - 1, count)]


@pytest.mark.parametrize(
    "text", ["the", " the", " The", "\n", "e", " ", ",", "1", "é", "中", "   ", " Kön"]
)
def test_equal_tokens_are_found_in_every_tokenizer_family(
    text: str, member: Vocabulary, reference: Vocabulary, prefix_map: Map, mined_map: Map
):
    if text.encode() not in member.ids_of or text.encode() not in reference.ids_of:
        assert text == " Kön", "all but one are tokens of every vocabulary"
        return
    for table in (prefix_map, mined_map):
        assert table[one(reference, text)] == one(member, text)


def test_every_text_token_has_a_counterpart(
    member: Vocabulary, reference: Vocabulary, prefix_map: Map, mined_map: Map
):
    text = [i for i, word in enumerate(reference.token_bytes) if word]
    for table in (prefix_map, mined_map):
        assert (table[text] >= 0).all()
        assert all(member.token_bytes[index] for index in table[text])


def test_ends_are_found_by_role_and_other_control_tokens_are_not_carried(
    member: Vocabulary, reference: Vocabulary
):
    logps = torch.zeros(1, member.columns).log_softmax(-1)
    excluded = {*reference.control_ids, *range(reference.size, reference.columns)}
    excluded -= set(reference.end_ids)
    # With the mass of its control tokens, the member abstains: the reference's stands for it.
    own = torch.zeros(1, reference.columns)
    own[:, sorted(excluded)] = -torch.inf
    own = own.log_softmax(-1)
    for alignment in (Prefix(), Mined()):
        pairing = alignment.pair(member, reference)
        carried = pairing.carry([logps[0]], own, [None])
        assert carried.exp().sum() == pytest.approx(1, abs=1e-5)
        possible = ~torch.isneginf(carried[0]).numpy()
        assert possible[list(reference.end_ids)].all()
        assert not possible[sorted(excluded)].any()
        (end,) = reference.end_ids
        assert equal_tokens(member, reference)[end] == member.end_ids[0]


def test_of_several_tokens_with_the_same_bytes_one_is_carried_onto(reference: Vocabulary):
    produced, fallback = reference.ids_of[b"1"]
    assert reference.encode("1") == [produced]
    assert writable(reference)[[produced, fallback]].tolist() == [True, False]


def test_prefix_takes_the_first_token_of_the_members_encoding(
    member: Vocabulary, reference: Vocabulary, prefix_map: Map
):
    for index in some_ids(reference, member, 300):
        word = reference.token_bytes[index]
        assert word
        assert prefix_map[index] == member.first_token(word)
        assert word.startswith(member.token_bytes[prefix_map[index]] or b"?")


def test_prefix_splits_characters_that_the_member_has_no_token_for(reference: Vocabulary):
    """Mistral has byte tokens, and tekken has tokens for parts of rare characters."""
    member = vocabulary("tekken")
    table = first_tokens(reference, member)
    fragment = next(
        w for w in member.ids_of if len(w) == 2 and w[0] == 0xE4 and w not in reference.ids_of
    )
    assert table[one(member, fragment)] == one(reference, fragment[:1])


def test_mined_takes_the_nearest_string_and_of_equals_the_lowest_id(
    member: Vocabulary, reference: Vocabulary, mined_map: Map
):
    choices = sorted(
        (ids[0], word.decode(errors="surrogateescape")) for word, ids in member.ids_of.items()
    )
    for index in some_ids(reference, member, 25):
        word = reference.token_bytes[index]
        assert word
        text = word.decode(errors="surrogateescape")
        best = min(choices, key=lambda choice: Levenshtein.distance(text, choice[1]))
        assert mined_map[index] == best[0]


def test_mined_reads_control_tokens_as_control_tokens_where_it_can(reference: Vocabulary):
    begin, end = (reference.controls[name] for name in ("<s>", "</s>"))
    tekken, deepseek = vocabulary("tekken"), vocabulary("deepseek")
    table = table_of(Mined().pair(tekken, reference), reference)
    assert table[begin] == tekken.controls["<s>"]
    assert table[end] == tekken.controls["</s>"]
    # deepseek puts no control token before a text, so the nearest text token is taken
    nearest_text = table_of(Mined().pair(deepseek, reference), reference)[begin]
    assert Levenshtein.distance(deepseek.spell(nearest_text), "<s>") == 1


def distance(a: str, b: str) -> int:
    """The Levenshtein distance, computed row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


words = st.text("ab ▁中é\ufffd\ue000\udc80", max_size=6)


@given(st.lists(words, max_size=6), st.lists(words, min_size=1, max_size=8, unique=True))
def test_nearest_is_the_first_of_the_nearest(strings: list[str], choices: list[str]):
    found = nearest(strings, choices)
    for text, at in zip(strings, found.tolist(), strict=True):
        distances = [distance(text, choice) for choice in choices]
        assert at == distances.index(min(distances))


def test_ties_go_to_the_first():
    assert nearest(["cat", "中", "zz"], ["cut", "cot", "x", "y"]).tolist() == [0, 2, 2]
    assert nearest(["cat", "中", "zz"], ["y", "x", "cot", "cut"]).tolist() == [2, 0, 0]


def test_long_strings_are_compared_in_full():
    long = "=" * 600
    assert nearest([long], ["-" * 600, "=" * 300, "=" * 599]).tolist() == [2]


@pytest.mark.parametrize("make", [mine, first_tokens], ids=["mined", "prefix"])
def test_progress_runs_up_to_the_total(make: Callable[..., Map]):
    calls: list[tuple[int, int]] = []
    make(
        vocabulary("deepseek"),
        vocabulary("mistral"),
        lambda done, total: calls.append((done, total)),
    )
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1] > 0


@pytest.mark.parametrize("name", ["mined", "prefix"])
def test_a_map_is_computed_once_and_then_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PACKFUSE_CACHE", str(tmp_path))
    member, reference = vocabulary("deepseek"), vocabulary("mistral")
    calls: list[Vocabulary] = []
    module, maker = {"mined": (mined, "mine"), "prefix": (prefix, "first_tokens")}[name]
    made = {v: equal_tokens(w, v) for v, w in ((reference, member), (member, reference))}

    def make(_: Vocabulary, reference: Vocabulary, progress: object) -> Map:
        calls.append(reference)
        return made[reference]

    monkeypatch.setattr(module, maker, make)
    alignment = alignments().make(name)
    tables = [table_of(alignment.pair(member, reference), reference) for _ in range(2)]
    assert calls == [reference]
    assert (tables[0] == tables[1]).all()
    assert (tables[0] == made[reference].clip(min=0)).all()
    (file,) = tmp_path.glob("alignments/*.safetensors")
    file.write_bytes(b"\0" * 100)
    with pytest.warns(RuntimeWarning, match="broken and is rebuilt"):
        alignment.pair(member, reference)
    assert calls == [reference] * 2
    # the other direction is another map
    alignment.pair(reference, member)
    assert calls == [reference, reference, member]


@pytest.mark.parametrize("name", ["bytes", "mined", "prefix"])
def test_a_member_with_the_same_tokenizer_is_not_carried(name: str, reference: Vocabulary):
    alignment = alignments().make(name)
    assert isinstance(alignment.pair(reference, reference), Same)
    assert alignment.lexicon([reference, reference]) is None


def test_rows_without_a_distribution_are_the_references(reference: Vocabulary):
    pairing = Prefix().pair(vocabulary("deepseek"), reference)
    assert isinstance(pairing, Mapped)
    reference_logps = torch.randn(2, reference.columns).log_softmax(-1)
    member_logps = torch.randn(vocabulary("deepseek").columns).log_softmax(-1)
    carried = pairing.carry([None, member_logps], reference_logps, [None, None])
    assert torch.equal(carried[0], reference_logps[0])
    assert not torch.equal(carried[1], reference_logps[1])
    assert torch.equal(pairing.carry([None, None], reference_logps, [None, None]), reference_logps)


def test_a_lexicon_looks_words_up_by_bytes_role_and_first_token():
    mistral, deepseek = vocabulary("mistral"), vocabulary("deepseek")
    lexicon = Lexicon([mistral, deepseek])
    foreign = next(
        word for word in deepseek.ids_of if word.isalpha() and word not in mistral.ids_of
    )
    proposals = [
        [one(mistral, " the"), mistral.end_ids[0]],
        [one(deepseek, foreign), one(deepseek, " the"), deepseek.end_ids[0]],
    ]
    ids = lexicon.union(proposals)
    assert ids[0] == [*proposals[0], mistral.first_token(foreign)]
    assert ids[1] == [one(deepseek, " the"), deepseek.end_ids[0], one(deepseek, foreign)]
    assert lexicon.union([[], []]) == [[], []]
    assert END not in mistral.ids_of


def test_a_prompt_as_ids_begins_with_the_ids_of_the_prefix():
    mistral = vocabulary("mistral")
    begin = MemberPrompt(mistral.prefix_ids, mistral.text_prefix)
    assert begin.as_ids(mistral) == MemberPrompt(())
    rendered = MemberPrompt(mistral.prefix_ids, b" User: Hi", ends_turns=False)
    ids = (*mistral.prefix_ids, *mistral.encode(" User: Hi"))
    assert rendered.as_ids(mistral) == MemberPrompt(ids, ends_turns=False)


@pytest.fixture(
    scope="module",
    params=["bytes", "prefix", "mined", {"name": "mined", "inputs": "text"}],
    ids=["bytes", "prefix", "mined", "mined-text"],
)
def trio(request: pytest.FixtureRequest) -> Pack:
    return tiny_pack(tiny_members(NAMES, 4), alignment=request.param, reference="mistral")


def every_weighting() -> list[object]:
    fixed = {"name": "fixed", "weights": {"mistral": 0.2, "deepseek": 0.8}}
    members = {name: {"prior": 1 / 3, "temperature": 1.5} for name in NAMES}
    fitted = {"name": "calibrated", "members": members, "sharpness": 1.2}
    given = {"fixed": fixed, "calibrated": fitted}
    return [given.get(name, name) for name in weightings().parts]


@pytest.mark.parametrize("fusion", list(rules().parts))
@pytest.mark.parametrize(
    "weighting", every_weighting(), ids=lambda w: w if isinstance(w, str) else ""
)
def test_three_members_generate_in_every_setting(trio: Pack, fusion: str, weighting: object):
    answer = trio.generate(TEXT, fusion=fusion, weighting=weighting, max_new_tokens=4, trace=True)
    record = answer.record
    assert sum(record.weights.values()) == pytest.approx(1)
    assert record.trace
    for step in record.trace:
        chances = [step.probability, *step.member_probabilities.values()]
        assert all(math.isfinite(p) and 0 <= p <= 1 + 1e-6 for p in chances)
        assert step.probability > 0


@pytest.mark.parametrize("fusion", list(rules().parts))
def test_a_batch_of_three_members_answers_like_single_calls(trio: Pack, fusion: str):
    prompts = [TEXT, "Short", "A third one, 日本"]
    together = trio.generate(prompts, fusion=fusion, max_new_tokens=6)
    for prompt, answer in zip(prompts, together, strict=True):
        assert answer.token_ids == trio.generate(prompt, fusion=fusion, max_new_tokens=6).token_ids


@pytest.mark.parametrize("fusion", list(rules().parts))
def test_three_members_chat(trio: Pack, fusion: str):
    answer = trio.generate(CHAT, fusion=fusion, max_new_tokens=4)
    assert answer.record.usage.completion_tokens > 0


@pytest.mark.parametrize("fusion", list(rules().parts))
def test_members_without_a_template_take_the_references_end_of_turn(fusion: str):
    members = tiny_members(["tekken", "deepseek"], 4)
    pack = tiny_pack(members, fusion=fusion, alignment="prefix", reference="tekken")
    own = members[0].vocabulary
    prompt = render_chat(CHAT, [m.vocabulary for m in members], 0).prompt
    assert [side.ends_turns for side in prompt.members] == [True, False]
    row, _ = prefill(pack.model.engine, prompt, Uniform(), pack.runtime.call)
    assert row.member_logps is not None
    ends = row.member_logps.exp()[:, list(own.end_ids)].sum(-1)
    assert ends[0] == pytest.approx(ends[1].item(), rel=1e-4)


def test_members_inside_a_character_abstain_from_unite():
    """The text ends inside a character of three bytes, so only the reference has a distribution."""
    members = tiny_members(["mistral", "tekken"], 4)
    pack = tiny_pack(members, fusion="unite", alignment="prefix", reference="mistral")
    own = members[0].vocabulary
    ids = torch.tensor([[*members[0].tokenizer(TEXT).input_ids, one(own, b"\xe7")]])
    fused = pack.model(ids).logits[0, -1]
    alone = members[0].model(ids).logits[0, -1, : own.size]
    best = alone.masked_fill(~torch.from_numpy(writable(own))[: own.size], -torch.inf).topk(10)
    assert set(best.indices.tolist()) == set(torch.isfinite(fused).nonzero()[:, 0].tolist())
    torch.testing.assert_close(
        fused[best.indices], best.values.log_softmax(-1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("alignment", ["prefix", "mined"])
@pytest.mark.parametrize("fusion", list(rules().parts))
@pytest.mark.parametrize("name", ["mistral", "tekken"])
def test_copies_generate_what_the_model_alone_generates(name: str, fusion: str, alignment: str):
    member = tiny_members([name], 7)[0]
    ids = member.tokenizer(TEXT, return_tensors="pt").input_ids
    alone = member.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    for count in (1, 3):
        members = [pico_copy(member, f"{name}-{k}") for k in range(count)]
        pack = tiny_pack(members, fusion=fusion, alignment=alignment)
        assert list(pack.generate(TEXT, max_new_tokens=12).token_ids) == alone.tolist()


def pico_copy(member, name: str):
    return type(member)(name, member.model, member.vocabulary)
