"""Molecules for the bundled MACE with GFN2-xTB labels, kept in a cache."""

from __future__ import annotations

import functools
import multiprocessing
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from ase.optimize import FIRE
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


SEED = 22
TEACHING = 80  # training molecules of the potential
ORDINARY = 20  # other molecules, here and below
DISTORTED = 14
TOGETHER = 10  # heated in one batch
RAMPED = (
    "aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde", "naphthalene",
    "paracetamol", "salicylic_acid", "toluene", "uracil",
)  # fmt: skip
ORDINARY_HEAT = (1000.0, 300, 25, 1.0)  # end in K, steps, spacing, time step in fs
RAMP_HEAT = (2500.0, 1400, 70, 0.5)
AMPLITUDES = np.geomspace(0.01, 0.3, 14)  # Å
SCALES = np.concatenate([np.linspace(0.85, 0.98, 7), np.linspace(1.02, 1.25, 7)])
STRETCHES = np.linspace(0.1, 2.0, 14)  # Å
RADICALS = 10  # structures a molecule
ENERGY, FORCES = "REF_energy", "REF_forces"


def sample(cache: Path, workers: int = 2) -> None:
    """Make the sets of frames that the cache lacks."""
    for name, make in _makers(workers).items():
        path = cache / f"{name}.xyz"
        if path.is_file():
            continue
        frames = make()
        partial = path.with_name(f".{name}.partial")
        ase.io.write(partial, frames, format="extxyz")
        partial.replace(path)
        print(f"{name}: {len(frames)} frames", flush=True)


def teaching_frames(cache: Path) -> list[Atoms]:
    """Return the ordinary structures, for the fit of heads and members."""
    return ase.io.read(cache / "backbone.xyz", ":")


def labelled_blocks(cache: Path) -> dict[str, list[Atoms]]:
    """Return the test blocks; GFN2-xTB forces in ``REF_forces``, eV/Å."""
    names = [name for name in _makers(1) if name != "backbone"]
    return {name: ase.io.read(cache / f"{name}.xyz", ":") for name in names}


def _makers(workers: int) -> dict[str, Callable[[], list[Atoms]]]:
    return {
        "backbone": lambda: labelled(heated("backbone", workers), workers),
        "ordinary": lambda: labelled(heated("ordinary", workers), workers),
        "ramps": lambda: labelled(heated("ramps", workers), workers),
        "rattled": lambda: labelled(rattled(), workers),
        "scaled": lambda: labelled(scaled(), workers),
        "bond broken": lambda: labelled(stretched(), workers),
        "radicals": lambda: labelled(radicals(), workers),
    }


def molecules() -> dict[str, dict[str, str]]:
    """Return names and SMILES by use; only ``backbone`` are training molecules."""
    from molecules import HELD_OUT, split

    groups = split()
    rng = random.Random(SEED)
    seen = rng.sample(groups["backbone"], TEACHING)
    unseen = rng.sample(groups["probe_test"], ORDINARY + DISTORTED)
    return {
        "backbone": {smiles: smiles for smiles in seen},
        "ordinary": {smiles: smiles for smiles in unseen[:ORDINARY]},
        "distorted": {smiles: smiles for smiles in unseen[ORDINARY:]},
        "ramps": {name: HELD_OUT[name] for name in RAMPED},
    }


