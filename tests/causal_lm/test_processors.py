"""Logits processors of transformers and of callers: on a pack of one as on the model alone."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import logits_process

from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.errors import ConfigError, UnsupportedError
from tests.support import fusing
from tests.support.fusing import PROMPT

NEW = 8
ONE = fusing.member("mistral", "llama")
IDS = torch.tensor([ONE.vocabulary.encode(PROMPT)])
MASK = torch.ones_like(IDS)
CLOSED: dict[str, Any] = {
    # The rows of the model beyond its vocabulary, which a pack never generates.
    "suppress_tokens": list(range(ONE.vocabulary.size, ONE.vocabulary.columns))
}


@pytest.fixture(scope="module")
def pack() -> FusedForCausalLM:
    return fusing.fuse([ONE])


def run(model: Any, **settings: Any) -> list[int]:
    torch.manual_seed(1)
    arguments = {"max_new_tokens": NEW, "do_sample": False, **CLOSED, **settings}
    found: list[int] = model.generate(IDS, attention_mask=MASK, **arguments)[0].tolist()
    return found[IDS.shape[1] :]


USUAL = run(ONE.model)
SAMPLED = {"do_sample": True, "top_k": 0}
SETTINGS: list[dict[str, Any]] = [
    {"guidance_scale": 1.5}, {"guidance_scale": 5.0}, {"guidance_scale": 0.5},
    {"guidance_scale": 3.0, "use_cache": False},
    {"sequence_bias": {(USUAL[0],): -20.0, (USUAL[1], USUAL[2]): 5.0}},
    {"encoder_repetition_penalty": 1.5}, {"encoder_repetition_penalty": 0.3},
    {"repetition_penalty": 1.5}, {"repetition_penalty": 0.5}, {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1}, {"bad_words_ids": [[USUAL[0]], USUAL[1:3]]},
    {"min_length": IDS.shape[1] + 4, "eos_token_id": USUAL[1]},
    {"min_new_tokens": 4, "eos_token_id": USUAL[1]},
    {"forced_bos_token_id": 9}, {"forced_eos_token_id": 9}, {"remove_invalid_values": True},
    {"exponential_decay_length_penalty": (1, 3.0), "eos_token_id": 77},
    {"exponential_decay_length_penalty": (2, 1.2), "eos_token_id": USUAL[5]},
    {"begin_suppress_tokens": [USUAL[0]]}, {"renormalize_logits": True},
    {"watermarking_config": WatermarkingConfig(bias=4.0)},
    {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3]), **SAMPLED},
    {"repetition_penalty": 1.3, "num_beams": 3},
    {"encoder_repetition_penalty": 1.3, "num_beams": 2},
    {"repetition_penalty": 1.4, "prompt_lookup_num_tokens": 2},
    *({**SAMPLED, **more} for more in (
        {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_h": 0.5},
        {"typical_p": 0.6}, {"epsilon_cutoff": 0.02}, {"eta_cutoff": 0.1},
        {"encoder_repetition_penalty": 2.0, "temperature": 0.8},
    )),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: "-".join(f"{k}={v}"[:34] for k, v in s.items())
)
def test_a_pack_of_one_is_its_member(pack: FusedForCausalLM, settings: dict[str, Any]) -> None:
    assert run(pack, **settings) == run(ONE.model, **settings)


NOT_FOR_TEXT = {
    "WhisperTimeStampLogitsProcessor", "WhisperNoSpeechDetection",
    "BarkEosPrioritizerLogitsProcessor",
    "AlternatingCodebooksLogitsProcessor", "ClassifierFreeGuidanceLogitsProcessor",
    "DiaClassifierFreeGuidanceLogitsProcessor", "DiaEOSChannelFilterLogitsProcessor",
    "DiaEOSDelayPatternLogitsProcessor",
}  # fmt: skip
"""Processors of speech and of batches with a second half."""


ENDS, START = [USUAL[5]], IDS.shape[1]
OWN: dict[str, tuple[Any, ...]] = {
    "MinLengthLogitsProcessor": (START + 3, ENDS),
    "MinNewTokensLengthLogitsProcessor": (START, 3, ENDS),
    "TemperatureLogitsWarper": (0.5,),
    "RepetitionPenaltyLogitsProcessor": (1.8,),
    "EncoderRepetitionPenaltyLogitsProcessor": (1.8, IDS),
    "TopPLogitsWarper": (0.5,),
    "TopKLogitsWarper": (3,),
    "TopHLogitsWarper": (0.5,),
    "MinPLogitsWarper": (0.3,),
    "TypicalLogitsWarper": (0.5,),
    "EpsilonLogitsWarper": (0.1,),
    "EtaLogitsWarper": (0.1,),
    "NoRepeatNGramLogitsProcessor": (1,),
    "EncoderNoRepeatNGramLogitsProcessor": (1, IDS),
    "SequenceBiasLogitsProcessor": ({(USUAL[0],): -9.0},),
    "NoBadWordsLogitsProcessor": ([[USUAL[0]]],),
    "PrefixConstrainedLogitsProcessor": (lambda row, ids: [5, 6, 7], 1),
    "ForcedBOSTokenLogitsProcessor": (5,),
    "ForcedEOSTokenLogitsProcessor": (START + NEW, 5),
    "InfNanRemoveLogitsProcessor": (),
    "ExponentialDecayLengthPenalty": ((1, 2.0), ENDS, START),
    "LogitNormalization": (),
    "SuppressTokensAtBeginLogitsProcessor": ([USUAL[0]], START),
    "SuppressTokensLogitsProcessor": ([USUAL[1]],),
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": (2.0, "model"),
    "WatermarkLogitsProcessor": (ONE.vocabulary.columns, "cpu", 0.25, 4.0),
    "SynthIDTextWatermarkLogitsProcessor": (3, [1, 2, 3], 1024, 0, 64, torch.device("cpu")),
}
"""Every other processor of transformers with the arguments of a caller."""


def test_every_processor_of_transformers_is_tried() -> None:
    classes = {
        name
        for name, kind in inspect.getmembers(logits_process, inspect.isclass)
        if issubclass(kind, LogitsProcessor) and kind is not LogitsProcessor
    }
    assert classes - NOT_FOR_TEXT == set(OWN)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", OWN)
def test_a_callers_processor_gets_what_the_model_alone_gives_it(
    pack: FusedForCausalLM, name: str
) -> None:
    def alone(model: Any) -> list[int]:
        given = [model if isinstance(one, str) and one == "model" else one for one in OWN[name]]
        processor = getattr(logits_process, name)(*given)
        processors = LogitsProcessorList([processor])
        return run(model, logits_processor=processors, do_sample="Warper" in name)

    assert alone(pack) == alone(ONE.model)


class Keep(LogitsProcessor):
    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(scores.clone())
        return scores


def test_scores_are_the_models_own_logits(pack: FusedForCausalLM) -> None:
    """Not log-probabilities, and finite where a token is impossible."""
    keep, alone = Keep(), Keep()
    for model, processor in ((pack, keep), (ONE.model, alone)):
        processors = LogitsProcessorList([processor])
        run(model, logits_processor=processors, suppress_tokens=None)
    table = ONE.vocabulary.token_bytes
    text = [index for index, spelled in enumerate(table) if spelled]
    for found, expected in zip(keep.seen, alone.seen, strict=True):
        assert found.isfinite().all()
        assert (found - expected)[:, text].abs().max() < 1e-3


@pytest.mark.parametrize("rule", ["packllm", "mixture", "unite"])
def test_guidance_and_bans_work_under_every_rule(rule: str) -> None:
    """UniTE gives most tokens no probability: their difference is not a number."""
    specs = (("mistral", "llama", 0), ("deepseek", "llama", 1))
    model = fusing.fused(specs, rule=rule)
    usual = run(model)
    guided = run(model, guidance_scale=2.0)
    assert len(guided) == NEW
    assert len(set(guided)) > 1
    assert guided == run(model, guidance_scale=2.0, use_cache=False)
    banned = run(model, bad_words_ids=[[token] for token in usual])
    assert not set(banned) & set(usual)


@pytest.mark.parametrize(
    "more", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"assistant_model": ONE.model}]
)
def test_guidance_refuses_what_it_cannot_follow(
    pack: FusedForCausalLM, more: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match="guidance_scale"):
        run(pack, guidance_scale=2.0, **more)


class Spoil(LogitsProcessor):
    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, self.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_choose_nothing_are_an_error(pack: FusedForCausalLM, value: float) -> None:
    with pytest.raises(ConfigError, match=r"logits processors .*Spoil"):
        run(pack, logits_processor=LogitsProcessorList([Spoil(value)]))
