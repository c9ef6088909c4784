"""The command line: parse, call one library function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


app = typer.Typer(
    help="Know when to stop believing a machine-learned interatomic potential.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Keep sub-commands even while there is only one."""


@app.command()
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
    from uqcalc.errors import UqcalcError

    console = Console(soft_wrap=True, highlight=False)
    try:
        console.print(run_demo(output, crystal=crystal, seed=seed), markup=False)
    except (UqcalcError, FileExistsError) as error:
        Console(stderr=True).print(f"[red]{error}[/red]")
        raise typer.Exit(code=1) from error
