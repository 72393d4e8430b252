"""The pack as an lm-eval model, against HFLM and `Pack`; and lm-eval's tasks from local files."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate, tasks  # type: ignore[import-untyped]
from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]

from packfuse import Pack
from packfuse.errors import ConfigError, DataError, MemberError
from packfuse.evaluation import Journal, Setting
from packfuse.evaluation.harness import PackLM
from packfuse.evaluation.lm_tasks import evaluate_tasks
from packfuse.evaluation.reports.report import Evaluation
from packfuse.evaluation.systems.choice import alone
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary
from tests.support import packs, pico, small

pytestmark = pytest.mark.filterwarnings("ignore:.*")

EXACT = 1e-3
PAIRS = [
    ("The capital of", " France"),
    ("The capital of ", "Italy\n"),
    ("in", "ternationally"),
    ("hel", "lo there"),
    ("日", "本語 😀"),
    ("", "The capital of France"),
    ("", "hello"),
]
QUESTIONS = [
    {"q": f"the {'lo' * n}", "choices": ["hello", "true " * n], "gold": n % 2, "text": "hello " * n}
    for n in range(1, 6)
]
CHOICE = """
task: local_choice
output_type: multiple_choice
doc_to_text: "Question: {{q}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
task: local_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WRITTEN = """
task: local_written
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["\\n", ""], max_new_tokens: 3, do_sample: false}
metric_list: [{metric: exact_match}]
"""

every_member = pytest.mark.parametrize("name", ["mistral", "long"])


@functools.cache
def member(name: str) -> HFMember:
    """A tiny model without columns for padding, to which HFLM would give probabilities."""
    tokenizer = (
        packs.vocabulary(name).tokenizer
        if name == "mistral"
        else (small.vocabulary(name).tokenizer)
    )
    vocabulary = Vocabulary(tokenizer)
    model = pico.tiny_model(tokenizer, context=48 if name == "long" else 512)  # type: ignore[arg-type]
    model.resize_token_embeddings(vocabulary.columns)
    return HFMember(name, model, vocabulary)


@functools.cache
def both(name: str) -> tuple[PackLM, HFLM]:
    """One member as a pack, and the same model as lm-eval itself takes it."""
    own = member(name)
    # HFLM gives a tokenizer the padding token that it lacks.
    plain = HFLM(pretrained=own.model, tokenizer=copy.deepcopy(own.tokenizer), batch_size=1)
    return PackLM(alone(own)), plain


def requests(kind: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=own, idx=0) for own in arguments]


@every_member
def test_likelihoods_are_those_of_lm_evals_own_model(name: str) -> None:
    fused, plain = both(name)
    instances = requests("loglikelihood", PAIRS)
    found = fused.loglikelihood(instances, disable_tqdm=True)
    # One at a time: HFLM takes pairs that read alike for one another's, however they are cut.
    expected = [plain.loglikelihood([own], disable_tqdm=True)[0] for own in instances]
    assert [logp for logp, _ in found] == pytest.approx([logp for logp, _ in expected], abs=EXACT)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@every_member
def test_whole_texts_in_windows(name: str) -> None:
    """The small member reads 48 tokens: the last text takes several windows."""
    fused, plain = both(name)
    texts = [("hello",), ("A text that is scored from its first word on.",), ("the 日本 " * 40,)]
    instances = requests("loglikelihood_rolling", texts)
    assert len(member("long").vocabulary.encode(texts[-1][0])) > 3 * 48
    found = fused.loglikelihood_rolling(instances, disable_tqdm=True)
    expected = plain.loglikelihood_rolling(instances, disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-5, abs=EXACT)


@every_member
@pytest.mark.parametrize(
    "given",
    [
        {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False},
        {"until": ["e"], "max_new_tokens": 8, "temperature": 0.0},
        {"until": "a", "max_tokens": 5},
        {"max_gen_toks": 4, "max_new_tokens": 9},
    ],
)
def test_answers_are_those_of_lm_evals_own_model(name: str, given: dict[str, Any]) -> None:
    fused, plain = both(name)
    instances = requests(
        "generate_until", [(text, given) for text in ("The capital of", "hel", "x")]
    )
    found = fused.generate_until(instances, disable_tqdm=True)
    assert found == plain.generate_until(instances, disable_tqdm=True)
    assert any(found)


@pytest.mark.parametrize("reference", ["long", "short", "auto"])
def test_likelihoods_of_a_pack_are_its_scores(reference: str) -> None:
    pack = small.small_pack(reference=reference, weighting="sim")
    pairs = [(context, text) for context, text in PAIRS if context]
    found = PackLM(pack).loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    assert [logp for logp, _ in found] == pytest.approx(
        [pack.score(*pair) for pair in pairs], abs=EXACT
    )


