"""How often the host waits for the device in a step, and how much it launches, without a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.decoding import Decoder, Prepared
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.causal_lm.processors import FiniteScores, SeededChoice
from packfuse.errors import MemberError
from packfuse.fusion.sequence import PackSequence
from packfuse.models.hf_member import HFMember
from packfuse.transfer import download
from tests.support import fusing, pico
from tests.support.fake_cuda import FakeCudaMember, Waits, counted, on_cuda

MEMBERS = (("mistral", "llama", 0), ("tekken", "gemma3", 1))
TOKENS = 12


def decoders(model: FusedForCausalLM, sequences: Sequence[PackSequence]) -> list[Decoder]:
    """One for each sequence: greedy, but sampled with a seed in the last one of several."""
    found = []
    for row, sequence in enumerate(sequences):
        ids = on_cuda(torch.tensor([sequence.ids]))
        choice = SeededChoice(3, 1, ids.shape[1]) if row and sequence is sequences[-1] else None
        criteria = [MaxLengthCriteria(ids.shape[1] + TOKENS + 1), EosTokenCriteria([2])]
        prepared = Prepared(
            GenerationConfig(), FiniteScores(choice=choice), StoppingCriteriaList(criteria)
        )
        found.append(Decoder(ids, FusedCache(model.call, [sequence]), prepared))
    return found


def test_sampling_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike `torch.multinomial`."""
    model = fusing.fused(MEMBERS)
    sequences = model._read_prompts([fusing.prompt(model)[0].tolist()])
    with counted(monkeypatch) as waits:
        (decoder,) = decoders(model, sequences)
        decoder._prepared.settings.do_sample = True
        waits.waits.clear()
        decoder.choose(on_cuda(torch.randn(model.config.vocab_size)))
        assert waits.waits == []


def answer(model: FusedForCausalLM, texts: Sequence[str], waits: Waits | None = None) -> list[int]:
    """The tokens of several answers, decoded together as the scheduler does it."""
    vocabulary = model.engine.reference
    prompts = [[*vocabulary.prefix_ids, *vocabulary.encode(text)] for text in texts]
    sequences = model._read_prompts(prompts)
    running = list(zip(sequences, decoders(model, sequences), strict=True))
    for sequence, decoder in running:
        assert sequence.fused_logps is not None
        decoder.take(sequence.fused_logps)
        sequence.settle()
    if waits:
        waits.waits.clear()
        waits.operations = 0
    for _ in range(TOKENS):
        logps = model.engine.advance(
            sequences, [[decoder.last] for _, decoder in running], model.call, defers_check=True
        )
        chosen = [
            decoder.choose(row) for (_, decoder), row in zip(running, logps[:, -1], strict=True)
        ]
        for (sequence, decoder), token in zip(running, download(chosen), strict=True):
            sequence.settle()
            decoder.accept(token)
    return [int(token) for _, decoder in running for token in decoder.ids[0, -TOKENS:]]


