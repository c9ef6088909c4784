"""Progress bars, on the error stream, so that standard output can be piped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn


_hidden: ContextVar[bool] = ContextVar("hidden", default=False)


def progress_bar(*columns: str | ProgressColumn) -> Progress:
    """Return a bar that disappears at its end, and is hidden if the output is a file.

    By default it has the columns of rich; ``columns`` are for work of unknown length.
    """
    console = Console(stderr=True)
    hidden = _hidden.get() or not console.is_terminal
    console.quiet = hidden  # otherwise a hidden bar writes an empty line
    return Progress(*columns, console=console, transient=True, disable=hidden)


@contextmanager
def hidden_progress(*, hide: bool = True) -> Iterator[None]:
    """Hide all bars that are made in the block if ``hide`` is true."""
    token = _hidden.set(hide or _hidden.get())
    try:
        yield
    finally:
        _hidden.reset(token)
