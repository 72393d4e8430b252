"""A pack is a transformers model: one member, copies, cached, batched, step by step."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.errors import PromptError, UnsupportedError
from packfuse.fusion.rules import rules
from packfuse.hf_compat.models import output_cache
from packfuse.models.hf_member import HFMember
from packfuse.weighting.methods import weightings
from tests.support import fusing, pico
from tests.support.fusing import PROMPT, SHORT, Spec, gap

EXACT = 2e-4
"""Tolerance of log-probabilities for float32 sums in another order; 8e-5 was measured."""
RECURRENT = 1e-3
"""The same for a recurrent member that reads in one chunk or by token; 3.2e-4 was measured."""

ARCHITECTURES = ("llama", "gemma3", "lfm2", "qwen3_next")
PAIR: tuple[Spec, ...] = (("mistral", "gemma3", 0), ("deepseek", "llama", 1))
FAMILY: tuple[Spec, ...] = (
    ("mistral", "llama", 0),
    ("mistral", "gemma3", 1),
    ("mistral", "lfm2", 2),
)
NEW = 16

either_reference = pytest.mark.parametrize("reference", [0, 1])


def greedy(model: Any, ids: Tensor, **settings: Any) -> list[int]:
    """What is generated, without the prompt."""
    arguments = {"max_new_tokens": NEW, "do_sample": False} | settings
    found: list[int] = model.generate(ids, **arguments)[0, ids.shape[1] :].tolist()
    return found


@functools.cache
def copies(count: int, rule: str, weighting: str, arch: str = "llama") -> FusedForCausalLM:
    """A pack of copies of one model."""
    one = fusing.member("mistral", arch, 0)
    members = [HFMember(f"copy-{k}", one.model, one.vocabulary) for k in range(count)]
    given: Any = weighting
    if weighting == "fixed":
        shares = [0.5, *[0.5 / (count - 1)] * (count - 1)] if count > 1 else [1.0]
        given = {
            "name": "fixed",
            "weights": {m.name: w for m, w in zip(members, shares, strict=True)},
        }
    elif weighting == "calibrated":
        # Half of the weights are fitted to the prompt; temperatures and sharpness cancel.
        fitted = {m.name: {"prior": 1 / count, "temperature": 2.0} for m in members}
        given = {"name": "calibrated", "members": fitted, "sharpness": 2.0, "trust": 0.5}
    return fusing.fuse(members, 0, rule, given)


def alone(model: FusedForCausalLM, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The reference model alone, with columns that are no tokens suppressed as in the pack."""
    own = model.engine.reference
    padding = list(range(own.size, own.columns))
    usual = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": padding}
    return model.members[0], usual | {"pad_token_id": model.config.pad_token_id} | settings


@pytest.mark.parametrize("weighting", sorted(weightings().parts))
@pytest.mark.parametrize("rule", sorted(rules().parts))
@pytest.mark.parametrize("count", [1, 3])
def test_copies_of_one_model_generate_what_the_model_does(
    count: int, rule: str, weighting: str
) -> None:
    model = copies(count, rule, weighting)
    ids = fusing.prompt(model)
    own, settings = alone(model)
    assert greedy(model, ids) == greedy(own, ids, **settings)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rule", sorted(rules().parts))
def test_copies_of_one_model_sample_what_the_model_does(count: int, rule: str) -> None:
    """UniTE considers ten tokens, so the model on its own does so as well."""
    model = copies(count, rule, "exact")
    ids = fusing.prompt(model)
    sampling = {"do_sample": True, "top_k": 10, "temperature": 1.5}
    own, settings = alone(model, **sampling)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = greedy(own, ids, **settings)
        torch.manual_seed(seed)
        assert greedy(model, ids, **sampling) == expected


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rule", ["packllm", "mixture"])
def test_copies_of_one_model_find_what_the_model_finds_by_beam_search(
    count: int, rule: str
) -> None:
    model = copies(count, rule, "exact")
    ids = fusing.prompt(model)
    own, settings = alone(model, num_beams=4)
    assert greedy(model, ids, num_beams=4) == greedy(own, ids, **settings)