@pytest.mark.parametrize("rule", ["packllm", "mixture", "unite"])
@pytest.mark.parametrize("alignment", ["bytes", "mined"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_waits_twice_at_most(
    rule: str, alignment: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for what members read inside a token, and once for the next tokens of all rows."""
    texts = [fusing.PROMPT, fusing.SHORT, "Ünïcödé: 你好, wor"][:rows]
    plain = [fusing.member(*spec) for spec in MEMBERS]
    expected = answer(fusing.fuse(plain, 0, rule, alignment=alignment), texts)
    with counted(monkeypatch) as waits:
        model = fusing.fuse([FakeCudaMember(one) for one in plain], 0, rule, alignment=alignment)
        found = answer(model, texts, waits)
    assert found == expected
    assert set(waits.waits) <= {"event"}
    assert TOKENS <= len(waits.waits) <= 2 * TOKENS
    assert waits.operations / TOKENS < 100 + 20 * rows


def test_members_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """All members of a step are launched before the host waits, so that several devices compute."""
    launched: list[tuple[str, int]] = []
    run = FakeCudaMember._run
    with counted(monkeypatch) as waits:
        members = [FakeCudaMember(fusing.member(*spec)) for spec in MEMBERS]
        model = fusing.fuse(members)

        def note(member: FakeCudaMember, *args: Any) -> Any:
            launched.append((member.name, len(waits.waits)))
            return run(member, *args)

        monkeypatch.setattr(FakeCudaMember, "_run", note)
        answer(model, [fusing.PROMPT], waits)
    steps = launched[-2 * TOKENS :]
    assert [name for name, _ in steps] == [member.name for member in members] * TOKENS
    assert all(one[1] == other[1] for one, other in zip(steps[::2], steps[1::2], strict=True))


@pytest.mark.parametrize("alignment", ["bytes", "mined"])
def test_a_reference_on_the_processor_waits_for_members_on_devices(
    alignment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [fusing.member(*spec) for spec in MEMBERS]
    expected = answer(fusing.fuse(plain, alignment=alignment), [fusing.PROMPT])
    with counted(monkeypatch):
        mixed = [plain[0], FakeCudaMember(plain[1])]
        assert answer(fusing.fuse(mixed, alignment=alignment), [fusing.PROMPT]) == expected


@pytest.mark.parametrize("weighting", ["uniform", "exact"])
def test_members_read_prompts_without_waiting_for_each_other(
    weighting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All members of a pack have launched their pass over a prompt before the host waits."""
    launched: list[tuple[str, int]] = []
    run = FakeCudaMember._run
    with counted(monkeypatch) as waits:
        members = [FakeCudaMember(fusing.member(*spec)) for spec in MEMBERS]
        model = fusing.fuse(members, weighting=weighting)

        def note(member: FakeCudaMember, *args: Any) -> Any:
            launched.append((member.name, len(waits.waits)))
            return run(member, *args)

        monkeypatch.setattr(FakeCudaMember, "_run", note)
        waits.waits.clear()
        prompts = [
            model.engine.reference.encode(text) for text in (fusing.PROMPT, "The capital of Italy")
        ]
        for prompt in prompts:
            model._read_prompts([prompt])
    assert len(launched) == 2 * len(prompts)
    for one, other in zip(launched[::2], launched[1::2], strict=True):
        assert {one[0], other[0]} == {member.name for member in members}
        assert one[1] == other[1]


def test_nan_in_a_prompt_is_found_after_all_members_have_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = pico.tiny_pair("mistral")
    weights: Any = model.get_input_embeddings().weight
    broken = HFMember("broken", model, fusing.vocabulary("mistral"))
    with counted(monkeypatch):
        members = [FakeCudaMember(one) for one in (broken, fusing.member(*MEMBERS[1]))]
        pack = fusing.fuse(members, weighting="exact")
        ids = pack.engine.reference.encode(fusing.PROMPT)
        with torch.no_grad():
            weights[ids[4]] = torch.nan
        with pytest.raises(MemberError, match="'broken' gave NaN logits after token 1 "):
            pack._read_prompts([[*pack.engine.reference.prefix_ids, *ids]])


def test_a_prompt_is_scored_without_a_loop_over_its_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prompt of five times as many places costs no more waits, and little more launches."""
    found: dict[int, tuple[int, int]] = {}
    text = "The capital of France is Paris, and that of Italy is Rome. "
    with counted(monkeypatch) as waits:
        members = [FakeCudaMember(fusing.member(*spec)) for spec in MEMBERS]
        model = fusing.fuse(members, weighting="exact")
        for times in (2, 10):
            waits.waits.clear()
            waits.operations = 0
            model._read_prompts([model.engine.reference.encode(text * times)])
            found[times] = len(waits.waits), waits.operations
    assert found[10][0] <= found[2][0] < 30
    assert found[10][1] < 1.5 * found[2][1]
