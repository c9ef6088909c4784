"""The progress bar of long work: on the error stream, so that output can be piped."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress


def progress_bar() -> Progress:
    """Return a bar that leaves nothing behind, and shows nothing to a file."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
