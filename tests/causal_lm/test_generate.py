"""Everything that transformers' `generate` offers, on members with different tokenizers."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.errors import MemberError, PackError, PromptError, UnsupportedError
from packfuse.fusion.sequence import PackSequence
from packfuse.hf_compat.models import CACHE, output_cache
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Session
from packfuse.text.incremental import IncrementalTokenizer
from tests.support import fusing, pico
from tests.support.fusing import PROMPT, SHORT, Spec

PAIR: tuple[Spec, ...] = (("mistral", "gemma3", 0), ("deepseek", "llama", 1))
STATEFUL: tuple[Spec, ...] = (("mistral", "llama", 0), ("deepseek", "qwen3_next", 1))
NEW = 12

either_reference = pytest.mark.parametrize("reference", [0, 1])


def run(model: Any, ids: Tensor, **settings: Any) -> list[int]:
    """The generated ids, without the prompt; greedy by default."""
    arguments = {"max_new_tokens": NEW, "do_sample": False} | settings
    found: list[int] = model.generate(ids, **arguments)[0, ids.shape[1] :].tolist()
    return found


def steps(model: FusedForCausalLM, ids: Tensor, count: int) -> Iterator[Tensor]:
    """The fused log-probabilities before each greedy token."""
    cache, new = None, ids
    for _ in range(count):
        output = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output_cache(output)
        new = output.logits[:, -1].argmax(-1, keepdim=True)
        yield output.logits[0, -1]


SAMPLERS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"repetition_penalty": 1.8},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: "-".join(s) or "plain")
@either_reference
def test_sampling(sampler: dict[str, Any], reference: int) -> None:
    """The same seed gives the same text, cached or not, and each token was possible."""
    model = fusing.fused(PAIR, reference)
    ids = fusing.prompt(model)
    found = []
    for cached in (True, False):
        torch.manual_seed(3)
        found.append(run(model, ids, do_sample=True, use_cache=cached, **sampler))
    assert found[0] == found[1]
    torch.manual_seed(4)
    assert run(model, ids, do_sample=True, **sampler) != found[0] or "top_k" in sampler
    if set(sampler) == {"top_k"}:
        whole = torch.cat([ids, torch.tensor([found[0]])], 1)
        logits = model(whole[:, :-1]).logits[0, ids.shape[1] - 1 :]
        for token, row in zip(found[0], logits, strict=True):
            assert token in row.topk(3).indices


@pytest.mark.parametrize("settings", [{}, {"prompt_lookup_num_tokens": 3}], ids=["plain", "drafts"])
def test_a_repetition_penalty_multiplies_the_models_own_logits(settings: dict[str, Any]) -> None:
    """Log-probabilities near 0 would hardly change, and the text would go on repeating itself."""
    one = fusing.member("mistral", "llama")
    ids = torch.tensor([one.vocabulary.encode(PROMPT)])
    unpunished = run(one.model, ids, attention_mask=torch.ones_like(ids))
    # A prompt that contains the continuation.
    ids = torch.tensor([one.vocabulary.encode(PROMPT) + unpunished + ids[0].tolist()])
    mask = torch.ones_like(ids)
    for penalty in (1.3, 5.0):
        expected = run(one.model, ids, attention_mask=mask, repetition_penalty=penalty)
        assert penalty < 5 or expected != run(one.model, ids, attention_mask=mask)
        for members in ([one], [one, one, one]):
            model = fusing.fuse(members)
            assert run(model, ids, repetition_penalty=penalty, **settings) == expected


def test_a_generation_config_may_be_passed_by_position() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=2, pad_token_id=2)
    expected = run(model, ids, max_new_tokens=5)
    assert model.generate(ids, config)[0, ids.shape[1] :].tolist() == expected
    assert model.generate(inputs=ids, generation_config=config).equal(
        model.generate(input_ids=ids, generation_config=config)
    )
    refused = GenerationConfig(cache_implementation="static")
    with pytest.raises(UnsupportedError, match="static"):
        model.generate(ids, refused)


def test_minimum_and_maximum_lengths() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    first = run(model, ids)[0]
    assert run(model, ids, eos_token_id=first) == [first]
    longer = run(model, ids, eos_token_id=first, min_new_tokens=5)
    assert len(longer) >= 5
    assert first not in longer[:5]
    assert len(run(model, ids, max_new_tokens=None, max_length=ids.shape[1] + 3)) == 3


@either_reference
def test_a_streamer_prints_the_text(reference: int) -> None:
    model = fusing.fused(PAIR, reference)
    tokenizer, ids = fusing.tokenizer(model), fusing.prompt(model)
    printed = io.StringIO()
    with redirect_stdout(printed):
        new = run(model, ids, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert printed.getvalue().removesuffix("\n") == tokenizer.decode(new)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    new = run(model, ids, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(new)


@either_reference
def test_stop_strings(reference: int) -> None:
    """transformers passes the tokenizer to `forward`, which has to ignore it."""
    model = fusing.fused(PAIR, reference)
    tokenizer, ids = fusing.tokenizer(model), fusing.prompt(model)
    usual = run(model, ids)
    stop = tokenizer.decode(usual[3:5])[-3:]
    found = run(model, ids, stop_strings=[stop], tokenizer=tokenizer)
    assert found == usual[: len(found)]
    assert stop in tokenizer.decode(found)
    assert stop not in tokenizer.decode(found[:-1])
    assert len(found) < len(usual)


class Ban(LogitsProcessor):
    """Forbids some tokens, and records whether the scores that it is given are finite."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.finite: list[bool] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.finite.append(bool(scores.isfinite().all()))
        scores = scores.clone()
        scores[:, self.tokens] = -torch.inf
        return scores


