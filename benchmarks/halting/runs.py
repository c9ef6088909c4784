"""Runs of molecules with the bundled potential, with reference forces of kept frames.

Each run is one `.npz` file with its description, its positions every 5 fs, and the
GFN2-xTB forces of these. It is made once, and all detectors use the same frames.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from common import BUNDLED


sys.path.insert(0, str(BUNDLED))
from molecules import HELD_OUT, split
from ramp import Ramp, Schedule, batched, new_ramp, run_ramps
from sample import FAILURES, embed, seed_of, xtb

from uqcalc.models.bundled import load_model


FRAME_FS = 5.0
PICOSECONDS = 5.0
FRICTION_PER_FS = 0.01
EQUILIBRATION = Schedule(300.0, 300.0, 500, 500, 1.0, 0.05)
# at 300 K a time step of 1 fs is usual
SCHEDULES = {
    "heated": Schedule(300.0, 2500.0, 10_000, 10, 0.5, FRICTION_PER_FS),
    "steady": Schedule(300.0, 300.0, 5_000, 5, 1.0, FRICTION_PER_FS),
}
RMD17 = (
    "aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene",
    "paracetamol", "salicylic_acid", "toluene", "uracil",
)  # fmt: skip
SEEDS = 6
TUNING_MOLECULES = 24
CHUNK = 20


@dataclass(frozen=True)
class RunSpec:
    """Which run: `purpose` "test" or "tuning", `kind` "heated" or "steady"."""

    purpose: str
    kind: str
    molecule: str
    smiles: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the cached file."""
        return f"{self.purpose}-{self.kind}-{self.molecule}-{self.seed}"


@dataclass
class Run:
    """A finished run and its reference forces.

    `temperature` (frames,) K of the bath; `positions` (frames, atoms, 3) Å; `truth`
    (frames, atoms, 3) eV/Å, NaN where the reference did not converge.
    """

    spec: RunSpec
    stopped: str
    numbers: np.ndarray
    temperature: np.ndarray
    positions: np.ndarray
    truth: np.ndarray

    def frames(self) -> list[Atoms]:
        """Return the kept frames."""
        return [Atoms(self.numbers, positions=p) for p in self.positions]


def all_specs(seeds: int = SEEDS) -> list[RunSpec]:
    """Return all runs: ten heated and ten steady ones a seed, and those for tuning."""
    unseen = split()["probe_test"]
    tuning = unseen[:: len(unseen) // TUNING_MOLECULES][:TUNING_MOLECULES]
    specs = []
    for kind in ("heated", "steady"):
        specs += [
            RunSpec("test", kind, name, HELD_OUT[name], seed)
            for seed in range(seeds)
            for name in RMD17
        ]
        specs += [
            RunSpec("tuning", kind, f"m{number:02d}", smiles, 0)
            for number, smiles in enumerate(tuning)
        ]
    return specs


def simulate(specs: list[RunSpec]) -> list[Ramp]:
    """Equilibrate, then follow the schedule, all runs in one batch."""
    torch.set_num_threads(1)
    forces = batched(load_model())
    ramps = [
        new_ramp(
            spec.name,
            embed(spec.smiles, seed_of(spec.smiles, f"{spec.name} geometry")),
            seed_of(spec.smiles, f"{spec.name} momenta"),
            EQUILIBRATION.start_K,
        )
        for spec in specs
    ]
    run_ramps(forces, ramps, EQUILIBRATION)
    for ramp in ramps:
        if ramp.stopped:
            message = f"{ramp.molecule} must survive 0.5 ps at 300 K, {ramp.stopped}"
            raise RuntimeError(message)
        ramp.frames.clear()
    run_ramps(forces, ramps, SCHEDULES[specs[0].kind])
    return ramps


def label(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return GFN2-xTB forces of all frames; NaN for a frame without convergence."""
    truth = np.full(positions.shape, np.nan, dtype=np.float32)
    atoms = Atoms(numbers, positions=positions[0])
    atoms.calc = xtb()
    for index, frame in enumerate(positions):
        atoms.positions = frame
        try:
            truth[index] = atoms.get_forces()
        except FAILURES:
            atoms.calc = (
                xtb()
            )  # the next frame must not start from the failed calculation
    return truth


def make_chunk(specs: list[RunSpec], folder: Path) -> None:
    """Simulate some runs of one kind together, label them and write each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for spec, ramp in zip(specs, simulate(specs), strict=True):
        # reference forces are for the positions as stored
        positions = np.array([p for _, p in ramp.frames], dtype=np.float32)
        temperature = np.array([t for t, _ in ramp.frames])
        truth = label(ramp.atoms.numbers, positions.astype(float))
        run = Run(spec, ramp.stopped, ramp.atoms.numbers, temperature, positions, truth)
        write_run(folder, run)


def write_run(folder: Path, run: Run) -> None:
    """Write one run to a temporary file, which is then renamed."""
    path = folder / f"{run.spec.name}.npz"
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(
            file,
            about=json.dumps({**asdict(run.spec), "stopped": run.stopped}),
            numbers=run.numbers,
            temperature=run.temperature,
            positions=run.positions,
            truth=run.truth,
        )
    partial.replace(path)


def read_run(folder: Path, spec: RunSpec) -> Run:
    """Read what `write_run` wrote."""
    with np.load(folder / f"{spec.name}.npz") as data:
        stopped = json.loads(str(data["about"]))["stopped"]
        arrays = {k: data[k] for k in ("numbers", "temperature", "positions", "truth")}
    arrays["positions"] = arrays["positions"].astype(float)
    return Run(spec, stopped, **arrays)


def missing_chunks(folder: Path, seeds: int) -> Iterator[list[RunSpec]]:
    """Yield the runs that are not in the cache, runs of one kind together."""
    missing = [s for s in all_specs(seeds) if not (folder / f"{s.name}.npz").is_file()]
    for purpose in ("tuning", "test"):
        for kind in SCHEDULES:
            alike = [s for s in missing if (s.purpose, s.kind) == (purpose, kind)]
            for start in range(0, len(alike), CHUNK):
                yield alike[start : start + CHUNK]