def test_known_results_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = small.small_pack()
    path = tmp_path / "answers.jsonl"
    instances = {
        "loglikelihood": requests("loglikelihood", PAIRS[:2]),
        "loglikelihood_rolling": requests("loglikelihood_rolling", [("hello there",)]),
        "generate_until": requests("generate_until", [("hello", {"max_gen_toks": 3})]),
    }

    def answers() -> dict[str, Any]:
        with Journal(path) as journal:
            model = PackLM(pack, journal=journal)
            return {
                kind: getattr(model, kind)(own, disable_tqdm=True)
                for kind, own in instances.items()
            }

    expected = answers()
    read: list[str] = []
    real = HFMember._forward

    def forward(self: HFMember, *args: Any) -> Any:
        read.append(self.name)
        return real(self, *args)

    monkeypatch.setattr(HFMember, "_forward", forward)
    assert answers() == expected
    assert not read
    # Only the last answer was truncated, and only that one is computed again.
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert answers() == expected
    assert path.read_bytes() == whole
    assert 0 < len(read) <= 8


# --- tasks


@pytest.fixture
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks over a local file; lm-eval's own thousands are not indexed."""
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    for name, text in (("choice", CHOICE), ("text", ROLLING), ("written", WRITTEN)):
        source = {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")}
        rest = f"dataset_path: json\ndataset_kwargs: {json.dumps(source)}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(text + rest)
    return folder


def run(pack: Pack, names: Sequence[str], include: Path | None, **fields: Any) -> list[Evaluation]:
    folder = fields.pop("folder")
    with Journal(folder / "answers.jsonl") as journal:
        return evaluate_tasks(pack, names, journal=journal, include=include, **fields)


def test_whole_tasks_from_local_files(tmp_path: Path, include: Path) -> None:
    pack = small.small_pack(weighting="sim")
    names = ["local_choice", "local_text", "local_written"]
    found = {one.source: one for one in run(pack, names, include, folder=tmp_path, limit=4)}
    assert set(found) == set(names)
    label = Setting.of(pack).label
    for one in found.values():
        assert [row.label for row in one.rows] == [*pack.names, label]
        assert [row.questions for row in one.rows] == [4, 4, 4]
    choice = found["local_choice"].row(label)
    right = norm = 0
    for line in QUESTIONS[:4]:
        options: Any = line["choices"]
        scores = [pack.score(f"Question: {line['q']}\nAnswer:", f" {text}") for text in options]
        shares = [score / len(text) for score, text in zip(scores, options, strict=True)]
        right += scores.index(max(scores)) == line["gold"]
        norm += shares.index(max(shares)) == line["gold"]
    assert choice.accuracy and choice.raw and choice.bits_per_byte
    assert (choice.accuracy.value, choice.raw.value) == (norm / 4, right / 4)
    # The same tasks by lm-eval alone, on one member.
    single = PackLM(alone(pack.members[0]))
    results = simple_evaluate(
        model=single,
        tasks=names,
        task_manager=tasks.TaskManager(include_path=str(include)),
        limit=4,
        bootstrap_iters=0,
    )["results"]
    text = found["local_text"].row(pack.names[0])
    assert text.bits_per_byte and text.accuracy is None
    expected = results["local_text"]["bits_per_byte,none"]
    assert text.bits_per_byte.value == pytest.approx(expected, rel=1e-6)
    own = found["local_choice"].row(pack.names[0]).accuracy
    assert own is not None
    assert own.value == pytest.approx(results["local_choice"]["acc_norm,none"])
    assert found["local_written"].row(label).accuracy is not None


def test_a_system_that_fails_leaves_the_others(
    tmp_path: Path, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = small.small_pack()

    broken: Any = pack.members[1].model
    real = type(broken).forward

    def only(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Members run copies of their models, which share the body.
        if self.model is broken.model:
            raise RuntimeError("no memory left")
        return real(self, *args, **kwargs)

    only.__wrapped__ = real  # type: ignore[attr-defined]
    monkeypatch.setattr(type(broken), "forward", only)
    [found] = run(pack, ["local_choice"], include, folder=tmp_path, limit=2)
    assert [(row.questions, bool(row.failed)) for row in found.rows] == [
        (2, False),
        (0, True),
        (0, True),
    ]
    assert "member 'short' failed" in str(found.row("short").failed)
    with pytest.raises(MemberError, match="every system failed in lm-eval"):
        run(Pack(pack.members[1:], progress=False), ["local_choice"], include, folder=tmp_path)


def test_a_text_that_is_too_long_fails_those_that_cannot_read_it(
    tmp_path: Path, include: Path
) -> None:
    """The first member's tokens are fewer, as `hello` is one of them."""
    pack = small.small_pack(context=26)
    (include / "choice.yaml").write_text(
        (include / "choice.yaml").read_text().replace(" {{q}}", "")
    )
    lines = [{**line, "choices": ["hello", "hello" * 4]} for line in QUESTIONS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [found] = run(pack, ["local_choice"], include, folder=tmp_path, settings=[Setting.of(pack)])
    assert [row.questions for row in found.rows] == [5, 0, 0]
    assert found.row("long").failed is None
    assert all("'short' would read" in str(row.failed) for row in found.rows[1:])


def test_unknown_tasks_and_data_that_cannot_be_had(tmp_path: Path, include: Path) -> None:
    pack = small.small_pack()
    with pytest.raises(ConfigError, match=r"no task 'local_choise' .*did you mean 'local_choice'"):
        run(pack, ["local_choise"], include, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"no task 'qqqqqq' .*lm-eval ls tasks"):
        run(pack, ["qqqqqq"], include, folder=tmp_path)
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(DataError, match=r"data of task 'local_choice' cannot be had.*go online"):
        run(pack, ["local_choice"], include, folder=tmp_path)
