"""Properties of the tiny models and the packaged tokenizers that the tests rely on."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import pico

PROMPT = "The capital of France is Paris, and the capital of Germany is"
TEXTS = (
    "Hello world",
    "spaces:  2   3    4        8",
    "def f(x):\n\n    if x:\n        return 1\n",
    "Straße, 你好, Привет, مرحبا",
    "👩\u200d👩\u200d👧 e\u0301 \ufb01 \x07",
)
every_tokenizer = pytest.mark.parametrize("name", pico.PACKAGED)
every_arch = pytest.mark.parametrize("arch", pico.ARCHITECTURES)


def prompt_ids(name: str, text: str = PROMPT) -> torch.Tensor:
    return torch.tensor([pico.real_tokenizer(name)(text).input_ids])


@every_tokenizer
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581")))
def test_encoding_and_decoding_returns_the_text(name: str, text: str) -> None:
    tokenizer = pico.real_tokenizer(name)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    # SentencePiece with Strip removes a leading space like the dummy space that it adds.
    expected = text.removeprefix(" ") if name == "mistral" else text
    assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_mistral_encodes_like_sentencepiece(text: str) -> None:
    oracle = SentencePieceProcessor(pico.mistral_data("tokenizer.model.v1"))
    assert pico.real_tokenizer("mistral")(text).input_ids == oracle.encode(text, add_bos=True)


@pytest.mark.parametrize("text", TEXTS)
def test_tekken_encodes_like_its_own_package(text: str) -> None:
    oracle = Tekkenizer.from_file(pico.mistral_data("tekken_240911.json"))
    ids = oracle.encode(text, bos=False, eos=False)
    assert pico.real_tokenizer("tekken")(text).input_ids == ids


def test_the_tokenizers_differ() -> None:
    tokenizers = pico.real_tokenizers().values()
    for left, right in itertools.combinations(tokenizers, 2):
        assert left(PROMPT).input_ids != right(PROMPT).input_ids


@every_tokenizer
def test_special_ids_and_padding_rows(name: str) -> None:
    model, tokenizer = pico.tiny_pair(name)
    for config in (model.config, model.generation_config):
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size % 64 == 0
    assert len(tokenizer) < model.config.vocab_size <= len(tokenizer) + 64


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        *((name, "llama") for name in pico.PACKAGED),
        *(("mistral", a) for a in pico.ARCHITECTURES[1:]),
    ],
)
def test_greedy_generation_is_decisive_and_equals_the_uncached_loop(name: str, arch: str) -> None:
    model, _ = pico.tiny_pair(name, arch)
    ids = prompt_ids(name)
    steps = 12  # past the sliding window
    generated = model.generate(ids, do_sample=False, max_new_tokens=steps, min_new_tokens=steps)
    with torch.no_grad():
        logits = model(generated[:, :-1]).logits[0, ids.shape[1] - 1 :]
    best = logits.topk(2)
    assert best.indices[:, 0].tolist() == generated[0, ids.shape[1] :].tolist()
    assert (best.values[:, 0] - best.values[:, 1]).min() > 1e-3


@every_arch
def test_a_model_depends_on_earlier_tokens(arch: str) -> None:
    model, _ = pico.tiny_pair("mistral", arch)
    ids = prompt_ids("mistral")
    other = ids.clone()
    other[0, -3] += 1
    with torch.no_grad():
        change = (model(ids).logits - model(other).logits)[0, -1].std()
    assert change > 0.1


@every_arch
def test_the_seed_decides_the_weights(arch: str) -> None:
    same, again, other = (pico.draw(arch, seed, vocab_size=32064) for seed in (3, 3, 4))
    for name, weight in same.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name
    assert not torch.equal(
        same.get_output_embeddings().weight, other.get_output_embeddings().weight
    )


@every_arch
def test_each_call_returns_a_new_model(arch: str) -> None:
    """A change to one has no effect on the other."""
    model, again = (pico.tiny_pair("mistral", arch, 3)[0] for _ in range(2))
    before = {name: weight.clone() for name, weight in again.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.config.vocab_size = model.generation_config.eos_token_id = 7
    assert all(torch.equal(weight, before[name]) for name, weight in again.state_dict().items())
    assert again.config.vocab_size != 7
    assert again.generation_config.eos_token_id != 7


def test_a_tied_model_shares_its_head() -> None:
    model, _ = pico.tiny_pair("mistral", "gemma3", tied=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@every_tokenizer
def test_a_saved_model_loads_as_it_was(name: str, tmp_path) -> None:
    folder = pico.save_tiny(tmp_path / name, name, "llama", seed=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    original, original_tokenizer = pico.tiny_pair(name, "llama", seed=1)
    ids = prompt_ids(name)
    assert tokenizer(PROMPT).input_ids == original_tokenizer(PROMPT).input_ids
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