@pytest.mark.parametrize("arch", pico.ARCHITECTURES)
def test_every_kind_of_model_can_be_a_pack_of_one(arch: str) -> None:
    model = copies(1, "packllm", "uniform", arch)
    ids = fusing.prompt(model)
    own, settings = alone(model)
    assert greedy(model, ids, max_new_tokens=2 * pico.WINDOW) == greedy(
        own, ids, **settings | {"max_new_tokens": 2 * pico.WINDOW}
    )


def own_logps(model: FusedForCausalLM, ids: Tensor) -> Tensor:
    """Each member's own log-probabilities after every token, `[K, n, columns]`."""
    size = model.engine.reference.size
    rows = []
    for one in model.engine.members:
        assert isinstance(one, HFMember)
        logits = one.model(ids, use_cache=False).logits[0].detach()
        logits[:, size:] = -torch.inf
        rows.append(logits.log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3], [0.5, 0.5, 0.0]])
def test_members_with_one_tokenizer_are_pooled_by_hand(weights: list[float] | None) -> None:
    model = fusing.fused(FAMILY)
    ids = fusing.prompt(model)
    shares = torch.tensor(weights or [1 / 3] * 3)[:, None, None]
    logps = own_logps(model, ids)
    given = None if weights is None else torch.tensor(weights)
    pooled = model(ids, past_key_values=fusing.cache(model, forward_weights=given)).logits[0]
    geometric = (shares * logps).nan_to_num(neginf=-1e9).sum(0).log_softmax(-1)
    geometric[:, model.engine.reference.size :] = -torch.inf
    assert gap(pooled, geometric) < EXACT


def test_a_linear_pool_by_hand() -> None:
    model = fusing.fused(FAMILY, rule="mixture")
    ids = fusing.prompt(model)
    assert gap(model(ids).logits[0], own_logps(model, ids).exp().mean(0).log()) < EXACT


def test_weights_come_from_the_weighting() -> None:
    """`generate` fits the weights to the prompt; `forward` alone does not."""
    members = [fusing.member(*spec) for spec in FAMILY]
    names = [one.name for one in members]
    fixed = {"name": "fixed", "weights": dict(zip(names, [0.7, 0.3, 0.0], strict=True))}
    model = fusing.fuse(members, weighting=fixed)
    ids = fusing.prompt(model)
    first = model.generate(
        ids, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    ).logits[0][0]
    logps = own_logps(model, ids)[:2, -1]
    expected = (torch.tensor([[0.7], [0.3]]) * logps).nan_to_num(neginf=-1e9).sum(0).log_softmax(-1)
    expected[model.engine.reference.size :] = -torch.inf
    assert gap(first, expected) < EXACT


@either_reference
def test_generate_equals_a_loop_of_forward_passes(reference: int) -> None:
    model = fusing.fused(PAIR, reference)
    ids = fusing.prompt(model)
    written, cache, new = [], None, ids
    for _ in range(NEW):
        output = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        new, cache = output.logits[:, -1].argmax(-1, keepdim=True), output_cache(output)
        written.append(int(new))
    assert greedy(model, ids) == written
    whole = ids
    for token in written:
        assert int(model(whole).logits[0, -1].argmax()) == token
        whole = torch.cat([whole, torch.tensor([[token]])], 1)


ARCH_PAIRS = [
    (("mistral", one, 0), ("deepseek", other, 1))
    for one, other in [
        ("gemma3", "llama"),
        ("lfm2", "gemma3"),
        ("llama", "qwen3_next"),
        ("gpt2", "lfm2"),
    ]
]


@pytest.mark.parametrize("specs", ARCH_PAIRS, ids=lambda specs: "-".join(s[1] for s in specs))
@either_reference
def test_cached_is_uncached(specs: tuple[Spec, ...], reference: int) -> None:
    model = fusing.fused(specs, reference)
    ids = fusing.prompt(model)
    cached = greedy(model, ids, max_new_tokens=24)
    assert greedy(model, ids, max_new_tokens=24, use_cache=False) == cached
    whole = torch.cat([ids, torch.tensor([cached])], 1)
    logits = model(whole[:, :-1]).logits[0, ids.shape[1] - 1 :]
    assert logits.argmax(-1).tolist() == cached


