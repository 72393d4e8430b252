"""Compiled steps give the results of other passes, and are compiled once for all lengths."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from packfuse import Pack
from packfuse.errors import ConfigError, MemberError
from packfuse.hf_compat.models import isolates_graphs
from packfuse.models import compiled
from packfuse.models import member as read_module
from packfuse.models.compiled import Compiled, compile_steps
from packfuse.models.hf_member import HFMember
from packfuse.models.int8 import int8_copy
from packfuse.models.kv.fixed_shape import MAX_NEW_TOKENS, FixedShapeBatch, unsupported_reason
from packfuse.models.kv.store import new_cache
from packfuse.models.member import Read, Session
from packfuse.settings import PackConfig
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico
from tests.support.heads import COLUMNS, FAMILIES, family
from tests.support.packs import tiny_member
from tests.support.quick import quick

pytestmark = [
    pytest.mark.skipif(
        not isolates_graphs(),
        reason="how torch before 2.13 counts graphs is tested in test_hf_compat.py",
    ),
    pytest.mark.filterwarnings("ignore::packfuse.errors.ExperimentalWarning"),
]

EXACT = 1e-4
IDS = [1, *range(300, 420)]
PROMPTS = ["The capital of France is", "def add(a, b):\n    return", "Ünïcödé: 你好, wor"]


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    """Steps run as they are written, so that many can be tried."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def compiler(interpreter: None) -> Iterator[None]:
    """Steps are compiled after all. The compiler itself uses what torch deprecates."""
    with torch.compiler.set_stance("default"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and width of every step that is taken."""
    taken: list[tuple[int, int]] = []
    begin = FixedShapeBatch.inputs

    def note(step: FixedShapeBatch, *args: Any, **kwargs: Any) -> dict[str, Any]:
        taken.append((step.size, step.width))
        return begin(step, *args, **kwargs)

    monkeypatch.setattr(FixedShapeBatch, "inputs", note)
    return taken


def twin(arch: str = "llama", **settings: Any) -> Compiled:
    found = compile_steps(fusing.member("mistral", arch, **settings))
    assert isinstance(found, Compiled)
    return found


def alone(arch: str, ids: list[int], keep: int = 1) -> Tensor:
    """Log-probabilities of the member itself after the last tokens, read in one pass."""
    one = fusing.member("mistral", arch)
    return one.read([Read(one.open(), ids, keep)])[0]


def begun(one: HFMember, lengths: list[int]) -> list[Session]:
    """Rows that have read so much, side by side."""
    sessions = [one.open() for _ in lengths]
    rows = enumerate(zip(sessions, lengths, strict=True))
    one.read([Read(s, IDS[k : k + n]) for k, (s, n) in rows])
    return sessions


def go_on(one: HFMember, arch: str, sessions: list[Session], news: list[int]) -> None:
    """Read more of each row's text, and compare with the member itself."""
    rows = [(k, s, n) for k, (s, n) in enumerate(zip(sessions, news, strict=True)) if n]
    reads = [Read(s, IDS[k + s.length : k + s.length + n], min(n, 2)) for k, s, n in rows]
    for (k, session, _), request, logps in zip(rows, reads, one.read(reads), strict=True):
        whole = IDS[k : k + session.length]
        assert session.ids == whole
        assert fusing.gap(logps, alone(arch, whole, request.keep)) < EXACT


@pytest.mark.parametrize("arch", quick(["gemma3", "llama", "gpt2"], 1))
@settings(max_examples=25)
@given(data=st.data())
def test_any_schedule_reads_like_single_rows(arch: str, data: st.DataObject) -> None:
    """Reads, rollbacks, forks, rows left out and rows that come and go; beyond windows of 8."""
    one = twin(arch)
    sessions = begun(one, data.draw(st.lists(st.integers(2, 12), min_size=1, max_size=4)))
    texts = {id(session): IDS[k:] for k, session in enumerate(sessions)}
    for _ in range(data.draw(st.integers(1, 8))):
        requests = []
        for session in list(sessions):
            act = data.draw(st.sampled_from(["read", "read", "read", "rest", "back", "fork"]))
            if act == "back":
                one.rollback(session, data.draw(st.integers(0, session.length)))
            if act == "fork" and len(sessions) < 6:
                twin_row = one.fork(session)
                texts[id(twin_row)] = [*session.ids, *IDS[data.draw(st.integers(0, 2)) :]]
                sessions.append(twin_row)
            if act == "rest":
                continue
            size = data.draw(st.sampled_from([1, 1, 1, 2, 3, 6]))
            new = texts[id(session)][session.length : session.length + size]
            if new and session.length + size < 60:
                requests.append(Read(session, new, data.draw(st.integers(1, len(new)))))
        for request, logps in zip(requests, one.read(requests), strict=True):
            expected = alone(arch, list(request.session.ids), request.keep)
            assert fusing.gap(logps, expected) < EXACT


@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_rows_stay_in_their_store(arch: str, steps: list[tuple[int, int]]) -> None:
    """Uneven rows as well: nothing is moved, nothing copied, and every read is a step."""
    one = twin(arch)
    sessions = begun(one, [9, 7, 9, 8])
    store = sessions[0].state.row_cache.store
    for news in ([1, 1, 1, 1], [1, 3, 2, 1], [2, 0, 1, 1], [1, 1, 1, 1], [4, 1, 1, 2]):
        go_on(one, arch, sessions, news)
        assert {session.state.row_cache.store for session in sessions} == {store}
    assert steps == [(4, 1), (4, 3), (4, 2), (4, 1), (4, 4)]


def test_slots_that_were_never_written_are_hidden() -> None:
    """It may hold NaN, and a step is shown all of it."""
    one = twin()
    sessions = begun(one, [9, 7, 9])
    store = sessions[0].state.row_cache.store
    for keys, values in filter(None, store.layers):
        keys[:, :, store.used :] = values[:, :, store.used :] = torch.nan
    for news in ([1, 1, 1], [1, 3, 2], [2, 1, 1]):
        go_on(one, "llama", sessions, news)
    assert {session.state.row_cache.store for session in sessions} == {store}


def test_what_is_no_step_is_a_pass(steps: list[tuple[int, int]]) -> None:
    """The first tokens, long reads, a full store, too many rows at rest, forks of longer rows."""
    one = twin()
    (row,) = begun(one, [9])
    assert not steps
    go_on(one, "llama", [row], [MAX_NEW_TOKENS])
    go_on(one, "llama", [row], [MAX_NEW_TOKENS + 1])
    assert steps == [(1, MAX_NEW_TOKENS)]
    store = row.state.row_cache.store
    while row.state.row_cache.store is store:
        go_on(one, "llama", [row], [1])
    assert len(steps) == 1 + store.slots - (9 + 2 * MAX_NEW_TOKENS + 1)
    ahead = one.fork(row)
    one.read([Read(ahead, [5, 6])])
    before = len(steps)
    go_on(one, "llama", [row], [1])
    assert len(steps) == before
    rows = begun(one, [5, 5, 5])
    go_on(one, "llama", rows, [1, 0, 0])
    assert len(steps) == before


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_both_ways_of_attention(arch: str, implementation: str) -> None:
    own, tokenizer = pico.tiny_pair("mistral", arch)
    own.set_attn_implementation(implementation)
    one = compile_steps(HFMember("one", own, fusing.vocabulary("mistral")))
    assert isinstance(one, Compiled), tokenizer
    sessions = begun(one, [9, 3])
    for news in ([1, 1], [3, 1], [1, 2]):
        go_on(one, arch, sessions, news)


def test_the_end_of_the_context_window_can_be_used_up(steps: list[tuple[int, int]]) -> None:
    """Padding beside the last tokens has no positions of its own (GPT-2 has none to give)."""
    one = compile_steps(fusing.member("mistral", "gpt2", context=32))
    sessions = begun(one, [31, 28])
    one.read([Read(sessions[0], IDS[31:32]), Read(sessions[1], IDS[29:32])])
    assert steps == [(2, 3)]
    assert [session.length for session in sessions] == [32, 31]


@pytest.mark.slow
def test_one_compilation_serves_all_lengths(steps: list[tuple[int, int]], compiler: None) -> None:
    one = twin("gemma3")
    graphs = []
    for lengths in ([9], [30], [51]):
        (row,) = begun(one, lengths)
        for new in (1, 1, 2, 4, 3, 1):
            go_on(one, "gemma3", [row], [new])
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(steps) == 18
    assert graphs[0] == graphs[1] == graphs[2]


@pytest.mark.slow
def test_rows_side_by_side_are_compiled(compiler: None) -> None:
    one = twin()
    sessions = begun(one, [9, 7, 9])
    before = counters["stats"]["unique_graphs"]
    for news in ([1, 1, 1], [1, 3, 2], [2, 1, 1], [1, 1, 1]):
        go_on(one, "llama", sessions, news)
    assert counters["stats"]["unique_graphs"] == before + 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.slow
def test_many_families_read_in_steps_or_say_why_not(
    name: str, traced: bool, steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are written, and as the compiler traces them; what it makes of that costs minutes."""
    monkeypatch.setitem(compiled._OWN_GRAPHS, "backend", "eager")
    vocabulary = Vocabulary(fusing.bpe("the", "then").tokenizer, COLUMNS)
    member = HFMember(name, family(name), vocabulary)
    if name in ("lfm2", "falcon-h1, multiplied"):
        with pytest.warns(RuntimeWarning, match=f"'{name}' is not compiled: "):
            assert compile_steps(member) is member
        return
    one = compile_steps(member)
    with torch.compiler.set_stance("default" if traced else "force_eager"):
        ids = torch.randint(0, COLUMNS - 40, (3, 24), generator=torch.manual_seed(0)).tolist()
        sessions = [one.open() for _ in ids]
        one.read(
            [Read(s, row[: 5 + k]) for k, (s, row) in enumerate(zip(sessions, ids, strict=True))]
        )
        for news in ([1, 1, 1], [2, 1, 3], [1, 4, 1]):
            rows = list(zip(sessions, ids, news, strict=True))
            reads = [Read(s, row[s.length : s.length + n], n) for s, row, n in rows]
            for request, row, logps in zip(reads, ids, one.read(reads), strict=True):
                whole = row[: request.session.length]
                expected = member.read([Read(member.open(), whole, request.keep)])[0]
                assert fusing.gap(logps, expected) < EXACT
    assert steps == [(3, 1), (3, 3), (3, 4)]


def packs(**settings: Any) -> tuple[Pack, Pack]:
    """The same members, compiled and not."""
    members = [tiny_member("mistral"), tiny_member("tekken", "gemma3", 1)]
    return tuple(
        Pack(members, weighting="uniform", progress=False, compiled=on, **settings)
        for on in (True, False)
    )  # type: ignore[return-value]


@pytest.mark.parametrize(
    "setting",
    [{}, {"draft": "members"}, {"draft": "auto"}, {"heads": "pruned", "reference": "mistral"},
     {"gate": "safe", "draft": "reference"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "arguments", [{}, {"do_sample": True, "seed": 3}, {"num_beams": 2}, {"stop": ["e"]}], ids=str
)
@pytest.mark.slow
def test_answers_are_the_same(
    setting: dict[str, Any], arguments: dict[str, Any], steps: list[tuple[int, int]]
) -> None:
    found, expected = packs(**setting)
    for prompt in (PROMPTS[0], PROMPTS, PROMPTS[0]):
        steps.clear()
        one, other = (p.generate(prompt, max_new_tokens=12, **arguments) for p in (found, expected))
        pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
        assert all(mine.token_ids == theirs.token_ids for mine, theirs in pairs)
        assert steps or arguments.keys() & {"num_beams", "stop"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    quick([{"heads": "pruned", "reference": "mistral", "fusion": "unite"}, {},
           {"heads": "pruned", "reference": "mistral"}], 1),
    ids=str,
)  # fmt: skip
def test_a_pack_compiles(
    setting: dict[str, Any], compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading compiles the steps of single prompts, and an answer compiles nothing more.

    Neither do model classes that transformers gets to know in between.
    """
    monkeypatch.setattr(read_module, "MAX_PRUNED_MASS", 1.0)
    found, expected = packs(**setting)
    before = counters["stats"]["unique_graphs"]
    assert before
    type("Another", (LlamaForCausalLM,), {})(pico.tiny_pair("mistral")[0].config)
    one, other = (p.generate(PROMPTS[0], max_new_tokens=12) for p in (found, expected))
    assert one.token_ids == other.token_ids
    assert counters["stats"]["unique_graphs"] == before


def test_drafts_are_compiled_in_all_lengths(compiler: None) -> None:
    """Also in those for which linear layers on processors use another kernel."""
    member = HFMember("one", pico.tiny_pair("mistral")[0], fusing.vocabulary("mistral"))
    pack = Pack([member], progress=False, compiled=True, draft="lookup")
    before = counters["stats"]["unique_graphs"]
    own: Any = pack.members[0]
    (row,) = begun(own, [9])
    for new in (1, 3, 5, 8, 4, 6, MAX_NEW_TOKENS):
        go_on(own, "llama", [row], [new])
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_steps_of_several_threads_do_not_meet(compiler: None) -> None:
    """The compiler mistakes one member's graphs for the other's if they do."""
    kinds = {
        arch: HFMember(arch, pico.tiny_pair("mistral", arch)[0], fusing.vocabulary("mistral"))
        for arch in ("llama", "gemma3")
    }
    ones = {arch: compile_steps(member) for arch, member in kinds.items()}
    rows = {arch: begun(one, [9]) for arch, one in ones.items()}
    before = counters["stats"]["unique_graphs"]
    with ThreadPoolExecutor(2) as threads:
        for new in (1, 2, 1, 3, 1):
            steps = [threads.submit(go_on, ones[k], k, rows[k], [new]) for k in ones]
            for step in steps:
                step.result()
    assert counters["stats"]["unique_graphs"] == before + 4


def test_members_at_the_same_time_are_not_compiled() -> None:
    for make in (packs, partial(Pack.from_pretrained, ["nowhere"], compiled=True)):
        with pytest.raises(ConfigError, match="choose one of parallel=True and compiled=True"):
            make(parallel=True)


def test_copies_in_8_bit_integers_are_compiled_as_well() -> None:
    member = fusing.member("mistral", "llama")
    copied, twin_copied = int8_copy(member), int8_copy(twin())
    assert isinstance(twin_copied, Compiled)
    assert not isinstance(copied, Compiled)
    assert twin_copied.model is copied.model
    other = HFMember("other", member.model, Vocabulary(member.tokenizer, member.vocabulary.columns))
    assert int8_copy(other).model is copied.model
    assert int8_copy(other).vocabulary is other.vocabulary
    for new in ([1, 300, 301], [302, 303], [304]):
        reads = [Read(m.open(), [1, *new]) for m in (copied, twin_copied)]
        logps = [m.read([r])[0] for m, r in zip((copied, twin_copied), reads, strict=True)]
        assert fusing.gap(*logps) < EXACT


def test_a_step_that_breaks_leaves_nothing_behind() -> None:
    """NaN that a row left in its store would reach a fork that is shown all of it."""
    own = pico.tiny_pair("mistral", "llama", 5)[0]
    member = HFMember("one", own, fusing.vocabulary("mistral"))
    one = compile_steps(member)
    (row,) = begun(one, [9])
    kept = one.fork(row)
    weight: Any = own.get_input_embeddings().weight
    good = weight[7].clone()
    with torch.no_grad():
        weight[7] = torch.nan
        with pytest.raises(MemberError, match="'one' gave NaN logits after token 10"):
            one.read([Read(row, [7])])
        weight[7] = good
    assert row.length == 0
    logps = one.read([Read(kept, [7])])[0]
    assert fusing.gap(logps, member.read([Read(member.open(), kept.ids)])[0]) < EXACT


def test_a_compiler_that_fails_is_reported(compiler: None) -> None:
    member = HFMember("one", pico.tiny_pair("mistral")[0], fusing.vocabulary("mistral"))
    one = compile_steps(member)
    (row,) = begun(one, [9])
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(MemberError, match=r"'one' cannot be compiled: .*compiled=False"),
    ):
        one.read([Read(row, [5])])
    assert row.length == 0
    # The error is raised once, and then the member reads without compiled code.
    (row,) = begun(one, [9])
    go_on(one, "llama", [row], [1])


OTHERS = {
    "falcon": lambda **usual: FalconForCausalLM(
        FalconConfig(alibi=True, new_decoder_architecture=False, **usual)
    ),
    "dynamic rope": lambda **usual: LlamaForCausalLM(
        LlamaConfig(
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}, **usual
        )
    ),
}


