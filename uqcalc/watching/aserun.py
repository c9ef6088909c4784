"""Access to the structure, the calculator and the time step of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.md import MolecularDynamics
from ase.mep.neb import BaseNEB
from ase.optimize.basin import BasinHopping

from uqcalc.watching.enginerun import EngineRun


def watched_atoms(dynamics: Any) -> Atoms:
    """Return the structure that an MD or optimiser object moves.

    Raises
    ------
    TypeError
        If the object does not move exactly one structure.
    """
    watched: Any = getattr(dynamics, "atoms", None)
    while not isinstance(watched, Atoms) and hasattr(watched, "atoms"):
        watched = watched.atoms  # a Filter: the structure is inside
    if not isinstance(watched, Atoms):
        msg = (
            "dynamics must be an MD or optimiser object that moves one structure, "
            f"got {type(dynamics).__name__} around {type(watched).__name__}; "
            "pass the object whose run() you call"
        )
        raise TypeError(msg)
    return watched


def watched_band(dynamics: Any) -> Any | None:
    """Return the band of images that an optimiser moves; None without a band."""
    moved: Any = getattr(dynamics, "atoms", None)
    return moved if isinstance(moved, BaseNEB) else None


def reliable_calculator(atoms: Atoms) -> Any:
    """Return the `ReliableCalculator` of ``atoms``.

    Raises
    ------
    ValueError
        If the calculator has no ``assess`` method.
    """
    calculator = atoms.calc
    if not hasattr(calculator, "assess"):
        msg = (
            "atoms must carry a ReliableCalculator, got "
            f"{type(calculator).__name__}; set atoms.calc = ReliableCalculator(...)"
        )
        raise ValueError(msg)
    return calculator


def timestep_fs(dynamics: Any) -> float | None:
    """Return the time step in fs; None for optimisers."""
    if isinstance(dynamics, EngineRun):
        return dynamics.timestep_fs
    is_md = isinstance(dynamics, MolecularDynamics)
    return float(dynamics.dt) / units.fs if is_md else None


def has_converged(dynamics: Any) -> bool | None:
    """Return whether an optimiser has converged; None if this is not defined.

    The ``fmax`` of `BasinHopping` is that of its inner minimisations.
    """
    if getattr(dynamics, "fmax", None) is None or not hasattr(dynamics, "converged"):
        return None  # also an optimiser that has not begun, and NEBOptimizer
    return bool(dynamics.converged())


def counts_steps(dynamics: Any) -> bool:
    """Return whether the object counts ``nsteps``; `BasinHopping` leaves it at 0."""
    return not isinstance(dynamics, BasinHopping)


def is_complete(dynamics: Any) -> bool:
    """Return whether the run ends with this step, by the criterion of the dynamics."""
    if has_converged(dynamics):
        return True
    # SciPy's optimisers set max_steps only after the first call
    started = isinstance(dynamics, MolecularDynamics) or dynamics.nsteps > 0
    return bool(started and dynamics.nsteps >= dynamics.max_steps)


def is_finite(results: Mapping[str, Any], *, stress: bool = False) -> bool:
    """Return whether energy, forces and, if ``stress``, the stress are finite."""
    names = [
        "energy",
        "forces",
        *(["stress"] if stress and "stress" in results else []),
    ]
    return all(bool(np.all(np.isfinite(results[name]))) for name in names)
