"""The tables of docs/evidence.md and of README.md, from what `benchmarks/evidence.py` measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..shown import level, signed

Rows = list[Sequence[str]]
"""As in `tables.py`."""
OURS = ("default", "calibrated", "pair", "uniform", "top1")
PUBLISHED = ("packllm-sim", "packllm-opt", "unite")
NUDGED = ("nudge", "every", "default")
FIGURES = {"accuracy": "accuracy", "loss": "bits_per_byte"}
WORDS = {"accuracy": "accuracy, points", "bits_per_byte": "bits per byte"}


def rows(results: Mapping[str, Any], name: str) -> Rows:
    """A table of the evidence: one of `EVIDENCE`, or figures by set.

    By set: `accuracy` or `loss`, then whose: `ours`, `published`, `nudged`, or `members`.
    """
    kind, _, whose = name.partition(" ")
    if kind in FIGURES:
        systems = {"ours": OURS, "published": PUBLISHED, "nudged": NUDGED}.get(whose)
        return (
            _values(results, FIGURES[kind])
            if systems is None
            else _differences(results, FIGURES[kind], systems)
        )
    return EVIDENCE[name](results)


def _title(results: Mapping[str, Any], system: str) -> str:
    return str(results["systems"][system]["title"])


def _differences(results: Mapping[str, Any], figure: str, systems: Sequence[str]) -> Rows:
    """By set, differences of packs from their best members."""
    sets = [own for own in results["sets"].values() if figure in own["best"]]
    shown = [s for s in systems if any(figure in _against(own, s) for own in sets)]
    return [
        ("", "questions ", "best member alone ", *(f"{_title(results, s)} " for s in shown)),
        *(
            [
                own["title"],
                f"{own['systems'][best]['questions']:,}",
                f"{level(own['systems'][best][figure], figure)}, {best}",
                *(_difference(own, system, figure, best) for system in shown),
            ]
            for own in sets
            for best in [own["best"][figure]]
        ),
    ]


def _against(own: Mapping[str, Any], system: str) -> Mapping[str, Any]:
    return own["systems"].get(system, {}).get("against", {})


def _difference(own: Mapping[str, Any], system: str, figure: str, best: str) -> str:
    """The difference, with the member and the number of questions if they are not the row's."""
    found = _against(own, system).get(figure)
    if not found:
        return ""
    asked = own["systems"][system]["questions"]
    notes = [f"against {found['best']}"] * (found["best"] != best)
    notes += [f"{asked:,} questions"] * (asked < own["systems"][best]["questions"])
    return "; ".join([signed(found, figure), *notes])


def _values(results: Mapping[str, Any], figure: str) -> Rows:
    """By set, the figures of every member and of the pack."""
    sets = [own for own in results["sets"].values() if figure in own["best"]]
    shown = [*results["members"], "default"]
    return [
        ("", *(f"{_title(results, system)} " for system in shown)),
        *(
            [own["title"], *(level(own["systems"].get(s, {}).get(figure), figure) for s in shown)]
            for own in sets
        ),
    ]


def _sets(results: Mapping[str, Any]) -> Rows:
    """What is asked, and how many questions the pack as shipped has answered."""
    return [
        ("", "asked", "questions "),
        *(
            [own["title"], own["how"], f"{own['systems'].get('default', own)['questions']:,}"]
            for own in results["sets"].values()
        ),
    ]


def _settings(results: Mapping[str, Any]) -> Rows:
    """What is set in each pack; members alone have nothing to set."""
    known = results["systems"].items()
    packs = {name: own for name, own in known if len(own["members"]) > 1}
    shown = [s for s in packs if any(s in own["systems"] for own in results["sets"].values())]
    return [
        ("", "members", "settings"),
        *(
            [
                packs[name]["title"],
                ", ".join(packs[name]["members"]),
                ", ".join(f"`{k}={v!r}`" for k, v in packs[name]["settings"].items()) or "nothing",
            ]
            for name in shown
        ),
    ]


def _mixed(results: Mapping[str, Any]) -> Rows:
    """All systems on the mixed workload."""
    found = {f: results["mixed"][f].get("systems", {}) for f in FIGURES.values()}
    shown = [s for s in (*results["systems"], "oracle") if any(s in own for own in found.values())]
    titles = {"oracle": "the best member of each set"}
    return [
        ("", "accuracy, % ", "minus the best member ", "bits per byte ", "minus the best member "),
        *(
            [
                titles.get(s) or _title(results, s),
                *(
                    cell
                    for figure, own in found.items()
                    for row in [own.get(s)]
                    for cell in (level(row, figure), signed((row or {}).get("against"), figure))
                ),
            ]
            for s in shown
        ),
    ]


def _ceiling(results: Mapping[str, Any]) -> Rows:
    """What choosing among the members' answers could reach, and what only the pack gets right."""
    sets = [own for own in results["sets"].values() if own["ceiling"]]
    heads = ("no member right, % ", "some member right, % ", "only the pack right, % ")
    return [
        ("", "questions ", *heads, "questions for one point "),
        *(
            [
                own["title"],
                f"{found['questions']:,}",
                *(level(found[key], "accuracy") for key in ("beta", "oracle", "only_pack")),
                f"{found['needed']:,}" if found["needed"] else "",
            ]
            for own in sets
            for found in [own["ceiling"]]
        ),
    ]


