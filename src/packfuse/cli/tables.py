"""Tables for the terminal: records, traces, weights and facts about models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from packfuse.alignment import alignments
from packfuse.fusion.rules import rules
from packfuse.starter.plan import megabytes
from packfuse.weighting.methods import weightings

if TYPE_CHECKING:
    from packfuse.generation.output.result import FusionRecord
    from packfuse.generation.weigh import Weighing
    from packfuse.models.member import Member

_WIDTH = 20


def record_view(record: FusionRecord) -> list[Table | Text]:
    """Weights and losses by member, the settings, and the course of generation."""
    table = plain_table("member", "weight", "", "loss", "bits/byte", "prompt")
    for name in record.members:
        table.add_row(
            name,
            *_weight(record.weights[name]),
            _number(record.prompt_loss, name),
            _number(record.bits_per_byte, name),
            f"{record.usage.prompt_tokens_by_member[name]} tokens",
        )
    method = [
        rules().text(record.fusion),
        weightings().text(record.weighting),
        alignments().text(record.alignment),
        f"in the tokens of {record.reference}",
    ]
    lines = [_line(method), _line(_course(record)), *map(_note, record.notes)]
    return [table, *lines]


def weights_view(record: FusionRecord) -> list[Text]:
    """The weights and the course of generation in one line, and the notes."""
    shares = [f"{name} {weight:.0%}" for name, weight in record.weights.items()]
    return [_line([*shares, *_course(record)]), *map(_note, record.notes)]


def members_view(members: Iterable[Member]) -> Table:
    """One line per member: its size, its vocabulary, and where it computes."""
    table = plain_table("member", "parameters", "vocabulary", "context window", "computed by")
    for member in members:
        place = "another process" if member.elsewhere else str(member.device)
        if not member.elsewhere and member.model is None:
            place += ", llama.cpp"
        table.add_row(
            Text(member.name),
            count(member.facts.parameters),
            f"{member.vocabulary.size:,} tokens",
            f"{member.context_window:,} tokens",
            place,
        )
    return table


def _course(record: FusionRecord) -> list[str]:
    """Tokens, speed, and how far the members agreed."""
    timings, count = record.timings, record.usage.completion_tokens
    found = [
        f"{count} {'token' if count == 1 else 'tokens'} ({record.finish_reason})",
        f"{timings.tokens_per_second:.1f} tokens/s",
        f"prompt read in {timings.prefill_seconds + timings.weights_seconds:.1f} s",
    ]
    if record.agreed is not None:
        found.append(f"members agreed on {record.agreed:.0%}")
    if record.overruled is not None:
        found.append(f"reference overruled on {record.overruled:.0%}")
    if record.fused is not None and record.gate["name"] != "every":
        found.append(f"gate {record.gate['name']} open on {record.fused:.0%}")
    return found


def trace_view(record: FusionRecord) -> Table:
    """One row per token: its probability by member, and the member's best token if it differs.

    A token is bold where a gate that is not always open was open.
    """
    always = record.gate["name"] == "every"
    table = plain_table("token", "pack", *record.members)
    for step in record.trace or []:
        cells = [
            _probability(step.text, step.member_probabilities[name], step.member_choices[name])
            for name in record.members
        ]
        shown = Text(repr(step.text), "bold" if step.fused and not always else "")
        table.add_row(shown, f"{step.probability:.3f}", *cells)
    return table


def _probability(text: str, probability: float, choice: str) -> Text:
    found = Text(f"{probability:.3f}")
    return found if choice == text else found.append(f"  {choice!r}", "yellow")


def weighing_view(weighing: Weighing) -> list[Table | Text]:
    """The members' losses on a prompt, and their weights by weighting."""
    skill, deviation = weighing.skill or {}, weighing.skill_deviation or {}
    members = plain_table("member", "loss", "bits/byte", "prompt", *(["skill"] if skill else []))
    for name in weighing.members:
        members.add_row(
            name,
            _number(weighing.prompt_loss, name),
            _number(weighing.bits_per_byte, name),
            f"{weighing.prompt_tokens[name]} tokens",
            *([f"{skill[name]:.2f} ± {deviation[name]:.2f}"] if skill else []),
        )
    sharp = ["sharpness"] if weighing.sharpness else []
    table = plain_table("weighting", "member", "weight", "", "from the prompt", *sharp)
    for label, weights in weighing.weights.items():
        share = weighing.prompt_share.get(label)
        power = weighing.sharpness.get(label)
        shown = ["" if one is None else f"{one:.2f}" for one in (share, power)][: 1 + len(sharp)]
        for index, (name, weight) in enumerate(weights.items()):
            last = index == len(weights) - 1
            first, facts = ("", []) if index else (label, shown)
            table.add_row(first, name, *_weight(weight), *facts, end_section=last)
    units = [
        f"loss in nats per token of {weighing.reference}",
        f"{weighing.scored_tokens} of them scored",
        f"weights for {rules().text(weighing.fusion)}",
    ]
    return [members, _line(units), Text(), table, *map(_note, weighing.notes)]


def facts_table(names: Iterable[str]) -> Table:
    """A table with one column per model, for one fact per row."""
    table = plain_table("")
    for name in names:
        table.add_column(Text(name), overflow="fold")
    return table


def count(value: int | None) -> str:
    """A number of parameters, shortened.

    Example:
        >>> [count(value) for value in (None, 950, 134_515_008, 7_241_732_096)]
        ['?', '950', '134.5 M', '7.24 B']
    """
    if value is None:
        return "?"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {unit}" if unit == "B" else f"{value / size:.1f} {unit}"
    return str(value)


def size(value: int | None) -> str:
    """A number of bytes, shortened."""
    if value is None:
        return "?"
    return megabytes(value) if value >= 1e6 else f"{value / 1e3:.0f} kB"


def plain_table(*columns: str) -> Table:
    """A table without borders."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _weight(weight: float) -> tuple[Bar, str]:
    return Bar(1.0, 0, weight, width=_WIDTH, color="cyan"), f"{weight:6.1%}"


def _number(values: dict[str, float] | None, name: str) -> str:
    return "-" if values is None else f"{values[name]:.3f}"


def _line(facts: Iterable[str]) -> Text:
    return Text(" · ".join(facts), style="dim")


def _note(text: str) -> Text:
    return Text(f"note: {text}", style="yellow")
