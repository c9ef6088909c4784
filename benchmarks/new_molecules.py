"""Label 40 molecules that are new to the bundled potential and to its probe.

Each molecule has eight runs of 25 frames: two at 300, 600 and 1000 K with MMFF94, and
two scans of one bond. The labels are GFN2-xTB. `benchmarks/new_systems.py` reads the
file:

    python benchmarks/new_molecules.py --output new_molecules.xyz
    python benchmarks/new_systems.py --model default --molecules new_molecules.xyz

It needs rdkit and ``uqcalc[xtb]``. ``--known`` names ``molecules.json`` of
provenance/bundled; a molecule in this file is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from rdkit import Chem


sys.path.insert(0, str(Path(__file__).parents[1] / "provenance" / "bundled"))
from sample import seed_of
from scope_frames import LARGE, PARTLY, Made, labelled, mmff_frames, relaxed, stretched


SMILES = (
    "COc1cc(C=O)ccc1O", "CC1=CCC(CC1)C(C)=C", "CC1(C)C2CCC1(C)C(=O)C2",
    "NCCc1c[nH]c2ccc(O)cc12", "NC(Cc1ccccc1)C(=O)O", "CC(O)C(=O)O", "OCC(O)CO",
    "OC1CCCCC1N", "O=C1CCCN1C", "CN(C)C=O", "CCOC(=O)C=C", "C=CC(=O)OC", "N#CCCC#N",
    "O=C1C=CC(=O)C=C1", "c1ccc2ncccc2c1", "c1ccc2[nH]ccc2c1", "Cc1ccnc(N)n1",
    "Nc1ncnc2[nH]cnc12", "O=c1cc[nH]c(=O)[nH]1", "CC(=O)NC1CCCCC1", "C1CCC2CCCCC2C1",
    "CC(C)=CC(=O)C", "CC#CCO", "C=C=CC", "O=CC=Cc1ccccc1", "CC(=O)CC(=O)C",
    "O=C(O)c1ccccc1C(=O)O", "CNC(=O)Oc1ccccc1", "CCN1CCNCC1", "C1CN2CCC1CC2",
    "CC(C)COC(=O)C", "OCC1OC(O)C(O)C1O", "NC(=O)NC(N)=O", "CON=C(C)C", "CN=NC",
    "C[N+](=O)[O-]", "O=[N+]([O-])c1ccccc1", "CC1CO1", "C1CC1C(=O)N", "O=C1CCO1",
)  # fmt: skip
KELVINS = (300.0, 300.0, 600.0, 600.0, 1000.0, 1000.0)
FRAMES, STEPS = 25, 1250  # of a run; a step is 0.5 fs
SCANNED = (0.8, 2.4)  # length of the bond, in units of its own


def made(smiles: str) -> Iterator[tuple[str, Made]]:
    """Yield the frames of a molecule without labels, with the name of their run."""
    for row, kelvin in enumerate(KELVINS):
        name = f"{kelvin:.0f} K, {row % 2}"
        pair = (kelvin, kelvin)
        for temperature, atoms in mmff_frames(smiles, FRAMES, name, pair, STEPS):
            yield name, Made("dynamics", atoms, temperature)
    rest = relaxed(smiles)
    for row in range(2):
        for factor in np.linspace(*SCANNED, FRAMES):
            # the same seed draws the same bond for every factor
            rng = np.random.default_rng(seed_of(smiles, f"scan {row}"))
            atoms, _ = stretched(rest, rng, (factor, factor), off=0.0)
            yield f"scan {row}", Made("scan", atoms, 0.0, float(factor))


def known(path: Path) -> set[str]:
    """Return all molecules of the potential and of its probe, as canonical SMILES."""
    groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
    names = [name for group in groups.values() for name in group]
    names += [name for group in LARGE.values() for name in group] + PARTLY
    return {Chem.CanonSmiles(name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("new_molecules.xyz"))
    parser.add_argument("--known", type=Path, help="molecules.json of the potential")
    options = parser.parse_args()
    seen = known(options.known) if options.known is not None else set()
    frames: list[Atoms] = []
    failures = 0
    for smiles in SMILES:
        if Chem.CanonSmiles(smiles) in seen:
            print(f"{smiles}: known to the potential or its probe, left out")
            continue
        for run, one in made(smiles):
            atoms = labelled(smiles, one)
            if isinstance(atoms, str):
                failures += 1
                continue
            atoms.info["run"] = run
            frames.append(atoms)
        print(smiles, len(frames), "frames,", failures, "without a label", flush=True)
    write(options.output, frames)


if __name__ == "__main__":
    main()
