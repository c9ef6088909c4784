"""The command line: each command parses its options, calls one function and prints."""

from __future__ import annotations

from typing import Annotated

import typer

from uqcalc.cli.adapt import adapt
from uqcalc.cli.annotate import annotate
from uqcalc.cli.attack import attack
from uqcalc.cli.certify import FORMER, certify
from uqcalc.cli.certify_halting import certify_halting
from uqcalc.cli.console import write_in_any_encoding
from uqcalc.cli.demo import demo
from uqcalc.cli.distill import distill
from uqcalc.cli.evaluate import evaluate
from uqcalc.cli.examples import STATUS, SUMMARIES, epilog
from uqcalc.cli.features import features
from uqcalc.cli.fit import fit
from uqcalc.cli.info import info
from uqcalc.cli.label import label
from uqcalc.cli.loop import loop
from uqcalc.cli.perturb import perturb
from uqcalc.cli.plot import plot
from uqcalc.cli.report import report
from uqcalc.cli.run import run
from uqcalc.cli.select import select
from uqcalc.cli.watch import watch


__all__ = ["app", "main"]

app = typer.Typer(
    help="Know when to stop believing a machine-learned interatomic potential.",
    epilog=epilog(more=STATUS),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes cut names short in narrow terminals
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo,
    fit,
    adapt,
    certify,
    certify_halting,
    distill,
    perturb,
    evaluate,
    annotate,
    features,
    attack,
    select,
    label,
    loop,
    info,
    plot,
    report,
    watch,
    run,
):
    name = command.__name__.replace("_", "-")
    app.command(name, short_help=SUMMARIES[name], epilog=epilog(name))(command)
app.command(FORMER, hidden=True, epilog=epilog("certify"))(certify)


def _version(value: bool) -> None:  # noqa: FBT001  (typer passes it by position)
    if value:
        from importlib.metadata import version

        typer.echo(f"uqcalc {version('uqcalc')}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line of this process, for any encoding of its streams."""
    write_in_any_encoding()
    app(prog_name="uqcalc")
