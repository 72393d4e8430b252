"""`packfuse eval`: compares a pack with each of its members."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from packfuse.cli.options import PackOptions
from packfuse.cli.screen import Screen
from packfuse.cli.tables import plain_table
from packfuse.errors import ConfigError, DataError
from packfuse.progress import question_progress
from packfuse.registry import parse_spec

if TYPE_CHECKING:
    from packfuse.evaluation import Evaluation, Samples, Setting
    from packfuse.evaluation.reports.intervals import Figure
    from packfuse.pack import Pack

_LEAST_SAMPLES = 3
"""With fewer samples a majority is the first one."""
_EVAL = {"rich_help_panel": "Evaluation"}


def evaluate(
    screen: Screen,
    pack: PackOptions,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Questions, one JSON object per line."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Task type; inferred from the fields if omitted. Parameters follow a colon:"
            " letter:shots=3.",
            **_EVAL,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            "-s",
            metavar="RULE/WEIGHTING/ALIGNMENT/REFERENCE/GATE",
            help="Setting to evaluate; omitted parts are the pack's own. Repeat it for several."
            " Default: every rule with every weighting where options are scored, the pack's own"
            " setting where answers are generated.",
            **_EVAL,
        ),
    ] = None,
    grid: Annotated[
        int,
        typer.Option(
            min=0, help="Also evaluate fixed weights on a grid with this many steps.", **_EVAL
        ),
    ] = 0,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Number of questions per file.", **_EVAL),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="K",
            help="Where answers are generated, also evaluate the majority of K samples of the best"
            " member. Default: as many as there are members, 3 at least; 0: none.",
            **_EVAL,
        ),
    ] = None,
    sample_temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="Temperature of these samples. Default: 0.7.", **_EVAL),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.", **_EVAL)] = 0,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(
            "--lm-eval", metavar="NAME", help="A task of lm-eval. Repeat it for several.", **_EVAL
        ),
    ] = None,
    include: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of further lm-eval task files.", **_EVAL),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Results folder; existing results are resumed.",
            **_EVAL,
        ),
    ] = Path("packfuse-eval"),
) -> None:
    """Compare the pack with each of its members, with paired confidence intervals.

    Writes results.json, report.md and one plot per file to the folder of --out. Every result is
    also appended to answers.jsonl there, so that the same command resumes after an interruption.
    Exit status 1 if a member failed; the results of the others are kept.
    """
    if not files and not lm_eval:
        raise ConfigError("nothing to evaluate on", hint="name a file, or --lm-eval TASK")
    from packfuse.evaluation import Journal, read_questions, task_for
    from packfuse.evaluation.tasks import tasks

    chosen = tasks().make(parse_spec(task)) if task else None

    # Every file is checked before a model is loaded.
    kinds = {path: chosen or task_for(path) for path in files or []}
    generated = any(kind.generates for kind in kinds.values())
    for option, given, effective, needed in (
        ("--task", task, files, "a file"),
        ("--include", include, lm_eval, "--lm-eval"),
        ("--draft", pack.draft, generated or lm_eval, "a task whose answers are generated"),
        ("--samples", samples, generated, "a file whose answers are generated"),
        ("--sample-temperature", sample_temperature is not None, samples != 0, "samples"),
        ("--sample-temperature", sample_temperature is not None, generated, "generated answers"),
    ):
        if given and not effective:
            raise ConfigError(f"{option} has no effect without {needed}", hint="leave it out")
    # A wrong number is an error before a model is loaded.
    wanted = _samples(samples, sample_temperature, generated=generated)
    questions = {path: read_questions(path, kind, limit, seed) for path, kind in kinds.items()}
    loaded = pack.load(screen)
    settings = _settings(loaded, setting or [], grid)
    results: list[Evaluation] = []
    with Journal(out / "answers.jsonl") as journal:
        from packfuse.evaluation import evaluate as run

        for path, kind in kinds.items():
            with question_progress(path.name) as step:
                result = run(
                    loaded,
                    questions[path],
                    kind,
                    settings,
                    journal=journal,
                    samples=wanted(loaded) if kind.generates else None,
                    seed=seed,
                    step=step,
                )
            results.append(result)
            _write(screen, out, results, len(results) - 1)
        if lm_eval:
            from packfuse.evaluation.lm_tasks import evaluate_tasks

            results += evaluate_tasks(
                loaded, lm_eval, settings, journal=journal, limit=limit, seed=seed, include=include
            )
            _write(screen, out, results, len(questions))
    screen.document([result.model_dump(mode="json") for result in results])
    for result in results:
        screen.show(*_view(result))
    screen.show(Text(f"\n{out / 'report.md'} has all figures.", "dim"))
    if any(row.failed for result in results for row in result.rows):
        raise typer.Exit(1)


def _samples(
    count: int | None, temperature: float | None, *, generated: bool
) -> Callable[[Pack], Samples | None]:
    """How often the best member of a pack is sampled.

    Raises:
        ConfigError: for one sample, or a temperature at which all are the same.
    """
    from packfuse.evaluation import Samples

    if not generated or count == 0:
        return lambda pack: None
    given = {} if temperature is None else {"temperature": temperature}
    least = Samples(count or _LEAST_SAMPLES, **given)
    return lambda pack: least if count else replace(least, count=max(least.count, len(pack.names)))


def _settings(pack: Pack, texts: list[str], steps: int) -> list[Setting] | None:
    from packfuse.evaluation import Setting, every_method, grid

    own = Setting.of(pack)
    chosen = [Setting.parse(text, pack) for text in texts]
    if steps:
        chosen = [*(chosen or every_method(own)), *grid(own, pack.names, steps)]
    return chosen or None


def _write(screen: Screen, out: Path, results: list[Evaluation], start: int) -> None:
    """Write the results so far, with plots of the results from index `start` on."""
    from packfuse.evaluation.reports.markdown import document
    from packfuse.evaluation.reports.plot import draw
    from packfuse.models.loading import unique_names
    from packfuse.paths import write_text

    names = unique_names([Path(result.source).stem for result in results])
    try:
        write_text(out / "results.json", _json(results))
        write_text(out / "report.md", document(results))
        for result, name in list(zip(results, names, strict=True))[start:]:
            draw(result, out / f"{name}.png")
    except ConfigError as error:
        screen.note(Text(f"no plot: {error}", "dim"))
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}") from error


def _json(results: list[Evaluation]) -> str:
    return "[\n" + ",\n".join(result.model_dump_json(indent=1) for result in results) + "\n]\n"


def _view(result: Evaluation) -> list[Table | Text]:
    """A table for the terminal, best first, and the comparisons with the best member."""
    from packfuse.evaluation.reports.markdown import beyond, comparison

    plain_text = not any(row.accuracy for row in result.rows)
    table = plain_table("system", result.verdict, "Δ", "bits/byte", "Δ", "s", "tokens")

    def order(row: object) -> float:
        figure = getattr(row, "bits_per_byte" if plain_text else "accuracy")
        return math.inf if figure is None else figure.value if plain_text else -figure.value

    for row in sorted(result.rows, key=lambda row: (not row.member, order(row))):
        table.add_row(
            Text(row.label, "bold" if row.member else ""),
            _percent(row.accuracy),
            _percent(row.against.accuracy, signed=True),
            _bits(row.bits_per_byte),
            _bits(row.against.bits_per_byte, signed=True),
            f"{row.seconds:.2f}",
            f"{row.member_tokens:.0f}",
        )
    lines = [Text(line) for name in result.best if (line := comparison(result, name))]
    lines += [Text(line) for line in beyond(result)]
    skipped = [f"{len(result.skipped)} lines skipped"] if result.skipped else []
    skipped += [f"{len(result.broken)} lines broken"] if result.broken else []
    skipped += [f"{len(result.unread)} questions unread"] if result.unread else []
    head = ", ".join([f"{result.source}: {result.questions} questions", *skipped])
    lines += [Text(f"left out: {error}", "yellow") for error in result.broken]
    lines += [
        Text(f"{row.label} stopped: {row.failed}", "red") for row in result.rows if row.failed
    ]
    return [Text(f"\n{head}", "bold"), table, *lines]


def _percent(figure: Figure | None, *, signed: bool = False) -> Text:
    if figure is None:
        return Text()
    shown = f"{100 * figure.value:+.1f}" if signed else f"{figure.value:.1%}"
    return Text(shown, "bold" if signed and figure.excludes_zero else "")


def _bits(figure: Figure | None, *, signed: bool = False) -> Text:
    if figure is None:
        return Text()
    shown = f"{figure.value:+.4f}" if signed else f"{figure.value:.4f}"
    return Text(shown, "bold" if signed and figure.excludes_zero else "")