def test_a_logits_processor() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    usual, ban = run(model, ids), Ban(run(model, ids))
    found = run(model, ids, logits_processor=LogitsProcessorList([ban]))
    assert not set(found) & set(usual)
    assert ban.finite == [True] * NEW
    assert run(model, ids, bad_words_ids=[[token] for token in usual]) == found


class Enough(StoppingCriteria):
    """Stops with one bool for the whole batch, as lm-eval does."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> bool:
        return input_ids.shape[1] >= self.length


@pytest.mark.filterwarnings("ignore:.*")
def test_a_stopping_criterion_may_return_a_bare_bool() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    criteria = StoppingCriteriaList([Enough(ids.shape[1] + 4)])
    assert run(model, ids, stopping_criteria=criteria) == run(model, ids)[:4]


@pytest.mark.parametrize("specs", [PAIR, STATEFUL], ids=["sliding", "recurrent"])
@either_reference
def test_prompt_lookup_is_greedy(specs: tuple[Spec, ...], reference: int) -> None:
    """Drafts are mostly rejected, and sometimes accepted: the prompt contains the answer."""
    model = fusing.fused(specs, reference)
    ids = fusing.prompt(model)
    usual = run(model, ids, max_new_tokens=20)
    assert run(model, ids, max_new_tokens=20, prompt_lookup_num_tokens=3) == usual
    known = torch.cat([ids, torch.tensor([usual[:12]]), ids], 1)
    expected = run(model, known, max_new_tokens=20)
    assert run(model, known, max_new_tokens=20, prompt_lookup_num_tokens=4) == expected


@pytest.mark.parametrize("specs", [PAIR, STATEFUL], ids=["sliding", "recurrent"])
@either_reference
def test_a_member_drafts(specs: tuple[Spec, ...], reference: int) -> None:
    model = fusing.fused(specs, reference)
    ids = fusing.prompt(model)
    usual = run(model, ids, max_new_tokens=20)
    reference_model: Any = model.members[0]
    assert run(model, ids, max_new_tokens=20, assistant_model=reference_model) == usual
    torch.manual_seed(0)
    drafted = run(model, ids, do_sample=True, assistant_model=reference_model)
    assert len(drafted) == NEW


def test_a_pack_that_agrees_with_its_drafter_accepts_its_drafts() -> None:
    """Copies of one model: every draft is accepted, so there are fewer passes."""
    one = fusing.member("mistral", "llama", 0)
    model = fusing.fuse([HFMember(f"m{k}", one.model, one.vocabulary) for k in range(2)])
    ids = fusing.prompt(model)
    usual, lengths = run(model, ids, max_new_tokens=20), []
    watched = fusing.cache(model, observer=lambda sequence, *_: lengths.append(sequence.length))
    settings = {"max_new_tokens": 20, "assistant_model": model.members[0]}
    assert run(model, ids, past_key_values=watched, **settings) == usual
    assert len(set(lengths)) < 20


def test_greedy_drafts_in_another_vocabulary() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    other = model.engine.members[1]
    assert isinstance(other, HFMember)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    found = run(
        model,
        ids,
        assistant_model=other.model,
        tokenizer=fusing.tokenizer(model),
        assistant_tokenizer=other.tokenizer,
    )
    assert found == run(model, ids)
    assert all(value.equal(before[name]) for name, value in other.model.state_dict().items())


def test_classifier_free_guidance() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    guided = run(model, ids, guidance_scale=1.5)
    assert guided == run(model, ids, guidance_scale=1.5, use_cache=False)
    assert len(guided) == NEW


@pytest.mark.filterwarnings("ignore:.*")
@either_reference
def test_the_text_generation_pipeline(reference: int) -> None:
    model = fusing.fused(PAIR, reference)
    tokenizer = copy.deepcopy(fusing.tokenizer(model))
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert pipe.device == model.device
    settings = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    singles = [pipe(text, **settings)[0]["generated_text"] for text in (PROMPT, SHORT)]
    for text, single in zip((PROMPT, SHORT), singles, strict=True):
        new = run(model, fusing.prompt(model, text), max_new_tokens=6)
        assert single == tokenizer.decode(new, skip_special_tokens=True)
    assert pipe.tokenizer is not None
    if tokenizer.pad_token_id is None:
        pipe.tokenizer.pad_token_id = model.config.pad_token_id
    batched = pipe([PROMPT, SHORT], batch_size=2, **settings)
    assert [answers[0]["generated_text"] for answers in batched] == singles


def test_outputs_hold_scores_and_logits() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    output = model.generate(
        ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True,
        output_scores=True, output_logits=True,
    )  # fmt: skip
    expected = torch.stack(list(steps(model, ids, 4)))
    assert fusing.gap(torch.cat(output.logits), expected) < 1e-4
    assert fusing.gap(torch.cat(output.scores), expected) < 1e-4


def test_a_custom_loop() -> None:
    """`custom_generate` gets the prepared inputs."""

    def loop(model: Any, input_ids: Tensor, **settings: Any) -> Tensor:
        cache = settings[CACHE]
        assert isinstance(cache, FusedCache)
        new = model(input_ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
        return torch.cat([input_ids, new], 1)

    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    assert run(model, ids, custom_generate=loop) == run(model, ids)[:1]


# What a pack does not support.


def frozen(model: FusedForCausalLM) -> list[Any]:
    """The state of the members, which an unsupported call must not change."""
    return [
        (
            {name: value.clone() for name, value in member.state_dict().items()},
            member.config.to_dict(),  # type: ignore[union-attr]
            [type(module) for module in member.modules()],
        )
        for member in model.members
    ]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        states.keys() == now.keys()
        and all(value.equal(now[name]) for name, value in states.items())
        and (config, kinds) == (config_now, kinds_now)
        for (states, config, kinds), (now, config_now, kinds_now) in zip(one, other, strict=True)
    )


def unsupported_calls(model: FusedForCausalLM, ids: Tensor) -> dict[str, Any]:
    other = model.engine.members[1]
    assert isinstance(other, HFMember)
    tokenizers = {"tokenizer": fusing.tokenizer(model), "assistant_tokenizer": other.tokenizer}
    drafts = {"assistant_model": other.model, "do_sample": True, **tokenizers}
    return {
        "continuous batching": lambda: model.generate_batch([ids[0].tolist()]),
        "continuous batching manager": model.init_continuous_batching,
        "continuous batching context": model.continuous_batching_context_manager,
        "paged": lambda: run(model, ids, cache_implementation="paged"),
        "static": lambda: run(model, ids, cache_implementation="static"),
        "offloaded": lambda: run(model, ids, cache_implementation="offloaded"),
        "quantized": lambda: run(model, ids, cache_implementation="quantized"),
        "static cache": lambda: run(
            model, ids, past_key_values=StaticCache(config=other.model.config, max_cache_len=64)
        ),
        "sampling with another vocabulary": lambda: run(model, ids, **drafts),
        "early exit": lambda: run(model, ids, assistant_early_exit=1),
        "chunked prefill": lambda: run(model, ids, prefill_chunk_size=4),
        "attention": lambda: model.set_attn_implementation("eager"),
        "experts": lambda: model.set_experts_implementation("eager"),
        "saving": lambda: model.save_pretrained("nowhere"),
        "resizing": lambda: model.resize_token_embeddings(10),
        "labels": lambda: model(ids, labels=ids),
    }


NAMES = list(unsupported_calls(fusing.fused(PAIR), torch.tensor([[1]])))


@pytest.mark.parametrize("name", NAMES)
def test_unsupported_calls_raise_and_change_nothing(name: str) -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    usual, before = run(model, ids), frozen(model)
    with pytest.raises(UnsupportedError) as caught:
        unsupported_calls(model, ids)[name]()
    assert str(caught.value)
    assert isinstance(caught.value, PackError)
    assert same(before, frozen(model))
    assert run(model, ids) == usual


def test_the_dynamic_cache_implementation_is_accepted() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    assert run(model, ids, cache_implementation="dynamic") == run(model, ids)


# Errors, and what is left behind.


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to every sequence that is created."""
    made: list[weakref.ref[Any]] = []
    fork, start = PackSequence.fork, PackSequence.__init__

    def forked(self: PackSequence) -> PackSequence:
        twin = fork(self)
        made.append(weakref.ref(twin))
        return twin

    def started(self: PackSequence, *arguments: Any) -> None:
        start(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(PackSequence, "fork", forked)
    monkeypatch.setattr(PackSequence, "__init__", started)
    return made


def alive(sequences: list[weakref.ref[Any]]) -> int:
    """Number of these sequences that are still in memory."""
    gc.collect()
    held = [ref() for ref in sequences]
    return sum(one is not None for one in held)


def sessions() -> int:
    gc.collect()
    return sum(type(thing) is Session for thing in gc.get_objects())


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 3}, {"use_cache": False}, {"do_sample": True, "num_return_sequences": 2}],
    ids=lambda s: next(iter(s), "greedy"),
)
def test_nothing_is_left_behind(
    settings: dict[str, Any], sequences: list[weakref.ref[Any]]
) -> None:
    model = fusing.fused(PAIR, weighting="sim")
    before = sessions()
    run(model, fusing.prompt(model), **settings)
    assert sequences
    assert sessions() == before
    assert alive(sequences) == 0