@pytest.mark.parametrize("specs", ARCH_PAIRS, ids=lambda specs: "-".join(s[1] for s in specs))
@either_reference
def test_all_positions_at_once_equal_one_by_one(specs: tuple[Spec, ...], reference: int) -> None:
    """More than a block of positions, with control tokens and broken characters among them."""
    model = fusing.fused(specs, reference)
    own = fusing.tokenizer(model)
    text = f"{PROMPT}\n\n    if x:  # 中文 naïve 👩\u200d👧 1234567\n\ty = 'z'" + SHORT
    ids = own(text + own.eos_token + "Next one").input_ids
    # Single bytes in a way that no tokenizer would encode them.
    ids += [
        model.engine.reference.ids_of[b][0]
        for b in (b"\xe4", b"\xb8", b"\xad", b" ", b"\xff", b"a")
    ]
    at_once = model(torch.tensor([ids])).logits[0]
    steps, cache = [], None
    for index in ids:
        output = model(torch.tensor([[index]]), past_key_values=cache, use_cache=True)
        cache = output_cache(output)
        steps.append(output.logits[0, -1])
    recurrent = any(spec[1] == "qwen3_next" for spec in specs)
    assert gap(at_once, torch.stack(steps)) < (RECURRENT if recurrent else EXACT)
    assert torch.allclose(at_once.exp().sum(-1), torch.ones(len(ids)), atol=1e-4)


@either_reference
def test_later_tokens_change_no_earlier_distribution(reference: int) -> None:
    model = fusing.fused(PAIR, reference)
    ids = fusing.prompt(model)
    pads = torch.zeros(1, 5, dtype=torch.long)
    other = fusing.prompt(model, "another text altogether 中文")
    alone_logits = model(ids).logits
    for tail in (pads, other):
        padded = model(torch.cat([ids, tail], 1)).logits
        assert gap(alone_logits, padded[:, : ids.shape[1]]) < EXACT


def test_uneven_rows_padded_on_the_right_without_a_mask() -> None:
    """As in lm-eval: rows of several lengths, padded with zeros, without a mask."""
    model = fusing.fused(PAIR)
    rows = [fusing.tokenizer(model)(text).input_ids for text in (PROMPT, SHORT, "a")]
    longest = max(map(len, rows))
    together = model(torch.tensor([row + [0] * (longest - len(row)) for row in rows])).logits
    for index, row in enumerate(rows):
        single = model(torch.tensor([row])).logits[0]
        assert gap(single, together[index, : len(row)]) < EXACT


TEXTS = [PROMPT, SHORT, "中文", "I"]


@pytest.mark.parametrize("specs", ARCH_PAIRS, ids=lambda specs: "-".join(s[1] for s in specs))
@either_reference
def test_a_batch_is_its_rows(specs: tuple[Spec, ...], reference: int) -> None:
    model = fusing.fused(specs, reference)
    inputs = fusing.batch(model, TEXTS)
    length = inputs["input_ids"].shape[1]
    together = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    for row, text in zip(together[:, length:].tolist(), TEXTS, strict=True):
        assert row == greedy(model, fusing.prompt(model, text))
    logits = model(**inputs).logits
    for index, text in enumerate(TEXTS):
        single = model(fusing.prompt(model, text)).logits[0]
        assert gap(single, logits[index, -len(single) :]) < EXACT
        assert not logits[index, : length - len(single)].any()


@either_reference
def test_finished_rows_do_not_change_the_others(reference: int) -> None:
    """The end tokens are likely ones, so that rows finish one after the other."""
    model = fusing.fused(PAIR, reference)
    inputs = fusing.batch(model, TEXTS)
    length = inputs["input_ids"].shape[1]
    usual = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, length:]
    ends = [int(usual[0, 4]), int(usual[1, 7]), int(usual[2, 1])]
    together = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=ends)
    finished = 0
    for row, text in zip(together[:, length:].tolist(), TEXTS, strict=True):
        single = greedy(model, fusing.prompt(model, text), eos_token_id=ends)
        assert row[: len(single)] == single
        assert set(row[len(single) :]) <= {model.config.pad_token_id}
        finished += len(single) < NEW
    assert finished >= 3


