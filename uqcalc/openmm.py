"""`ReliabilityReporter`: a reporter of OpenMM that logs verdicts and stops a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from uqcalc.errors import UnreliableError
from uqcalc.records import checked_interval
from uqcalc.watching.aserun import reliable_calculator
from uqcalc.watching.enginerun import EngineRun
from uqcalc.watching.monitor import Monitor


# nm/ps in ASE's unit of velocity
_VELOCITY = 10 / (1000 * units.fs)
# Å. On some platforms OpenMM gives positions to a potential in single precision.
_SAME = 1e-3


class OpenMMRun(EngineRun):
    """The atoms of a simulation of OpenMM that an ASE calculator moves."""


class ReliabilityReporter:
    """Log the reliability of an OpenMM simulation, and stop it.

    The potential of the simulation is a `ReliableCalculator`:
    ``MLPotential("ase").createSystem(topology, calculator=calc)`` of OpenMM-ML. The
    verdict covers the atoms that this calculator sees. In a simulation with molecular
    mechanics (``createMixedSystem``) these are the atoms of the ML region; the force
    field and its interaction with the region are not judged.

    OpenMM has no other way to stop a simulation than an exception: `UnreliableError`
    ends ``simulation.step`` after the report of that step, and the simulation keeps its
    state. Append this reporter after the others, so that they get the last step, too.

    Parameters
    ----------
    calculator : ReliableCalculator
        The calculator of the potential.
    interval : int
        Number of steps from report to report.
    atoms : sequence of int, optional
        Indices of the atoms of the calculator, as for ``createMixedSystem``. By default
        all particles.
    **monitor_options
        Passed to `uqcalc.Monitor`: ``log``, ``flagged``, ``patience`` and so on. All
        actions but "rewind" are possible.

    Attributes
    ----------
    monitor : Monitor or None
        None before the first report.
    covers : str
        Which atoms the verdict covers, in words; empty before the first report.
    extra_passes : int
        Reports whose geometry the calculator had to evaluate once more, because another
        geometry was the last one that OpenMM asked for.

    Raises
    ------
    ValueError
        If the calculator judges nothing, or ``interval`` is not a whole number of at
        least 1.
    """

    def __init__(
        self,
        calculator: Any,
        interval: int = 1,
        *,
        atoms: Sequence[int] | None = None,
        **monitor_options: Any,
    ) -> None:
        reliable_calculator(Atoms(calculator=calculator))
        self.calculator = calculator
        self.interval = checked_interval(interval, "interval")
        self.monitor: Monitor | None = None
        self.covers = ""
        self.extra_passes = 0
        self._chosen = None if atoms is None else [*atoms]
        self._options = monitor_options
        self._run: OpenMMRun | None = None

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """Return when the next report is, and what it needs."""
        steps = self.interval - simulation.currentStep % self.interval
        # forces: OpenMM then evaluates the geometry of the report, and keeps the result
        include = ["positions", "velocities", "forces"]
        # as the potential gets them: molecules stay as they are at the boundary
        return {"steps": steps, "periodic": False, "include": include}

    def report(self, simulation: Any, state: Any) -> None:
        """Judge and log a step.

        Raises
        ------
        UnreliableError
            If the monitor halts the simulation.
        ValueError
            If the calculator has evaluated nothing, or has another number of atoms than
            were named.
        """
        step = int(simulation.currentStep)
        if self._run is None:
            self._run = self._start(simulation, state)
        else:
            self._place(self._run.atoms, state)
        if self._run.arrived(step):
            monitor = self.monitor
            if monitor is None or monitor.last is None:
                msg = "a halted monitor must have an assessment, got none"
                raise RuntimeError(msg)
            raise UnreliableError(monitor.step, monitor.last)

    def _start(self, simulation: Any, state: Any) -> OpenMMRun:
        """Begin with the structure that the calculator has evaluated last."""
        seen = self.calculator.atoms
        particles = simulation.system.getNumParticles()
        indices = [*range(particles)] if self._chosen is None else self._chosen
        if seen is None or len(seen) != len(indices):
            found = "none" if seen is None else f"{len(seen)} atoms"
            msg = (
                f"calculator must be that of the simulation and see {len(indices)} "
                f"atoms, got {found}; pass the same calculator and the same atoms= as "
                "to MLPotential"
            )
            raise ValueError(msg)
        self._chosen = indices
        self.covers = _covered(len(indices), particles)
        atoms = seen.copy()
        atoms.calc = self.calculator
        masses = atoms.get_masses()
        given = [_number(simulation.system.getParticleMass(i)) for i in indices]
        # without mass: OpenMM does not move this atom
        atoms.set_masses(np.where(np.array(given) > 0, given, masses))
        self._place(atoms, state)
        step_ps = _number(simulation.integrator.getStepSize())
        run = OpenMMRun(atoms, step_ps * 1000, int(simulation.currentStep))
        about = {"atoms": indices, "particles": particles, "covers": self.covers}
        self.monitor = Monitor(run, about=about, **self._options)
        return run

    def _place(self, atoms: Atoms, state: Any) -> None:
        """Set ``atoms`` to the geometry and the velocities of a report."""
        positions = _numbers(state.getPositions(asNumpy=True))[self._chosen] * 10
        velocities = _numbers(state.getVelocities(asNumpy=True))[self._chosen]
        seen = self.calculator.atoms
        if seen.positions.shape == positions.shape and np.allclose(
            seen.positions, positions, rtol=0.0, atol=_SAME
        ):
            positions = seen.positions  # to the last digit: no further evaluation
            atoms.set_cell(seen.cell)
        else:
            self.extra_passes += 1
            if atoms.pbc.any():
                vectors = state.getPeriodicBoxVectors(asNumpy=True)
                atoms.set_cell(_numbers(vectors) * 10)
        atoms.positions = positions
        atoms.set_velocities(velocities * _VELOCITY)


def _covered(chosen: int, particles: int) -> str:
    if chosen == particles:
        return f"the verdict covers all {particles} atoms"
    return (
        f"the verdict covers {chosen} of {particles} atoms, those of the ML region; "
        "the force field and its interaction with them are not judged"
    )


def _number(quantity: Any) -> float:
    """Return a quantity of OpenMM in its own units: nm, ps, dalton."""
    return float(quantity._value)


def _numbers(quantity: Any) -> NDArray[np.float64]:
    """Return an array of OpenMM in its own units: nm, nm/ps."""
    return np.asarray(quantity._value, dtype=float)