def _compute(results: Mapping[str, Any]) -> Rows:
    """The pack against the vote of the best member's samples."""
    lines = []
    for own in results["sets"].values():
        if equal := own["equal_compute"]:
            for system in (own["best"]["accuracy"], equal["system"], "default"):
                row = own["systems"][system]
                minus = signed(equal, "accuracy") if system == "default" else ""
                share = level(row["accuracy"], "accuracy")
                lines.append([own["title"], _title(results, system), share, _cpu(row), minus])
    return [("", "", "accuracy, % ", "processor seconds ", "pack minus vote "), *lines]


def _cost(results: Mapping[str, Any]) -> Rows:
    """Processor seconds of an answer, by system and set."""
    sets = [own for own in results["sets"].values() if "accuracy" in own["best"]]
    return [
        ("", *(f"{own['title']} " for own in sets)),
        *(
            [_title(results, s), *(_cpu(own["systems"].get(s, {})) for own in sets)]
            for s in results["systems"]
            if any(s in own["systems"] for own in sets)
        ),
    ]


def _cpu(row: Mapping[str, Any]) -> str:
    return f"{row['cpu']:.2g}" if row.get("cpu") else ""


def _bfloat16(results: Mapping[str, Any]) -> Rows:
    """What computing in bfloat16 changes."""
    return [
        ("", "", "questions ", *(f"{what} " for what in WORDS.values())),
        *(
            [
                results["sets"][name]["title"],
                _title(results, system),
                f"{found['questions']:,}",
                *(signed(found.get(figure), figure) for figure in WORDS),
            ]
            for name, systems in results["bfloat16"].items()
            for system, found in systems.items()
        ),
    ]


def _readme(results: Mapping[str, Any]) -> Rows:
    """The figures of the README: the pack minus the best member, as shipped but for one row."""
    mixed = results["mixed"]
    lines = []
    rows = {f: own.get("systems", {}) for f, own in mixed.items()}
    for system, how in {"default": "", "calibrated": ", `calibrated`"}.items():
        both = {f: rows[f].get(system, {}).get("against") for f in WORDS}
        if any(both.values()):
            asked = "; ".join(f"{sum(mixed[f]['sets'].values()):,}" for f in WORDS if both[f])
            sets = "; ".join(str(len(mixed[f]["sets"])) for f in WORDS if both[f])
            differences = (signed(found, figure) for figure, found in both.items())
            lines.append([f"the mixed workload of {sets} sets{how}", asked, *differences])
    for own in results["sets"].values():
        found = _against(own, "default")
        if found:
            asked = f"{own['systems']['default']['questions']:,}"
            lines.append([own["title"], asked, *(signed(found.get(f), f) for f in WORDS)])
    return [
        ("pack minus best member", "questions ", *(f"{what} " for what in WORDS.values())),
        *lines,
    ]


def _summary(results: Mapping[str, Any]) -> Rows:
    """The questions of the page, and what the figures say of each."""
    lines: list[Sequence[str]] = []
    for figure, what in WORDS.items():
        mixed = results["mixed"][figure]
        for system in ("default", "calibrated"):
            if found := mixed.get("systems", {}).get(system, {}).get("against"):
                title = f"{_title(results, system)}, minus {mixed['best']}"
                asked = f"Over {len(mixed['sets'])} sets: {title}, {what}"
                lines.append([asked, signed(found, figure), _verdict(found, figure)])
    for figure, what in WORDS.items():
        for system in ("default", "calibrated"):
            if split := _split(results, system, figure):
                asked = f"{_title(results, system)}, set by set, {what}"
                lines.append([asked, "", split])
    for own in results["sets"].values():
        if equal := own["equal_compute"]:
            asked = f"{own['title']}: the pack minus {_title(results, equal['system'])}"
            lines.append([asked, signed(equal, "accuracy"), _verdict(equal, "accuracy")])
    return [("question", "difference ", "so the pack is"), *lines]


def _verdict(found: Mapping[str, float], figure: str) -> str:
    """Better or worse where the interval excludes zero."""
    if found["low"] <= 0 <= found["high"]:
        return "the same within chance"
    return "better" if (found["value"] > 0) == (figure == "accuracy") else "worse"


def _split(results: Mapping[str, Any], system: str, figure: str) -> str:
    """The sets on which a system is better than its best member, worse, and neither."""
    sides: dict[str, list[str]] = {"better": [], "worse": [], "the same within chance": []}
    for own in results["sets"].values():
        if found := _against(own, system).get(figure):
            sides[_verdict(found, figure)].append(own["title"])
    return "; ".join(f"{side}: {', '.join(names)}" for side, names in sides.items() if names)


EVIDENCE: dict[str, Callable[[Mapping[str, Any]], Rows]] = {
    "summary": _summary,
    "sets": _sets,
    "settings": _settings,
    "mixed": _mixed,
    "ceiling": _ceiling,
    "compute": _compute,
    "cost": _cost,
    "bfloat16": _bfloat16,
    "readme": _readme,
}
