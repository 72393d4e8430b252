"""`Pack` from end to end on tiny models: prompts, batches, chats, streams, stops, errors."""

from __future__ import annotations

import gc
import json
import math
import threading
import time
import weakref

import pytest
import torch
import yaml
from hypothesis import given, strategies

from packfuse import Pack, PackConfig
from packfuse.errors import ConfigError, LoadError, MemberError, PromptError, WeightsError
from packfuse.generation.output.result import FusionRecord
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Session
from packfuse.text.detokenizer import StreamDetokenizer, detokenize
from packfuse.text.vocabulary import Vocabulary
from tests.support import bytelevel, pico
from tests.support.steps import settle

PROMPT = "The tokens of one text, 12 of them:\n    and 日本語"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there!"}]


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Two tiny members with different tokenizers."""
    return Pack(
        [_member("deepseek", "llama", 1), _member("mistral", "gemma3", 2)], reference="deepseek"
    )


def _member(tokenizer: str, architecture: str, seed: int) -> HFMember:
    model, own = pico.tiny_pair(tokenizer, architecture, seed)
    ends = model.generation_config.eos_token_id
    vocabulary = Vocabulary(own, model.config.vocab_size, [ends] if isinstance(ends, int) else ends)
    return HFMember(tokenizer, model, vocabulary)


def test_the_stream_has_the_same_text_and_record(pack: Pack) -> None:
    pack.forget()
    whole = pack.generate(PROMPT, max_new_tokens=24)
    pack.forget()
    chunks = list(pack.stream(PROMPT, max_new_tokens=24))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.record is None for chunk in chunks[:-1]] == [True] * (len(chunks) - 1)
    record = chunks[-1].record
    assert record is not None
    assert record.model_dump(exclude={"timings"}) == whole.record.model_dump(exclude={"timings"})


def test_a_batch_has_the_answers_of_single_calls(pack: Pack) -> None:
    prompts = [PROMPT, "Short", "A third prompt of middling length."]
    together = pack.generate(prompts, max_new_tokens=12)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = pack.generate(prompt, max_new_tokens=12)
        assert answer.token_ids == alone.token_ids
        assert answer.record.weights == pytest.approx(alone.record.weights, abs=1e-4)
        assert answer.record.agreed == alone.record.agreed


def test_auto_reference_batches_keep_the_order_of_the_prompts() -> None:
    pack = Pack([_member("deepseek", "llama", 1), _member("mistral", "llama", 2)])
    prompts = ["One", PROMPT, "def f(x):\n    return x", "Two words"]
    together = [answer.text for answer in pack.generate(prompts, max_new_tokens=6)]
    assert together == [pack.generate(prompt, max_new_tokens=6).text for prompt in prompts]


def test_seeds_repeat_and_do_not_change_the_callers_random_numbers(pack: Pack) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = pack.generate(PROMPT, max_new_tokens=16, temperature=1.5, seed=11)
    assert torch.equal(torch.rand(3), expected)
    again = pack.generate(PROMPT, max_new_tokens=16, temperature=1.5, seed=11)
    other = pack.generate(PROMPT, max_new_tokens=16, temperature=1.5, seed=12)
    assert one.token_ids == again.token_ids != other.token_ids


def test_the_record_is_plain_json_and_its_figures_agree(pack: Pack) -> None:
    # With these weights the random models generate no control tokens, which have no text.
    weighting = {"name": "exact", "shrinkage": 8, "prior": "equal"}
    answer = pack.generate(PROMPT, max_new_tokens=10, trace=True, weighting=weighting)
    record = answer.record
    assert FusionRecord.model_validate_json(json.dumps(record.model_dump())) == record
    assert sum(record.weights.values()) == pytest.approx(1)
    assert record.usage.completion_tokens == len(answer.token_ids) == 10
    assert record.usage.total_tokens == record.usage.prompt_tokens + 10
    assert record.trace is not None
    assert "".join(step.text for step in record.trace) == answer.text
    agreed = [len(set(step.member_choices.values())) == 1 for step in record.trace]
    assert record.agreed == pytest.approx(sum(agreed) / len(agreed))
    for step in record.trace:
        assert 0 < step.probability <= 1
        assert set(step.member_probabilities) == set(pack.names)


def test_bits_per_byte_are_proportional_to_prompt_loss(pack: Pack) -> None:
    record = pack.generate(PROMPT, max_new_tokens=1).record
    assert record.prompt_loss is not None
    assert record.bits_per_byte is not None
    ratios = [record.prompt_loss[name] / record.bits_per_byte[name] for name in pack.names]
    assert ratios[0] == pytest.approx(ratios[1])


@pytest.mark.parametrize("cut", [1, 3])
def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end(pack: Pack, cut: int) -> None:
    whole = pack.generate(PROMPT, max_new_tokens=24).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + cut]
    answer = pack.generate(PROMPT, max_new_tokens=24, stop=[stop])
    assert answer.text == whole[: whole.index(stop)]
    assert (answer.record.finish_reason, answer.record.stop) == ("stop", stop)
    assert "".join(c.text for c in pack.stream(PROMPT, max_new_tokens=24, stop=stop)) == answer.text


@given(strategies.data())
def test_the_detokenizer_gives_the_same_text_for_any_split_of_ids(
    data: strategies.DataObject,
) -> None:
    vocabulary = _vocabulary()
    text = data.draw(strategies.text(max_size=40))
    stop = data.draw(strategies.lists(strategies.text(min_size=1, max_size=3), max_size=3))
    ids = vocabulary.encode(text)
    whole, stopped = detokenize(ids, vocabulary, stop)
    detokenizer = StreamDetokenizer(vocabulary, stop)
    parts = [detokenizer.push([index]) for index in ids]
    assert "".join(parts) + detokenizer.finish() == whole
    assert detokenizer.stopped == stopped
    found = [text.find(s) + len(s) for s in stop if s in text]
    if found:
        assert stopped is not None
        assert whole + stopped == text[: min(found)]
    else:
        assert whole == text


def _vocabulary() -> Vocabulary:
    if not hasattr(_vocabulary, "made"):
        _vocabulary.made = Vocabulary(pico.real_tokenizer("deepseek"))  # type: ignore[attr-defined]
    made: Vocabulary = _vocabulary.made  # type: ignore[attr-defined]
    return made


def test_score_is_the_sum_of_the_fused_steps(pack: Pack) -> None:
    answer = pack.generate(PROMPT, max_new_tokens=8, trace=True)
    assert answer.record.trace is not None
    steps = sum(math.log(step.probability) for step in answer.record.trace)
    whole = pack.members[0].vocabulary.encode(PROMPT + answer.text)
    if tuple(whole[-8:]) == answer.token_ids:  # The text is tokenized as it was generated.
        assert pack.score(PROMPT, answer.text) == pytest.approx(steps, abs=1e-3)


def test_score_of_one_member_is_its_own_likelihood() -> None:
    member = _member("deepseek", "llama", 3)
    ids = [*member.vocabulary.prefix_ids, *member.vocabulary.encode("One two three four")]
    start = [*member.vocabulary.prefix_ids, *member.vocabulary.encode("One two")]
    with torch.no_grad():
        logits = member.model(torch.tensor([ids])).logits[0]
    logps = logits[:, : member.vocabulary.size].log_softmax(-1)  # Padding has no probability.
    expected = sum(float(logps[i - 1, ids[i]]) for i in range(len(start), len(ids)))
    assert Pack([member]).score("One two", " three four") == pytest.approx(expected, abs=1e-4)


def test_chat_goes_through_every_members_own_template(pack: Pack) -> None:
    record = pack.generate(CHAT, max_new_tokens=4).record
    for member in pack.members:
        if member.tokenizer.chat_template:
            ids = member.tokenizer.apply_chat_template(
                CHAT, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            assert record.usage.prompt_tokens_by_member[member.name] == len(ids)
        else:
            assert any(member.name in note or "template" in note for note in record.notes)


def test_closing_a_stream_stops_generation_and_frees_memory(pack: Pack) -> None:
    before = _sessions()
    stream = pack.stream(PROMPT, max_new_tokens=5000)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "packfuse-stream"]
    assert _sessions() == before
    assert pack.generate("After it", max_new_tokens=2).record.finish_reason == "length"


def test_an_exception_during_generation_is_raised_at_once(pack: Pack) -> None:
    def fail(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("inside")

    before = _sessions()
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="inside"):
        list(pack.stream(PROMPT, max_new_tokens=50, logits_processor=[fail]))
    assert time.monotonic() - started < 60
    assert _sessions() == before


def _sessions() -> int:
    gc.collect()
    return sum(type(item) is Session for item in gc.get_objects())


def test_a_pack_is_freed_with_its_last_reference() -> None:
    pack = Pack([_member("deepseek", "llama", 4)])
    pack.generate("Hello", max_new_tokens=2)
    model = weakref.ref(pack.members[0].model)
    settle()
    del pack
    gc.collect()
    assert model() is None


def test_threads_wait_for_each_other(pack: Pack) -> None:
    prompts = [f"Prompt number {i}" for i in range(6)]
    alone = [pack.generate(prompt, max_new_tokens=6).text for prompt in prompts]
    found: dict[str, str] = {}

    def generate(prompt: str) -> None:
        found[prompt] = pack.generate(prompt, max_new_tokens=6).text

    threads = [threading.Thread(target=generate, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[prompt] for prompt in prompts] == alone


def test_calls_with_their_own_rule_and_weights(pack: Pack) -> None:
    record = pack.generate(
        PROMPT, max_new_tokens=2, fusion={"name": "unite", "k": 3}, weights={"mistral": 1.0}
    ).record
    assert record.fusion == {"name": "unite", "k": 3}
    assert record.weights == {"deepseek": 0.0, "mistral": 1.0}
    assert pack.generate(PROMPT, max_new_tokens=2).record.fusion["name"] == "packllm"


def test_configuration_round_trip(tmp_path) -> None:
    for name in ("deepseek", "mistral"):
        pico.save_tiny(tmp_path / name, name, "llama")
    pack = Pack.from_pretrained(
        [tmp_path / "deepseek", {"model": str(tmp_path / "mistral"), "name": "second"}],
        fusion="mixture",
        weighting={"deepseek": 0.25, "second": 0.75},
        reference="second",
        dtype=torch.float32,
    )
    file = tmp_path / "pack.yaml"
    pack.save_config(file)
    again = Pack.from_config(file)
    assert again.names == ["deepseek", "second"]
    assert (
        again.generate("Hello", max_new_tokens=4).text
        == pack.generate("Hello", max_new_tokens=4).text
    )
    assert PackConfig.read(file).weighting == {
        "name": "fixed",
        **again.runtime.parts.weighting.model_dump(mode="json"),
    }
    assert not list(tmp_path.glob(".*part"))


def test_folders_in_a_file_are_relative_to_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pico.save_tiny(tmp_path / "packs" / "one", "deepseek")
    file = tmp_path / "packs" / "pack.yaml"
    file.write_text("members: [one]\n")
    monkeypatch.chdir(tmp_path)
    assert Pack.from_config("packs/pack.yaml", progress=False).names == ["one"]
    assert PackConfig.read(file).members[0].model == str(tmp_path / "packs" / "one")
    file.write_text("members: [org/one]\n")
    assert PackConfig.read(file).members[0].model == "org/one"


@pytest.mark.parametrize(
    ("prompt", "arguments", "error", "words"),
    [
        ("", {}, PromptError, "empty"),
        ([], {}, PromptError, "empty"),
        ([""], {}, PromptError, "empty"),
        ([{"content": "x"}], {}, PromptError, "role"),
        ([{"role": "robot", "content": "x"}], {}, PromptError, "robot"),
        ([{"role": "user", "content": [{"type": "image"}]}], {}, PromptError, "text only"),
        ([{"role": "user", "content": ""}], {}, PromptError, "empty"),
        (7, {}, PromptError, "int"),
        ("x", {"stop": [""]}, ConfigError, "stop"),
        ("x", {"fusion": "unity"}, ConfigError, "unite"),
        ("x", {"weighting": "exakt"}, ConfigError, "exact"),
        ("x", {"weights": {"deepseek": -1, "mistral": 2}}, WeightsError, "deepseek"),
        ("x", {"weights": {"deepseek": 0.5}}, WeightsError, "sum"),
        ("x", {"weights": {"absent": 1.0}}, WeightsError, "absent"),
        ("word " * 5000, {}, PromptError, "can read"),
    ],
)
def test_errors_name_the_bad_input(pack: Pack, prompt, arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        pack.generate(prompt, max_new_tokens=2, **arguments)
    assert pack.generate("Fine", max_new_tokens=1).text is not None


def test_unknown_parts_are_an_error_before_loading(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"bytes"):
        Pack.from_pretrained([tmp_path / "nothing"], alignment="byte")
    with pytest.raises(LoadError, match="nothing"):
        Pack.from_pretrained([tmp_path / "nothing"])


def test_a_member_that_fails_to_load_frees_the_others(tmp_path) -> None:
    pico.save_tiny(tmp_path / "good", "deepseek", "llama")
    (tmp_path / "bad").mkdir()
    gc.collect()
    before = sum(type(item) is HFMember for item in gc.get_objects())
    with pytest.raises(LoadError, match="bad"):
        Pack.from_pretrained([tmp_path / "good", tmp_path / "bad"])
    gc.collect()
    assert sum(type(item) is HFMember for item in gc.get_objects()) == before


@pytest.mark.parametrize("enabled", [True, False])
def test_loading_does_not_change_the_garbage_collector(tmp_path, enabled: bool) -> None:
    good = bytelevel.save_small(tmp_path / "good", 300, 0)
    (tmp_path / "bad").mkdir()
    try:
        if not enabled:
            gc.disable()
        Pack.from_pretrained([good], progress=False)
        assert gc.isenabled() is enabled
        with pytest.raises(LoadError, match="bad"):
            Pack.from_pretrained([good, tmp_path / "bad"])
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_a_model_that_is_not_a_causal_lm_is_an_error(tmp_path) -> None:
    pico.save_tiny(tmp_path / "model", "deepseek", "llama")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["architectures"] = ["BertModel"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="BertModel"):
        Pack.from_pretrained([tmp_path / "model"])


def test_the_error_for_an_unknown_field_in_yaml_names_it(tmp_path) -> None:
    file = tmp_path / "pack.yaml"
    file.write_text(yaml.safe_dump({"members": ["a"], "fussion": "unite"}))
    with pytest.raises(ConfigError, match="fussion"):
        Pack.from_config(file)


def test_the_error_for_nan_names_the_member(pack: Pack) -> None:
    broken = _member("mistral", "llama", 9)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight[5] = float("nan")
    bad = Pack([pack.members[0], broken], reference="deepseek")
    with pytest.raises(MemberError, match="mistral"):
        bad.generate(PROMPT, max_new_tokens=2)
