"""The extras of i-PI: the signals of a geometry as one JSON text.

i-PI writes each entry with a trajectory of ``extras``. The members of a committee have
the names and units that its ``ffcommittee`` reads with ``parse_json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import units

from uqcalc.watching.enginerun import shapes_of


class Extras:
    """Makes the extras of each geometry, always with the entries of the first one.

    i-PI needs the same entries from all beads. An entry that a geometry lacks, for
    example because it was not judged, is NaN.
    """

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def __call__(
        self, readings: Mapping[str, Any], results: Mapping[str, Any], atoms: int
    ) -> str:
        """Return the JSON text.

        Parameters
        ----------
        readings : mapping
            `uqcalc.types.Assessment.results`, empty for a geometry that was not judged.
        results : mapping
            Results of the calculator. ``energy_comm`` (members,) in eV and
            ``forces_comm`` (members, atoms, 3) in eV/Å become ``committee_pot``,
            ``committee_uncertainty`` (standard deviation over the members, with
            members - 1 in the denominator, as in i-PI) and ``committee_force``, in
            atomic units.
        atoms : int
            Number of atoms.
        """
        if self._shapes is None:
            self._shapes = shapes_of(readings, atoms)
        entries = {
            name: np.asarray(readings.get(name, np.full(shape, np.nan))).tolist()
            for name, shape in self._shapes.items()
        }
        if "energy_comm" in results:
            energies = np.asarray(results["energy_comm"], dtype=float) / units.Ha
            entries["committee_pot"] = energies.tolist()
            entries["committee_uncertainty"] = float(energies.std(ddof=1))
        if "forces_comm" in results:
            forces = np.asarray(results["forces_comm"], dtype=float)
            rows = forces.reshape(len(forces), -1) * units.Bohr / units.Ha
            entries["committee_force"] = rows.tolist()
        return json.dumps(entries)
