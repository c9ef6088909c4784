"""`uqcalc loop`: run, select, label, train, again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import QuietOption, existing


FileArgument = Annotated[
    Path,
    typer.Argument(metavar="FILE", callback=existing, help="Loop file (YAML)."),
]


def loop(file: FileArgument, *, quiet: QuietOption = False) -> None:
    """Improve a potential on its own flagged frames, round after round.

    A round runs dynamics under a monitor, chooses flagged frames, labels them with the
    reference, and calls your commands that train the potential and fit its probe. The
    loop runs these commands as they are in the file. After a kill, the same command
    continues.
    """
    stopped = "finished stages are on disk; the same command continues"
    with reporting(stopped, quiet=quiet) as report:
        from uqcalc.learning.loopfile import read_loop_file

        read_loop_file(file)  # reports problems before torch is imported
        from uqcalc.learning.loop import run_loop

        report.result(str(run_loop(file, say=report.result)))
