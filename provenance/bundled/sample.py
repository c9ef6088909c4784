"""Sample GFN2-xTB molecular dynamics frames of the enumerated molecules.

Each molecule is embedded and optimised with MMFF. Langevin dynamics with GFN2-xTB at
rising temperatures follows. Frames have `REF_energy` (eV),
`REF_forces` (eV/Angstrom), `molecule` (SMILES), `temperature` and `kind`.
"""

import argparse
import json
import multiprocessing
import os
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculatorError
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from molecules import write_text
from rdkit import Chem
from rdkit.Chem import AllChem
from tblite.ase import TBLite


BACKBONE_PLAN = {300.0: 9, 600.0: 4, 1000.0: 3}
VALIDATION_PLAN = {300.0: 10, 600.0: 4, 1000.0: 4}
EQUILIBRATION_FS = {300.0: 100.0, 600.0: 60.0, 1000.0: 60.0}
SPACING_FS = 20.0
FRICTION = 0.05 / units.fs
FAILURES = (CalculatorError, RuntimeError)


@dataclass
class Sampled:
    """Frames of one molecule, and failures."""

    molecule: str
    frames: list[Atoms] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def xtb() -> TBLite:
    """Return a silent GFN2-xTB calculator."""
    return TBLite(method="GFN2-xTB", verbosity=0)


def seed_of(smiles: str, purpose: str) -> int:
    """Derive a seed from the molecule and the purpose."""
    return zlib.crc32(f"{purpose}|{smiles}".encode()) & 0x7FFFFFFF


def embed(smiles: str, seed: int) -> Atoms:
    """Return a conformer of the molecule, MMFF (or UFF) optimised."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    status = AllChem.EmbedMolecule(mol, randomSeed=seed)
    if status != 0:
        status = AllChem.EmbedMolecule(mol, randomSeed=seed, useRandomCoords=True)
    if status != 0:
        message = f"molecule must be embeddable, got {smiles}"
        raise ValueError(message)
    if AllChem.MMFFHasAllMoleculeParams(mol):
        AllChem.MMFFOptimizeMolecule(mol, maxIters=2000)
    else:
        AllChem.UFFOptimizeMolecule(mol, maxIters=2000)
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    return Atoms(numbers, positions=mol.GetConformer().GetPositions())


def snapshot(atoms: Atoms, smiles: str, temperature: float, kind: str) -> Atoms:
    """Return the labelled frame; the calculator of `atoms` gives the labels."""
    frame = Atoms(atoms.numbers, positions=atoms.positions)
    frame.info.update(
        REF_energy=float(atoms.get_potential_energy()),
        molecule=smiles,
        temperature=temperature,
        kind=kind,
    )
    frame.arrays["REF_forces"] = np.array(atoms.get_forces())
    return frame


def run_plan(smiles: str, plan: dict[float, int], purpose: str) -> Sampled:
    """Run the temperatures of the plan one after another and collect frames."""
    sampled = Sampled(smiles)
    try:
        atoms = embed(smiles, seed_of(smiles, purpose))
    except ValueError as error:
        sampled.failures.append(str(error))
        return sampled
    rng = np.random.RandomState(seed_of(smiles, purpose + "-momenta"))
    atoms.calc = xtb()
    thermalize_momenta(atoms, min(plan), rng=rng)
    for temperature, count in plan.items():
        step = 1.0 if temperature <= 1000.0 else 0.5
        dynamics = Langevin(
            atoms,
            step * units.fs,
            temperature_K=temperature,
            friction=FRICTION,
            fixcm=False,
            rng=rng,
        )
        try:
            dynamics.run(round(EQUILIBRATION_FS[temperature] / step))
            for _ in range(count):
                dynamics.run(round(SPACING_FS / step))
                frame = snapshot(atoms, smiles, temperature, "xtb_md")
                sampled.frames.append(frame)
        except FAILURES as error:
            sampled.failures.append(f"{smiles} at {temperature:.0f} K: {error}")
            break
    return sampled


def write_frames(path: Path, frames: list[Atoms]) -> None:
    """Write an extxyz file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    ase.io.write(temporary, frames, format="extxyz")
    os.replace(temporary, path)  # noqa: PTH105


def collect(results: Iterable[Sampled], total: int) -> tuple[list[Atoms], list[str]]:
    """Return the frames and failures of all molecules, and print the progress."""
    frames: list[Atoms] = []
    failures: list[str] = []
    start = time.monotonic()
    for done, sampled in enumerate(results, 1):
        frames += sampled.frames
        failures += sampled.failures
        if done % 20 == 0 or done == total:
            elapsed = time.monotonic() - start
            print(f"{done}/{total} {len(frames)} frames {elapsed:.0f} s", flush=True)
    return frames, failures


def read_groups(data: Path) -> dict[str, list[str]]:
    """Read the split that `molecules.py` wrote."""
    payload = json.loads((data / "molecules.json").read_text(encoding="utf-8"))
    return payload["groups"]


def sample_group(name: str, data: Path, plan: dict[float, int], workers: int) -> None:
    """Sample all molecules of one group and write frames and summary."""
    molecules = read_groups(data)[name]
    job = partial(run_plan, plan=plan, purpose=name)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = pool.imap(job, molecules, chunksize=1)
        frames, failures = collect(results, len(molecules))
    write_frames(data / f"{name}.xyz", frames)
    summary = {"frames": len(frames), "failures": failures}
    write_text(data / f"{name}.summary.json", json.dumps(summary, indent=1))
    print(f"{name}: {len(frames)} frames, {len(failures)} failures", flush=True)


def main() -> None:
    """Sample the training and validation sets of the backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("bundled_data"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    plans = {"backbone_validation": VALIDATION_PLAN, "backbone": BACKBONE_PLAN}
    for name, plan in plans.items():
        sample_group(name, arguments.data, plan, arguments.workers)


if __name__ == "__main__":
    main()
