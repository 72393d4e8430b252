"""Steps over static stores give the results of other passes, here without graphs."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import BitsAndBytesConfig
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from packfuse.errors import MemberError
from packfuse.models import compiled, static_member
from packfuse.models.hf_member import HFMember
from packfuse.models.kv import static_store
from packfuse.models.kv.static_step import StaticStep
from packfuse.models.kv.static_store import SCRATCH_SLOTS, StaticStore, slots_step
from packfuse.models.member import Read, ReadCallback, Session, check
from packfuse.models.static_member import (
    MAX_NEW_TOKENS,
    CompiledStaticMember,
    StaticMember,
    static_hindrance,
)
from packfuse.models.vocab_subset import VocabSubset
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico
from tests.support.heads import COLUMNS, FAMILIES, family
from tests.support.quick import quick

EXACT = 1e-4
IDS = [1, *range(300, 420)]


@pytest.fixture(autouse=True)
def small_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that tiny rows outgrow."""
    monkeypatch.setattr(static_store, "FIRST_SLOTS", 16)
    monkeypatch.setattr(static_store, "HEADROOM", 4)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and width of every step that is taken."""
    taken: list[tuple[int, int]] = []
    run = StaticStep.__call__

    def note(step: StaticStep, *args: Any) -> Any:
        taken.append((step.rows, step.width))
        return run(step, *args)

    monkeypatch.setattr(StaticStep, "__call__", note)
    return taken


def static(arch: str = "llama", **options: Any) -> StaticMember:
    return StaticMember(fusing.member("mistral", arch, **options))


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
    """Reads, rollbacks, forks, rows that rest, come and go; beyond windows of 8."""
    one = static(arch)
    sessions = begun(one, data.draw(st.lists(st.integers(2, 12), min_size=1, max_size=5)))
    texts = {id(session): IDS[k:] for k, session in enumerate(sessions)}
    for _ in range(data.draw(st.integers(1, 8))):
        requests = []
        for session in list(sessions):
            acts = ["read", "read", "read", "rest", "back", "fork", "keep", "end"]
            act = data.draw(st.sampled_from(acts))
            if act == "back":
                one.rollback(session, data.draw(st.integers(0, session.length)))
            if act in ("fork", "keep") and len(sessions) < 7 and session.length:
                length = data.draw(st.integers(1, session.length))
                twin = one.fork(session) if act == "fork" else one.keep(session, length)
                texts[id(twin)] = [*twin.ids, *IDS[data.draw(st.integers(0, 2)) :]]
                sessions.append(twin)
            if act == "end" and len(sessions) > 1:
                sessions.remove(session)
            if act in ("rest", "end"):
                continue
            size = data.draw(st.sampled_from([1, 1, 1, 2, 3, 6]))
            new = texts[id(session)][session.length : session.length + size]
            if new and session.length + size < 60:
                requests.append(Read(session, new, data.draw(st.integers(1, len(new)))))
        for request, logps in zip(requests, one.read(requests), strict=True):
            expected = alone(arch, list(request.session.ids), request.keep)
            assert fusing.gap(logps, expected) < EXACT


def test_rows_enter_after_their_prompt_and_stay(steps: list[tuple[int, int]]) -> None:
    """Uneven rows as well: nothing is moved, and every read is a step."""
    one = static()
    sessions = begun(one, [9, 7, 9, 8])
    assert not steps
    go_on(one, "llama", sessions, [1, 1, 1, 1])
    store = sessions[0].state.row_cache.store
    assert isinstance(store, StaticStore)
    tensors = [tensor.data_ptr() for pair in store.layers for tensor in pair or ()]
    for news in ([1, 3, 2, 1], [2, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]):
        go_on(one, "llama", sessions, news)
        assert {session.state.row_cache.store for session in sessions} == {store}
    assert [t.data_ptr() for pair in store.layers for t in pair or ()] == tensors
    assert steps == [(4, 1), (4, 4), (4, 2), (4, 1), (4, 1)]
    # One captured step for each kind, however often it was taken.
    assert len(store.steps) == 3


def test_rows_that_leave_make_room(steps: list[tuple[int, int]]) -> None:
    """Steps run on as many rows as are in use, and a new row takes the place of an old one."""
    one = static()
    sessions = begun(one, [5, 6, 7, 8])
    go_on(one, "llama", sessions, [1, 1, 1, 1])
    store = sessions[3].state.row_cache.store
    del sessions[:3]
    (last,) = sessions
    text = [*last.ids, *IDS[40:60]]
    for _ in range(2):
        (logps,) = one.read([Read(last, text[last.length : last.length + 1])])
        assert fusing.gap(logps, alone("llama", text[: last.length])) < EXACT
    (other,) = begun(one, [6])
    one.read([Read(last, [9]), Read(other, [IDS[6]])])
    assert last.state.row_cache.store is other.state.row_cache.store is store
    assert steps == [(4, 1), (1, 1), (1, 1), (2, 1)]


def test_a_store_that_is_outgrown_is_replaced(steps: list[tuple[int, int]]) -> None:
    one = static()
    (row,) = begun(one, [9])
    slots = []
    for _ in range(40):
        go_on(one, "llama", [row], [1])
        store = row.state.row_cache.store
        slots += [store.slots] if store.slots not in slots else []
    assert slots == [16, 24, 32, 48, 64]
    assert len(steps) == 40
    assert len(one._stores.stores) <= 2


def test_the_store_of_an_answer_serves_the_next_one() -> None:
    """So do its captured steps."""
    one = static()
    (row,) = begun(one, [9])
    go_on(one, "llama", [row], [1])
    store = row.state.row_cache.store
    del row
    (row,) = begun(one, [8])
    go_on(one, "llama", [row], [1])
    assert row.state.row_cache.store is store
    assert len(store.steps) == 1


def test_what_was_left_in_a_row_is_hidden() -> None:
    """It may be NaN, and a step is shown all of it."""
    one = static()
    (row,) = begun(one, [9])
    go_on(one, "llama", [row], [1])
    store = row.state.row_cache.store
    for tensor in (tensor for pair in store.layers for tensor in pair or ()):
        tensor[:] = torch.nan
    del row
    (row,) = begun(one, [7])
    go_on(one, "llama", [row], [1])
    assert row.state.row_cache.store is store


def test_what_is_no_step_is_a_pass(steps: list[tuple[int, int]]) -> None:
    """The first tokens, long reads, reads with a callback, more rows than a store has."""
    one = static()
    (row,) = begun(one, [9])
    go_on(one, "llama", [row], [MAX_NEW_TOKENS])
    assert steps == [(1, MAX_NEW_TOKENS)]
    go_on(one, "llama", [row], [MAX_NEW_TOKENS + 1])
    one.read([Read(row, [5], callback=ReadCallback(lambda *_: None))])
    many = begun(one, [3] * (static_store.MAX_STEP_ROWS + 1))
    go_on(one, "llama", many[:3], [1, 1, 1])
    before = len(steps)
    one.read([Read(session, [7]) for session in many])
    assert len(steps) == before == 2


def test_without_memory_for_a_store_passes_go_on(
    steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = static()
    asked: list[int] = []

    def refuse(nbytes: int) -> bool:
        asked.append(nbytes)
        return False

    monkeypatch.setattr(one._stores, "_has_memory", refuse)
    (row,) = begun(one, [9])
    go_on(one, "llama", [row], [1])
    assert not steps
    # Two layers, one head of 16 numbers in float32, keys and values.
    assert asked == [(16 + SCRATCH_SLOTS) * 2 * 2 * 16 * 4]


def test_the_end_of_the_context_window_can_be_used_up(steps: list[tuple[int, int]]) -> None:
    """Padding beside the last tokens has no positions of its own (GPT-2 has none to give)."""
    one = static("gpt2", context=32)
    sessions = begun(one, [31, 28])
    one.read([Read(sessions[0], IDS[31:32]), Read(sessions[1], IDS[29:32])])
    assert steps == [(2, 4)]
    assert [session.length for session in sessions] == [32, 31]
    assert sessions[0].state.row_cache.store.slots == 32


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_both_ways_of_attention(arch: str, implementation: str) -> None:
    own, _ = pico.tiny_pair("mistral", arch)
    own.set_attn_implementation(implementation)
    one = StaticMember(HFMember("one", own, fusing.vocabulary("mistral")))
    sessions = begun(one, [9, 3])
    for news in ([1, 1], [3, 1], [1, 2]):
        go_on(one, arch, sessions, news)


@pytest.mark.parametrize("name", FAMILIES)
def test_many_families_read_in_steps_or_say_why_not(
    name: str, steps: list[tuple[int, int]]
) -> None:
    vocabulary = Vocabulary(fusing.bpe("the", "then").tokenizer, COLUMNS)
    member = HFMember(name, family(name), vocabulary)
    reason = static_hindrance(member)
    assert (reason is not None) == (name in ("lfm2", "falcon-h1, multiplied"))
    if reason:
        assert "layers of the kind" in reason
        return
    one = StaticMember(member)
    ids = torch.randint(0, COLUMNS - 40, (3, 24), generator=torch.manual_seed(0)).tolist()
    sessions = [one.open() for _ in ids]
    rows = list(zip(sessions, ids, strict=True))
    one.read([Read(s, row[: 5 + k]) for k, (s, row) in enumerate(rows)])
    for news in ([1, 1, 1], [2, 1, 3], [1, 4, 1]):
        reads = [
            Read(s, row[s.length : s.length + n], n) for (s, row), n in zip(rows, news, strict=True)
        ]
        for request, row, logps in zip(reads, ids, one.read(reads), strict=True):
            whole = row[: request.session.length]
            expected = member.read([Read(member.open(), whole, request.keep)])[0]
            assert fusing.gap(logps, expected) < EXACT
    assert steps == [(4, 1), (4, 4), (4, 4)]


def test_pruned_heads_read_in_steps(steps: list[tuple[int, int]]) -> None:
    """Also where the head cannot be pruned: the result is restricted to the subset."""
    one, plain = static(), fusing.member("mistral")
    subset = VocabSubset(torch.arange(5, plain.vocabulary.size, 3), plain.vocabulary.columns)
    for prunes in (True, False):
        sessions = [member.open() for member in (one, plain)]
        for member, session in zip((one, plain), sessions, strict=True):
            member.read([Read(session, IDS[:9])])
        with pytest.MonkeyPatch.context() as patch:
            if not prunes:
                patch.setattr(one._lm_head, "can_prune", lambda _: False)
            found, expected = (
                member.read([Read(session, IDS[9:10], subset=subset)])[0]
                for member, session in zip((one, plain), sessions, strict=True)
            )
        assert fusing.gap(found, expected) < EXACT
    assert len(steps) == 2


def test_nan_is_found_at_once_or_when_the_caller_asks() -> None:
    model, _ = pico.tiny_pair("mistral")
    one = StaticMember(HFMember("broken", model, fusing.vocabulary("mistral")))
    sessions = begun(one, [9, 8])
    weights: Any = model.get_input_embeddings().weight
    with torch.no_grad():
        weights[7] = torch.nan
    with pytest.raises(MemberError, match="'broken' gave NaN logits after token 10"):
        one.read([Read(sessions[0], [7])])
    assert sessions[0].length == 0
    (logps,) = one.read([Read(sessions[1], [7], defers_check=True)])
    assert torch.isnan(logps).all()
    with pytest.raises(MemberError, match="'broken' gave NaN logits after token 9"):
        check([(one, sessions[1])])
    (row,) = begun(one, [5])
    go_on(one, "llama", [row], [1])


@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
def test_a_step_that_cannot_be_captured_is_read_eagerly(
    kind: type[Exception], steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the errors of a capture, the first one is the reason."""
    one = static()

    def refuse(_: Any) -> Any:
        try:
            raise kind("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(one, "_capture", refuse)
    (row,) = begun(one, [9])
    with pytest.warns(RuntimeWarning, match="decodes eagerly: a step cannot be captured: operat"):
        go_on(one, "llama", [row], [1])
    go_on(one, "llama", [row], [2])
    assert len(steps) == 1
    assert one.refused is not None


@pytest.mark.slow
@pytest.mark.parametrize("compiles", [True, False])
def test_steps_are_compiled_before_they_are_captured(
    compiles: bool, steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the compiler traces them, without making code of it; and what it cannot trace as it is."""
    monkeypatch.setitem(compiled._OWN_GRAPHS, "backend", "eager")
    monkeypatch.setitem(compiled._OWN_GRAPHS, "recompile_limit", 8 if compiles else 1)
    one = CompiledStaticMember(fusing.member("mistral"))
    sessions = begun(one, [9, 7])
    news = ([1, 1], [2, 1], [1, 1], [4, 2])
    if compiles:
        for new in news:
            go_on(one, "llama", sessions, new)
        assert one.compile_error is None
        assert counters["stats"]["unique_graphs"]
    else:
        with pytest.warns(RuntimeWarning, match="'mistral-llama-0' is not compiled: "):
            for new in news:
                go_on(one, "llama", sessions, new)
        assert one.compile_error
    assert one.refused is None
    assert len(steps) == 4


@pytest.mark.parametrize("first", [True, False])
def test_inference_mode_may_begin_and_end_between_steps(
    first: bool, steps: list[tuple[int, int]]
) -> None:
    """Stores are written, and steps that were captured in one mode are taken, in both."""
    one = static()
    with torch.inference_mode(first):
        sessions = begun(one, [9, 7])
        go_on(one, "llama", sessions, [1, 1])
    for mode in (not first, first, not first):
        with torch.inference_mode(mode):
            one.rollback(sessions[0], sessions[0].length - 1)
            go_on(one, "llama", sessions, [1, 1])
            twin = one.fork(sessions[0])
            go_on(one, "llama", [twin, sessions[1]], [1, 1])
            del twin
    assert len(steps) == 7


def test_hooks_that_are_added_later_end_the_steps(steps: list[tuple[int, int]]) -> None:
    model, _ = pico.tiny_pair("mistral")
    one = StaticMember(HFMember("one", model, fusing.vocabulary("mistral")))
    (row,) = begun(one, [9])
    go_on(one, "llama", [row], [1])
    called: list[bool] = []
    model.model.layers[0].register_forward_hook(lambda *_: called.append(True))
    with pytest.warns(RuntimeWarning, match="decodes eagerly: its model has hooks"):
        one.refresh()
    go_on(one, "llama", [row], [1])
    assert called
    assert len(steps) == 1


def test_stores_are_freed_with_their_member() -> None:
    one = static()
    (row,) = begun(one, [9])
    go_on(one, "llama", [row], [1])
    store = weakref.ref(row.state.row_cache.store)
    del row, one
    gc.collect()
    assert store() is None


def test_members_that_cannot_say_why() -> None:
    model, _ = pico.tiny_pair("mistral")
    member = HFMember("one", model, fusing.vocabulary("mistral"))
    assert static_hindrance(member) is None
    hook = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert "hooks" in str(static_hindrance(member))
    hook.remove()
    own: Any = model
    own.hf_quantizer = Bnb8BitHfQuantizer(BitsAndBytesConfig(load_in_8bit=True))
    assert static_hindrance(member) == "Bnb8BitHfQuantizer cannot be captured"
    del own.hf_quantizer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static_member, "is_offloaded", lambda _: True)
        assert "only while they are used" in str(static_hindrance(member))


@pytest.mark.parametrize("needed", [1, 16, 17, 100, 1000])
def test_sizes_of_stores_are_few(needed: int) -> None:
    assert needed <= slots_step(needed, 4096) <= max(16, 1.5 * needed)
    assert slots_step(needed, needed) == needed if needed >= 16 else True
