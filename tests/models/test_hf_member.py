"""Reads, rollbacks and forks give the log-probabilities of one read without a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    DynamicCache,
    FalconH1Config,
    FalconH1ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from packfuse.errors import LoadError, MemberError, PromptError
from packfuse.hf_compat.models import CACHE
from packfuse.models import hf_member
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Read, ReadCallback, Session
from packfuse.models.vocab_subset import VocabSubset
from packfuse.models.window import context_window
from tests.support import fusing, pico

EXACT = 1e-4
"""Largest difference of log-probabilities for the same prefix; 4e-5 was measured."""
RECURRENT = 2e-3
"""The same for recurrent members, which sum up differently in chunks; 9e-4 was measured."""

every_arch = pytest.mark.parametrize("arch", pico.ARCHITECTURES)
IDS = [1, *range(300, 340)]


def member(arch: str) -> HFMember:
    return fusing.member("mistral", arch)


def tolerance(arch: str) -> float:
    return RECURRENT if arch == "qwen3_next" else EXACT


@functools.cache
def anew(arch: str, ids: tuple[int, ...]) -> Tensor:
    """Log-probabilities after every token, read in one go without a cache."""
    one = member(arch)
    with torch.no_grad():
        logits = one.model(torch.tensor([ids]), use_cache=False).logits[0]
    logits[:, one.vocabulary.size :] = -torch.inf
    return logits.log_softmax(-1)


def read(one: HFMember, session: Session, ids: Sequence[int], keep: int = 1) -> Tensor:
    return one.read([Read(session, list(ids), keep)])[0]


@every_arch
@pytest.mark.parametrize("chunks", [[41], [40, 1], [1] * 41, [7, 20, 1, 1, 12]], ids=len)
def test_chunks_read_as_one(arch: str, chunks: list[int]) -> None:
    """Sliding windows, convolutions and recurrences included: 41 tokens, a window of 8."""
    one, start = member(arch), 0
    session = one.open()
    for size in chunks:
        logps = read(one, session, IDS[start : start + size], size)
        expected = anew(arch, tuple(IDS))[start : start + size]
        assert fusing.gap(logps, expected) < tolerance(arch)
        start += size
    assert session.ids == IDS


@every_arch
@settings(max_examples=20)
@given(data=st.data())
def test_any_schedule_of_reads_gives_the_same(arch: str, data: st.DataObject) -> None:
    """Reads, rollbacks and forks, in several rows at once, at uneven lengths."""
    one = member(arch)
    sessions = [one.open() for _ in range(3)]
    rows = [IDS[k:] for k in range(3)]
    for _ in range(data.draw(st.integers(1, 6))):
        requests, wanted = [], []
        for index, session in enumerate(sessions):
            row, at = rows[index], session.length
            if data.draw(st.booleans()) and at:
                one.rollback(session, data.draw(st.integers(0, at)))
                assert session.length <= at
                at = session.length
            if data.draw(st.integers(0, 4)) == 0:
                sessions[index] = one.fork(session)
            size = data.draw(st.sampled_from([1, 1, 2, 3, 9]))
            if at + size <= len(row):
                keep = data.draw(st.integers(1, size))
                requests.append(Read(sessions[index], row[at : at + size], keep))
                wanted.append(anew(arch, tuple(row))[at + size - keep : at + size])
        for logps, expected in zip(one.read(requests), wanted, strict=True):
            assert fusing.gap(logps, expected) < tolerance(arch)


@every_arch
def test_a_fork_is_independent(arch: str) -> None:
    one = member(arch)
    first = one.open()
    read(one, first, IDS[:20])
    second = one.fork(first)
    other = [*IDS[:20], 9, 8, 7]
    assert fusing.gap(read(one, second, [9, 8, 7]), anew(arch, tuple(other))[-1:]) < tolerance(arch)
    rest = read(one, first, IDS[20:23])
    assert fusing.gap(rest, anew(arch, tuple(IDS))[22:23]) < tolerance(arch)
    one.rollback(second, 21)
    again = read(one, second, [*other[second.length : 21], 5])
    assert fusing.gap(again, anew(arch, (*other[:21], 5))[-1:]) < tolerance(arch)
    assert first.ids == IDS[:23]


@every_arch
def test_a_rollback_forgets_at_most_a_little_more(arch: str) -> None:
    """States without a time axis go back to where they were saved: the last few reads."""
    one = member(arch)
    session = one.open()
    for start in range(0, 20, 2):
        read(one, session, IDS[start : start + 2])
    one.rollback(session, 20)
    assert session.length == 20
    one.rollback(session, 17)
    assert session.length in ((16,) if arch in ("lfm2", "qwen3_next") else (17,))
    assert session.ids == IDS[: session.length]
    one.rollback(session, 0)
    assert session.length == 0


@every_arch
def test_a_row_rolled_back_to_nothing_joins_new_rows(arch: str) -> None:
    one = member(arch)
    session = one.open()
    read(one, session, IDS[:9])
    one.rollback(session, 0)
    assert session.ids == []
    rows = [session, one.open()]
    for first in (rows, rows[::-1]):
        sessions = [one.fork(row) for row in first]
        for logps in one.read([Read(row, IDS[:5], 1) for row in sessions]):
            assert fusing.gap(logps[-1], anew(arch, tuple(IDS))[4]) < tolerance(arch)


@every_arch
def test_a_callback_gets_every_position(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = member(arch)
    monkeypatch.setattr(hf_member, "LOGITS_BYTES", 4 * 9 * one.vocabulary.columns)
    seen: list[tuple[int, Tensor]] = []
    callback = ReadCallback(lambda counts, logps: seen.append((counts[0], logps.clone())))
    kept = one.read([Read(one.open(), IDS, 3, callback)])[0]
    assert [count for count, _ in seen] == [1, 10, 19, 28, 37]
    whole = torch.cat([logps for _, logps in seen])
    assert fusing.gap(whole, anew(arch, tuple(IDS))) < tolerance(arch)
    assert kept.equal(whole[-3:])


@every_arch
@pytest.mark.parametrize("wanted", [frozenset({2, 3, 11, 30}), frozenset[int]()], ids=len)
def test_a_callback_gets_its_counts_and_no_others(
    arch: str, wanted: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where some passes over a long prompt have none of them."""
    monkeypatch.setattr("packfuse.models.batching.MAX_CHUNK_TOKENS", 16)
    one = member(arch)
    seen: dict[int, Tensor] = {}
    callback = ReadCallback(
        lambda counts, logps: seen.update(zip(counts, logps.clone(), strict=True)), wanted
    )
    kept = one.read([Read(one.open(), IDS, 1, callback)])[0]
    assert set(seen) == wanted | {len(IDS)}
    whole = anew(arch, tuple(IDS))
    for count, logps in seen.items():
        assert fusing.gap(logps, whole[count - 1]) < tolerance(arch)
    assert kept[0].equal(seen[len(IDS)])


