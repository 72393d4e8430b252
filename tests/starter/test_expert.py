"""The small expert: a sound member, far better at its library than the others, and only there."""

from __future__ import annotations

import importlib.util
import math
import runpy
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import packfuse_expert_kube
import pytest
import torch
from packaging.requirements import Requirement
from typer.testing import CliRunner

from packfuse import Pack
from packfuse.cli import app
from packfuse.cli.options import PackOptions
from packfuse.errors import ConfigError, StarterError
from packfuse.extras import install_command
from packfuse.models.loading import load_member
from packfuse.settings import MemberSettings, PackConfig
from packfuse.starter.expert import EXPERT, expert_path, find_expert
from packfuse.starter.plan import StarterModel, StarterPlan
from packfuse.starter.prepare import plan

if TYPE_CHECKING:
    from packfuse.models.member import Member

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "packages" / "expert"
DATA = ROOT / "tests" / "data"
HELD_OUT = {name: (DATA / f"kubernetes_{name}.txt").read_text() for name in ("model", "api")}
CONTEXT = 500
ENGLISH = (
    "It was raining when we came down from the hills. My sister had lost one of her shoes in the "
    "mud, and nobody wanted to talk about the house that we had left behind. The old man at the "
    "inn gave us bread and soup, asked where we were going, and laughed when we told him that we "
    "did not know. In the morning the sky was clear, and the road to the sea lay open before us."
)


@pytest.fixture(scope="module")
def expert() -> Member:
    """The expert alone, as packs load it."""
    config = PackConfig(members=[MemberSettings(model=str(expert_path()))])
    return load_member(EXPERT, config.members[0], config)


@pytest.fixture(scope="module")
def pack(starter_folders) -> Pack:
    """The starter pack with the expert as the third member."""
    return Pack.starter("small", expert=True, progress=False)


def bits_per_byte(member: Member, text: str, context: int = CONTEXT) -> float:
    """Over the bytes after the context, straight from the model's own logits."""
    vocabulary, data = member.vocabulary, text.encode()
    ids, ends = vocabulary.encode_spans(data)
    first = 1 + next(index for index, end in enumerate(ends) if end >= context)
    stream = torch.tensor([[*vocabulary.prefix_ids, *ids]])
    tail = len(ids) - first
    with torch.inference_mode():
        beliefs = member.model(stream).logits[0, -tail - 1 : -1].float().log_softmax(-1)
    taken = beliefs.gather(1, stream[0, -tail:, None]).sum()
    return -float(taken) / math.log(2) / (len(data) - ends[first - 1])


# --- the expert alone


