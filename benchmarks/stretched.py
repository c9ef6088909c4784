"""Test whether the bundled probe detects one broken bond in a drug molecule.

    python benchmarks/stretched.py

Nine drugs are relaxed with MMFF94. Each bond outside rings is stretched to lengths
between a strong vibration and a break; the smaller fragment moves as a whole. A frame
is right if its RMS force error against GFN2-xTB is at most the boundary of the probe.
The script needs rdkit and the extra xtb.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from ase import Atoms
from common import print_table, target, write_result
from rdkit import Chem
from rdkit.Chem import AllChem
from tblite.ase import TBLite

from uqcalc import Level, default_calculator
from uqcalc.statistics import scores


DRUGS = {
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "menthol": "CC(C)C1CCC(C)CC1O",
    "dopamine": "NCCc1ccc(O)c(O)c1",
    "benzocaine": "CCOC(=O)c1ccc(N)cc1",
    "nicotine": "CN1CCCC1c1cccnc1",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
}
# Lengths in Å by the atomic numbers of the two ends.
LENGTHS = {
    (1, 6): (1.5, 1.9),
    (1, 7): (1.3, 1.7, 2.2),
    (1, 8): (1.3, 1.7, 2.2),
    (6, 6): (1.9, 2.4),
    (6, 7): (1.9, 2.4),
    (6, 8): (1.9, 2.3),
}
COLUMNS = {
    "kind": "kind",
    "frames": "frames",
    "right": "right",
    "wrong": "wrong",
    "wrong_reliable": "wrong ones RELIABLE",
    "right_reliable": "right ones RELIABLE",
    "auroc": "AUROC",
}


def frames(smiles: str) -> Iterator[tuple[str, Atoms]]:
    """Yield the relaxed and the stretched molecules, with bond and length."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(molecule)
    rest = molecule.GetConformer().GetPositions()
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    yield "at rest", Atoms(numbers, positions=rest)
    for bond in molecule.GetBonds():
        if bond.IsInRing():
            continue
        ends = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        parted = Chem.RWMol(molecule)
        parted.RemoveBond(*ends)
        moving = min(Chem.GetMolFrags(parted), key=len)
        still, far = ends if ends[1] in moving else ends[::-1]
        apart = rest[far] - rest[still]
        length = np.linalg.norm(apart)
        pair = tuple(sorted(int(numbers[i]) for i in ends))
        for wanted in LENGTHS.get(pair, ()):
            drawn = Atoms(numbers, positions=rest)
            drawn.positions[list(moving)] += apart * (wanted / length - 1.0)
            name = f"{drawn.symbols[still]}-{drawn.symbols[far]}"
            yield f"{'-'.join(sorted(name.split('-')))} {wanted} Å", drawn


def judged() -> list[tuple[str, float, float, Level]]:
    """Return kind, error (eV/Å), P and level of each frame."""
    calc = default_calculator()
    found = []
    for smiles in DRUGS.values():
        for kind, atoms in frames(smiles):
            level = calc.assess(atoms).level
            given, reliability = calc.results["forces"], calc.results
            labelled = atoms.copy()
            labelled.calc = TBLite(method="GFN2-xTB", verbosity=0)
            error = float(np.sqrt(np.mean((given - labelled.get_forces()) ** 2)))
            found.append((kind, error, reliability["probe_reliability"], level))
    return found


def line(
    kind: str, mine: list[tuple[str, float, float, Level]], boundary: float
) -> dict[str, object]:
    """Return the counts of one kind."""
    right = np.array([error <= boundary for _, error, _, _ in mine])
    reliable = np.array([level is Level.RELIABLE for *_, level in mine])
    said = np.nan_to_num(np.array([p for _, _, p, _ in mine], dtype=float))
    both = 0 < right.sum() < len(mine)
    return {
        "kind": kind,
        "frames": len(mine),
        "right": int(right.sum()),
        "wrong": int((~right).sum()),
        "wrong_reliable": int((~right & reliable).sum()),
        "right_reliable": int((right & reliable).sum()),
        "auroc": scores.auroc(right, said) if both else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boundary", type=float, default=0.2, help="eV/Å")
    boundary = parser.parse_args().boundary
    found = judged()
    kinds = sorted({kind for kind, *_ in found})
    rows = [line("all", found, boundary)]
    rows += [line(k, [f for f in found if f[0] == k], boundary) for k in kinds]
    print_table("drugs with one bond drawn", rows, COLUMNS)
    wrong = max(1, int(str(rows[0]["wrong"])))
    share = int(str(rows[0]["wrong_reliable"])) / wrong
    write_result(
        "stretched",
        seeds=[1],
        rows=rows,
        targets=[target("share of the wrong frames that are RELIABLE", share, 0.02)],
        notes=[f"right: RMS force error at most {boundary} eV/Å"],
    )


if __name__ == "__main__":
    main()
