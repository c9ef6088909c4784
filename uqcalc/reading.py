"""Structures from files, and what ASE's many readers raise where there are none."""

from __future__ import annotations

import os
import struct
import zlib
from typing import cast

from ase import Atoms
from ase.io import ParseError, read
from ase.io.formats import UnknownFileTypeError

from uqcalc.errors import RecordError


UNREADABLE = (
    UnknownFileTypeError,
    ParseError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    StopIteration,
    struct.error,
    zlib.error,
)


def read_frames(path: str | os.PathLike[str]) -> list[Atoms]:
    """Return all frames of a file that ASE reads.

    Raises
    ------
    RecordError
        If there are none, or the file is damaged.
    """
    try:
        found = read(os.fspath(path), ":", do_not_split_by_at_sign=True)
    except UNREADABLE as error:
        msg = (
            f"file must hold structures in a format that ASE reads, got {path} "
            f"({type(error).__name__}: {error}); check its name and its end"
        )
        raise RecordError(msg) from error
    frames = cast("list[Atoms]", found)
    if not frames:
        msg = f"file must hold at least one structure, got none in {path}; add some"
        raise RecordError(msg)
    return frames