class Fail(LogitsProcessor):
    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return scores


@pytest.mark.parametrize("after", [0, 3])
def test_nothing_is_left_behind_by_an_interruption(
    after: int, sequences: list[weakref.ref[Any]]
) -> None:
    model = fusing.fused(PAIR, weighting="sim")
    ids = fusing.prompt(model)
    usual, before = run(model, ids), sessions()
    with pytest.raises(KeyboardInterrupt):
        run(model, ids, logits_processor=LogitsProcessorList([Fail(after)]))
    assert sessions() == before
    assert alive(sequences) == 0
    assert run(model, ids) == usual


def test_a_second_prompt_that_fails_frees_the_first(sequences: list[weakref.ref[Any]]) -> None:
    model = fusing.fused(PAIR)
    with pytest.raises(PromptError):
        model.generate(**fusing.batch(model, [PROMPT, "word " * 600]), max_new_tokens=2)
    assert alive(sequences) == 0


@either_reference
def test_a_prompt_longer_than_a_window(reference: int) -> None:
    """The error names the member, and by how much the prompt is too long for it."""
    short = fusing.member("deepseek", "llama", 1, 64)
    members = [fusing.member("mistral", "gemma3", 0), short]
    model = fusing.fuse(members, reference)
    assert model.config.max_position_embeddings == 64
    ids = fusing.prompt(model, "word and " * 50)
    path = IncrementalTokenizer(short.vocabulary)
    path.update(b"word and " * 50)
    length = len(path.ids)
    with pytest.raises(PromptError) as caught:
        run(model, ids)
    assert str(caught.value) == (
        f"the prompt is {length} tokens long for member 'deepseek-llama-1', which can read 64 "
        f"(shorten it by {length - 64} tokens or more)"
    )
    with pytest.raises(PromptError, match=r"'deepseek-llama-1' would read .* and can read 64"):
        model(ids)
    with pytest.warns(UserWarning, match="'deepseek-llama-1' has no more room"):
        assert run(model, fusing.prompt(model, "word and " * 25), max_new_tokens=100)