@either_reference
def test_generation_after_an_end_token(reference: int) -> None:
    """A prompt that ends with an end token is continued as by a single model."""
    model = fusing.fused(PAIR, reference)
    ids = fusing.prompt(model)
    end = int(model.engine.reference.end_ids[0])
    forced = torch.cat([ids, torch.tensor([[end]])], 1)
    whole = {"attention_mask": torch.ones_like(forced)}
    uncached = greedy(model, forced, **whole, use_cache=False)
    assert greedy(model, forced, **whole) == uncached
    cache = output_cache(model(ids, use_cache=True))
    stepwise = model(torch.tensor([[end]]), past_key_values=cache).logits[0, -1]
    assert gap(stepwise, model(forced).logits[0, -1]) < EXACT


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("specs", ARCH_PAIRS, ids=lambda specs: "-".join(s[1] for s in specs))
def test_beam_search_cached_is_uncached(specs: tuple[Spec, ...], beams: int) -> None:
    model = fusing.fused(specs)
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    settings |= {"num_return_sequences": 2}
    inputs = fusing.batch(model, [PROMPT, SHORT])
    cached = model.generate(**inputs, **settings)
    assert cached.equal(model.generate(**inputs, **settings, use_cache=False))
    length = inputs["input_ids"].shape[1]
    assert cached.shape == (4, length + 8)
    single = model.generate(fusing.prompt(model, SHORT), **settings)
    assert cached[2:, length:].equal(single[:, -8:])


def test_several_return_sequences() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    torch.manual_seed(0)
    settings = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3}
    several = model.generate(ids, **settings)
    assert several.shape == (3, ids.shape[1] + 5)
    assert len({tuple(row) for row in several.tolist()}) == 3
    torch.manual_seed(0)
    assert several.equal(model.generate(ids, **settings, use_cache=False))


def test_restarting_from_a_returned_cache() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    whole = model.generate(ids, max_new_tokens=12, do_sample=False)
    half = model.generate(ids, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    assert isinstance(output_cache(half), FusedCache)
    assert output_cache(half).get_seq_length() == half.sequences.shape[1] - 1
    again = model.generate(
        half.sequences, past_key_values=output_cache(half), max_new_tokens=6, do_sample=False
    )
    assert again.equal(whole)


def test_a_conversation_goes_on_from_its_cache() -> None:
    """The end token of the last answer is read together with the next text."""
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    usual = greedy(model, ids)
    first = model.generate(
        ids,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=usual[3],
        return_dict_in_generate=True,
    )
    assert first.sequences.shape[1] == ids.shape[1] + 4
    more = torch.cat([first.sequences, fusing.prompt(model, "And then")], 1)
    from_cache = model.generate(
        more, past_key_values=output_cache(first), max_new_tokens=6, do_sample=False
    )
    cache = output_cache(model(more, use_cache=True))
    assert (
        gap(cache.sequences[0].fused_logps, output_cache(first).sequences[0].fused_logps) > 0
    )  # the cache advanced
    written, new = [], model(more).logits[:, -1:].argmax(-1)
    for _ in range(6):
        written.append(int(new))
        new = model(new, past_key_values=cache).logits[:, -1:].argmax(-1)
    assert from_cache[0, more.shape[1] :].tolist() == written


def test_a_batch_goes_on_from_its_cache_with_new_padding() -> None:
    model = fusing.fused(PAIR)
    first, second = [fusing.batch(model, texts) for texts in ([PROMPT, SHORT], ["more of it", "b"])]
    cache = output_cache(model(**first, use_cache=True))
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    together = model(second["input_ids"], attention_mask=mask, past_key_values=cache).logits
    for index, texts in enumerate([(PROMPT, "more of it"), (SHORT, "b")]):
        whole = torch.cat([fusing.prompt(model, text) for text in texts], 1)
        assert gap(together[index, -1], model(whole).logits[0, -1]) < EXACT


def test_equal_prompts_in_a_batch_are_sampled_independently() -> None:
    """Two equal prompts in a batch do not share a sequence."""
    model = fusing.fused(PAIR, weighting="sim")
    inputs = fusing.batch(model, [PROMPT, PROMPT, SHORT])
    torch.manual_seed(1)
    rows = model.generate(**inputs, max_new_tokens=6, do_sample=True)
    torch.manual_seed(1)
    assert rows.equal(model.generate(**inputs, max_new_tokens=6, do_sample=True, use_cache=False))


def test_one_prompt_may_be_a_prefix_of_another() -> None:
    model = fusing.fused(PAIR, weighting="sim")
    short = fusing.prompt(model)
    longer = torch.cat([short, torch.tensor([greedy(model, short)[:3]])], 1)
    ids = torch.cat([torch.full((1, 3), model.config.pad_token_id), short], 1)
    inputs = {
        "input_ids": torch.cat([ids, longer]),
        "attention_mask": torch.tensor([[0] * 3 + [1] * short.shape[1], [1] * longer.shape[1]]),
    }
    expected = [greedy(model, short), greedy(model, longer)]
    for cached in (True, False):
        rows = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, use_cache=cached)
        assert rows[:, longer.shape[1] :].tolist() == expected


