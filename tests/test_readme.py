"""The README and the other pages keep their word: examples run, links lead somewhere, and the pages
name every setting, field, method and command."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from packfuse.settings import LoadSettings, MemberSettings, PackConfig, PackSettings

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    README,
    *sorted(DOCS.glob("*.md")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "cookbooks" / "README.md",
    ROOT / "integrations" / "README.md",
    *sorted((ROOT / "integrations").glob("*/README.md")),
    ROOT / "packages" / "expert" / "README.md",
    ROOT / "training" / "README.md",
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(language: str, page: Path) -> list[str]:
    """The fenced blocks of a language, those that are not run included."""
    pattern = rf"^```{language}(?: no-run)?\n(.*?)^```$"
    return re.findall(pattern, text_of(page), flags=re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Every link to a file, with the heading it names if it names one."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        yield ((page.parent / name).resolve() if name else page), anchor


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.usefixtures("default_folders")
def test_the_example_runs(tmp_path: Path):
    example = blocks("python", README)[0]
    assert len(example.strip().splitlines()) <= 10
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Rome" in lines[0]
    assert re.search(r"\{'Qwen2.5-Coder-0.5B-Instruct': 0\.\d+, 'SmolLM2-", lines[1])
    assert "blue" in done.stdout


@every_page
def test_every_example_is_python(page: Path):
    for number, example in enumerate(blocks("python", page)):
        name = f"{page.name}, example {number}"
        compile(example, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@every_page
def test_links_to_files_lead_somewhere(page: Path):
    assert [str(target) for target, _ in links(page) if not target.exists()] == []


@every_page
def test_links_within_lead_to_headings(page: Path):
    named = [(target, anchor) for target, anchor in links(page) if anchor]
    assert [pair for pair in named if pair[1] not in anchors(pair[0])] == []


def test_links_are_found():
    assert len(list(links(README))) > 10
    assert ("guide.md", "the-record") in {(target.name, anchor) for target, anchor in links(README)}


def test_the_index_lists_every_page():
    linked = {target for target, _ in links(DOCS / "README.md")}
    assert set(DOCS.glob("*.md")) - {DOCS / "README.md"} <= linked


OWN = {"packfuse", "packfuse-expert-kube", "langchain-packfuse", "llama-index-llms-packfuse"}


def from_an_index(text: str) -> list[str]:
    """The packages of this repository that the commands of a text install from an index."""
    commands = re.findall(r"pip install ([^\n`#]*)", text)
    names = [name.strip("'\"") for command in commands for name in command.split()]
    return [name for name in names if name.partition("[")[0] in OWN]


def test_commands_of_an_index_are_recognized():
    found = "pip install packfuse\n`pip install -c c.txt 'packfuse[ray]'`"
    assert from_an_index(found) == ["packfuse", "packfuse[ray]"]
    assert from_an_index("pip install '.[ray]' ./packages/expert  # packfuse") == []


TEXTS = [
    *PAGES,
    *sorted((ROOT / "cookbooks").glob("*.py")),
    *sorted((ROOT / "integrations").rglob("*.py")),
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_install_from_the_repository_until_there_is_a_release(text: Path):
    # Once the packages are on an index, their names are simpler: turn this test around then.
    assert from_an_index(text_of(text)) == []


def test_the_page_on_installing_lists_every_extra():
    known = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
    page = text_of(DOCS / "install.md")
    listed = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(known)


def test_the_guide_names_every_setting():
    guide = text_of(DOCS / "guide.md")
    settings = {**PackSettings.model_fields, **LoadSettings.model_fields}
    names = {*settings, *MemberSettings.model_fields}
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []


def test_the_defaults_in_the_guide_are_those_of_the_settings():
    rows = re.findall(r"^\| `(\w+)` \| `?(\w+)`? \|", text_of(DOCS / "guide.md"), re.MULTILINE)
    found = {name: default for name, default in rows if name in PackSettings.model_fields}
    own = {name: field.get_default() for name, field in PackSettings.model_fields.items()}
    shown = {name: "none" if value is None else str(value) for name, value in own.items()}
    assert found == shown


def test_packs_in_the_guide_can_be_read():
    files = blocks("yaml", DOCS / "guide.md")
    assert files
    for file in files:
        PackConfig.check(yaml.safe_load(file))


def test_the_guide_names_every_field_of_the_record():
    from packfuse.generation.output import result

    guide = text_of(DOCS / "guide.md")
    parts = (result.FusionRecord, result.Usage, result.Timings, result.Drafts, result.TraceStep,
             result.PromptStep)  # fmt: skip
    names = {name for part in parts for name in part.model_fields}
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []


def test_the_guide_names_every_method():
    from packfuse.cli.command import PARTS

    guide = text_of(DOCS / "guide.md")
    names = {name for registry in PARTS.values() for name in registry().parts}
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []


def test_the_guide_names_every_error():
    from packfuse import errors

    guide = text_of(DOCS / "guide.md")
    names = [name for name, item in inspect.getmembers(errors, inspect.isclass)]
    assert [name for name in names if name not in guide] == []


def test_every_task_is_explained():
    from packfuse.evaluation.tasks import tasks

    page = text_of(DOCS / "evaluation.md")
    assert [name for name in tasks().parts if f"| `{name}` |" not in page] == []


def test_every_command_is_explained():
    import typer

    from packfuse.cli import app

    page = text_of(DOCS / "command-line.md")
    commands: Any = typer.main.get_command(app)
    assert [name for name in commands.commands if f"packfuse {name}" not in page] == []
    options = [item for item in commands.loaded("run").params if not item.hidden]
    spellings = {item.name: [*item.opts, *item.secondary_opts] for item in options}
    named = {name for name, own in spellings.items() if any(f"`{text}" in page for text in own)}
    assert spellings.keys() - named == {"prompt"}


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The examples of extending.md as files, by the names in their first lines."""
    (tmp_path / "my_package").mkdir()
    for example in blocks("python", DOCS / "extending.md"):
        named = re.match(r"# (\S+\.py)\n", example)
        if named:
            (tmp_path / named[1]).write_text(example, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]
    sys.modules.pop("test_my_package", None)


@pytest.mark.usefixtures("my_package")
def test_the_parts_of_extending_satisfy_their_laws():
    module: ModuleType = importlib.import_module("test_my_package")
    classes = [item for name, item in vars(module).items() if name.startswith("Test")]
    laws = [
        getattr(kind(), name)
        for kind in classes
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if name.startswith("test_")
    ]
    assert len(classes) == 2
    assert len(laws) > 10
    for law in laws:
        law()


def test_extending_names_every_group_and_base_class():
    from packfuse.cli.command import PARTS
    from packfuse.evaluation.tasks import tasks

    page = text_of(DOCS / "extending.md")
    registries = [*(registry() for registry in PARTS.values()), tasks()]
    for registry in registries:
        base, folder = registry.base, registry.package.removeprefix("packfuse.").replace(".", "/")
        row = rf"^\| .*`{base.__module__}\.{base.__name__}`.*`{registry.group}`.*`{folder}`.*\|$"
        assert re.search(row, page, flags=re.MULTILINE), registry.kind
