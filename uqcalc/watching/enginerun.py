"""A run of another program than ASE, in the place of the dynamics of a `Monitor`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray


class EngineRun:
    """What a `Monitor` needs of a run whose atoms another program moves.

    The program that moves the atoms calls `arrived` once for each step, and ends its
    run if the answer is True. A `Monitor` on this object has all its options except
    "rewind": uqcalc cannot set the state of another program.

    Attributes
    ----------
    atoms : Atoms
        The structure of the present step, with its `ReliableCalculator`.
    nsteps : int
        Number of the present step, as the program counts.
    max_steps : float
        Infinite, or negative if an observer has asked for the end of the run.
    """

    def __init__(self, atoms: Atoms, timestep_fs: float | None, step: int = 0) -> None:
        self.atoms = atoms
        self.nsteps = step
        self.max_steps = math.inf
        self._timestep_fs = timestep_fs
        self._observers: list[Callable[[], Any]] = []

    @property
    def timestep_fs(self) -> float | None:
        """The time step in fs; None for a run without time."""
        return self._timestep_fs

    @property
    def stopped(self) -> bool:
        """Whether an observer has asked for the end of the run at the present step."""
        return self.max_steps < 0

    def insert_observer(self, observer: Callable[[], Any], position: int = 0) -> None:
        """Add a function that `arrived` calls, as in ASE."""
        self._observers.insert(position, observer)

    def attach(self, observer: Callable[[], Any]) -> None:
        """Add a function that `arrived` calls after all others, as in ASE."""
        self._observers.append(observer)

    def arrived(self, step: int) -> bool:
        """Call the observers for ``atoms`` at this step; return whether to stop."""
        self.nsteps, self.max_steps = step, math.inf
        for observer in self._observers:
            observer()
        return self.stopped


def virial_of(atoms: Atoms, results: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the virial in eV, (3, 3), in the convention of most programs.

    It is -V times the stress for a cell that is periodic in three directions, and the
    sum of r_i f_i without periodic directions. In any other case, and for a calculator
    without stress, it is NaN: the pressure is then not known.
    """
    if atoms.pbc.all() and results.get("stress") is not None:
        stress = voigt_6_to_full_3x3_stress(np.asarray(results["stress"], dtype=float))
        return np.asarray(-atoms.get_volume() * stress)
    if not atoms.pbc.any():
        tensor = atoms.positions.T @ np.asarray(results["forces"], dtype=float)
        return np.asarray((tensor + tensor.T) / 2)
    return np.full((3, 3), np.nan)


def shapes_of(results: Mapping[str, Any], atoms: int) -> dict[str, tuple[int, ...]]:
    """Return the numbers, and the arrays with a number per atom, by name and shape."""
    shapes = {name: np.shape(value) for name, value in results.items()}
    return {n: shape for n, shape in shapes.items() if shape in ((), (atoms,))}