def test_holes_in_the_mask_are_refused() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    for at in (2, ids.shape[1] - 1):
        mask = torch.ones_like(ids)
        mask[0, at] = 0
        with pytest.raises(PromptError, match=r"row 0 of the attention mask.*pad on the left"):
            model(ids, attention_mask=mask)
        with pytest.raises(PromptError, match="row 0"):
            model.generate(ids, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(PromptError, match="everywhere"):
        model(ids, attention_mask=torch.zeros_like(ids))


def test_nothing_to_generate_from() -> None:
    model = fusing.fused(PAIR)
    with pytest.raises(PromptError, match="nothing to generate from"):
        model.generate(max_new_tokens=2)
    with pytest.raises(PromptError, match="no tokens"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), max_new_tokens=2)
    with pytest.raises(PromptError, match=r"token id 99999 is outside the reference's 32064 ids"):
        model.generate(torch.tensor([[1, 99_999]]), max_new_tokens=2)


def test_forms_of_the_output() -> None:
    model = fusing.fused(PAIR)
    ids = fusing.prompt(model)
    assert model(ids, logits_to_keep=2).logits.shape == (1, 2, model.config.vocab_size)
    assert output_cache(model(ids, use_cache=False)) is None
    logits, cache = model(ids, return_dict=False)
    assert logits.shape == (1, ids.shape[1], model.config.vocab_size)
    assert isinstance(cache, FusedCache)
    with pytest.raises(UnsupportedError, match="no loss"):
        model(ids, labels=ids)


def test_the_attributes_that_transformers_uses() -> None:
    model = fusing.fused(PAIR)
    own = fusing.member(*PAIR[0])
    assert model.can_generate()
    assert model.config.vocab_size == own.vocabulary.columns
    assert model.config.max_position_embeddings == 512
    assert model.get_input_embeddings() is own.model.get_input_embeddings()
    assert model.get_output_embeddings() is own.model.get_output_embeddings()
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.generation_config.eos_token_id == own.tokenizer.eos_token_id
    state = {name: value.clone() for name, value in own.model.state_dict().items()}
    model.tie_weights()
    assert not model.training
    assert all(value.equal(state[name]) for name, value in own.model.state_dict().items())


def test_the_reference_model_comes_first() -> None:
    first, second = (fusing.fused(PAIR, reference) for reference in (0, 1))
    for model in (first, second):
        reference = model.engine.members[model.engine.reference_index]
        assert isinstance(reference, HFMember)
        assert model.members[0] is reference.model
        assert len(model.members) == 2
