"""`packfuse determine`: selects the models of a pack on a file of questions."""

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
        typer.Option(min=0, help="Largest relative distance to the best model's score.", **_LIMITS),
    ] = 0.1,
    length_ratio: Annotated[
        float, typer.Option(min=1, help="Largest ratio of mean answer lengths.", **_LIMITS)
    ] = 2.0,
    certain: Annotated[
        bool,
        typer.Option(
            "--certain", help="Accept only gains whose interval excludes zero.", **_LIMITS
        ),
    ] = False,
    select: Annotated[
        bool,
        typer.Option("--select/--keep-all", help="Select models, or keep all that are named."),
    ] = True,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Fit priors, temperatures and sharpness of the pack to the right answers.",
        ),
    ] = True,
    limit: Annotated[int | None, typer.Option(min=4, help="Number of questions.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="File for the resulting pack.")
    ] = Path("pack.yaml"),
) -> None:
    """Select the models that make the best pack on your questions, and calibrate the pack.

    Candidates are those of --model or --pack. The best model comes first. Each next one is added if
    its score is near the best (--within), its answers have a similar length (--length-ratio), and
    the pack with it is better on held-out questions. The pack is calibrated on all questions, and
    says whether it is better than its best model alone (weighting "calibrated"). Writes pack.yaml
    with the reasons. Results are kept beside it, so that the same command resumes after an
    interruption. Models are loaded one at a time, until packs of them are tested.
    """
    if out.exists() and not _is_determined(out):
        raise ConfigError(f"{out} is there already", hint="name another file with --out")
    config = _candidates(pack)
    screen.wait("Reading the questions ...")
    from packfuse.evaluation import Journal, read_questions, task_for
    from packfuse.evaluation.determination import DetermineLimits, yaml_comments
    from packfuse.evaluation.determine import Determiner
    from packfuse.evaluation.tasks import tasks

    chosen = tasks().make(parse_spec(task)) if task else task_for(file)
    questions = read_questions(file, chosen, limit, seed)
    quiet(screen)
    limits = DetermineLimits(within, length_ratio, certain, select)
    with Journal(out.with_suffix(".answers.jsonl")) as journal, stage_progress() as progress:
        determiner = Determiner(
            config,
            questions,
            chosen,
            journal=journal,
            limits=limits,
            calibrate=calibrate,
            seed=seed,
            progress=progress,
        )
        result = determiner.run()
    result.config.write(out, yaml_comments(result))
    screen.document(result.model_dump(mode="json"))
    screen.show(_table(result), *_conclusion(result, out))


def _is_determined(path: Path) -> bool:
    """Whether a file was written by this command."""
    return path.is_file() and path.read_bytes().startswith(b"# Determined")


def _candidates(pack: PackOptions) -> PackConfig:
    """The candidates as a configuration, with absolute paths of folders."""
    settings = pack.settings()
    if pack.pack:
        return PackConfig.read(pack.pack, **settings)
    if not pack.model:
        raise ConfigError("no candidates", hint="name two or more with --model")
    models = [str(Path(m).resolve()) if Path(m).exists() else m for m in pack.model]
    return PackConfig.check({"members": models, **settings})


def _table(result: Determination) -> Table:
    table = plain_table("model", result.measure, "bits/byte", "length", "stays")
    for candidate in result.candidates:
        figures = [
            (candidate.score, ".4f"),
            (candidate.bits_per_byte, ".4f"),
            (candidate.length, ".0f"),
        ]
        table.add_row(
            Text(candidate.name, "bold" if candidate.stays else ""),
            *("-" if value is None else format(value, form) for value, form in figures),
            "yes" if candidate.stays else "no",
        )
    return table


def _conclusion(result: Determination, out: Path) -> list[Text]:
    names = [member.name or member.model for member in result.config.members]
    if len(names) == 1:
        line = f"{names[0]} alone is best: no candidate makes a better pack."
    else:
        from packfuse.weighting.methods.calibrated import Calibrated

        calibrated = result.setting["weighting"]["name"] == Calibrated.name
        method = [rules().text(result.setting["fusion"])]
        method.append(
            Calibrated.name if calibrated else weightings().text(result.setting["weighting"])
        )
        line = f"The pack: {' and '.join(names)}, {' with '.join(method)}."
    reasons = [Text(f"{one.name}: {one.reason}", "dim") for one in result.candidates]
    if result.left_out:
        reasons.append(Text(f"{len(result.left_out)} lines left out:", "yellow"))
        reasons += [Text(f"  {line}", "yellow") for line in result.left_out]
    if result.calibration:
        reasons += [Text(line) for line in result.calibration.lines()]
    return [
        Text(),
        *reasons,
        Text(f"\n{line}", "bold green"),
        Text(f"{out} is ready for --pack {out}.", "dim"),
    ]
