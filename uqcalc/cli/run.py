"""`uqcalc run`: what a run file says, under a monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import errors_as_messages, out
from uqcalc.progress import progress_bar


AGAIN = "what was done is on disk; the same command goes on from the last save"
HALTED = 3  # 2 is for a command line that cannot be read


def run(
    file: Annotated[
        Path, typer.Argument(help="Run file (YAML); see examples/run.yaml.")
    ],
) -> None:
    """Run molecular dynamics or a relaxation from a file, under a monitor.

    If the run was killed, the same command goes on from the state saved last; if it
    has ended, it only says how. Exit status: 0 finished, 1 error, 3 halted by the
    monitor.
    """
    with errors_as_messages(AGAIN), progress_bar() as bar:
        from uqcalc.runfile.running import run_file

        task = bar.add_task(file.name, total=None)

        def show(step: int, steps: int) -> None:
            bar.update(task, completed=step, total=steps)

        outcome = run_file(file, progress=show)
    out().print(outcome.summary)
    if outcome.how == "halted":
        raise typer.Exit(code=HALTED)
