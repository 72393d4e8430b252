"""The gate `nudge`: one member writes, and another one writes a word where it is unsure."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from packfuse import Pack
from packfuse.causal_lm.cache import FusedCache
from packfuse.constraint import Regex
from packfuse.errors import ConfigError
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.fusion.gates import gates
from packfuse.fusion.gates.base import LastToken
from packfuse.fusion.gates.nudge import Nudge, word_goes_on
from packfuse.models.hf_member import HFMember
from packfuse.settings import PackConfig
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico, small
from tests.support.packs import tiny_member, tiny_members, tiny_pack
from tests.support.wordy import Writer, wordy_pack

PROMPT = "one two three four one two three  four\n    one"
NEW = 24
THRESHOLD = 0.35
LEADS = Writer(["river", "harbor.", "extraordinarily", "a", "Straße", "x1"])
NUDGES = Writer(["Certainly", "unbelievable!", "so", "naïveté", "I", "…"], end_after=20)
TEXTS = st.text("ab é.\n", max_size=12).map(lambda text: "The " + text + "word")


def nudged_by_hand(leader: Writer, nudger: Writer, text: str, limit: int) -> tuple[str, bool]:
    """Nudging on texts: what is written after `text`, and whether it ended.

    The leader writes one of its tokens at a time, the nudger whole words.
    """
    vocabulary = wordy_pack_of_this_module().members[0].vocabulary
    whole = text
    while len(whole) - len(text) < limit:
        own = leader.rest(whole)
        if own and leader.sure(whole):
            whole += vocabulary.decode([vocabulary.encode(own)[0]]).decode()
            continue
        word = nudger.rest(whole)
        if not word:
            return whole[len(text) :], True
        whole += word
        if not nudger.rest(whole):
            return whole[len(text) :], True
    return whole[len(text) :], False


@functools.cache
def wordy_pack_of_this_module() -> Pack:
    return wordy_pack(LEADS, NUDGES, prefix_cache=0)


@settings(max_examples=25)
@given(TEXTS)
def test_the_answer_is_the_one_written_by_hand(text: str) -> None:
    pack = wordy_pack_of_this_module()
    answer = pack.generate(text, max_new_tokens=40)
    by_hand, ended = nudged_by_hand(LEADS, NUDGES, text, len(answer.text) + 1)
    if answer.record.finish_reason == "stop":
        assert (answer.text, True) == (by_hand, ended)
    else:
        # The last word of either may be cut.
        assert by_hand.startswith(answer.text) or answer.text.startswith(by_hand)
        assert len(answer.text) > 40


@settings(max_examples=10)
@given(TEXTS)
def test_the_trace_says_which_tokens_were_nudged(text: str) -> None:
    pack = wordy_pack_of_this_module()
    record = pack.generate(text, max_new_tokens=40, trace=True).record
    assert record.trace
    assert record.fused == pytest.approx(sum(s.fused for s in record.trace) / len(record.trace))
    written = text
    for step in record.trace:
        if "\ufffd" in step.text:
            return  # tokens that are parts of a character
        if not step.fused:
            assert LEADS.rest(written).startswith(step.text)
            assert LEADS.sure(written)
        written += step.text


# The distributions, position by position.


@functools.cache
def small_members() -> list[HFMember]:
    """Random models with a few hundred tokens; the leader is often sure."""
    found = []
    for seed, name in enumerate(("short", "long")):
        own = small.vocabulary(name)
        model = pico.tiny_model(own.tokenizer, seed=seed)  # type: ignore[arg-type]
        found.append(HFMember(name, model, own))
    return found


@functools.cache
def small_pack() -> Pack:
    """Carried at the members' own token boundaries, and nothing else mixed in."""
    return tiny_pack(
        small_members(),
        gate={"name": "nudge", "threshold": THRESHOLD},
        alignment={"name": "bytes", "hedge": 0, "straddles": False},
    )


def spelled_in(reference: Vocabulary, token: bytes) -> int:
    """The reference's token with which it spells a token of another vocabulary."""
    begun = [own for own in reference.ids_of if token.startswith(own)]
    return reference.ids_of[max(begun, key=len)][0]


