"""`uqcalc watch`: look at running simulations, in a terminal or a browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import notice, reporting
from uqcalc.cli.options import existing


PlaceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PLACE",
        callback=existing,
        help="Folder with event logs (*.jsonl), or one log.",
    ),
]
WebOption = Annotated[
    bool,
    typer.Option(
        "--web",
        help="Serve a page on 127.0.0.1 instead; over ssh, forward its port. It needs "
        'the extra "report".',
    ),
]
PortOption = Annotated[
    int, typer.Option(min=1, max=65535, help="Port of the page, with --web.")
]
OnceOption = Annotated[
    bool, typer.Option("--once", help="Print the state once and end.")
]
EveryOption = Annotated[
    float, typer.Option(min=0.1, help="Seconds between updates of the terminal.")
]


def watch(
    place: PlaceArgument = Path(),
    *,
    web: WebOption = False,
    port: PortOption = 8741,
    once: OnceOption = False,
    every: EveryOption = 1.0,
) -> None:
    """Show running simulations: status, time left, last levels, and why.

    Only files are read: this command can begin and end at any time without an effect
    on the runs. It ends with Ctrl-C, or when all runs have ended.
    """
    with reporting(stopped="the runs go on"):
        if web:
            from uqcalc.viewing.web import HOST, serve

            notice(f"The page is at http://{HOST}:{port}/ until Ctrl-C. From another "
                   f"machine: ssh -L {port}:{HOST}:{port} THIS_MACHINE")  # fmt: skip
            serve(place, port)
            return
        from rich.console import Console

        from uqcalc.viewing.terminal import watch as show

        plain = bool(os.environ.get("NO_COLOR"))
        show(place, Console(no_color=plain), every=every, once=once)
