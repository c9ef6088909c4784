"""`uqcalc run`: run dynamics or a relaxation from a run file, under a monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import QuietOption
from uqcalc.cli.template import RUN_FILE
from uqcalc.progress import progress_bar


AGAIN = (
    "the steps so far are on disk; repeat the command to continue from the last "
    "saved step"
)
HALTED = 3  # 2 means a wrong command line


def _template(value: bool) -> None:  # noqa: FBT001  (typer passes it by position)
    if value:
        typer.echo(RUN_FILE, nl=False)
        raise typer.Exit


def _existing(value: Path) -> Path:
    if not value.is_file():
        msg = (
            f"run file must exist, got {value}; uqcalc run --template > run.yaml "
            "writes a template"
        )
        raise typer.BadParameter(msg)
    return value


def run(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", callback=_existing, help="Run file (YAML)."),
    ],
    *,
    template: Annotated[  # noqa: ARG001  (its callback ends the command)
        bool,
        typer.Option(
            "--template",
            is_eager=True,
            callback=_template,
            help="Print a template run file with every key, its unit and its default.",
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Run molecular dynamics or a relaxation from a file, under a monitor.

    If the run was killed, the same command continues from the last saved state. If the
    run has ended, the command prints how it ended. Exit status: 0 finished, 1 error, 3
    halted by the monitor.
    """
    with reporting(AGAIN, quiet=quiet) as report, progress_bar() as bar:
        from uqcalc.runfile.file import read_run_file

        read_run_file(file)  # reports problems before torch is imported
        from uqcalc.runfile.running import run_file

        task = bar.add_task(file.name, total=None)

        def show(step: int, steps: int) -> None:
            bar.update(task, completed=step, total=steps)

        outcome = run_file(file, progress=show)
    report.result(outcome.summary)
    if outcome.how == "halted":
        raise typer.Exit(code=HALTED)