def literally(logps: torch.Tensor, own: Vocabulary, reference: Vocabulary) -> torch.Tensor:
    """A distribution `[columns]`, nats, with every token's mass at the reference's spelling."""
    carried = torch.zeros(reference.columns)
    for index, prob in enumerate(logps.exp().tolist()):
        token = own.token_bytes[index] if index < own.columns else None
        if token:
            carried[spelled_in(reference, token)] += prob
        elif index in own.end_ids:
            carried[reference.end_ids[0]] += prob
    return (carried / carried.sum()).log()


def last_logps(member: HFMember, ids: list[int]) -> torch.Tensor:
    own = member.vocabulary
    with torch.no_grad():
        logits = member.model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    logps = torch.full((own.columns,), -torch.inf)
    logps[: own.size] = logits[: own.size].log_softmax(-1)
    return logps


def position_by_hand(
    ids: list[int], written: list[int], flags: list[bool], threshold: float
) -> tuple[torch.Tensor, bool]:
    """The distribution after a prompt and an answer, `[V]`, and whether it is the nudger's."""
    leader, nudger = small_members()
    own = leader.vocabulary
    logps = last_logps(leader, ids + written)
    theirs = last_logps(nudger, nudger.vocabulary.encode_bytes(own.decode(ids + written)))
    carried = literally(theirs, nudger.vocabulary, own)
    best = own.token_bytes[int(carried.argmax())] or b"an end"
    before = own.token_bytes[written[-1]] or b"" if written else b""
    in_word = bool(before) and flags[-1]
    if in_word and not before.isspace():
        in_word = not before[-1:].isspace() and not best[:1].isspace()
    if in_word or float(logps.max().exp()) < threshold or int(logps.argmax()) in own.end_ids:
        return carried, True
    logps[list(own.end_ids)] = -torch.inf
    return logps.log_softmax(-1), False


@functools.cache
def beyond_ascii() -> list[int]:
    """Tokens of the leader with which a character may be cut in two."""
    tokens = small_members()[0].vocabulary.token_bytes
    return [index for index, token in enumerate(tokens) if token and not token.isascii()]


@settings(max_examples=25)
@given(st.text("he lo\n日本tru", min_size=1, max_size=10), st.integers(0, 3))
def test_every_distribution_is_the_one_computed_by_hand(text: str, seed: int) -> None:
    pack, reference = small_pack(), small_members()[0].vocabulary
    answer = pack.generate(
        text, max_new_tokens=12, do_sample=True, seed=seed, trace=True, top_k=0,
        suppress_tokens=beyond_ascii(),
    )  # fmt: skip
    assert answer.record.trace
    ids, flags = reference.encode(text), list[bool]()
    for at, (token, step) in enumerate(zip(answer.token_ids, answer.record.trace, strict=True)):
        expected, nudged = position_by_hand(ids, list(answer.token_ids[:at]), flags, THRESHOLD)
        assert step.fused == nudged
        assert step.logprob == pytest.approx(float(expected[token]), abs=1e-3)
        flags.append(nudged)


def test_the_score_of_a_text_is_computed_by_hand() -> None:
    text, following = "he lo", " the true\nhello he"
    reference = small_members()[0].vocabulary
    ids = reference.encode(text)
    new = reference.encode(text + following)[len(ids) :]
    flags, total = list[bool](), 0.0
    for at, token in enumerate(new):
        expected, nudged = position_by_hand(ids, new[:at], flags, THRESHOLD)
        total += float(expected[token])
        flags.append(nudged)
    assert True in flags
    assert False in flags
    assert small_pack().score(text, following) == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(
    ("before", "best", "goes_on"),
    [
        (LastToken(True, b" Cer", b" Cer"), b"tainly", True),
        (LastToken(True, b" Sure", b" Sure"), b" I", False),
        (LastToken(True, b" Sure", b" Sure"), b"\n", False),
        (LastToken(True, b" Sure", b" Sure"), None, True),  # the end is the nudger's
        (LastToken(True, b"\n\n", b"\n\n"), b" Yes", True),  # the word is still to come
        (LastToken(True, b"ok.\n", b"ok.\n"), b"Yes", False),
        (LastToken(True, "好".encode(), "你好".encode()), "吗".encode(), False),
        (LastToken(True, "好".encode()[:2], "你好".encode()[:-1]), "好".encode()[2:], True),
        (LastToken(False, b" Cer", b" Cer"), b"tainly", False),  # the leader's
        (LastToken(True, b"", b""), b"x", False),  # a control token
    ],
)
def test_where_a_word_goes_on(before: LastToken, best: bytes | None, goes_on: bool) -> None:
    assert word_goes_on(before, best) is goes_on


