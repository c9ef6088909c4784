"""What all commands share: where they print, and how an error reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text


# The options that every command spells alike.
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Potential: default, chgnet, mace:FILE, mace_off:SIZE or mace_mp:SIZE.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, mps, or auto for the fastest.")
]


def out() -> Console:
    """Return a console for results: paths and numbers stay as they are."""
    return Console(soft_wrap=True, highlight=False, markup=False)


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """End the command with a message and status 1 on an error that was foreseen."""
    from uqcalc.errors import UqcalcError

    try:
        yield
    except (UqcalcError, OSError, ValueError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            Text(str(error), style="red")
        )
        raise typer.Exit(code=1) from error
