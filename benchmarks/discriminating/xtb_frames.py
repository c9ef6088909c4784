"""Frames with GFN2-xTB labels for the bundled backbone: new molecules, hot known ones.

Needs ``rdkit`` and the modules of ``provenance/bundled``. Molecules are named by
their SMILES; all seeds are derived from them.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from ase import Atoms
from ase.io import read
from common import BUNDLED


sys.path.insert(0, str(BUNDLED))
from molecules import split, write_text
from probe_frames import PLAN, label
from ramp import Ramp, Schedule, batched, new_ramp, run_ramps
from sample import Sampled, embed, run_plan, seed_of, write_frames

from uqcalc.models.bundled import load_model


UNSEEN = ("probe_train", "probe_calibration", "probe_test")
UNSEEN_MOLECULES, SEEN_MOLECULES = 162, 30
RAMP = Schedule(start_K=300.0, end_K=3000.0, steps=1400, every=60)  # 23 frames
HOT = Schedule(start_K=1200.0, end_K=1200.0, steps=2400, every=100)  # 24 frames
HOT_SKIPPED = 4  # frames: the first 0.2 ps thermalise
CHUNK = 9


def evenly(molecules: Sequence[str], count: int) -> list[str]:
    """Return ``count`` molecules, evenly spread over the list."""
    return [molecules[i * len(molecules) // count] for i in range(count)]


def unseen_molecules() -> list[str]:
    """Return molecules that are not in the training of the backbone."""
    groups = split()
    return evenly([s for name in UNSEEN for s in groups[name]], UNSEEN_MOLECULES)


def seen_molecules() -> list[str]:
    """Return training molecules of the backbone."""
    return evenly(split()["backbone"], SEEN_MOLECULES)


def unseen_frames(folder: Path, workers: int) -> list[Atoms]:
    """Return GFN2-xTB dynamics at 300 to 1000 K, and heated ramps on the backbone."""
    return _made(folder / "molecules", unseen_molecules(), sample_unseen, workers)


def hot_frames(folder: Path, workers: int) -> list[Atoms]:
    """Return dynamics with the backbone at 1200 K, of its training molecules."""
    return _made(folder / "hot", seen_molecules(), sample_hot, workers)


def sample_unseen(molecules: list[str]) -> list[Sampled]:
    """Sample a chunk of molecules with both kinds of dynamics."""
    results = [run_plan(s, PLAN, "discriminating") for s in molecules]
    heated = _heated(molecules, RAMP, "discriminating-ramp")
    for sampled, ramp in zip(results, heated, strict=True):
        _label_into(sampled, ramp, ramp.frames)
    return results


def sample_hot(molecules: list[str]) -> list[Sampled]:
    """Run dynamics of a chunk of molecules at 1200 K."""
    results = []
    for ramp in _heated(molecules, HOT, "discriminating-hot"):
        sampled = Sampled(ramp.molecule)
        _label_into(sampled, ramp, ramp.frames[HOT_SKIPPED:])
        results.append(sampled)
    return results


def _heated(molecules: list[str], schedule: Schedule, purpose: str) -> list[Ramp]:
    torch.set_num_threads(1)
    ramps = []
    for smiles in molecules:
        atoms = embed(smiles, seed_of(smiles, purpose))
        seed = seed_of(smiles, f"{purpose}-momenta")
        ramps.append(new_ramp(smiles, atoms, seed, schedule.start_K))
    run_ramps(batched(load_model()), ramps, schedule)
    return ramps


def _label_into(sampled: Sampled, ramp: Ramp, frames: Sequence[tuple]) -> None:
    if ramp.stopped:
        sampled.failures.append(f"{ramp.molecule}: dynamics stopped by {ramp.stopped}")
    for temperature, positions in frames:
        atoms = Atoms(ramp.atoms.numbers, positions=positions)
        labelled = label(atoms, ramp.molecule, temperature)
        kept = sampled.failures if isinstance(labelled, str) else sampled.frames
        kept.append(labelled)


def _made(
    folder: Path,
    molecules: list[str],
    sample: Callable[[list[str]], list[Sampled]],
    workers: int,
) -> list[Atoms]:
    """Sample the absent chunks of molecules, then read all frames."""
    chunks = range(0, len(molecules), CHUNK)
    paths = [folder / f"{start // CHUNK:02d}.xyz" for start in chunks]
    jobs = [
        (path, molecules[start : start + CHUNK])
        for path, start in zip(paths, chunks, strict=True)
        if not path.is_file()
    ]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for name in pool.imap_unordered(partial(_write_chunk, sample), jobs):
            elapsed = time.monotonic() - started
            print(f"{folder.name}/{name} {elapsed:.0f} s", flush=True)
    return [atoms for path in paths for atoms in read(path, ":")]


def _write_chunk(
    sample: Callable[[list[str]], list[Sampled]], job: tuple[Path, list[str]]
) -> str:
    path, molecules = job
    sampled = sample(molecules)
    failures = [text for one in sampled for text in one.failures]
    write_text(path.with_suffix(".failures.json"), json.dumps(failures, indent=1))
    write_frames(path, [atoms for one in sampled for atoms in one.frames])
    return path.name
