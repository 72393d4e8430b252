"""Rows of different lengths give in one batch what each gives alone, and share memory safely."""

from __future__ import annotations

import gc
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from packfuse.models.batching import MAX_PADDING, batches
from packfuse.models.hf_member import HFMember
from packfuse.models.kv.ragged import RaggedBatch
from packfuse.models.kv.store import RowCache, new_cache
from packfuse.models.member import Read, Session
from tests.support import fusing, pico
from tests.support.quick import quick

EXACT = 1e-4
IDS = [1, *range(300, 360)]


def alone(one: HFMember, ids: list[int], keep: int = 1) -> Tensor:
    """Log-probabilities after the last tokens, the row read by itself in one go."""
    return one.read([Read(one.open(), ids, keep)])[0]


def rows(one: HFMember, lengths: list[int]) -> list[Session]:
    """Rows that have read so much, side by side where they may."""
    sessions = [one.open() for _ in lengths]
    one.read(
        [Read(s, IDS[k : k + n]) for k, (s, n) in enumerate(zip(sessions, lengths, strict=True))]
    )
    return sessions


def tolerance(arch: str) -> float:
    return 2e-3 if arch == "qwen3_next" else EXACT


@pytest.mark.parametrize("arch", pico.ARCHITECTURES)
@pytest.mark.parametrize("lengths", [[20, 20, 20], [3, 30, 17], [0, 12, 1]], ids=str)
def test_rows_with_different_numbers_of_new_tokens(arch: str, lengths: list[int]) -> None:
    """Beyond a window of 8 as well; states are read by themselves."""
    one = fusing.member("mistral", arch)
    sessions = [one.open() for _ in lengths]
    for k, (session, n) in enumerate(zip(sessions, lengths, strict=True)):
        if n:
            one.read([Read(session, IDS[k : k + n])])
    for news in ([1, 3, 2], [2, 1, 4], [1, 1, 1], [1, 1, 1], [4, 1, 1]):
        requests = [
            Read(s, IDS[k + s.length : k + s.length + n], min(n, 2))
            for k, (s, n) in enumerate(zip(sessions, news, strict=True))
        ]
        for k, (logps, request) in enumerate(zip(one.read(requests), requests, strict=True)):
            whole = IDS[k : k + request.session.length]
            assert request.session.ids == whole
            assert fusing.gap(logps, alone(one, whole, request.keep)) < tolerance(arch)


def passes(one: HFMember, requests: list[Read]) -> list[tuple[int, ...]]:
    """Shapes of the passes that requests take."""
    seen: list[tuple[int, ...]] = []
    embedding = one.model.get_input_embeddings()
    hook = embedding.register_forward_hook(
        lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape))
    )
    try:
        one.read(requests)
    finally:
        hook.remove()
    return seen


def test_uneven_rows_take_one_pass_and_much_longer_ones_another() -> None:
    one = fusing.member("mistral")
    first, second, third, fourth = rows(one, [5, 9, 2, 7])
    requests = [
        Read(first, [5]), Read(second, [6, 7, 8]), Read(third, [5] * (1 + MAX_PADDING)),
        Read(fourth, [5] * (2 + MAX_PADDING)),
    ]  # fmt: skip
    assert passes(one, requests) == [(3, 1 + MAX_PADDING), (1, 2 + MAX_PADDING)]


def test_states_take_a_pass_for_each_length() -> None:
    one = fusing.member("mistral", "lfm2")
    first, second, third = rows(one, [5, 9, 2])
    requests = [Read(first, [5]), Read(second, [6, 7]), Read(third, [5])]
    assert sorted(passes(one, requests)) == [(1, 2), (2, 1)]