@pytest.mark.parametrize("draft", [None, "reference"])
@pytest.mark.parametrize("name", OTHERS)
def test_what_the_compiler_refuses_is_read_as_ever(
    name: str, draft: str | None, compiler: None
) -> None:
    """Transformers marks these as models that can be compiled."""
    vocabulary = fusing.vocabulary("mistral")
    torch.manual_seed(0)
    model = OTHERS[name](
        vocab_size=vocabulary.columns,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    member = HFMember("one", model, vocabulary)
    with pytest.warns(RuntimeWarning, match="'one' is not compiled: .*'one'"):
        pack = Pack([member], progress=False, compiled=True, draft=draft)
        pack.model  # noqa: B018
    assert not pack.runtime.compiled
    with pytest.warns(RuntimeWarning, match="'one' is not compiled"):
        assert Pack([member], progress=False, compiled=True).members == [member]
    expected = Pack([member], progress=False).generate(PROMPTS[0], max_new_tokens=8)
    assert pack.generate(PROMPTS[0], max_new_tokens=8).token_ids == expected.token_ids


def test_padding_that_overflows_does_no_harm() -> None:
    """What a model makes of it may be NaN, and would stay in the row."""
    own = pico.tiny_pair("mistral", "llama", 5)[0]
    member = HFMember("one", own, fusing.vocabulary("mistral"))
    one = compile_steps(member)
    weight: Any = own.get_input_embeddings().weight
    with torch.no_grad():
        weight[0] = torch.nan
    assert Pack([member], progress=False, compiled=True).model.engine.members == [one]
    assert isinstance(one, Compiled)
    assert one.refused is None
    sessions = begun(one, [9, 7])
    for news in ([3, 1], [1, 1]):
        reads = [
            Read(s, IDS[k + s.length : k + s.length + n])
            for k, (s, n) in enumerate(zip(sessions, news, strict=True))
        ]
        for request, logps in zip(reads, one.read(reads), strict=True):
            expected = member.read([Read(member.open(), list(request.session.ids))])[0]
            assert fusing.gap(logps, expected) < EXACT


def test_more_kinds_of_steps_than_graphs_are_reported(
    compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(compiled._OWN_GRAPHS, "recompile_limit", 1)
    member = HFMember("one", pico.tiny_pair("mistral")[0], fusing.vocabulary("mistral"))
    one = compile_steps(member)
    (row,) = begun(one, [9])
    one.read([Read(row, [5])])
    with pytest.raises(MemberError, match="'one' cannot be compiled"):
        one.read([Read(row, [5, 6])])


def test_members_that_cannot_be_compiled_are_named() -> None:
    vocabulary = fusing.vocabulary("mistral")

    def refused(change: Any, reason: str) -> None:
        own = pico.tiny_pair("mistral")[0]
        change(own)
        member = HFMember("one", own, vocabulary)
        with pytest.warns(RuntimeWarning, match=f"'one' is not compiled: .*{reason}"):
            pack = Pack([member], progress=False, compiled=True)
        assert pack.members == [member]

    def spread(model: Any) -> None:
        model.model.layers[1].to("meta")

    def stateful(model: Any) -> None:
        model._can_compile_fullgraph = False

    def rebound(model: Any) -> None:
        model.forward = model.forward

    refused(stateful, "transformers does not compile LlamaForCausalLM")
    refused(rebound, "its LM head cannot be replaced")
    refused(spread, "its model is spread over cpu, meta")
    config = pico.tiny_pair("mistral")[0].config
    config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2', neither" in str(unsupported_reason(new_cache(config), config))


def test_a_twin_goes_with_its_member(compiler: None) -> None:
    member = HFMember("one", pico.tiny_pair("mistral", "llama", 9)[0], fusing.vocabulary("mistral"))
    one = compile_steps(member)
    assert compile_steps(member) is one
    assert compile_steps(one) is one
    (row,) = begun(one, [9])
    one.read([Read(row, [5])])
    gone = weakref.ref(member.model), weakref.ref(row.state.row_cache.store)
    del member, one, row
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_pruned_heads_go_with_their_pack() -> None:
    members = [tiny_member("mistral"), tiny_member("tekken", "gemma3", 1)]
    settings: dict[str, Any] = {"heads": "pruned", "reference": "mistral", "prefix_cache": 0}
    pack = Pack(members, weighting="uniform", progress=False, compiled=True, **settings)
    pack.generate(PROMPTS[0], max_new_tokens=4)
    held = [weakref.ref(columns) for columns in pack.model.engine._subsets if columns is not None]
    assert held
    # Members that are compiled already stay so, and the pack reports it.
    again = Pack(pack.members, weighting="uniform", progress=False, prefix_cache=0)
    assert again.runtime.compiled
    del pack
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


def test_the_setting_is_written_down(tmp_path: Path) -> None:
    folder = pico.save_tiny(tmp_path / "one", "mistral")
    loaded = Pack.from_pretrained([str(folder)], compiled=True, progress=False)
    assert isinstance(loaded.members[0], Compiled)
    loaded.save_config(tmp_path / "pack.yaml")
    assert PackConfig.read(tmp_path / "pack.yaml").compiled
    again = Pack.from_config(tmp_path / "pack.yaml", compiled=False, progress=False)
    assert not isinstance(again.members[0], Compiled)
    assert loaded.identity["compiled"] and not again.identity["compiled"]
