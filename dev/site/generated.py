"""Pages that are made from the code: the record, methods with their papers, the API."""

from __future__ import annotations

import re
from collections.abc import Iterator

import griffe
from notebook_pages import notebook_pages
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from repository import ROOT

from packfuse.cli.command import PARTS

RESULTS = "generation.output.result"
TITLES = {
    "fusion": "Fusion rules",
    "weighting": "Weightings",
    "alignment": "Alignments",
    "draft": "Draft methods (speculative decoding)",
    "gate": "Gates",
}
"""Titles of the methods' page, by the setting that names a method."""

API = {
    "packfuse": ("Packs, answers, settings", ("packfuse", "packfuse.settings")),
    "errors": ("Errors", ("packfuse.errors",)),
    "constraint": ("Constraints", ("packfuse.constraint",)),
    "tools": ("Tools", ("packfuse.tools",)),
    "aio": ("asyncio", ("packfuse.aio",)),
    "parts": (
        "Parts of your own",
        (
            "packfuse.fusion.rules.base",
            "packfuse.weighting.methods.base",
            "packfuse.alignment.base",
            "packfuse.alignment.pairings",
            "packfuse.causal_lm.drafts.base",
            "packfuse.fusion.gates.base",
            "packfuse.evaluation.tasks.base",
            "packfuse.models.member",
            "packfuse.text.vocabulary",
            "packfuse.testing",
        ),
    ),
}
"""Pages of the reference: file, title, and the modules whose public names they show."""


def generated_pages() -> Iterator[tuple[str, str]]:
    """Places on the site and contents of all pages that are made."""
    package = griffe.load("packfuse", search_paths=[ROOT / "src"], resolve_aliases=True)
    yield "reference/record.md", record_page(package[RESULTS])
    yield "reference/methods.md", methods_page(package)
    for name, (title, modules) in API.items():
        yield f"reference/{name}.md", api_page(title, modules)
    yield from notebook_pages()


def record_page(results: griffe.Module) -> str:
    """Every field of a record and of the models in it, from their docstrings."""
    found = [
        "# The record\n\n"
        "`answer.record` says how an answer came about. Written as JSON "
        "(`record.model_dump_json()`, `packfuse run --json`, the field `fusion` of servers), it "
        "has these fields. What they mean in use is in the [guide](../guide.md#the-record)."
    ]
    pending, shown = ["FusionRecord"], set()
    while pending:
        name = pending.pop(0)
        shown.add(name)
        fields, used = _fields(results[name])
        summary = results[name].docstring.value.partition("\n\n")[0]
        found += [f"## {name}", summary, fields]
        pending += [other for other in used if other not in shown and other not in pending]
    return "\n\n".join(found) + "\n"


def _fields(model: griffe.Class) -> tuple[str, list[str]]:
    """The table of a model's fields, and the models that their types name."""
    docs = _attribute_docs(model)
    lines, used = ["| field | type | meaning |", "|---|---|---|"], []
    for name, field in model.attributes.items():
        if field.annotation is None or "property" in field.labels:
            continue  # pydantic's own, and what is computed from the fields
        kind = str(field.annotation)
        others = [other for other in re.findall(r"\b[A-Z]\w+", kind) if _is_model(model, other)]
        used += others
        shown = f"`{_cell(kind)}`"
        links = ", ".join(f"[{other}](#{other.lower()})" for other in others)
        lines.append(f"| `{name}` | {shown} {links} | {_cell(docs[name])} |")
    return "\n".join(lines), used


def _is_model(model: griffe.Class, name: str) -> bool:
    known = model.parent.members.get(name)
    return known is not None and not known.is_alias and known.is_class


def _attribute_docs(model: griffe.Class) -> dict[str, str]:
    """Descriptions by field, from the section `Attributes` of a docstring."""
    sections = model.docstring.parse("google") if model.docstring else []
    listed = [item for part in sections if part.kind.value == "attributes" for item in part.value]
    return {item.name: item.description for item in listed}


def methods_page(package: griffe.Module) -> str:
    """Every method with its paper, what it does, and its parameters."""
    found = [
        "# Methods and papers\n\n"
        "All that `fusion`, `weighting`, `alignment`, `draft` and `gate` can name. Which to choose "
        "is in the [guide](../guide.md#methods); parts of your own: [extending](../extending.md)."
    ]
    for setting, registry in PARTS.items():
        found.append(f"## {TITLES[setting]}")
        for name, part in registry().parts.items():
            found += [f"### `{name}`", f"*Source*: {_linked(part.source)}."]
            found += [_summary(_documented(part, package)), _parameters(part, package)]
    return "\n\n".join(filter(None, found)) + "\n"


def _linked(source: str) -> str:
    """A source with links to its papers."""
    source = re.sub(r"(?:arXiv )?(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
    return source.replace("github.com/apoorvumang", "<https://github.com/apoorvumang>")


def _summary(part: griffe.Class) -> str:
    """The text of a class's docstring, without examples."""
    sections = part.docstring.parse("google")
    return "\n\n".join(part.value for part in sections if part.kind.value == "text")


def _parameters(part: type[BaseModel], package: griffe.Module) -> str:
    """The table of a method's parameters; empty if it has none."""
    lines = [
        f"| `{name}` | {_default(field)} | {_cell(_doc(part, name, package))} |"
        for name, field in part.model_fields.items()
    ]
    head = ["| parameter | default | meaning |", "|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""


def _doc(part: type[BaseModel], name: str, package: griffe.Module) -> str:
    """What the docstring of a field, or of its class, says about it.

    Raises:
        LookupError: if none has.
    """
    for base in part.__mro__:
        if base.__module__.startswith("packfuse."):
            documented = _documented(base, package)
            field, listed = documented.members.get(name), _attribute_docs(documented)
            if name in listed:
                return listed[name]
            if field is not None and field.docstring:
                return field.docstring.value
    raise LookupError(f"{part.__name__}.{name} has no docstring")


def _documented(kind: type, package: griffe.Module) -> griffe.Class:
    """A class as griffe reads it."""
    return package[f"{kind.__module__}.{kind.__name__}".removeprefix("packfuse.")]


def _default(field: FieldInfo) -> str:
    return "none: it has to be given" if field.is_required() else f"`{field.default!r}`"


def _cell(text: str) -> str:
    """A text as a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def api_page(title: str, modules: tuple[str, ...]) -> str:
    """Public names of modules, which mkdocstrings fills in; `dev/api.txt` has the list."""
    found = [f"# {title}"]
    names = sorted({name for module in modules for name in public_names(module)})
    found += [f"::: {name}" for name in names]
    return "\n\n".join(found) + "\n"


def public_names(module: str) -> Iterator[str]:
    """Classes, functions and values of a module that `dev/api.txt` lists."""
    for line in (ROOT / "dev" / "api.txt").read_text(encoding="utf-8").splitlines():
        path = line.partition("(")[0]
        owner, _, name = path.rpartition(".")
        if owner == module and name:
            yield path