# At both ends of the threshold.


@functools.cache
def tiny() -> Pack:
    """Two tiny members, and a third one that takes no part."""
    return tiny_pack(tiny_members(["mistral", "deepseek", "tekken"]), prefix_cache=0)


def alone(member: HFMember, prompt: str) -> list[int]:
    """The greedy answer of a model, without an end."""
    own, model = member.vocabulary, cast(Any, member.model)
    ids = torch.tensor([[*own.prefix_ids, *own.encode(prompt)]])
    never = [*own.end_ids, *range(own.size, own.columns)]
    answer = model.generate(ids, max_new_tokens=NEW, do_sample=False, suppress_tokens=never)
    return list(answer[0, ids.shape[1] :].tolist())


@settings(max_examples=10)
@given(st.lists(st.sampled_from(["one", " two", "\n", " 4", "é"]), min_size=1, max_size=6))
def test_below_all_probabilities_the_leader_writes_alone(parts: list[str]) -> None:
    prompt = "x" + "".join(parts)
    gate = {"name": "nudge", "threshold": 1e-9, "leader": "deepseek"}
    answer = tiny().generate(prompt, max_new_tokens=NEW, gate=gate)
    assert list(answer.token_ids) == alone(tiny_member("deepseek", seed=1), prompt)
    assert answer.record.fused == 0
    assert answer.record.reference == "deepseek"
    assert answer.record.weights == {"mistral": 0.5, "deepseek": 0.5, "tekken": 0.0}


@functools.cache
def writes_letters() -> HFMember:
    """A tiny model that is sure of one token of letters, maybe after a space."""
    whole = tiny_member("deepseek", seed=1)
    model: Any = copy.deepcopy(whole.model)
    tokens = whole.vocabulary.token_bytes
    others = [
        i for i, own in enumerate(tokens) if not own or not re.fullmatch(rb" ?[A-Za-z]+", own)
    ]
    with torch.no_grad():
        model.lm_head.weight *= 100
        model.lm_head.weight[others] = 0
        model.lm_head.weight[whole.vocabulary.size :] = 0
    return HFMember("deepseek", model, whole.vocabulary)


@functools.cache
def led_by_mistral() -> Pack:
    return tiny_pack([tiny_member("mistral"), writes_letters()], prefix_cache=0)


@settings(max_examples=8)
@given(st.lists(st.sampled_from(["one", " two", " four", " x"]), min_size=1, max_size=6))
@example(["one", "one", " x"])  # " Den" and "nv" are written, and read as " Denn" and "v"
def test_above_all_probabilities_all_words_are_the_nudgers(parts: list[str]) -> None:
    text = "x" + "".join(parts)
    gate = {"name": "nudge", "threshold": 1 - 1e-9}
    found = led_by_mistral().generate(text, max_new_tokens=16, gate=gate)
    assert found.record.fused == 1
    nudger = writes_letters()
    written = text
    while len(written) < len(text) + len(found.text):
        best = last_logps(nudger, nudger.vocabulary.encode(written)).argmax()
        token = nudger.vocabulary.token_bytes[int(best)]
        assert token
        written += token.decode()
    assert len(found.text) > 16
    assert written[len(text) :].startswith(found.text)


# With everything else.

SETTINGS: list[dict[str, Any]] = [
    {}, {"draft": "reference"}, {"draft": "members"}, {"draft": "lookup"}, {"draft": "auto"},
    {"use_cache": False}, {"num_beams": 1}, {"fusion": None},
]  # fmt: skip


@functools.cache
def nudged() -> Pack:
    gate = {"name": "nudge", "threshold": 0.4}
    return tiny_pack(tiny_members(["mistral", "deepseek"]), gate=gate)


