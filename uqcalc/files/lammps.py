"""Elements of LAMMPS files, which have type numbers and seldom elements.

ASE reads type 1 as hydrogen, type 2 as helium and so on: the prediction of a potential
is then made for hydrogen and helium, and not for the elements of the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.lammps.unitconvert import UNITSETS
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.io.formats import open_with_compression

from uqcalc.errors import RecordError


DUMPS = ("lammps-dump-text", "lammps-dump-binary")
DATA = "lammps-data"
REMEDY = (
    "give the element of each type, in order: --species Na,Cl on the command line, "
    "species=['Na', 'Cl'] in Python, species: [Na, Cl] in a run file"
)
_HEADER_LINES = 40
# Element that LAMMPS writes for every type without `dump_modify element`.
_UNSET = "C"


def checked_species(species: str | Sequence[str] | None) -> list[str] | None:
    """Return the symbols of ``"Na,Cl"`` or ``["Na", "Cl"]``, checked.

    Raises
    ------
    RecordError
        If the list is empty, or an entry is not a chemical symbol.
    """
    if species is None:
        return None
    names = species.split(",") if isinstance(species, str) else list(species)
    names = [name.strip() for name in names]
    if not names or any(atomic_numbers.get(name, 0) < 1 for name in names):
        msg = (
            "species must be chemical symbols, one for each type in order, got "
            f"{species!r}; write them as Na,Cl"
        )
        raise RecordError(msg)
    return names


@dataclass(frozen=True)
class Elements:
    """How the frames of one file get their elements.

    Attributes
    ----------
    path, form : str
        The file, and the name of its format in ASE.
    species : list of str or None
        Symbol of type 1, 2, ..., instead of the elements in the file.
    named : bool
        Whether the file itself contains the elements.
    options : dict
        Options for ASE's reader of the format.
    """

    path: str
    form: str
    species: list[str] | None
    named: bool
    options: dict[str, Any]

    @classmethod
    def of(cls, path: str, form: str, species: list[str] | None) -> Elements:
        """Read the head of a file.

        Raises
        ------
        RecordError
            If the file has only types and ``species`` is None, or its units are
            unknown.
        """
        named, options = True, {}
        if form == "lammps-dump-text":
            columns, units = _dump_header(path)
            named = bool({"element", "mass"} & set(columns))
            if units is not None:
                options["units"] = units
        elif form == "lammps-dump-binary":
            named = False
        elif form == DATA:
            named = _data_names_elements(path)
        if not named and species is None:
            msg = (
                f"elements of a LAMMPS file must be known, got {path} with type "
                f"numbers only; {REMEDY}"
            )
            raise RecordError(msg)
        return cls(path, form, species, named, options)

    def given(self, atoms: Atoms) -> Atoms:
        """Return a frame with the elements that its types stand for.

        Velocities stay, and so do forces and other columns; ``c_stress[1]`` is then
        ``c_stress_1``, a name that extended XYZ can hold. A dump has no energy: the 0
        eV that ASE sets are removed.

        Raises
        ------
        RecordError
            If there are species and no types, if a type has no species, if a file of
            another format has only types, or if several types are all carbon.
        """
        types = atoms.arrays.get("type")
        if self.species is not None:
            if types is None:
                msg = (
                    "species must be left out for a file without types, got "
                    f"{','.join(self.species)} for {self.path}"
                )
                raise RecordError(msg)
            self._relabel(atoms, np.asarray(types))
        elif types is not None and self._not_meant(atoms, np.asarray(types)):
            msg = (
                "elements of a LAMMPS file must be known, got types "
                f"{np.unique(types).tolist()} that are all {atoms.symbols[0]} in "
                f"{self.path}, as in a file whose elements were never set; {REMEDY}"
            )
            raise RecordError(msg)
        if self.form in DUMPS:
            for name in [name for name in atoms.arrays if "[" in name]:
                plain = re.sub(r"\[(\d+)\]", r"_\1", name)
                atoms.arrays[plain] = atoms.arrays.pop(name)
            if atoms.calc is not None:
                atoms.calc.results.pop("energy", None)
        return atoms

    def _not_meant(self, atoms: Atoms, types: np.ndarray) -> bool:
        if len(atoms) == 0:
            return False
        several = len(np.unique(types)) > 1
        unset = self.form in DUMPS and bool((atoms.symbols == _UNSET).all())
        return bool((atoms.numbers == 0).all()) or (several and unset)

    def _relabel(self, atoms: Atoms, types: np.ndarray) -> None:
        velocities = atoms.get_velocities() if atoms.has("momenta") else None
        atoms.numbers = self._numbers(types)
        if velocities is not None:
            atoms.set_velocities(velocities)
        if atoms.calc is not None:  # labels belong to their atoms
            atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)

    def _numbers(self, types: np.ndarray) -> np.ndarray:
        species = self.species or []
        whole = types.dtype.kind in "iu"
        if not whole or types.min(initial=1) < 1 or types.max(initial=1) > len(species):
            msg = (
                f"species must name the element of every type from 1 on, got "
                f"{','.join(species)} for types {np.unique(types).tolist()} in "
                f"{self.path}; {REMEDY}"
            )
            raise RecordError(msg)
        numbers = np.array([atomic_numbers[name] for name in species])
        chosen: np.ndarray = numbers[types - 1]
        return chosen


def _dump_header(path: str) -> tuple[list[str], str | None]:
    """Return the columns of the first frame of a text dump, and its units if named."""
    units = None
    with open_with_compression(path, "r") as file:
        for _ in range(_HEADER_LINES):
            line = file.readline()
            if line.startswith("ITEM: ATOMS"):
                return line.split()[2:], units
            if line.startswith("ITEM: UNITS"):
                units = _known_units(path, file.readline().strip())
    return [], units


def _known_units(path: str, units: str) -> str:
    if units not in UNITSETS:
        msg = (
            f"units of a LAMMPS dump must be one of {sorted(UNITSETS)}, got {units!r} "
            f"in {path}; write the dump in metal units"
        )
        raise RecordError(msg)
    return units


def _data_names_elements(path: str) -> bool:
    with open_with_compression(path, "r") as file:
        for line in file:
            words = line.partition("#")[0].strip()
            if re.fullmatch(r"Masses|Atom\s+Type\s+Labels", words):
                return True
    return False
