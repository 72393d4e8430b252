"""Lists the public API, and compares it with the list that is committed.

python dev/api.py            # write dev/api.txt; what vanished must be named in CHANGELOG.md
python dev/api.py --check    # fail if dev/api.txt is not up to date
python dev/api.py --against REF   # what vanished or changed since a commit
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
LIST = ROOT / "dev" / "api.txt"
PUBLIC = (
    "",
    "aio",
    "alignment.base",
    "alignment.pairings",
    "causal_lm.drafts.base",
    "constraint",
    "errors",
    "evaluation.tasks.base",
    "fusion.gates.base",
    "fusion.rules.base",
    "models.member",
    "settings",
    "testing",
    "text.vocabulary",
    "tools",
    "weighting.methods.base",
)
"""Modules of packfuse that other packages may import from; the rest may change at any time."""


def lines(package: griffe.Module) -> list[str]:
    """One line for each public name, with its signature."""
    found: set[str] = set()
    for name in PUBLIC:
        try:
            module = package[name] if name else package
        except KeyError:
            continue  # an older commit has no such module
        found.update(_members(module, f"packfuse.{name}".rstrip(".")))
    return sorted(found)


def _members(owner: griffe.Object, path: str) -> Iterator[str]:
    exported = owner.exports if isinstance(owner, griffe.Module) else None
    for name, known in {**_from_private_bases(owner), **owner.members}.items():
        public = name in exported if exported is not None else not name.startswith("_")
        inherited = known.is_alias and getattr(known, "inherited", False)
        if known.is_alias and not inherited and (exported is None or not public):
            continue
        member = known.final_target if known.is_alias else known
        if not public or isinstance(member, griffe.Module):
            continue
        yield f"{path}.{name}{_signature(member)}"
        if isinstance(member, griffe.Class):
            yield from _members(member, f"{path}.{name}")


def _from_private_bases(owner: griffe.Object) -> dict[str, griffe.Object | griffe.Alias]:
    """Members of a class that come from classes of packfuse that are not public."""
    if not isinstance(owner, griffe.Class):
        return {}
    found: dict[str, griffe.Object | griffe.Alias] = {}
    for name, known in owner.inherited_members.items():
        target = known.final_target
        module, base = target.module.path, target.parent
        private = base is not None and base.name.startswith("_")
        hidden = private or module.removeprefix("packfuse.") not in PUBLIC
        if module.startswith("packfuse.") and hidden:
            found[name] = known
    return found


def _signature(member: griffe.Object | griffe.Alias) -> str:
    if isinstance(member, griffe.Function):
        shown = []
        for parameter in member.parameters:
            star = {"variadic positional": "*", "variadic keyword": "**"}.get(
                str(parameter.kind.value) if parameter.kind else "", ""
            )
            default = f"={parameter.default}" if parameter.default and not star else ""
            shown.append(f"{star}{parameter.name}{default}")
        return f"({', '.join(shown)})"
    if isinstance(member, griffe.Class):
        return f"({', '.join(str(base) for base in member.bases)})"
    return ""


def names(found: list[str]) -> set[str]:
    """The names without their signatures."""
    return {line.partition("(")[0] for line in found}


def load(ref: str | None = None) -> list[str]:
    """The API of this checkout, or of a commit."""
    if ref is None:
        package = griffe.load("packfuse", search_paths=[ROOT / "src"], allow_inspection=False)
    else:
        package = griffe.load_git(
            "packfuse", ref=ref, repo=ROOT, search_paths=["src"], allow_inspection=False
        )
    if not isinstance(package, griffe.Module):
        raise SystemExit("packfuse is no package here")
    return lines(package)


def main() -> None:
    """Write, check or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--against", metavar="REF")
    options = parser.parse_args()
    now = load()
    if options.against:
        before = load(options.against)
        for line in sorted(set(before) - set(now)):
            print("-", line)
        for line in sorted(set(now) - set(before)):
            print("+", line)
        return
    before = LIST.read_text(encoding="utf-8").splitlines() if LIST.exists() else []
    if options.check:
        changed = sorted(set(before) ^ set(now))
        if changed:
            print(*changed, sep="\n")
            sys.exit("the public API has changed: run `make api`, and say so in CHANGELOG.md")
        return
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unsaid = [n for n in sorted(names(before) - names(now)) if n.rpartition(".")[2] not in changes]
    if unsaid:
        sys.exit(f"CHANGELOG.md does not name what vanished: {', '.join(unsaid)}")
    LIST.write_text("\n".join(now) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
