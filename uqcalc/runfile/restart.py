"""Save the state of a run every few steps, and continue from it after a kill."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.errors import RecordError
from uqcalc.files.writing import whole


# What the barostat of `ase.md.langevinbaoab` carries from step to step.
_BAROSTAT = ("p_eps", "force_eps")


@dataclass(frozen=True, slots=True, eq=False)
class Restart:
    """All that the next step of a run depends on.

    Molecular dynamics goes on as if it had not been stopped, noise included, to within
    the rounding of the potential. An optimiser begins anew at the saved geometry,
    without what it had learnt of the curvature.

    Attributes
    ----------
    step : int
    run : str
        Which run it belongs to.
    positions, momenta : arrays (atoms, 3)
        In Å and in ASE's unit of momentum.
    cell : array (3, 3)
        In Å.
    generator : dict or None
        State of the random numbers, where the dynamics draws any.
    barostat : dict of arrays
        Momentum of the cell and the force on it; empty without a barostat.
    """

    step: int
    run: str
    positions: NDArray[np.float64]
    momenta: NDArray[np.float64]
    cell: NDArray[np.float64]
    generator: dict[str, Any] | None
    barostat: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, step: int, run: str, atoms: Atoms, dynamics: Any) -> Restart:
        """Take the state of a run between two steps."""
        generator = getattr(dynamics, "rng", None)
        return cls(
            step,
            run,
            atoms.get_positions(),
            atoms.get_momenta(),
            atoms.cell.array.copy(),
            None if generator is None else generator.bit_generator.state,
            {
                k: np.array(getattr(dynamics, k))
                for k in _BAROSTAT
                if hasattr(dynamics, k)
            },
        )

    def place(self, atoms: Atoms, *, moving: bool) -> None:
        """Put ``atoms`` where they were, and let them move as they did."""
        atoms.set_cell(self.cell, scale_atoms=False, apply_constraint=False)
        atoms.set_positions(self.positions, apply_constraint=False)
        if moving:
            atoms.set_momenta(self.momenta, apply_constraint=False)

    def wind(self, dynamics: Any) -> None:
        """Put what the dynamics itself carries back to what it was."""
        if self.generator is not None:
            dynamics.rng.bit_generator.state = self.generator
        for name, value in self.barostat.items():
            setattr(dynamics, name, value.copy() if value.ndim else float(value))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        arrays: dict[str, Any] = {"positions": self.positions, "momenta": self.momenta}
        arrays |= {"cell": self.cell, **self.barostat}
        rest = json.dumps(
            {"step": self.step, "run": self.run, "generator": self.generator}
        )
        with whole(path) as partial, partial.open("wb") as file:
            np.savez(file, rest=np.array(rest), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Restart:
        """Read what `save` wrote.

        Raises
        ------
        RecordError
            If the file is something else.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream) as file:
                arrays = dict(file)
            rest = json.loads(str(arrays.pop("rest")))
            return cls(
                rest["step"],
                rest["run"],
                arrays.pop("positions"),
                arrays.pop("momenta"),
                arrays.pop("cell"),
                rest["generator"],
                arrays,
            )
        except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
            msg = (
                f"restart file must be one that uqcalc saved, got {path} ({error}); "
                "to start anew, remove this file and the log beside it"
            )
            raise RecordError(msg) from error
