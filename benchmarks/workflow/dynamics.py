"""Runs of one system with its potential, with reference forces of kept frames.

All runs of a system and of one part are one batch. A run is wrecked, and ends, if a
force exceeds 100 eV/Å or an atom of a molecule is more than 15 Å from the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses
from halting.judging import find_onset
from ramp import MAX_DISTANCE, MAX_FORCE
from sample import FAILURES

from workflow.potential import BatchedForces
from workflow.systems import System


TIMESTEP_FS, FRAME_FS = 1.0, 5.0
FRICTION, WARM_UP_FRICTION = 0.01, 0.05  # 1/fs
WARM_UP_STEPS = 300


@dataclass(frozen=True)
class Kind:
    """A kind of run: temperature at its start and end; steps and number of runs."""

    name: str
    start_K: float
    end_K: float
    runs: int
    steps: int = 2500


RAMP, LONG = "300 to 1500 K", "300 K, long"
LONG_STEPS = 12_500


def kinds_of(system: System, part: str) -> list[Kind]:
    """Return the kind of each run of a system; part is one of `PARTS`."""
    kinds = {
        "runs": (
            Kind("300 K", 300.0, 300.0, 2),
            Kind("600 K", 600.0, 600.0, 2),
            Kind(RAMP, 300.0, 1500.0, system.ramps),
        ),
        "long": (Kind(LONG, 300.0, 300.0, system.long, LONG_STEPS),),
    }
    return [kind for kind in kinds[part] for _ in range(kind.runs)]


PARTS = ("runs", "long")


@dataclass
class Run:
    """One run of a system; arrays have one row per kept frame.

    ``positions`` in Å, ``forces`` and ``truth`` in eV/Å (frames, atoms, 3), ``energy``
    in eV, ``features`` (frames, atoms, channels), ``temperature`` of the bath in K.
    ``truth`` is NaN where the reference did not converge. ``cell`` (3, 3) is zero for a
    molecule.
    """

    kind: str
    wrecked: bool
    numbers: np.ndarray
    cell: np.ndarray
    temperature: np.ndarray
    positions: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    features: np.ndarray
    truth: np.ndarray

    def atoms(self, index: int) -> Atoms:
        """Return one frame."""
        return structure(self.numbers, self.positions[index], self.cell)

    @property
    def error(self) -> np.ndarray:
        """RMS force error of each frame in eV/Å, (frames,)."""
        return np.sqrt(np.mean((self.forces - self.truth) ** 2, axis=(1, 2)))

    @property
    def onset(self) -> int | None:
        """Frame at which the run fails; for a wreck without one, the last frame."""
        found = find_onset(self.error)
        return len(self.energy) if found is None and self.wrecked else found


def structure(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray) -> Atoms:
    """Return a structure, periodic if it has a cell."""
    return Atoms(numbers, positions, cell=cell, pbc=bool(np.any(cell)))


class Batch:
    """State of all runs of a system, (runs, atoms, 3), moved by BAOAB."""

    def __init__(
        self,
        model: BatchedForces,
        starts: Sequence[Atoms],
        kinds: Sequence[Kind],
        seed: int,
    ) -> None:
        self.model, self.numbers = model, starts[0].numbers
        self.cell = starts[0].cell.array
        self.masses = atomic_masses[self.numbers][:, None]
        self.rng = np.random.default_rng(seed)
        self.positions = np.array([a.positions for a in starts])
        kelvin = np.array([k.start_K for k in kinds])
        spread = np.sqrt(units.kB * kelvin[:, None, None] / self.masses)
        self.velocities = spread * self.rng.normal(size=self.positions.shape)
        self.alive = np.ones(len(kinds), dtype=bool)
        self.evaluate()

    def evaluate(self) -> None:
        """Evaluate the active runs; mark those that must end as wrecked."""
        rows = np.flatnonzero(self.alive)
        frames = [structure(self.numbers, self.positions[r], self.cell) for r in rows]
        out = self.model.output(frames)
        shape = (len(rows), len(self.numbers), -1)
        self.forces = np.zeros_like(self.positions)
        self.forces[rows] = out["forces"].numpy().astype(float).reshape(shape)
        self.energy = np.zeros(len(self.alive))
        self.energy[rows] = out["energy"].detach().numpy()
        features = out["node_feats"].detach().numpy().reshape(shape)
        width = features.shape[2] // 2  # the last of two interactions
        self.features = np.zeros((*self.positions.shape[:2], width), np.float32)
        self.features[rows] = features[:, :, width:]
        largest = np.linalg.norm(self.forces, axis=2).max(axis=1)
        centre = self.positions.mean(axis=1, keepdims=True)
        far = np.linalg.norm(self.positions - centre, axis=2).max(axis=1)
        apart = (far > MAX_DISTANCE) & ~np.any(self.cell)
        self.alive &= (largest <= MAX_FORCE) & ~apart

    def step(self, kelvin: np.ndarray, friction: float) -> None:
        """Make one step of all active runs."""
        half = 0.5 * TIMESTEP_FS * units.fs
        keep = np.exp(-friction * TIMESTEP_FS)
        spread = np.sqrt((1 - keep**2) * units.kB * kelvin[:, None, None] / self.masses)
        noise = self.rng.normal(size=self.positions.shape)
        on = self.alive[:, None, None]
        self.velocities += half * self.forces / self.masses * on
        self.positions += half * self.velocities * on
        self.velocities = keep * self.velocities + spread * noise
        self.positions += half * self.velocities * on
        if self.alive.any():
            self.evaluate()
        self.velocities += half * self.forces / self.masses


def simulate(
    model: BatchedForces, starts: Sequence[Atoms], kinds: Sequence[Kind], seed: int
) -> list[Run]:
    """Warm up and run; reference forces are not computed yet.

    All kinds must have the same number of steps.
    """
    batch = Batch(
        model, [starts[i % len(starts)] for i in range(len(kinds))], kinds, seed
    )
    first = np.array([k.start_K for k in kinds])
    last = np.array([k.end_K for k in kinds])
    every = round(FRAME_FS / TIMESTEP_FS)
    for _ in range(WARM_UP_STEPS):
        batch.step(first, WARM_UP_FRICTION)
    if not batch.alive.all():
        message = "all runs must survive the warm-up, got a wreck"
        raise RuntimeError(message)
    kept: list[list[tuple]] = [[] for _ in kinds]
    steps = kinds[0].steps
    for step in range(1, steps + 1):
        kelvin = first + (last - first) * step / steps
        batch.step(kelvin, FRICTION)
        for row in np.flatnonzero(batch.alive) if step % every == 0 else ():
            found = (batch.positions, batch.energy, batch.forces, batch.features)
            kept[row].append((kelvin[row], *(np.array(x[row]) for x in found)))
    runs = []
    for kind, alive, rows in zip(kinds, batch.alive, kept, strict=True):
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        head = (kind.name, not alive, batch.numbers, batch.cell)
        runs.append(Run(*head, *columns, truth=np.zeros(0)))
    return runs


def label(run: Run, system: System) -> None:
    """Set the reference forces of all frames; NaN for a frame without convergence."""
    run.truth = np.full(run.positions.shape, np.nan)
    atoms = run.atoms(0)
    atoms.calc = system.reference()
    for index, frame in enumerate(run.positions):
        atoms.positions = frame
        try:
            run.truth[index] = atoms.get_forces()
        except FAILURES:
            atoms.calc = (
                system.reference()
            )  # the next frame must not start from the failed one


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Write all runs of a part to a temporary file, which is then renamed."""
    arrays = {
        f"{number} {field.name}": np.asarray(getattr(run, field.name))
        for number, run in enumerate(runs)
        for field in fields(Run)
    }
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def read_runs(path: Path) -> list[Run]:
    """Read what `write_runs` wrote."""
    with np.load(path) as data:
        count = 1 + max(int(name.split()[0]) for name in data.files)
        rows = [
            {field.name: data[f"{number} {field.name}"] for field in fields(Run)}
            for number in range(count)
        ]
    for row in rows:
        row["kind"], row["wrecked"] = str(row["kind"]), bool(row["wrecked"])
    return [Run(**row) for row in rows]