@pytest.mark.parametrize("apart", [True, False])
def test_bodies_read_a_long_prompt_in_one_go(apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The LM head follows in blocks where it can; otherwise both read chunks of one block."""
    one = HFMember("one", pico.tiny_pair("mistral")[0], fusing.vocabulary("mistral"))
    one._lm_head.__dict__["_separable"] = apart
    monkeypatch.setattr(hf_member, "LOGITS_BYTES", 4 * 9 * one.vocabulary.columns)
    model: Any = one.model
    bodies, heads = list[int](), list[int]()
    layer, head = model.model.layers[0], model.lm_head
    layer.register_forward_hook(lambda _m, given, _out: bodies.append(given[0].shape[1]))
    head.register_forward_hook(lambda _m, _given, out: heads.append(out.shape[1]))
    seen: list[Tensor] = []
    callback = ReadCallback(lambda _counts, logps: seen.append(logps.clone()))
    session = one.open()
    one.read([Read(session, IDS, 3, callback)])
    assert bodies == ([41] if apart else [9, 9, 9, 9, 5])
    assert heads == [9, 9, 9, 9, 5]
    log_normalizers = session.log_normalizers
    assert fusing.gap(torch.cat(seen), anew("llama", tuple(IDS))) < EXACT
    one.read([Read(again := one.open(), IDS, 3)])
    assert log_normalizers is not None and again.log_normalizers is not None
    assert torch.allclose(log_normalizers[-3:], again.log_normalizers[-3:], atol=1e-4)


def test_callbacks_get_their_own_row_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of logits do not end where rows do."""
    one = member("llama")
    monkeypatch.setattr(hf_member, "LOGITS_BYTES", 4 * 7 * one.vocabulary.columns)
    seen: dict[tuple[int, int], Tensor] = {}

    def callback(row: int) -> ReadCallback:
        def on_logps(counts: Sequence[int], logps: Tensor) -> None:
            given_now = zip(counts, logps.clone(), strict=True)
            seen.update({(row, count): logps for count, logps in given_now})

        return ReadCallback(on_logps, None if row else frozenset({4, 9, 11}))

    texts = [IDS[:18], IDS[3:21], IDS[1:17]]
    requests = [Read(one.open(), ids, 2, callback(row)) for row, ids in enumerate(texts)]
    found = one.read(requests)
    for row, (ids, kept) in enumerate(zip(texts, found, strict=True)):
        whole = anew("llama", tuple(ids))
        assert fusing.gap(kept, whole[-2:]) < EXACT
        seen_counts = sorted(count for at, count in seen if at == row)
        assert seen_counts == ([*range(1, len(ids) + 1)] if row else [4, 9, 11, 17, 18])
        for count in seen_counts:
            assert fusing.gap(seen[row, count], whole[count - 1]) < EXACT


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("rows", [4, 5])
def test_more_rows_than_a_block_of_logits(
    rows: int, pruned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without callbacks they are read as one batch."""
    one = member("llama")
    monkeypatch.setattr(hf_member, "LOGITS_BYTES", 4 * 4 * one.vocabulary.columns)
    subset = VocabSubset(torch.arange(5, 300), one.vocabulary.columns) if pruned else None
    texts = [IDS[k : k + 9] for k in range(rows)]
    found = one.read([Read(one.open(), ids, 1, subset=subset) for ids in texts])
    for ids, logps in zip(texts, found, strict=True):
        expected = anew("llama", tuple(ids))[-1:]
        expected = subset.restrict(expected) if subset else expected
        assert fusing.gap(logps, expected) < EXACT


def test_errors_of_a_callback_are_not_the_members() -> None:
    def on_logps(_counts: Sequence[int], _logps: Tensor) -> None:
        raise RuntimeError("not the member's fault")

    one = member("llama")
    session = one.open()
    with pytest.raises(RuntimeError, match=r"^not the member's fault$"):
        one.read([Read(session, IDS, 1, ReadCallback(on_logps))])
    assert session.ids == []


def test_hooks_on_the_model_see_whole_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    one = HFMember("one", pico.tiny_pair("mistral")[0], fusing.vocabulary("mistral"))
    monkeypatch.setattr(hf_member, "LOGITS_BYTES", 4 * 9 * one.vocabulary.columns)
    shapes: list[tuple[int, ...]] = []
    one.model.register_forward_hook(lambda _m, _given, out: shapes.append(tuple(out.logits.shape)))
    one.read([Read(one.open(), IDS, 3, ReadCallback(lambda *_: None))])
    assert [shape[1] for shape in shapes] == [9, 9, 9, 9, 5]


def test_few_logits_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = member("llama")
    sizes: list[tuple[int, int]] = []
    forward = one.model.forward

    def recorded(**inputs: Any) -> Any:
        sizes.append((inputs["input_ids"].shape[1], inputs["logits_to_keep"]))
        return forward(**inputs)

    monkeypatch.setattr(one.model, "forward", recorded)
    read(one, one.open(), IDS)
    assert sizes == [(41, 1)]
    monkeypatch.setattr(hf_member, "LOGITS_BYTES", 4 * 9 * one.vocabulary.columns)
    sizes.clear()
    read(one, one.open(), IDS, 20)
    assert sizes == [(30, 9), (9, 9), (2, 2)]


def test_logits_that_are_not_needed_are_not_computed() -> None:
    one, sizes = member("llama"), list[int]()
    head = one.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, _i, output: sizes.append(output.shape[1]))
    try:
        requests = [Read(one.open(), IDS, 3), Read(one.open(), IDS), Read(one.open(), IDS)]
        found = one.read(requests)
    finally:
        hook.remove()
    assert sizes == [5]
    assert [len(logps) for logps in found] == [3, 1, 1]
    for logps in found:
        assert fusing.gap(logps, anew("llama", tuple(IDS))[-len(logps) :]) < EXACT


@pytest.mark.parametrize("kept", [True, False])
def test_a_forward_put_into_the_model_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """The LM head cannot be replaced then; with and without `logits_to_keep`."""
    model = pico.tiny_model(pico.real_tokenizer("mistral"))
    one, forward = HFMember("m", model, member("llama").vocabulary), model.forward
    one._takes_logits_to_keep = kept
    monkeypatch.setattr(model, "forward", forward)
    found = one.read([Read(one.open(), IDS, 3), Read(one.open(), IDS)])
    assert [len(logps) for logps in found] == [3, 1]
    for logps in found:
        assert fusing.gap(logps, anew("llama", tuple(IDS))[-len(logps) :]) < EXACT


def test_masks_cost_no_copies_of_keys_on_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    def copies(*_: object) -> Tensor:
        raise AssertionError("copied")

    if torch.accelerator.is_available() or torch.__version__ < "2.9":
        pytest.skip("the copies are left to transformers: kernels of processors alone do without")
    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", copies)
    one = member("llama")
    assert one.model.config.num_key_value_heads < one.model.config.num_attention_heads
    sessions = [one.open() for _ in range(3)]
    one.read([Read(s, IDS[: 5 + k]) for k, s in enumerate(sessions)])
    found = one.read([Read(s, [IDS[5 + k]]) for k, s in enumerate(sessions)])
    for k, logps in enumerate(found):
        assert fusing.gap(logps, anew("llama", tuple(IDS[: 6 + k]))[-1:]) < EXACT


def test_a_member_is_where_its_model_is_now() -> None:
    model, _ = pico.tiny_pair("mistral", "llama")
    member = HFMember("one", model, fusing.member("mistral", "llama", 0).vocabulary)
    assert member.device == torch.device("cpu")
    model.to("meta")  # type: ignore[arg-type]
    assert member.device == torch.device("meta")


def test_columns_that_are_no_token_get_nothing() -> None:
    one = member("llama")
    logps = read(one, one.open(), IDS)[0]
    assert len(logps) == one.vocabulary.columns > one.vocabulary.size
    assert torch.isneginf(logps[one.vocabulary.size :]).all()
    assert float(logps.exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("cut", [510, 512])
def test_a_full_context_window_can_be_used_up(cut: int) -> None:
    one = fusing.member("mistral", "llama", 0, 512)
    session = one.open()
    read(one, session, [5] * cut)
    if cut < 512:
        read(one, session, [6] * (512 - cut))
    with pytest.raises(
        PromptError, match=r"'mistral-llama-0' would read 513 tokens, and can read 512"
    ):
        read(one, session, [7])
    assert session.length == 512


def broken(one: HFMember, at: int, value: float) -> HFMember:
    """The member with logits that break from the `at`-th token read on."""

    seen: list[int] = []

    def spoil(_module: object, _inputs: object, output: Tensor) -> Tensor:
        seen.append(output.shape[1])
        if sum(seen) >= at:
            output[:, at - sum(seen) - 1 :, 7] = value
        return output

    model = pico.tiny_model(pico.real_tokenizer("mistral"))
    model.lm_head.register_forward_hook(spoil)
    return HFMember(one.name, model, one.vocabulary)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_member_that_breaks_is_named(value: float) -> None:
    one = broken(member("llama"), 12, value)
    session = one.open()
    for index in IDS[:11]:
        read(one, session, [index])
    with pytest.raises(
        MemberError, match=r"'mistral-llama-0' gave NaN logits after token 12 .*bfloat16"
    ):
        read(one, session, IDS[11:12])
    # What was read is gone, so that nothing half-read can be used.
    assert session.length == 0
    one = broken(member("llama"), 12, value)
    with pytest.raises(MemberError, match="after token 12"):
        read(one, one.open(), IDS, len(IDS))


def test_one_impossible_token_is_no_reason_to_stop() -> None:
    one = broken(member("llama"), 1, -torch.inf)
    logps = read(one, one.open(), IDS[:1])[0]
    assert torch.isneginf(logps[7])
    assert float(logps.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_model_that_fails_is_named_and_leaves_nothing_half_read() -> None:
    tokenizer = pico.real_tokenizer("mistral")
    one = HFMember("faulty", pico.tiny_model(tokenizer), member("llama").vocabulary)
    session = one.open()
    read(one, session, IDS[:5])

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    hook = one.model.lm_head.register_forward_hook(fail)
    with pytest.raises(MemberError, match="'faulty' failed after 5 tokens: out of luck"):
        read(one, session, IDS[5:7])
    hook.remove()
    again = read(one, session, IDS[:7][session.length :])
    assert fusing.gap(again, anew("llama", tuple(IDS))[6:7]) < EXACT


def test_logits_of_another_width_are_refused() -> None:
    one = HFMember("odd", member("llama").model, fusing.vocabulary("deepseek"))
    with pytest.raises(MemberError, match=r"'odd' gives 32064 logits, not 129344"):
        read(one, one.open(), IDS)


def test_a_model_with_a_cache_of_its_own_kind_is_refused() -> None:
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config)
    with pytest.raises(
        LoadError,
        match=r"'m'(: MambaForCausalLM does not take `| has an unsupported kind of KV cache: Lin)",
    ):
        HFMember("m", model, fusing.vocabulary("mistral"))


def test_a_model_with_an_unknown_kind_of_layer_is_refused() -> None:
    model = pico.tiny_model(pico.real_tokenizer("mistral"), "gemma3")
    model.config.layer_types = ["indexed_attention"] * 4
    with pytest.raises(
        LoadError, match=r"'m' has an unsupported kind of KV cache: DynamicIndexedLayer"
    ):
        HFMember("m", model, fusing.vocabulary("mistral"))


def hybrid() -> PreTrainedModel:
    """Attention and recurrence in one layer."""
    settings: dict[str, Any] = {
        "vocab_size": 32_064, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "mamba_d_ssm": 32,
        "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16,
    }  # fmt: skip
    return FalconH1ForCausalLM(FalconH1Config(**settings))


def mixture_of_experts() -> PreTrainedModel:
    config = MixtralConfig(
        vocab_size=32_064, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    return MixtralForCausalLM(config)


@pytest.mark.parametrize("make", [hybrid, mixture_of_experts])
def test_other_families(make: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    one = HFMember("other", model, fusing.vocabulary("mistral"))
    sessions = [one.open(), one.open()]
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), use_cache=False).logits[0]
    logits[:, one.vocabulary.size :] = -torch.inf
    expected = logits.log_softmax(-1)
    read(one, sessions[0], IDS[:20])
    read(one, sessions[1], IDS[:9])
    one.rollback(sessions[0], 18)
    requests = [Read(session, IDS[session.length : session.length + 4]) for session in sessions]
    for session, logps in zip(sessions, one.read(requests), strict=True):
        assert fusing.gap(logps[0], expected[session.length - 1]) < EXACT


def test_reading_changes_no_member() -> None:
    one = member("gemma3")
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    config = one.model.config.to_dict()
    session = one.open()
    read(one, session, IDS)
    one.rollback(session, 4)
    assert all(value.equal(before[name]) for name, value in one.model.state_dict().items())
    assert one.model.config.to_dict() == config
    assert not one.model.training
    cache = DynamicCache(config=one.model.config)
    assert one.model(torch.tensor([IDS[:3]]), **{CACHE: cache}).logits.shape[1] == 3


def test_the_window_is_the_models_or_else_the_tokenizers() -> None:
    tokenizer = pico.real_tokenizer("mistral")
    config = member("llama").model.config
    assert context_window(config, tokenizer) == 512
    bare = MambaConfig(vocab_size=64)
    assert context_window(bare, tokenizer) == min(tokenizer.model_max_length, 2**31 - 1)