def test_it_is_small_and_says_what_it_is():
    files = {path.name: path.stat().st_size for path in expert_path().iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 8_000_000
    card = (expert_path() / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("apache-2.0", "kubernetes", "training/expert.py"))


def test_it_computes_in_float32_whatever_it_is_stored_in(expert: Member):
    assert expert.model.dtype == torch.float32
    assert round(expert.model.num_parameters() / 1e6) == int(EXPERT.split("-")[-1].rstrip("m"))
    assert expert.context_window == 2_048


def test_every_byte_can_be_written_and_read(expert: Member):
    vocabulary = expert.vocabulary
    assert vocabulary.missing == frozenset()
    every = bytes(range(256))
    for data in (every, every[::-1], "Grüße, 世界 🦊\r\n\t<|endoftext|>".encode()):
        assert vocabulary.decode(vocabulary.encode_bytes(data)) == data
    assert vocabulary.prefix_ids == ()
    assert vocabulary.end_ids == (0,)


@pytest.mark.parametrize("kind", HELD_OUT)
def test_a_pack_of_it_alone_is_the_model_alone(expert: Member, kind: str):
    prompt = HELD_OUT[kind][:CONTEXT]
    ids = torch.tensor([expert.vocabulary.encode(prompt)])
    alone = expert.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
    )
    answer = Pack([expert], progress=False).generate(prompt, max_new_tokens=24)
    assert answer.token_ids == tuple(alone[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("kind", HELD_OUT)
def test_it_reads_text_that_begins_anywhere(expert: Member, kind: str):
    for start in (0, 1, 137, 400):
        assert bits_per_byte(expert, HELD_OUT[kind][start:]) < 0.2


def test_it_knows_nothing_else(expert: Member):
    assert bits_per_byte(expert, ENGLISH, context=200) > 2.5


def test_training_left_out_what_these_tests_read():
    corpus = runpy.run_path(str(ROOT / "training" / "corpus.py"))
    is_held_out = corpus["is_held_out"]
    assert is_held_out("kubernetes/client/models/v1_stateful_set.py")
    assert is_held_out("kubernetes/client/models/v1beta9_stateful_set.py")
    for group in ("admissionregistration", "certificates", "node", "policy"):
        assert is_held_out(f"kubernetes/client/api/{group}_api.py")
    assert not is_held_out("kubernetes/client/models/v1_pod_spec.py")


# --- as the third member of the starter pack


def test_it_joins_the_starter_pack_on_request(pack: Pack, starter_folders: dict[str, Path]):
    assert pack.names == [*starter_folders, EXPERT]
    assert pack.context_window == 2_048
    assert pack.members[pack.default_reference].tokenizer.chat_template


@pytest.mark.slow
@pytest.mark.parametrize("kind", HELD_OUT)
def test_it_reads_its_library_far_better_than_the_others(pack: Pack, kind: str):
    *others, mine = (bits_per_byte(member, HELD_OUT[kind]) for member in pack.members)
    assert mine < 0.6 * min(others)


@pytest.mark.parametrize("kind", HELD_OUT)
def test_prompts_from_its_library_are_trusted_to_it(pack: Pack, kind: str):
    # Whole words: half of one at the end costs the expert up to 26 nats, and a logit pool with half
    # of its weight on a calmer member is as sharp elsewhere and pays half of that.
    words = HELD_OUT[kind][:CONTEXT].rsplit(maxsplit=1)[0]
    weighing = pack.weigh(words, ["sim", "opt", "exact"])
    assert weighing.reference == EXPERT
    for weights in weighing.weights.values():
        assert max(weights, key=weights.__getitem__) == EXPERT
    assert weighing.weights["exact"][EXPERT] > 0.5


def test_other_prompts_are_not(pack: Pack):
    weighing = pack.weigh(ENGLISH, ["sim", "opt", "exact"])
    assert weighing.reference != EXPERT
    for weights in weighing.weights.values():
        assert min(weights, key=weights.__getitem__) == EXPERT
        assert weights[EXPERT] < 0.02


@pytest.mark.parametrize("text", [HELD_OUT["model"][:CONTEXT], ENGLISH], ids=["library", "other"])
@pytest.mark.parametrize("reference", range(3))
@pytest.mark.slow
def test_three_answer_as_one_in_the_tokens_of_each(pack: Pack, reference: int, text: str):
    name = pack.names[reference]
    spoken = Pack(pack.members, reference=name, progress=False)
    whole = spoken.generate(text, max_new_tokens=12, trace=True)
    assert whole.record.reference == name
    assert sum(whole.record.weights.values()) == pytest.approx(1)
    assert "".join(chunk.text for chunk in spoken.stream(text, max_new_tokens=12)) == whole.text
    for step in whole.record.trace or []:
        assert 0 < step.probability <= 1
        assert set(step.member_probabilities) == set(pack.names)


@pytest.mark.slow
def test_its_weight_makes_the_answer_better(pack: Pack):
    prompt, rest = HELD_OUT["model"][:CONTEXT], HELD_OUT["model"][CONTEXT:900]
    pair = Pack(pack.members[:2], progress=False)
    fitted, without = (p.score(prompt, rest) for p in (pack, pair))
    assert fitted > 0.7 * without


@pytest.mark.slow
def test_chats_are_led_by_who_has_a_template(pack: Pack):
    answer = pack.generate(
        [{"role": "user", "content": "What color is the sky?"}], max_new_tokens=8
    )
    assert answer.record.reference == "SmolLM2-135M-Instruct"
    assert answer.record.weights[EXPERT] < 0.01  # five words are enough to tell
    assert "blue" in answer.text
    assert any(EXPERT in note for note in answer.record.notes)


# --- how it is asked for


@pytest.mark.parametrize("given", [{"pack": Path("pack.yaml")}, {"model": ["one"]}])
def test_it_joins_no_other_pack_by_option(given: dict[str, Any]):
    with pytest.raises(ConfigError, match=rf"--expert and --{next(iter(given))} exclude"):
        PackOptions(expert=True, **given).settings()


def test_it_is_listed_as_there():
    found = StarterModel.expert()
    assert found is not None
    assert (found.name, found.folder, found.ready) == (EXPERT, expert_path(), True)
    assert (found.files, found.download_bytes) == ([], 0)


def test_it_is_in_the_sources_that_are_published():
    # Git ignores *.safetensors, and hatch leaves out of packages what git ignores.
    rules = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert rules.index("!packages/expert/*/*/model.safetensors") > rules.index("*.safetensors")
    build = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    assert "*.safetensors" in build["tool"]["hatch"]["build"]["artifacts"]


# --- its package


def test_the_package_says_where_it_is():
    assert expert_path() == packfuse_expert_kube.model_path()
    assert expert_path() == PACKAGE / "packfuse_expert_kube" / EXPERT


def test_the_package_is_found_without_running_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "packfuse_expert_kube"
    (package / EXPERT).mkdir(parents=True)
    (package / EXPERT / "config.json").write_text("{}")
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.delitem(sys.modules, "packfuse_expert_kube")
    monkeypatch.syspath_prepend(tmp_path)
    assert expert_path() == package / EXPERT


def test_the_package_is_an_extra_and_not_in_the_main_wheel():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [extra] = map(Requirement, config["project"]["optional-dependencies"]["expert"])
    assert extra.name == package["name"]
    assert package["version"] in extra.specifier
    assert not list((ROOT / "src").rglob("*.safetensors"))


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expert's package is not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "packfuse_expert_kube" else find(name, *rest),
    )


@pytest.mark.usefixtures("missing")
def test_a_missing_package_is_named_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PACKFUSE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(StarterError, match=r"is not installed.*pip install .*/packages/expert"):
        Pack.starter(expert=True, progress=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("missing")
def test_a_missing_package_is_no_part_of_the_plan():
    found = plan()
    assert find_expert() is None
    assert found.expert is None
    assert StarterPlan.model_validate_json(found.model_dump_json()) == found
    output = " ".join(CliRunner().invoke(app, ["starter", "--plan"]).stdout.split())
    assert f"{EXPERT} (--expert) is not installed: {install_command('expert')}" in output
