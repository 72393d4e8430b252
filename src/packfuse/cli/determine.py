"""`packfuse determine`: selects the models that make the best pack on given questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from packfuse.cli.options import PackOptions, quiet
from packfuse.cli.screen import Screen
from packfuse.cli.tables import plain_table
from packfuse.errors import ConfigError
from packfuse.fusion.rules import rules
from packfuse.progress import stage_progress
from packfuse.registry import parse_spec
from packfuse.settings import PackConfig
from packfuse.weighting.methods import weightings

if TYPE_CHECKING:
    from packfuse.evaluation.determination import Determination

_LIMITS = {"rich_help_panel": "Selection"}


def determine(
    screen: Screen,
    pack: PackOptions,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Questions, one JSON object per line.")
    ],
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Task type; inferred from the fields if omitted."),
    ] = None,
    within: Annotated[
        float,
        typer.Option(min=0, help="Largest relative difference to the best model.", **_LIMITS),
    ] = 0.1,
    length_ratio: Annotated[
        float, typer.Option(min=1, help="Largest ratio of answer lengths.", **_LIMITS)
    ] = 2.0,
    certain: Annotated[
        bool,
        typer.Option("--certain", help="Count only gains whose interval excludes zero.", **_LIMITS),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=4, help="Number of questions.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="File for the resulting pack.")
    ] = Path("pack.yaml"),
) -> None:
    """Select the models that make the best pack on your questions.

    The candidates are the models of --model or --pack. The best one is selected first. Each other
    one is added if it is good enough (--within), gives answers of similar length (--length-ratio),
    and improves the pack on held-out questions. The result is written to pack.yaml, with reasons.
    Answers are stored beside it, so that the same command resumes after an interruption. Models are
    loaded one at a time until they are fused.
    """
    if out.exists() and not _written_here(out):
        raise ConfigError(f"{out} is there already", hint="name another file with --out")
    config = _candidates(pack)
    screen.wait("Reading the questions ...")
    from packfuse.evaluation import Journal, read_questions, task_for
    from packfuse.evaluation.determination import DetermineLimits, commented
    from packfuse.evaluation.determine import Determiner
    from packfuse.evaluation.tasks import tasks

    kind = tasks().make(parse_spec(task)) if task else task_for(file)
    questions = read_questions(file, kind, limit, seed)
    quiet(screen)
    limits = DetermineLimits(within, length_ratio, certain)
    with Journal(out.with_suffix(".answers.jsonl")) as journal, stage_progress() as tell:
        found = Determiner(
            config, questions, kind, journal=journal, limits=limits, seed=seed, tell=tell
        ).run()
    found.config.write(out, commented(found))
    screen.document(found.model_dump(mode="json"))
    screen.show(_table(found), *_conclusion(found, out))


def _written_here(path: Path) -> bool:
    """Whether a file was written by this command."""
    return path.is_file() and path.read_bytes().startswith(b"# Determined")


def _candidates(pack: PackOptions) -> PackConfig:
    """The candidates as a configuration, with absolute paths."""
    settings = pack.settings()
    if pack.pack:
        config = PackConfig.read(pack.pack)
        return PackConfig.check({**config.model_dump(), **settings})
    if not pack.model:
        raise ConfigError("no candidates", hint="name two or more with --model")
    models = [str(Path(m).resolve()) if Path(m).exists() else m for m in pack.model]
    return PackConfig.check({"members": models, **settings})


def _table(found: Determination) -> Table:
    table = plain_table("model", found.measure, "bits/byte", "length", "selected")
    for one in found.candidates:
        figures = [(one.score, ".4f"), (one.bits_per_byte, ".4f"), (one.length, ".0f")]
        table.add_row(
            Text(one.name, "bold" if one.stays else ""),
            *("-" if value is None else format(value, form) for value, form in figures),
            "yes" if one.stays else "no",
        )
    return table


def _conclusion(found: Determination, out: Path) -> list[Text]:
    names = [member.name or member.model for member in found.config.members]
    if len(names) == 1:
        line = f"{names[0]} alone is best: no candidate makes a better pack."
    else:
        method = [rules().text(found.setting["fusion"])]
        method.append(weightings().text(found.setting["weighting"]))
        line = f"The pack: {' and '.join(names)}, {' with '.join(method)}."
    reasons = [Text(f"{one.name}: {one.reason}", "dim") for one in found.candidates]
    return [
        Text(),
        *reasons,
        Text(f"\n{line}", "bold green"),
        Text(f"{out} is ready for --pack {out}.", "dim"),
    ]
