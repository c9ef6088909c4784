"""The progress bar of long work: on the error stream, so that output can be piped."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def progress_bar(*columns: str | ProgressColumn) -> Progress:
    """Return a bar that leaves nothing behind, and shows nothing to a file.

    Without ``columns`` it is rich's own; they are for work of unknown length.
    """
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return Progress(*columns, console=console, transient=True, disable=hidden)
