"""The runs of the demonstration: heat a molecule, compress a crystal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from uqcalc.calculator import ReliableCalculator, default_calculator
from uqcalc.defaults import shipped_probe
from uqcalc.errors import MissingExtraError
from uqcalc.files.writing import whole
from uqcalc.models.named import open_model
from uqcalc.probe.card import Card
from uqcalc.progress import progress_bar
from uqcalc.signals.probe import ProbeSignal
from uqcalc.watching.monitor import Monitor


TIMESTEP_FS = 0.5
KEEP_EVERY = 10


@dataclass(frozen=True, slots=True, eq=False)
class DemoRun:
    """A monitored run with the frames that were kept and, if known, their true errors.

    ``errors`` are true RMS force errors in eV/Å, NaN where the reference did not
    converge, None where there is no reference.
    """

    monitor: Monitor
    card: Card
    frames: list[Atoms]
    errors: np.ndarray | None


def watch_aspirin(output: Path, *, seed: int, picoseconds: float = 2.0) -> DemoRun:
    """Heat aspirin from 300 to 3000 K until a halt, and compute the true errors."""
    reference = _xtb()
    with as_file(files("uqcalc") / "data" / "aspirin.xyz") as path:
        atoms = cast("Atoms", read(path))
    atoms.calc = default_calculator()
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    dynamics = _langevin(atoms, rng)
    steps = round(picoseconds * 1000 / TIMESTEP_FS)

    def heat() -> None:
        share = min(dynamics.nsteps / steps, 1.0)
        dynamics.set_temperature(temperature_K=300 + 2700 * share)

    monitor, frames = _watch(dynamics, output / "aspirin", steps, heat)
    errors = true_errors(frames, reference)
    for frame, error in zip(frames, errors, strict=True):
        frame.info["true_force_error"] = float(error)
    _write(output / "aspirin.xyz", frames)
    return DemoRun(monitor, _card(atoms.calc), frames, errors)


def watch_crystal(output: Path, *, seed: int, steps: int = 160) -> DemoRun:
    """Compress rutile at 300 K with CHGNet, a universal potential, until a halt."""
    atoms = _rutile()
    atoms.calc = ReliableCalculator(
        open_model("chgnet", device="cpu"), probe=shipped_probe("chgnet")
    )
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    dynamics = _langevin(atoms, rng, timestep_fs=1.0)

    def squeeze() -> None:
        atoms.set_cell(atoms.cell * 0.998, scale_atoms=True)

    monitor, frames = _watch(dynamics, output / "crystal", steps, squeeze)
    _write(output / "crystal.xyz", frames)
    return DemoRun(monitor, _card(atoms.calc), frames, None)


def _langevin(
    atoms: Atoms, rng: np.random.Generator, timestep_fs: float = TIMESTEP_FS
) -> Langevin:
    return Langevin(
        atoms,
        timestep_fs * units.fs,
        temperature_K=300,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )


def _watch(
    dynamics: Langevin,
    stem: Path,
    steps: int,
    drive: Callable[[], None],
) -> tuple[Monitor, list[Atoms]]:
    monitor = Monitor(
        dynamics,
        log=stem.with_suffix(".jsonl"),
        flagged=stem.with_name(stem.name + "_flagged.xyz"),
        history=None,
    )
    frames: list[Atoms] = []
    with progress_bar() as progress:
        task = progress.add_task(f"watching {stem.name}", total=steps)

        def keep() -> None:
            progress.update(task, completed=dynamics.nsteps)
            if dynamics.nsteps % KEEP_EVERY == 0 or monitor.halted:
                frames.append(monitor.snapshot())

        dynamics.insert_observer(keep, position=1)
        dynamics.attach(drive)
        dynamics.run(steps)
    return monitor, frames


def true_errors(frames: list[Atoms], reference: Any) -> np.ndarray:
    """Return the RMS force error of each frame in eV/Å, NaN if not converged."""
    errors = np.full(len(frames), np.nan)
    for index, frame in enumerate(frames):
        atoms = Atoms(frame.numbers, frame.positions)
        atoms.calc = reference
        try:
            difference = frame.arrays["predicted_forces"] - atoms.get_forces()
        except CalculationFailed:
            reference.reset()
            continue
        errors[index] = np.sqrt(np.mean(difference**2))
    return errors


def _xtb() -> Any:
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingExtraError("the demonstration's truth", "tblite", "xtb") from error
    return TBLite(method="GFN2-xTB", verbosity=0)


def _rutile() -> Atoms:
    """Rutile TiO₂, 12 atoms (a 4.594 Å, c 2.959 Å, u 0.305; 1x1x2 cells)."""
    from ase.spacegroup import crystal

    cell = crystal(
        ["Ti", "O"],
        basis=[(0, 0, 0), (0.305, 0.305, 0)],
        spacegroup=136,
        cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    )
    return Atoms(cell * (1, 1, 2))


def _card(calculator: ReliableCalculator) -> Card:
    return next(s.probe.card for s in calculator.signals if isinstance(s, ProbeSignal))


def _write(path: Path, frames: list[Atoms]) -> None:
    with whole(path) as partial:
        write(partial, frames, format="extxyz")
