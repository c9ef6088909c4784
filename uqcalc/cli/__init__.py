"""The command line: parse, call one library function, print. One file a command."""

from __future__ import annotations

import typer

from uqcalc.cli.annotate import annotate
from uqcalc.cli.attack import attack
from uqcalc.cli.calibrate import calibrate
from uqcalc.cli.demo import demo
from uqcalc.cli.distill import distill
from uqcalc.cli.evaluate import evaluate
from uqcalc.cli.fit import fit
from uqcalc.cli.info import info
from uqcalc.cli.run import run


app = typer.Typer(
    help="Know when to stop believing a machine-learned interatomic potential.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (demo, fit, calibrate, distill, evaluate, annotate, attack, info, run):
    app.command()(command)
