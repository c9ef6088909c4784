"""Output of all commands: results, warnings, errors and exit status; ``--quiet``."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import typer

from uqcalc.showing import harmless


if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_FULL = {errno.ENOSPC, errno.EDQUOT}  # a full disk; the error has no file name
# Replacements of letters that the encoding of a stream lacks. Each replaces one
# letter by one letter, so that tables stay aligned.
_PLAIN = str.maketrans("Å²³Δ·…₂\N{MINUS SIGN}", "A23D*.2-")


@dataclass
class Report:
    """Output of one command.

    Attributes
    ----------
    quiet : bool
        Print warnings and errors only.
    to_stderr : bool
        The command writes its data to standard output, so results go to the error
        stream.
    warnings : list of str
        Every `LabelWarning` so far.
    """

    quiet: bool = False
    to_stderr: bool = False
    warnings: list[str] = field(default_factory=list)

    def result(self, *what: RenderableType, fold: bool = False) -> None:
        """Print texts and tables, unless ``quiet`` is set.

        ``fold`` breaks lines at the width of the terminal, as tables need it.
        """
        if not self.quiet:
            _console(stderr=self.to_stderr).print(*what, soft_wrap=not fold)

    def warn(self, text: str) -> None:
        """Print a warning on the error stream."""
        _say(f"warning: {text}", "yellow")


@contextmanager
def reporting(
    stopped: str = "nothing was written",
    *,
    quiet: bool = False,
    to_stderr: bool = False,
) -> Iterator[Report]:
    """Print errors of the block on the error stream, and end the command.

    The exit status is 1 for `UqcalcError`, `OSError` and `ValueError`, and 130 for
    Ctrl-C. Usage errors (`typer.BadParameter`, status 2) and `BrokenPipeError` pass
    through. Warnings about labels and files are printed at once.

    Parameters
    ----------
    stopped : str
        What has been written when Ctrl-C or a full disk ends the command.
    quiet, to_stderr : bool
        As in `Report`; ``quiet`` hides progress bars, too.
    """
    from uqcalc.errors import FileWarning, LabelWarning, UqcalcError
    from uqcalc.progress import hidden_progress

    report = Report(quiet=quiet, to_stderr=to_stderr)
    try:
        with hidden_progress(hide=quiet), warnings.catch_warnings():
            usual = warnings.showwarning

            def show(message: Any, category: Any, *where: Any, **how: Any) -> None:
                if issubclass(category, LabelWarning):
                    report.warnings.append(str(message))
                if issubclass(category, (LabelWarning, FileWarning)):
                    report.warn(str(message))
                else:
                    usual(message, category, *where, **how)

            warnings.showwarning = show
            yield report
    except BrokenPipeError:
        raise
    except (UqcalcError, OSError, ValueError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        _say(f"{error}: {stopped}" if full else str(error), "red")
        raise typer.Exit(code=1) from error
    except KeyboardInterrupt as error:
        _say(f"Stopped: {stopped}.", "yellow")
        raise typer.Exit(code=130) from error


def notice(text: str) -> None:
    """Print one line on the error stream."""
    _say(text, "yellow")


@contextmanager
def usage_errors(option: str = "") -> Iterator[None]:
    """Report errors of the block as errors of usage (status 2), naming ``option``."""
    from uqcalc.errors import UqcalcError

    try:
        yield
    except (UqcalcError, ValueError) as error:
        hint = f"'{option}'" if option else None
        raise typer.BadParameter(str(error), param_hint=hint) from error


def write_in_any_encoding() -> None:
    """Replace letters that the encoding of standard output or error lacks.

    Å becomes A under ``PYTHONIOENCODING=ascii``; without this, printing it is an error.
    """
    codecs.register_error("uqcalc.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="uqcalc.plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return the replacement of letters that cannot be encoded, and the next place."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    plain = letters.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
    return plain, error.end


def _console(*, stderr: bool = False) -> Console:
    """Return a console on which foreign text cannot move the cursor."""
    from rich.console import Console
    from rich.text import Text

    class Harmless(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(harmless(text), **options)

    plain = bool(os.environ.get("NO_COLOR"))
    return Harmless(
        stderr=stderr,
        highlight=False,
        markup=False,
        color_system=None if plain else "auto",  # without colours no italics either
    )


def _say(text: str, style: str) -> None:
    from rich.text import Text

    _console(stderr=True).print(Text(harmless(text), style=style), soft_wrap=True)