@given(
    counts=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=9),
    pads=st.one_of(st.none(), st.integers(0, 6)),
)
def test_batches_hold_every_request_once(counts: list[tuple[int, int]], pads: int | None) -> None:
    requests = [Read(Session(ids=[1] * read), [2] * new) for new, read in counts]
    found = list(batches(requests, pads))
    assert sorted(row for group in found for row in group) == list(range(len(requests)))
    for group in found:
        sizes = [len(requests[row].ids) for row in group]
        assert max(sizes) - min(sizes) <= (pads or 0)
        if pads is None:
            assert len({requests[row].session.length > 0 for row in group}) == 1


@pytest.mark.parametrize("arch", quick(["gemma3", "llama", "lfm2"], 1))
@settings(max_examples=25)
@given(data=st.data())
def test_any_schedule_reads_like_single_rows(arch: str, data: st.DataObject) -> None:
    """Reads, rollbacks, forks, rows left out and rows that come and go."""
    one = fusing.member("mistral", arch)
    sessions: list[Session] = [one.open() for _ in range(data.draw(st.integers(1, 4)))]
    texts = {id(session): IDS[k:] for k, session in enumerate(sessions)}
    for _ in range(data.draw(st.integers(1, 8))):
        requests = []
        for session in list(sessions):
            act = data.draw(st.sampled_from(["read", "read", "read", "rest", "back", "fork"]))
            if act == "back":
                one.rollback(session, data.draw(st.integers(0, session.length)))
            if act == "fork" and len(sessions) < 6:
                twin = one.fork(session)
                cut = data.draw(st.integers(0, 2))
                texts[id(twin)] = [*session.ids, *IDS[cut:]]
                sessions.append(twin)
            if act == "rest":
                continue
            size = data.draw(st.sampled_from([1, 1, 1, 2, 3, 6]))
            new = texts[id(session)][session.length : session.length + size]
            if new and session.length + size < 60:
                requests.append(Read(session, new, data.draw(st.integers(1, len(new)))))
        for request, logps in zip(requests, one.read(requests), strict=True):
            expected = alone(one, list(request.session.ids), request.keep)
            assert fusing.gap(logps, expected) < EXACT


def test_steps_of_the_same_rows_copy_nothing() -> None:
    one = fusing.member("mistral")
    sessions = rows(one, [9, 9, 9])
    store = sessions[0].state.row_cache.store
    for step in range(5):
        one.read([Read(session, [step]) for session in sessions])
        assert {session.state.row_cache.store for session in sessions} == {store}
    # In another order, too.
    order = sessions[::-1]
    found = one.read([Read(session, [7]) for session in order])
    assert {session.state.row_cache.store for session in sessions} == {store}
    for session, logps in zip(order, found, strict=True):
        assert fusing.gap(logps, alone(one, session.ids)) < EXACT


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_uneven_steps_move_as_little_as_they_can(arch: str) -> None:
    """One row reads two tokens, one goes back, one rests: most stay where they are."""
    one = fusing.member("mistral", arch)
    sessions = rows(one, [9, 9, 6, 9])
    store = sessions[0].state.row_cache.store
    assert store.rows == 4
    held = store.layers[0][0][:, :, :9].clone()
    one.rollback(sessions[1], 8)
    news = [[3], [4], [5, 6], []]
    requests = [Read(s, new) for s, new in zip(sessions, news, strict=True) if new]
    for request, logps in zip(requests, one.read(requests), strict=True):
        assert fusing.gap(logps, alone(one, list(request.session.ids))) < EXACT
    assert {session.state.row_cache.store for session in sessions} == {store}
    for k in (0, 3):
        row = sessions[k].state.row_cache.row
        assert torch.equal(store.layers[0][0][row, :, :9], held[row])
    found = one.read([Read(session, [7]) for session in sessions])
    for session, logps in zip(sessions, found, strict=True):
        assert fusing.gap(logps, alone(one, session.ids)) < EXACT
    assert {session.state.row_cache.store for session in sessions} == {store}


