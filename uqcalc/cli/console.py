"""What all commands share: where they print, and how an error reads."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text


# The options that every command spells alike.
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Potential: default, chgnet, sevennet, mace:FILE, mace_off:SIZE, "
        "mace_mp:SIZE, or orb:NAME such as orb:orb-v3-direct-20-mpa. A MACE model file "
        "can run code; open only files you trust, or mace:FILE.json, which cannot "
        "(uqcalc.save_safe_mace).",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="cpu, cuda or mps; auto is cuda where there is one."),
]

SpeciesOption = Annotated[
    str | None,
    typer.Option(
        "--species",
        help="Element of each type in order, such as Na,Cl: for LAMMPS files, which "
        "number their types.",
    ),
]


def out() -> Console:
    """Return a console for results: paths and numbers stay as they are."""
    return _Plain(soft_wrap=True, highlight=False, markup=False)


class _Plain(Console):
    """A console on which foreign text cannot move the cursor or change colours."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(harmless(text), **options)


def harmless(text: str) -> str:
    r"""Return text whose control characters are spelled out, such as ``\x1b``.

    Names in files, reasons in logs and messages of readers are foreign: an escape
    sequence among them could hide a line, or rename a window. Line ends and tabs stay.
    """
    return "".join(
        letter
        if letter in "\n\t" or unicodedata.category(letter) not in {"Cc", "Cf", "Cs"}
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )


@contextmanager
def errors_as_messages(
    stopped: str = "nothing was written",
) -> Iterator[list[str]]:
    """End the command with a message and status 1 on an error that was foreseen.

    ``stopped`` is what to say of the work that a Ctrl-C leaves behind. Warnings of
    labels are shown at once, and kept in the list that this gives.
    """
    from uqcalc.errors import FileWarning, LabelWarning, UqcalcError

    try:
        heard: list[str] = []
        with warnings.catch_warnings():
            usual = warnings.showwarning

            def show(message: Any, category: Any, *where: Any, **how: Any) -> None:
                if issubclass(category, LabelWarning):
                    heard.append(str(message))
                    _say(f"warning: {message}", "yellow")
                elif issubclass(category, FileWarning):
                    _say(f"warning: {message}", "yellow")
                else:
                    usual(message, category, *where, **how)

            warnings.showwarning = show
            yield heard
    except (UqcalcError, OSError, ValueError) as error:
        _say(str(error), "red")
        raise typer.Exit(code=1) from error
    except KeyboardInterrupt as error:
        _say(f"Stopped: {stopped}.", "yellow")
        raise typer.Exit(code=130) from error


def _say(text: str, style: str) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(harmless(text), style=style))
