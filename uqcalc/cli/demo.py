"""`uqcalc demo`: run the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import QuietOption


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="New or empty folder for log, frames and pictures.",
        ),
    ] = Path("demo"),
    *,
    crystal: Annotated[
        bool, typer.Option(help="Compress a crystal with CHGNet, too.")
    ] = True,
    seed: Annotated[
        int, typer.Option(help="Random seed of the velocities and the thermostat.")
    ] = 1,
    quiet: QuietOption = False,
) -> None:
    """Heat aspirin until its potential fails and the monitor halts it (3 minutes)."""
    with reporting(quiet=quiet) as report:
        from uqcalc.demo import run_demo

        report.result(run_demo(output, crystal=crystal, seed=seed))
