"""Settings are spelled out once: every field reaches every way to set it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from packfuse import Pack, PackConfig, PackSettings
from packfuse.cli import app
from packfuse.cli.options import PackOptions
from packfuse.errors import ConfigError
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.choice import singles, under
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.evaluation.systems.written import GeneratingSystem
from packfuse.fusion.rules.unite import UniTE
from packfuse.settings import SCHEDULING, LoadSettings, MemberSettings
from tests.support import pico
from tests.support.packs import tiny_members, tiny_pack

OTHER: dict[str, Any] = {
    "fusion": {"name": "unite", "k": 3},
    "weighting": {"name": "sim", "tau": 0.5},
    "alignment": "prefix",
    "reference": "deepseek",
    "draft": {"name": "lookup"},
    "gate": "safe",
    "heads": "pruned",
    "prefix_cache": 12345,
    "max_rows": 3,
    "max_cache": 10**9,
    "max_waiting": 7,
    "on_member_failure": "drop",
    "steps": "eager",
    "parallel": True,
    "compiled": True,
}
"""For each field, another value than its default."""
EXPERIMENTAL = ("parallel", "compiled")


def test_every_field_has_another_value_here() -> None:
    assert set(OTHER) == set(PackSettings.model_fields)
    for name, value in OTHER.items():
        assert getattr(PackSettings(), name) != value


def test_every_field_says_what_it_is() -> None:
    for kind in (PackSettings, LoadSettings, MemberSettings, PackConfig):
        for name, field in kind.model_fields.items():
            assert field.description, name


@pytest.mark.parametrize("name", [name for name in OTHER if name not in EXPERIMENTAL])
def test_a_field_reaches_the_pack_its_file_and_its_identity(name: str, tmp_path: Path) -> None:
    members = tiny_members(["mistral", "deepseek"])
    plain = tiny_pack(members)
    assert tiny_pack(members, **{name: OTHER[name]}).settings.values[name] == OTHER[name]
    chosen = PackSettings.check({name: OTHER[name]})
    pack = Pack(members, chosen, progress=False)
    assert pack.settings == chosen
    key = f"pack_{name}" if name in ("fusion", "weighting") else name
    changes_answers = name not in ("prefix_cache", *SCHEDULING)
    assert (pack.identity.get(key) != plain.identity.get(key)) == changes_answers
    config = PackConfig.check({"members": ["one", "two"], name: OTHER[name]})
    config.write(tmp_path / "pack.yaml")
    assert PackConfig.read(tmp_path / "pack.yaml") == config


@pytest.mark.parametrize("name", [name for name in OTHER if name not in SCHEDULING])
def test_a_field_is_an_option_with_its_own_words(name: str) -> None:
    written = {"fusion": "unite:k=3", "weighting": "sim:tau=0.5", "draft": "lookup"}
    value = written.get(name, OTHER[name])
    given: dict[str, Any] = {name: str(value) if name not in EXPERIMENTAL else value}
    settings = PackOptions(**given).settings()
    expected = OTHER[name] if isinstance(OTHER[name], dict) else {"name": OTHER[name]}
    parts = ("fusion", "weighting", "alignment", "draft", "gate")
    assert settings == {name: expected if name in parts else OTHER[name]}
    assert name in PackSettings.check(settings).model_fields_set
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "400"}).output
    words = " ".join((PackSettings.model_fields[name].description or "").split())
    assert (words in " ".join(shown.split())) == (name not in EXPERIMENTAL)


def test_overrides_count_before_settings() -> None:
    members = tiny_members(["mistral", "deepseek"])
    pack = Pack(members, PackSettings(fusion="unite", heads="pruned"), fusion="mixture")
    assert (pack.settings.fusion, pack.settings.heads) == ("mixture", "pruned")


def test_parts_may_be_objects_and_are_written_with_all_their_parameters(tmp_path: Path) -> None:
    folders = [str(pico.save_tiny(tmp_path / name, name)) for name in ("mistral", "deepseek")]
    pack = Pack.from_pretrained(folders, fusion=UniTE(k=7), progress=False)
    assert pack.runtime.parts.rule == UniTE(k=7)
    pack.save_config(tmp_path / "pack.yaml")
    read = PackConfig.read(tmp_path / "pack.yaml")
    assert read.fusion == {"name": "unite", "k": 7}
    assert read.weighting == {"name": "exact", **pack.runtime.parts.weighting.model_dump()}


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        PackSettings().fusion = "unite"


@pytest.mark.parametrize("name", ["dtype", "device_map", "quantization_config", "unsafe_weights"])
def test_loading_settings_have_no_effect_on_loaded_models_and_are_refused(name: str) -> None:
    pair = pico.tiny_pair("mistral", "llama", 0)
    with pytest.raises(ConfigError, match=f"{name} would have no effect"):
        given: dict[str, Any] = {name: "auto"}
        Pack.from_pretrained([pair], progress=False, **given)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "pack.yaml").write_bytes(b"\xff\xfe\x00members")
    with pytest.raises(ConfigError, match=r"pack\.yaml is not YAML"):
        PackConfig.read(tmp_path / "pack.yaml")


def test_an_evaluation_runs_the_pack_as_it_is_set() -> None:
    chosen = {"heads": "pruned", "draft": "lookup", "prefix_cache": 0}
    pack = tiny_pack(tiny_members(["mistral", "deepseek"]), reference="mistral", **chosen)
    own = under(pack, Setting.of(pack))
    assert own.settings.values == pack.settings.values | {
        "fusion": pack.runtime.parts.rule,
        "weighting": pack.runtime.parts.weighting,
        "alignment": pack.runtime.parts.alignment,
        "gate": pack.runtime.parts.gate,
    }
    for single in singles(pack):
        assert (single.settings.draft, single.settings.prefix_cache) == ("lookup", 0)
    scorer = ScoringSystem(pack, {"own": Setting.of(pack)}).scorer(0)
    assert [s is not None for s in scorer.engine._subsets] == [
        s is not None for s in pack.model.engine._subsets
    ]
    whole = tiny_pack(pack.members, reference="mistral")
    assert GeneratingSystem(pack, "x").key != GeneratingSystem(whole, "x").key
    named = {"own": Setting.of(pack)}
    assert ScoringSystem(pack, named).key != ScoringSystem(whole, named).key


def test_calls_under_other_settings_do_not_meet() -> None:
    """One model object, four threads, a pack that answers under another rule meanwhile."""
    pack = tiny_pack(tiny_members(["mistral", "deepseek"]), reference="mistral", prefix_cache=0)
    prompts = ["one two three", "def f(x):\n", "The capital of France is", "a, b, c"]
    encode = pack.members[0].vocabulary.encode
    ids = [torch.tensor([[1, *encode(prompt)]]) for prompt in prompts]

    def bare(row: torch.Tensor) -> list[int]:
        found = pack.model.generate(row, max_new_tokens=12, do_sample=False)
        tokens: list[int] = found[0].tolist()
        return tokens

    alone = [bare(row) for row in ids]
    united = [pack.generate(p, fusion="unite", max_new_tokens=12).token_ids for p in prompts]
    stop = threading.Event()
    wrong = []

    def others() -> None:
        while not stop.is_set():
            for prompt, expected in zip(prompts, united, strict=True):
                answer = pack.generate(prompt, fusion="unite", max_new_tokens=12)
                if answer.token_ids != expected:
                    wrong.append(prompt)

    beside = threading.Thread(target=others)
    beside.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: [bare(row) for row in ids], range(6)):
                assert found == alone
    finally:
        stop.set()
        beside.join()
    assert wrong == []


def test_a_held_model_keeps_its_rule_while_a_stream_has_another() -> None:
    pack = tiny_pack(tiny_members(["mistral", "deepseek"]), reference="mistral")
    ids = torch.tensor([[1, *pack.members[0].vocabulary.encode("one two")]])
    model = pack.model
    before = model(ids).logits
    chunks = pack.stream("one two three", fusion="unite", max_new_tokens=40)
    next(chunks)
    assert model(ids).logits.equal(before)
    chunks.close()  # type: ignore[attr-defined]


def test_the_packs_model_uses_the_packs_gate() -> None:
    members = tiny_members(["mistral", "deepseek"])
    prompt = "one two three four one two three  four\n    one"
    settings: dict[str, Any] = {"reference": "mistral", "weighting": "uniform"}
    gated, plain = (tiny_pack(members, gate=gate, **settings) for gate in ("safe", "every"))
    ids = torch.tensor([[1, *members[0].vocabulary.encode(prompt)]])
    assert not gated.model(ids).logits.equal(plain.model(ids).logits)


def test_a_configuration_is_written_whole_by_any_number_of_threads(tmp_path: Path) -> None:
    path = tmp_path / "pack.yaml"
    configs = [PackConfig.check({"members": ["a"] * count}) for count in range(1, 9)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            list(threads.map(lambda config: config.write(path), configs))
            assert PackConfig.read(path) in configs
    assert [file.name for file in tmp_path.iterdir()] == ["pack.yaml"]


@pytest.mark.parametrize("name", ["missing/pack.yaml", "x" * 300, "a\0b", ""])
def test_a_file_that_cannot_be_is_a_typed_error(tmp_path: Path, name: str) -> None:
    config = PackConfig.check({"members": ["a"]})
    with pytest.raises(ConfigError, match="cannot write"):
        config.write(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot read"):
        PackConfig.read(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_utf_8_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "pack.yaml").write_bytes(b"members: [\xff]")
    with pytest.raises(ConfigError, match="is not YAML"):
        PackConfig.read(tmp_path / "pack.yaml")