def test_rows_that_rest_leave_nothing_behind_that_is_no_number() -> None:
    """What was never written may hold NaN."""
    one = fusing.member("mistral")
    sessions = rows(one, [9] * 5)
    store = sessions[0].state.row_cache.store
    for keys, values in filter(None, store.layers):
        keys[:, :, store.used :] = values[:, :, store.used :] = torch.nan
    resting = sessions[2]
    one.rollback(resting, 2)
    for step in range(3):
        one.read([Read(session, [step]) for session in sessions if session is not resting])
    found = one.read([Read(session, [7]) for session in sessions])
    assert {session.state.row_cache.store for session in sessions} == {store}
    for session, logps in zip(sessions, found, strict=True):
        assert fusing.gap(logps, alone(one, session.ids)) < EXACT


def test_of_two_forks_only_one_goes_on_in_place() -> None:
    one = fusing.member("mistral")
    (first,) = rows(one, [9])
    second = one.fork(first)
    store = first.state.row_cache.store
    one.read([Read(first, [4])])
    one.read([Read(second, [5, 6])])
    assert first.state.row_cache.store is store
    assert second.state.row_cache.store is not store
    for session in (first, second):
        logps = one.read([Read(session, [8])])[0]
        assert fusing.gap(logps, alone(one, session.ids)) < EXACT


def test_rows_that_stay_behind_do_not_keep_the_others_memory() -> None:
    one = fusing.member("mistral")
    sessions = rows(one, [9] * 6)
    resting, going = sessions[0], sessions[2:]
    one.read([Read(session, [4]) for session in going])
    store = resting.state.row_cache.store
    assert store.rows == 1
    keys, _values = store.layers[0]
    assert keys.shape[0] == 1
    assert keys.shape[2] == 9
    assert fusing.gap(one.read([Read(resting, [5])])[0], alone(one, resting.ids)) < EXACT


def test_what_rows_held_is_freed_without_the_collector() -> None:
    one = fusing.member("mistral")
    gc.disable()
    try:
        sessions = rows(one, [9, 4])
        one.read([Read(session, [4, 5][: k + 1]) for k, session in enumerate(sessions)])
        store = ref(sessions[0].state.row_cache.store)
        assert store() is not None
        del sessions
        assert store() is None
    finally:
        gc.enable()


def test_a_pass_that_fails_leaves_forks_as_they_were() -> None:
    one = HFMember(
        "m", pico.tiny_model(pico.real_tokenizer("mistral")), fusing.vocabulary("mistral")
    )
    session = one.open()
    one.read([Read(session, IDS[:9])])
    twin = one.fork(session)
    hook = one.model.lm_head.register_forward_hook(lambda _m, _i, out: out * torch.nan)
    with pytest.raises(Exception, match="NaN"):
        one.read([Read(session, [5])])
    hook.remove()
    assert fusing.gap(one.read([Read(twin, [6])])[0], alone(one, [*IDS[:9], 6])) < EXACT


@pytest.mark.parametrize("arch", pico.ARCHITECTURES)
def test_layers_return_the_keys_and_values_of_transformers_own(arch: str) -> None:
    config = fusing.member("mistral", arch).model.config
    empty, theirs = new_cache(config), DynamicCache(config=config)
    row_cache = RowCache(empty)
    attends = [i for i, layer in enumerate(empty.layers) if isinstance(layer, DynamicLayer)]
    for count in (5, 1, 9, 1, 1, 3):
        batch = RaggedBatch(empty, [row_cache], [count])
        for i in attends:
            assert batch.cache.get_mask_sizes(count, i) == theirs.get_mask_sizes(count, i)
            fresh = torch.randn(1, 2, count, 4), torch.randn(1, 2, count, 4)
            for own, other in zip(
                batch.cache.update(*fresh, i), theirs.update(*fresh, i), strict=True
            ):
                assert torch.equal(own, other)
        assert batch.cache.is_sliding == theirs.is_sliding
        batch.finish()
