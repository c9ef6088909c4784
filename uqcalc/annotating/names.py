"""Names of the files that annotation writes, checked before anything is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from uqcalc.errors import MissingExtraError, RecordError
from uqcalc.files.writing import writable


XYZ = (".xyz", ".extxyz")
TARGETS = (*XYZ, ".traj", ".db")
TABLES = (".csv", ".parquet")


def checked_target(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file of annotated frames.

    Raises
    ------
    RecordError
        If its name ends otherwise, or its folder does not exist.
    """
    target = writable(path, "target")
    if target.suffix not in TARGETS:
        msg = (
            f"target must end in {', '.join(TARGETS[:-1])} or {TARGETS[-1]}, got "
            f"{target.name}; other formats lose the values of single atoms"
        )
        raise RecordError(msg)
    return target


def checked_table(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a table.

    Raises
    ------
    RecordError
        If its name ends otherwise, or its folder does not exist.
    MissingExtraError
        If pyarrow is absent for .parquet.
    """
    table = writable(path, "table")
    if table.suffix not in TABLES:
        msg = f"table must end in {' or '.join(TABLES)}, got {table.name}"
        raise RecordError(msg)
    if table.suffix == ".parquet":
        pyarrow()
    return table


def check_tables(
    frames: str | os.PathLike[str] | None, atoms: str | os.PathLike[str] | None
) -> None:
    """Check the files of the table of frames and of that of atoms.

    Raises
    ------
    RecordError, MissingExtraError
        As `checked_table`, and if both are one file.
    """
    paths = [checked_table(path) for path in (frames, atoms) if path is not None]
    if len(paths) == 2 and paths[0] == paths[1]:
        msg = (
            "tables of frames and of atoms must be two files, got "
            f"{paths[0].name} for both; choose two names"
        )
        raise RecordError(msg)


def pyarrow() -> tuple[Any, Any]:
    """Return the modules that write Parquet.

    Raises
    ------
    MissingExtraError
        If pyarrow is absent.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        what = "a table in .parquet (.csv needs no package)"
        raise MissingExtraError(what, "pyarrow", "table") from error
    return pyarrow, pyarrow.parquet
