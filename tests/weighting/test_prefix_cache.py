"""A cached prefix changes no answer: it is as if the prompt were read from its beginning."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.alignment.base import Alignment, ReferenceView
from packfuse.errors import ConfigError, MemberError
from packfuse.fusion.engine import Engine
from packfuse.fusion.sequence import PackSequence
from packfuse.generation.output.result import Answer
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member, Read
from packfuse.settings import PackConfig
from packfuse.text.prompt import from_text
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import FitLimits
from packfuse.weighting.prefill import Fit, prefill
from packfuse.weighting.prefix_cache import SHARE, PrefixCache
from packfuse.weighting.prompt_scores import PromptScores
from tests.support import fusing, pico
from tests.support.fusing import FUSION
from tests.support.small import small_pack

EXACT = 1e-4
RECURRENT = 2e-3
PLENTY = 2**30
CONTEXT = (
    "The harbour of Trondheim was founded in 997 by Olaf Tryggvason. Its cathedral, Nidarosdomen, "
    "was built over the tomb of Saint Olaf from 1070 on.\n\n    def tide(hour):\n        return 3\n"
) * 3
FIRST = CONTEXT + "\nQuestion: When was the cathedral begun, and over whose tomb?\nAnswer:"
SECOND = CONTEXT + "\nQuestion: Who founded it?\nAnswer:"
LIMITED = {"name": "exact", "positions": 24, "shrinkage": 0}
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]:"

PAIR = (("mistral", "gemma3", 0), ("deepseek", "llama", 1))
either_reference = pytest.mark.parametrize("reference", [0, 1])


class Counting(HFMember):
    """Counts the tokens that it reads, and fails if it is `broken`."""

    tokens = 0
    broken = False

    def read(self, requests: Sequence[Read]) -> list[Tensor]:
        self.tokens += sum(len(request.ids) for request in requests)
        if self.broken:
            raise MemberError(f"member {self.name!r} failed")
        return super().read(requests)


def counting(spec: tuple[str, str, int]) -> Counting:
    own = fusing.member(*spec, context=1024)
    return Counting(own.name, own.model, own.vocabulary)


class CachedEngine(Engine):
    """An engine, and the prefix cache that its prompts are read with."""

    def __init__(
        self,
        members: Sequence[Member],
        reference: int,
        alignment: Alignment,
        prefixes: PrefixCache | None,
    ) -> None:
        super().__init__(members, reference, alignment)
        self.prefixes = prefixes


def engine(
    specs: Sequence[tuple[str, str, int]] = PAIR,
    reference: int = 0,
    alignment: Any = "bytes",
    limit: int | None = PLENTY,
) -> CachedEngine:
    """Members over real tokenizers, with a prefix cache unless `limit` is None."""
    members = [counting(spec) for spec in specs]
    cache = None if limit is None else PrefixCache(members, limit)
    return CachedEngine(members, reference, alignments().make(alignment), cache)


def read(own: CachedEngine, text: str, weighting: Any = LIMITED) -> tuple[PackSequence, Fit]:
    vocabularies = [member.vocabulary for member in own.members]
    prompt = from_text(text, vocabularies, own.reference_index)
    return prefill(own, prompt, weightings().make(weighting), FUSION, prefixes=own.prefixes)


def assert_equal(
    one: tuple[PackSequence, Fit], other: tuple[PackSequence, Fit], tolerance: float = EXACT
) -> None:
    """Both readings of a prompt give equal weights, losses and next-token distributions."""
    (sequence, fit), (plain, expected) = one, other
    np.testing.assert_allclose(fit.weights, expected.weights, atol=tolerance)
    assert (fit.losses is None) == (expected.losses is None)
    if fit.losses is not None and expected.losses is not None:
        np.testing.assert_allclose(fit.losses, expected.losses, atol=tolerance)
    assert fit.tokens == expected.tokens
    assert fit.prompt_tokens == expected.prompt_tokens
    assert sequence.fused_logps is not None
    assert plain.fused_logps is not None
    assert fusing.gap(sequence.fused_logps, plain.fused_logps) < 10 * tolerance


def read_by(own: Engine) -> int:
    """Tokens that the members have read since the last time."""
    total = 0
    for member in own.members:
        assert isinstance(member, Counting)
        total, member.tokens = total + member.tokens, 0
    return total


@either_reference
@pytest.mark.parametrize("weighting", [LIMITED, "exact", "opt", "sim", "top1", "uniform"], ids=str)
def test_a_question_on_a_known_context_is_answered_alike(reference: int, weighting: Any) -> None:
    warm, cold = engine(reference=reference), engine(reference=reference, limit=None)
    assert_equal(read(warm, FIRST, weighting), read(cold, FIRST, weighting))
    whole, _ = read_by(warm), read_by(cold)
    found, expected = read(warm, SECOND, weighting), read(cold, SECOND, weighting)
    assert_equal(found, expected)
    assert 3 * read_by(warm) < min(whole, read_by(cold))
    assert all(n > 0.7 * size for n, size in zip(*_counts(found[1]), strict=True))
    assert expected[1].cached_tokens == (0, 0)


def _counts(fit: Fit) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return fit.cached_tokens, fit.prompt_tokens


ALIGNMENTS: list[Any] = ["bytes", "prefix", "mined", {"name": "mined", "inputs": "text"}]


@pytest.mark.parametrize("alignment", ALIGNMENTS, ids=str)
@pytest.mark.parametrize("weighting", [LIMITED, "sim"], ids=str)
def test_every_alignment(alignment: Any, weighting: Any) -> None:
    warm, cold = (small_engine(alignment, limit) for limit in (PLENTY, None))
    for text in ("the hello lo he " * 8 + '"true": the', "the hello lo he " * 8 + "he\nlo true"):
        assert_equal(read(warm, text, weighting), read(cold, text, weighting))
    assert warm.prefixes is not None
    assert read(warm, text, weighting)[1].cached_tokens > (30, 30)


def small_engine(alignment: Any, limit: int | None) -> CachedEngine:
    members = small_pack().members
    cache = None if limit is None else PrefixCache(members, limit)
    return CachedEngine(members, 0, alignments().make(alignment), cache)


PIECES = ["The", " harbour", " 1234", "\n\n", "    ", " naïve", "日本語", "😀", "don't", " x", "."]
texts = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@settings(max_examples=6)
@given(start=texts, ends=st.lists(texts, min_size=2, max_size=3), reference=st.integers(0, 1))
def test_any_texts_with_a_common_beginning(start: str, ends: list[str], reference: int) -> None:
    warm, cold = engine(reference=reference), engine(reference=reference, limit=None)
    for end in ends:
        assert_equal(read(warm, "A" + start + end), read(cold, "A" + start + end))


@pytest.mark.parametrize("arch", ["lfm2", "qwen3_next"])
def test_members_that_roll_back_to_saved_states_only(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutional and recurrent members go back to a copy of their states, if they have one."""
    columns = fusing.vocabulary("mistral").columns
    monkeypatch.setattr("packfuse.models.hf_member.LOGITS_BYTES", 4 * columns * 40)
    specs = (("mistral", arch, 0), ("deepseek", "llama", 1))
    warm, cold = engine(specs), engine(specs, limit=None)
    tolerance = RECURRENT if arch == "qwen3_next" else EXACT
    for text in (FIRST, SECOND, SECOND + " Olaf", FIRST[: len(FIRST) // 2]):
        found = read(warm, text)
        assert_equal(found, read(cold, text), tolerance)
        if text == SECOND:
            assert found[1].cached_tokens[0] > 40


def test_switching_the_reference_computes_other_scores_only() -> None:
    warm = engine()
    assert warm.prefixes is not None
    other = CachedEngine(warm.members, 1, warm.alignment, warm.prefixes)
    read(warm, FIRST)
    assert_equal(read(other, FIRST), read(engine(reference=1, limit=None), FIRST))
    read_by(warm)
    for own in (warm, other):
        read(own, SECOND)
    # Both references have their scores now.
    read_by(warm)
    for reference, own in enumerate((warm, other)):
        assert_equal(read(own, SECOND), read(engine(reference=reference, limit=None), SECOND))
    # The end of the prompt is read again as far as a mark may be spelled.
    assert read_by(warm) < 52 + max(pairing.window for pairing in warm.pairings)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("text", ["FIRST", "short", "open"])
def test_another_reference_computes_nothing_again(first: int, text: str) -> None:
    prompt = {"FIRST": FIRST, "short": "Once upon a time", "open": FIRST + "  def "}[text]
    warm = engine(reference=first)
    other = CachedEngine(warm.members, 1 - first, warm.alignment, warm.prefixes)
    views = [{1 - first: lambda: other.view}, {}]
    for own, others in zip((warm, other), views, strict=True):
        vocabularies = [member.vocabulary for member in own.members]
        whole = from_text(prompt, vocabularies, own.reference_index)
        exact = weightings().make("exact")
        found = prefill(own, whole, exact, FUSION, others=others, prefixes=own.prefixes)
        assert_equal(
            found, read(engine(reference=own.reference_index, limit=None), prompt, "exact")
        )
        spent = read_by(own)
    # What is read: the window of the straddle filters, and a last token that differs.
    assert spent < 40


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_scores_are_reused_where_the_sessions_could_not_be_kept(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are read again, but their scores are not computed again."""
    # The sessions of real models are far larger than the scores.
    monkeypatch.setattr("packfuse.weighting.prefix_cache.MAX_SCORE_SHARE", 1.0)
    warm = engine()
    other = CachedEngine(warm.members, 1, warm.alignment, warm.prefixes)
    cache = warm.prefixes
    assert cache is not None
    computed = 0
    notify = Read.notify

    def counted(request: Read, counts: Sequence[int], logps: Tensor) -> None:
        nonlocal computed
        computed += sum(1 for count in counts if request.callback and request.callback.wants(count))
        notify(request, counts, logps)

    monkeypatch.setattr(Read, "notify", counted)
    vocabularies = [member.vocabulary for member in warm.members]
    prompt, weighting = from_text(FIRST, vocabularies, 0), weightings().make("exact")
    views = {1: lambda: other.view}
    prefill(warm, prompt, weighting, FUSION, others=views, prefixes=cache)
    (entry, _), *_ = cache._entries
    cache.limit = entry.score_bytes + int(share * entry.session_bytes(warm.members)) + 1
    cache.clear()
    views = {1: lambda: other.view}
    prefill(warm, prompt, weighting, FUSION, others=views, prefixes=cache)
    assert computed > 400
    computed = 0
    found = read(other, FIRST, "exact")
    assert computed == 0
    cached, size = _counts(found[1])
    assert all(abs(n / m - share) < 0.15 for n, m in zip(cached, size, strict=True))
    assert_equal(found, read(engine(reference=1, limit=None), FIRST, "exact"))


def test_fit_positions_stay_as_the_text_grows() -> None:
    """In the common prefix, the longer text has a subset of the shorter one's positions."""
    vocabularies = [fusing.vocabulary(name) for name in ("mistral", "deepseek")]
    before: set[int] = set()
    for words in (20, 40, 60, 61, 90, 200):
        text = " ".join(["harbour"] * words)
        ids = [vocabulary.encode(text) for vocabulary in vocabularies]
        found = PromptScores(
            vocabularies, ReferenceView(0), ids, [text.encode()], True, FitLimits(16, 8)
        ).positions
        inside = {offset for offset in found if offset <= max(before, default=0)}
        assert inside <= before or not before
        assert len(found) == 16
        gaps = np.diff([offset // 8 for offset in found])
        assert len(set(gaps[1:].tolist())) <= 3
        assert gaps.max() < 3.5 * words / 16
        before = set(found)


def test_a_prompt_read_without_scores_is_scored_later() -> None:
    warm = engine()
    read(warm, FIRST, {"name": "fixed", "weights": {m.name: 0.5 for m in warm.members}})
    assert_equal(read(warm, SECOND), read(engine(limit=None), SECOND))


def test_whole_distributions_are_not_cached() -> None:
    weighting = {**LIMITED, "candidates": None}
    warm = engine()
    read(warm, FIRST, weighting)
    assert_equal(read(warm, SECOND, weighting), read(engine(limit=None), SECOND, weighting))
    assert warm.prefixes is not None
    assert warm.prefixes.nbytes < 2**22


@contextmanager
def packs(**arguments: Any) -> Iterator[tuple[Pack, Pack]]:
    """The same small pack with and without a prefix cache."""
    yield (
        small_pack(prefix_cache=PLENTY, context=1024, **arguments),
        small_pack(prefix_cache=0, context=1024, **arguments),
    )


def same(found: Answer, expected: Answer) -> None:
    """Equal but for float error, times, and the number of cached tokens."""
    assert found.token_ids == expected.token_ids
    one, other = found.record, expected.record
    assert one.weights == pytest.approx(other.weights, abs=EXACT)
    if other.prompt_loss is not None:
        assert one.prompt_loss == pytest.approx(other.prompt_loss, abs=EXACT)
    assert one.usage.prompt_tokens_by_member == other.usage.prompt_tokens_by_member
    assert other.usage.cached_tokens == 0


TALK = ["hello the lo true he hello " * 5, "lo lo the hello true " * 4, "the he true"]


@pytest.mark.parametrize("reference", ["long", "auto"])
def test_a_chat_grows_over_three_turns(reference: str) -> None:
    with packs(template=TEMPLATE, reference=reference) as (warm, cold):
        messages: list[dict[str, str]] = [{"role": "system", "content": "hello the " * 12}]
        for turn, text in enumerate(TALK):
            messages.append({"role": "user", "content": text})
            found = warm.generate(messages, max_new_tokens=8)
            same(found, cold.generate(messages, max_new_tokens=8))
            usage = found.record.usage
            assert bool(usage.cached_tokens) == bool(turn)
            assert usage.cached_tokens == usage.cached_tokens_by_member[found.record.reference]
            assert usage.cached_tokens < usage.prompt_tokens
            messages.append({"role": "assistant", "content": found.text})


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_return_sequences": 3, "do_sample": True, "seed": 5},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 3},
        {"weighting": "uniform"},
        {"weighting": {"name": "fixed", "weights": {"long": 1.0, "short": 0.0}}},
        {"fusion": "unite"},
        {"fusion": "mixture"},
    ],
    ids=str,
)
def test_every_way_of_generating(arguments: dict[str, Any]) -> None:
    with packs() as (warm, cold):
        for ending in ("he", "lo true"):
            found, expected = (
                pack.generate("hello the lo " * 10 + ending, max_new_tokens=10, **arguments)
                for pack in (warm, cold)
            )
            if isinstance(found, list):
                for pair in zip(found, expected, strict=True):
                    same(*pair)
            else:
                same(found, expected)


def test_the_prompts_of_a_batch_share_their_common_prefix() -> None:
    prompts = ["hello the lo " * 10 + ending for ending in ("he", "lo true", "the he")]
    with packs() as (warm, cold):
        found = warm.generate(prompts, max_new_tokens=6)
        for pair in zip(found, cold.generate(prompts, max_new_tokens=6), strict=True):
            same(*pair)
        cached = [answer.record.usage.cached_tokens for answer in found]
        assert cached[0] == 0
        assert min(cached[1:]) > 20


def test_likelihoods() -> None:
    with packs() as (warm, cold):
        for text in ("hello the lo " * 10 + "he", "hello the lo " * 10 + "true"):
            score = warm.score(text, " lo the hello")
            assert score == pytest.approx(cold.score(text, " lo the hello"), abs=EXACT)


def test_a_member_that_fails_leaves_the_cache_intact() -> None:
    warm, cold = engine(), engine(limit=None)
    read(warm, FIRST)
    broken = warm.members[1]
    assert isinstance(broken, Counting)
    broken.broken = True
    with pytest.raises(MemberError, match="failed"):
        read(warm, SECOND)
    broken.broken = False
    assert_equal(read(warm, SECOND), read(cold, SECOND))
    assert_equal(read(warm, FIRST), read(cold, FIRST))


def test_a_model_that_fails_halfway_leaves_the_cache_intact() -> None:
    warm, cold = engine(), engine(limit=None)
    read(warm, FIRST)
    model: Any = warm.members[0].model
    last = model.model.layers[-1]
    hook = last.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("halt")))
    try:
        with pytest.raises(MemberError, match="halt"):
            read(warm, SECOND)
    finally:
        hook.remove()
    assert_equal(read(warm, SECOND), read(cold, SECOND))


def test_a_cancelled_stream_leaves_the_cache_intact() -> None:
    with packs() as (warm, cold):
        stream = warm.stream("hello the lo " * 10 + "he", max_new_tokens=200)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        for ending in ("he", "lo"):
            text = "hello the lo " * 10 + ending
            same(*(pack.generate(text, max_new_tokens=6) for pack in (warm, cold)))


TOPICS = [f"Chapter {i}: " + " ".join(str(i * j * 7919) for j in range(1, 40)) for i in range(1, 6)]


def held(cache: PrefixCache) -> int:
    """Bytes of the distinct tensors behind all entries."""
    stores = {}
    for entry, _ in cache._entries:
        for session in entry.sessions:
            for pair in session.state.row_cache.store.layers:
                for tensor in pair:
                    stores[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        for scores, labels in entry.scores.values():
            for tensor in (scores, labels):
                stores[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(stores.values())


def test_the_least_recently_used_is_evicted_and_the_limit_holds() -> None:
    own = engine()
    cache = own.prefixes
    assert cache is not None
    read(own, TOPICS[0])
    cache.limit = int(3.5 * cache.nbytes)
    for text in (TOPICS[1], TOPICS[2], TOPICS[0] + " and", TOPICS[3]):
        read(own, text)
        assert 0 < cache.nbytes <= cache.limit
        assert held(cache) <= cache.nbytes
    # The second is the least recently used.
    kept = [bool(read(engine_view(own), text)[1].cached_tokens[0] > 20) for text in TOPICS]
    assert kept == [True, False, True, True, False]


def engine_view(own: CachedEngine) -> CachedEngine:
    """An engine with a copy of the cache, so that reading adds nothing to the original."""
    assert own.prefixes is not None
    seen = PrefixCache(own.members, PLENTY)
    seen._entries = list(own.prefixes._entries)
    return CachedEngine(own.members, own.reference_index, own.alignment, seen)


def test_the_size_counted_is_the_memory_held() -> None:
    own = engine()
    assert own.prefixes is not None
    read(own, FIRST)
    read(own, SECOND)
    read(own, TOPICS[0])
    assert held(own.prefixes) <= own.prefixes.nbytes < 1.2 * held(own.prefixes)


def test_a_repeated_or_extended_prompt_is_kept_once() -> None:
    own = engine()
    cache = own.prefixes
    assert cache is not None
    for text in (FIRST, FIRST, SECOND, SECOND + " Olaf"):
        read(own, text)
        assert len(cache) == 1
    read(own, CONTEXT[:100])
    assert len(cache) == 2


@pytest.mark.parametrize("arch", ["llama", "lfm2"])
def test_a_prompt_larger_than_the_limit_is_kept_in_part(arch: str) -> None:
    specs = (("mistral", arch, 0), ("deepseek", "gemma3", 1))
    own, cold = engine(specs), engine(specs, limit=None)
    cache = own.prefixes
    assert cache is not None
    read(own, FIRST)
    whole = cache.nbytes
    cache.clear()
    cache.limit = whole // 2
    read(own, FIRST)
    assert 0 < cache.nbytes <= cache.limit
    found = read(own, SECOND)
    assert_equal(found, read(cold, SECOND))
    if arch == "llama":
        assert held(cache) <= cache.nbytes
        for cached, size in zip(*_counts(found[1]), strict=True):
            assert 0.3 < cached / size < 0.5


def test_clearing_frees_the_memory() -> None:
    pack = small_pack(prefix_cache=PLENTY)
    pack.generate("hello the lo " * 10, max_new_tokens=2)
    assert pack.runtime.prefixes is not None
    kept = [
        weakref.ref(pair[0])
        for own, _ in pack.runtime.prefixes._entries
        for session in own.sessions
        for pair in session.state.row_cache.store.layers
    ]
    assert kept
    assert all(tensor() is not None for tensor in kept)
    pack.forget()
    gc.collect()
    assert all(tensor() is None for tensor in kept)
    assert (len(pack.runtime.prefixes), pack.runtime.prefixes.nbytes) == (0, 0)
    assert pack.generate("hello the lo " * 10, max_new_tokens=2).record.usage.cached_tokens == 0


def test_the_limit_is_a_setting(tmp_path: Any) -> None:
    pack = small_pack()
    sizes = [p.nbytes for member in pack.members for p in member.model.parameters()]
    assert pack.runtime.prefixes is not None
    assert pack.runtime.prefixes.limit == int(SHARE * sum(sizes))
    for off in (0, False):
        none = small_pack(prefix_cache=off)
        assert none.runtime.prefixes is None
        none.forget()
    for bad in (-1, "much", 1.5, None):
        with pytest.raises(ConfigError, match="prefix_cache"):
            small_pack(prefix_cache=bad)
    given: list[tuple[Any, Any]] = [(True, "auto"), (False, 0), (5, 5), ("auto", "auto")]
    for setting, expected in given:
        data = {"members": ["a"], "prefix_cache": setting}
        assert PackConfig.check(data).prefix_cache == expected
    with pytest.raises(ConfigError, match="prefix_cache"):
        PackConfig.check({"members": ["a"], "prefix_cache": -1})
    pico.save_tiny(tmp_path / "one", "deepseek", "llama")
    loaded = Pack.from_pretrained([tmp_path / "one"], prefix_cache=12345, progress=False)
    assert loaded.runtime.prefixes is not None
    assert loaded.runtime.prefixes.limit == 12345
    loaded.save_config(tmp_path / "pack.yaml")
    assert PackConfig.read(tmp_path / "pack.yaml").prefix_cache == 12345


@pytest.mark.slow
def test_the_starter_pack_reads_a_context_once(starter: Pack) -> None:
    warm = Pack(starter.members, progress=False)
    cold = Pack(starter.members, prefix_cache=0, progress=False)
    for text in (FIRST, SECOND):
        with torch.no_grad():
            found, expected = (pack.generate(text, max_new_tokens=8) for pack in (warm, cold))
        same(found, expected)
    usage = found.record.usage
    for name, cached in usage.cached_tokens_by_member.items():
        assert cached > 0.85 * usage.prompt_tokens_by_member[name]
