"""Input and output files of commands; "-" is standard input or standard output."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def is_standard(path: Path | None) -> bool:
    """Return whether a path is "-"."""
    return str(path) == "-"


@contextmanager
def input_file(path: Path) -> Iterator[Path]:
    """Yield a file to read; standard input is copied into a temporary one.

    Extended XYZ is expected there: readers choose the format by the name of the file.
    """
    if not is_standard(path):
        yield path
        return
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "stdin.xyz"
        with kept.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield kept


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Yield a file to write; for "-" a temporary one, copied to standard output.

    It is also copied after an error, so that the output before the error is kept.
    """
    if not is_standard(path):
        yield path
        return
    with TemporaryDirectory() as folder, ExitStack() as last:
        made = Path(folder) / "stdout.xyz"
        last.callback(_to_standard_output, made)
        yield made


def _to_standard_output(made: Path) -> None:
    if made.is_file():
        with made.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