def labelled(frames: list[Atoms], workers: int) -> list[Atoms]:
    """Return the frames with GFN2-xTB labels, without those that do not converge."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        labels = list(pool.imap(_xtb_labels, frames, chunksize=8))
    kept = []
    for frame, label in zip(frames, labels, strict=True):
        if label is not None:
            frame.info[ENERGY], frame.arrays[FORCES] = label
            kept.append(frame)
    if len(kept) < len(frames):
        print(f"{len(frames) - len(kept)} frames without converged GFN2-xTB left out")
    return kept


def heated(name: str, workers: int) -> list[Atoms]:
    """Heat molecules with the bundled potential, from 300 K."""
    listed = list(molecules()[name].items())
    tasks = [
        (name, start, listed[start : start + TOGETHER])
        for start in range(0, len(listed), TOGETHER)
    ]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return [frame for part in pool.imap(_heated, tasks) for frame in part]


@functools.cache
def relaxed() -> list[tuple[str, Atoms]]:
    """Return molecules that are relaxed with the bundled potential, to be distorted."""
    from sample import embed

    from uqcalc.models.bundled import bare_calculator

    calculator = bare_calculator()
    found = []
    for smiles in molecules()["distorted"]:
        atoms = embed(smiles, SEED)
        atoms.calc = calculator
        FIRE(atoms, logfile=None).run(fmax=0.1, steps=60)
        atoms.calc = None
        found.append((smiles, atoms))
    return found


def rattled() -> list[Atoms]:
    """Displace each atom at random, by 0.01 to 0.3 Å."""
    rng = np.random.default_rng(SEED)
    return [
        _frame(
            atoms.numbers,
            atoms.positions + rng.normal(0, amplitude, atoms.positions.shape),
            smiles,
            amplitude=amplitude,
        )
        for smiles, atoms in relaxed()
        for amplitude in AMPLITUDES
    ]


def scaled() -> list[Atoms]:
    """Scale whole molecules by 0.85 to 1.25."""
    return [
        _frame(atoms.numbers, atoms.positions * scale, smiles, scale=scale)
        for smiles, atoms in relaxed()
        for scale in SCALES
    ]


def stretched() -> list[Atoms]:
    """Stretch one bond by up to 2 Å; the smaller side moves as a whole."""
    rng = np.random.default_rng(SEED)
    frames = []
    for smiles, atoms in relaxed():
        chosen = list(_bridges(atoms))
        start, end, side = chosen[rng.integers(len(chosen))]
        along = atoms.positions[end] - atoms.positions[start]
        along /= np.linalg.norm(along)
        for stretch in STRETCHES:
            positions = atoms.positions + stretch * np.outer(side, along)
            frames.append(_frame(atoms.numbers, positions, smiles, stretch=stretch))
    return frames


def radicals() -> list[Atoms]:
    """Remove one hydrogen atom, and rattle the others by 0.05 Å; doublets in xTB."""
    rng = np.random.default_rng(SEED)
    frames = []
    for smiles, atoms in relaxed():
        hydrogens = np.flatnonzero(atoms.numbers == 1)
        for gone in rng.choice(hydrogens, RADICALS):
            kept = np.arange(len(atoms)) != gone
            positions = atoms.positions + rng.normal(0, 0.05, atoms.positions.shape)
            frames.append(
                _frame(atoms.numbers[kept], positions[kept], smiles, multiplicity=2)
            )
    return frames


def _bridges(atoms: Atoms) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield each bond outside rings: its atoms, and the smaller of the two sides."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
    for start, end in zip(first, second, strict=True):
        rest = ~((first == start) & (second == end))
        rest &= ~((first == end) & (second == start))
        shape = (len(atoms), len(atoms))
        graph = coo_array((np.ones(rest.sum()), (first[rest], second[rest])), shape)
        parts, label = connected_components(graph, directed=False)
        side = label == label[end]
        if parts == 2 and label[start] != label[end] and 2 * side.sum() <= len(atoms):
            yield int(start), int(end), side.astype(float)


def _frame(numbers: np.ndarray, positions: np.ndarray, name: str, **more) -> Atoms:
    frame = Atoms(numbers, positions=positions)
    frame.info.update(molecule=name, **more)
    return frame


def _heated(task: tuple[str, int, list[tuple[str, str]]]) -> list[Atoms]:
    from ramp import Schedule, batched, new_ramp, run_ramps
    from sample import embed

    from uqcalc.models.bundled import load_model

    torch.set_num_threads(1)
    name, first, listed = task
    end, steps, every, step = RAMP_HEAT if name == "ramps" else ORDINARY_HEAT
    started = [
        new_ramp(one, embed(smiles, SEED), SEED + i, 300.0)
        for i, (one, smiles) in enumerate(listed, first)
    ]
    schedule = Schedule(300.0, end, steps, every, step)
    run_ramps(batched(load_model()), started, schedule)
    return [
        _frame(one.atoms.numbers, positions, one.molecule, temperature=temperature)
        for one in started
        for temperature, positions in one.frames
    ]


def _xtb_labels(frame: Atoms) -> tuple[float, np.ndarray] | None:
    from sample import FAILURES, xtb

    calculator = xtb()
    calculator.set(multiplicity=frame.info.get("multiplicity", 1))
    try:
        forces = np.array(calculator.get_forces(frame))
        return float(calculator.get_potential_energy(frame)), forces
    except FAILURES:
        return None