@either_reference
def test_a_member_that_breaks_while_generating_is_named(reference: int) -> None:
    tokenizer = pico.real_tokenizer("deepseek")
    model = pico.tiny_model(tokenizer, "llama", 1)
    calls: list[int] = []

    def spoil(_module: object, _inputs: object, output: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            output[:] = torch.nan
        return output

    model.lm_head.register_forward_hook(spoil)
    members = [
        fusing.member("mistral", "gemma3", 0),
        HFMember("shaky", model, fusing.vocabulary("deepseek")),
    ]
    pack = fusing.fuse(members, reference)
    with pytest.raises(MemberError, match=r"'shaky' gave NaN logits after token \d+ .*bfloat16"):
        run(pack, fusing.prompt(pack))


def test_the_cache_is_measured_and_cropped_like_any_other() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    cache = output_cache(model(ids, use_cache=True))
    assert cache.get_seq_length() == ids.shape[1]
    assert not cache.is_compileable
    assert cache.is_croppable
    assert cache.batch_size == 1
    before = model(torch.tensor([[5]]), past_key_values=cache).logits
    cache.crop(-1)
    assert cache.get_seq_length() == ids.shape[1]
    assert fusing.gap(model(torch.tensor([[5]]), past_key_values=cache).logits, before) < 1e-4
    cache.crop(0)
    with pytest.raises(ValueError, match="zero or a negative number, got 3"):
        cache.crop(3)
    with pytest.raises(ValueError, match="cannot remove 99"):
        cache.crop(-99)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size) == (0, -1)
    with pytest.raises(TypeError, match="no key and value tensors"):
        list(cache)


def test_members_are_optimized_while_decoding_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers changes how experts run during decoding; a pack does so for its members."""
    model = fusing.fused(PAIR)
    ids, inside, largest = fusing.prompt(model), [], 0

    @contextmanager
    def optimized(name: str) -> Iterator[None]:
        nonlocal largest
        inside.append(name)
        largest = max(largest, len(inside))
        try:
            yield
        finally:
            inside.remove(name)

    for index, member in enumerate(model.members):
        monkeypatch.setattr(member, "_optimize_model_for_decode", partial(optimized, str(index)))
    usual = run(model, ids)
    assert (inside, largest) == ([], 2)
    with pytest.raises(KeyboardInterrupt):
        run(model, ids, logits_processor=LogitsProcessorList([Fail(2)]))
    assert inside == []
    monkeypatch.undo()
    assert run(model, ids) == usual
