"""What a monitor watches: the structure, the calculator and the clock of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.md import MolecularDynamics
from ase.mep.neb import BaseNEB
from ase.optimize.basin import BasinHopping


def watched_atoms(dynamics: Any) -> Atoms:
    """Return the structure that an MD or optimiser object moves.

    Raises
    ------
    TypeError
        If it moves none, or several.
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
    """Return the band of images that an optimiser moves; None where it moves none."""
    moved: Any = getattr(dynamics, "atoms", None)
    return moved if isinstance(moved, BaseNEB) else None


def judging_calculator(atoms: Atoms) -> Any:
    """Return the calculator of ``atoms``, which must say how reliable it is.

    Raises
    ------
    ValueError
        If it is no `ReliableCalculator`.
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
    """Return the time step in fs; None for optimisers, whose steps are not in time."""
    is_md = isinstance(dynamics, MolecularDynamics)
    return float(dynamics.dt) / units.fs if is_md else None


def has_converged(dynamics: Any) -> bool | None:
    """Say whether an optimiser has converged; None where the question makes no sense.

    `BasinHopping` has a largest force, too, but of the minimisations inside it.
    """
    if getattr(dynamics, "fmax", None) is None or not hasattr(dynamics, "converged"):
        return None  # also an optimiser that has not begun, and NEBOptimizer
    return bool(dynamics.converged())


def counts_steps(dynamics: Any) -> bool:
    """Say whether ``nsteps`` goes up: `BasinHopping` leaves it at zero."""
    return not isinstance(dynamics, BasinHopping)


def is_complete(dynamics: Any) -> bool:
    """Say whether the run ends with this step, as the dynamics itself asks it."""
    if has_converged(dynamics):
        return True
    # SciPy's optimisers set max_steps only after the first call
    started = isinstance(dynamics, MolecularDynamics) or dynamics.nsteps > 0
    return bool(started and dynamics.nsteps >= dynamics.max_steps)


def is_finite(results: Mapping[str, Any], *, stress: bool = False) -> bool:
    """Say whether a run can go on: energy and forces, and the stress where it moves."""
    names = [
        "energy",
        "forces",
        *(["stress"] if stress and "stress" in results else []),
    ]
    return all(bool(np.all(np.isfinite(results[name]))) for name in names)