@pytest.mark.parametrize("more", SETTINGS, ids=str)
def test_no_cache_and_no_draft_changes_the_answer(more: dict[str, Any]) -> None:
    usual = nudged().generate(PROMPT, max_new_tokens=NEW)
    again = nudged().generate(PROMPT, max_new_tokens=NEW, **more)
    assert again.token_ids == usual.token_ids
    assert again.record.fused == usual.record.fused
    assert 0 < (usual.record.fused or 0) < 1
    drafted = more.get("draft")
    assert (again.record.drafts is not None) == (drafted is not None)


@settings(max_examples=8)
@given(st.lists(st.sampled_from(["one", " two three", "a b", "\n x", "é"]), min_size=2, max_size=4))
def test_a_batch_and_a_stream_are_the_single_answers(prompts: list[str]) -> None:
    pack = nudged()
    for sampled in ({}, {"temperature": 1.0, "seed": 3}):
        more: dict[str, Any] = {"max_new_tokens": 10, **sampled}
        single = [pack.generate(prompt, **more) for prompt in prompts]
        batch = pack.generate(prompts, **more)
        assert [a.token_ids for a in batch] == [a.token_ids for a in single]
        assert [a.record.fused for a in batch] == [a.record.fused for a in single]
        chunks = list(pack.stream(prompts[0], trace=True, **more))
        assert "".join(chunk.text for chunk in chunks) == single[0].text
        steps = [step.fused for chunk in chunks for step in chunk.trace]
        assert sum(steps) / len(steps) == pytest.approx(single[0].record.fused)


def test_beams_and_several_answers_are_written() -> None:
    beams = nudged().generate(PROMPT, max_new_tokens=8, num_beams=2)
    assert len(beams.token_ids) == 8
    one, other = nudged().generate(
        PROMPT, max_new_tokens=8, num_return_sequences=2, temperature=1.5, seed=1
    )
    assert one.token_ids != other.token_ids


def test_a_continued_forward_pass_is_the_cached_one() -> None:
    """Token by token, and a draft's length at once, after the same prepared prompt."""
    model = nudged().model
    ids = fusing.prompt(model, PROMPT)
    answer = nudged().generate(PROMPT, max_new_tokens=8).token_ids
    rows = []
    for sizes in ((1,) * 8, (4, 4), (8,)):
        cache = FusedCache(model.call, model._read_prompts([ids[0].tolist()]))
        cache.sequences, found, start = cache.start(1), [], 0
        for size in sizes:
            new = torch.tensor([list(answer[start : start + size])])
            found.append(model(new, cache=cache, logits_to_keep=size).logits[0])
            start += size
        rows.append(torch.cat(found))
    for other in rows[1:]:
        torch.testing.assert_close(rows[0], other, atol=1e-4, rtol=0)


def test_an_answer_keeps_to_its_constraint() -> None:
    pack = nudged()
    answer = pack.generate(PROMPT, max_new_tokens=40, constraint=Regex("[a-z]{3}( [0-9]){2}"))
    assert not [note for note in answer.record.notes if "does not satisfy" in note]
    assert answer.record.finish_reason == "stop"
    assert answer.record.constraint == "regex"


def test_a_nudged_chat_is_read_by_each_member_in_its_own_form() -> None:
    pack = tiny_pack(tiny_members(["mistral", "tekken"]), gate="nudge")
    answer = pack.generate([{"role": "user", "content": "Hi"}], max_new_tokens=6)
    assert answer.record.reference == "mistral"  # without a chat template, though `tekken` has one
    assert any("reads a plain rendering" in note for note in answer.record.notes)


def test_a_call_may_nudge_or_not() -> None:
    pack = tiny()
    usual = pack.generate(PROMPT, max_new_tokens=6)
    gate = {"name": "nudge", "leader": "tekken", "nudger": "mistral"}
    led = pack.generate(PROMPT, max_new_tokens=6, gate=gate)
    assert led.record.gate == {"threshold": 0.3, **gate}
    assert led.record.reference == "tekken"
    assert usual.record.gate == {"name": "every"}
    back = nudged().generate(PROMPT, max_new_tokens=6, gate="every")
    plain = tiny_pack(nudged().members).generate(PROMPT, max_new_tokens=6)
    assert back.token_ids == plain.token_ids
    assert back.record.weighting == plain.record.weighting


