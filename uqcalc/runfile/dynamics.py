"""Make the dynamics of ASE from the sections of a run file."""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer

from uqcalc.runfile.sections import MdSection, RelaxSection


_OPTIMIZERS = {"BFGS": BFGS, "LBFGS": LBFGS, "FIRE": FIRE}


def molecular_dynamics(
    md: MdSection, atoms: Atoms, *, fresh: bool = True
) -> MolecularDynamics:
    """Return the dynamics of ``md``; if the run is ``fresh``, set velocities first.

    The random numbers of ``seed`` go to the velocities and then to the heat bath.
    """
    rng = np.random.default_rng(md.seed)
    if fresh and md.velocities == "new":
        thermalize_momenta(atoms, temperature_K=md.temperature_at(0), rng=rng)
        if md.ensemble == "nve" and len(atoms) > 1 and not atoms.constraints:
            Stationary(atoms)  # no heat bath would stop a drift
    if md.ensemble == "nve":
        return VelocityVerlet(atoms, md.timestep_fs * units.fs)
    friction = cast("float", md.friction_per_fs) / units.fs
    if md.ensemble == "npt":
        return _constant_pressure(md, atoms, friction, rng)
    return Langevin(
        atoms,
        md.timestep_fs * units.fs,
        temperature_K=md.temperature_at(0),
        friction=friction,
        fixcm=False,
        rng=rng,
    )


def _constant_pressure(
    md: MdSection, atoms: Atoms, friction: float, rng: np.random.Generator
) -> MolecularDynamics:
    from ase.md.langevinbaoab import LangevinBAOAB

    with warnings.catch_warnings():
        # a message about the cell's mass, which follows from the time constant
        warnings.filterwarnings("ignore", message="Using heuristic P_mass")
        return LangevinBAOAB(
            atoms,
            md.timestep_fs * units.fs,
            temperature_K=md.temperature_at(0),
            externalstress=-cast("float", md.pressure_GPa) * units.GPa,
            hydrostatic=md.cell_shape == "fixed",
            T_tau=1 / friction,
            P_tau=cast("float", md.barostat_fs) * units.fs,
            rng=rng,
        )


def optimiser(relax: RelaxSection, atoms: Atoms) -> Optimizer:
    """Return the optimiser of ``relax``."""
    moved: Any = atoms
    if relax.cell:
        pressure = relax.pressure_GPa * units.GPa
        moved = FrechetCellFilter(atoms, scalar_pressure=pressure)
    dynamics: Optimizer = _OPTIMIZERS[relax.optimizer](moved, logfile=None)
    return dynamics
