"""`uqcalc demo`: the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import errors_as_messages, out


def demo(
    output: Annotated[
        Path, typer.Option(help="Empty or new folder for log, frames and pictures.")
    ] = Path("demo"),
    *,
    crystal: Annotated[
        bool, typer.Option(help="Also squeeze a crystal with CHGNet.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the velocities and the heat bath.")] = 1,
) -> None:
    """Heat aspirin until its potential breaks, and see it caught (3 minutes)."""
    from uqcalc.demo import run_demo

    with errors_as_messages():
        out().print(run_demo(output, crystal=crystal, seed=seed))
