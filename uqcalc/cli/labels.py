"""The options that say where the labels in a file are, and what they mean."""

from __future__ import annotations

from typing import Annotated

import typer


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
Boundary = Annotated[
    str | None,
    typer.Option(
        help='Errors up to it are reliable, with a unit: "50 meV/angstrom", '
        '"1 kcal/mol", "1 meV/atom"; without one in eV/Å, eV or eV/atom. Name the '
        "error up to which you would trust a result: the default is three times the "
        "median error, at most what one frame in ten exceeds."
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        help="Info entry that says which frames belong together (one molecule, one "
        "run): they are never divided between fitting and testing. 'formula' groups by "
        "reduced formula and needs no entry."
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Defect of frames to leave out, and count, instead of refusing the file: "
        "missing, 'not finite', duplicate, 'unknown elements', empty or 'not "
        "computable' (the potential fails on it). Repeatable."
    ),
]