# How it is set, and what is refused.


def test_a_pack_is_nudged_by_name(tmp_path: Any) -> None:
    folders = [pico.save_tiny(tmp_path / name, name) for name in ("mistral", "deepseek")]
    pack = Pack.nudged(*folders, threshold=0.4, progress=False)
    usual = pack.generate(PROMPT, max_new_tokens=6)
    assert usual.record.gate["threshold"] == 0.4
    pack.save_config(tmp_path / "pack.yaml")
    again = Pack.from_config(tmp_path / "pack.yaml", progress=False)
    assert again.generate(PROMPT, max_new_tokens=6).token_ids == usual.token_ids
    assert gates().make(PackConfig.read(tmp_path / "pack.yaml").gate) == Nudge(threshold=0.4)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, float("nan"), "high", None])
def test_a_threshold_outside_0_and_1_is_refused(threshold: Any) -> None:
    with pytest.raises(ConfigError, match="gate 'nudge': threshold"):
        nudged().generate(PROMPT, gate={"name": "nudge", "threshold": threshold})
    with pytest.raises(ConfigError, match="gate 'nudge': threshold"):
        Pack.nudged("a", "b", threshold=threshold)


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        ({"leader": "mistrall"}, "leader='mistrall' is not a member.*did you mean 'mistral'"),
        ({"nudger": "x"}, "nudger='x' is not a member"),
        ({"leader": "mistral", "nudger": "mistral"}, "'mistral' cannot nudge itself"),
        ({"lead": "mistral"}, "gate 'nudge': lead"),
    ],
)
def test_roles_of_no_members_are_refused(gate: dict[str, Any], problem: str) -> None:
    spec = {"name": "nudge", **gate}
    with pytest.raises(ConfigError, match=problem):
        nudged().generate(PROMPT, gate=spec)
    with pytest.raises(ConfigError, match=problem):
        tiny_pack(nudged().members, gate=spec)


def test_a_member_that_cannot_end_a_text_has_no_role() -> None:
    own = pico.real_tokenizer("mistral")
    endless = copy.deepcopy(own)
    endless.eos_token = None
    model: Any = copy.deepcopy(tiny_member("mistral").model)
    for config in (model.config, model.generation_config):
        config.eos_token_id = None
    member = HFMember("endless", model, Vocabulary(endless, pico.padded_size(own)))
    for gate, role in (("nudge", "leader"), ({"name": "nudge", "leader": "deepseek"}, "nudger")):
        with pytest.raises(ConfigError, match=f"the {role} 'endless' has no end token"):
            tiny_pack([member, tiny_member("deepseek")], gate=gate)


def test_one_member_is_not_nudged() -> None:
    with pytest.raises(ConfigError, match="needs two members, and the pack has 1"):
        tiny_pack([tiny_member("mistral")], gate="nudge")


@pytest.mark.parametrize(
    "arguments", [{"weights": {"mistral": 1.0}}, {"weighting": "uniform"}, {"fusion": "mixture"}]
)
def test_what_has_no_effect_is_refused(arguments: dict[str, Any]) -> None:
    name = next(iter(arguments))
    with pytest.raises(ConfigError, match=f"{name} has no effect under the gate 'nudge'"):
        nudged().generate(PROMPT, **arguments)
    assert nudged().generate(PROMPT, max_new_tokens=2, gate="every", **arguments).text


def test_another_reference_than_the_leader_is_refused() -> None:
    with pytest.raises(ConfigError, match="leader is 'mistral', and the reference 'deepseek'"):
        tiny_pack(nudged().members, gate="nudge", reference="deepseek")
    with pytest.raises(ConfigError, match="bad_words_ids: these are token ids of 'mistral'"):
        nudged().generate(PROMPT, bad_words_ids=[[5]], gate={"name": "nudge", "leader": "deepseek"})
    with pytest.raises(ConfigError, match="leader is 'mistral'"):
        nudged().fused(1)


def test_options_are_not_scored_under_it() -> None:
    system = ScoringSystem(nudged(), {"nudged": Setting.of(nudged())})
    with pytest.raises(ConfigError, match="gate 'nudge' is for written answers"):
        system.scored_prompts(PROMPT, [" two"]).under(Setting.of(nudged()))
