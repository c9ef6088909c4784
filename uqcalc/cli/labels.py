"""The options that say where the labels in a file are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer


if TYPE_CHECKING:
    from ase import Atoms

ForcesKey = Annotated[
    str,
    typer.Option(
        help='Array with the reference forces (eV/Å); "forces" for what ASE reads '
        "as such."
    ),
]
EnergyKey = Annotated[
    str,
    typer.Option(
        help='Info entry with the reference energy (eV); "energy" for what ASE reads '
        "as such."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Defect of frames to leave out, and count, instead of refusing the file: "
        "missing, 'not finite', duplicate, 'unknown elements' or empty. Repeatable."
    ),
]


def read_frames(path: Path) -> list[Atoms]:
    """Read all frames of a file, refusing one without any."""
    import ase.io

    from uqcalc.errors import LabelError

    frames = cast("list[Atoms]", ase.io.read(path, ":"))
    if not frames:
        msg = f"{path} must hold at least one frame, got none"
        raise LabelError(msg)
    return frames
