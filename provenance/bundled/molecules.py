"""Enumerate small neutral organic molecules and split them by molecule.

Scaffolds are combined with one to three substituents; every molecule is named
by its canonical SMILES. The order and the split depend on the seed alone.
"""

import argparse
import itertools
import json
import os
import random
from pathlib import Path

from rdkit import Chem, RDLogger


SEED = 20
MIN_ATOMS, MAX_ATOMS = 6, 26
GROUP_SIZES = {
    "backbone": 450,
    "backbone_validation": 40,
    "probe_train": 260,
    "probe_calibration": 90,
    "probe_test": 90,
}

HELD_OUT = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "azobenzene": "c1ccc(/N=N/c2ccccc2)cc1",
    "benzene": "c1ccccc1",
    "ethanol": "CCO",
    "malonaldehyde": "O=C/C=C\\O",
    "malonaldehyde_keto": "O=CCC=O",
    "naphthalene": "c1ccc2ccccc2c1",
    "salicylic_acid": "O=C(O)c1ccccc1O",
    "toluene": "Cc1ccccc1",
    "uracil": "O=c1cc[nH]c(=O)[nH]1",
    "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "N-acetyl-alanine-N-methylamide": "CNC(=O)C(C)NC(C)=O",
}

ALKYL = ["C", "CC", "CCC", "CC(C)C", "CCCC", "COC", "CCOC", "CNC", "CN(C)C"]
UNSATURATED = ["C=C", "CC=C", "CC=CC", "C=CC=C", "CC#C", "CC(C)=C", "CC#N"]
RINGS = [
    "C1CC1", "C1CCC1", "C1CCCC1", "C1CCCCC1", "C1=CCCC1", "C1=CCCCC1", "C1CO1",
    "C1CN1", "C1COC1", "C1CNC1", "C1CCOC1", "C1CCNC1", "C1CCNCC1", "C1CCOCC1",
    "C1COCCN1", "C1CNCCN1", "C1COCO1", "O=C1CCCO1", "O=C1CCCN1", "O=C1CCC(=O)N1",
    "O=C1CCCC1", "O=C1CCCCC1", "O=C1C=CCCC1", "C1=COCC1", "O=C1OCCO1",
]  # fmt: skip
AROMATIC = [
    "c1ccccc1", "c1ccccc1", "c1ccccc1", "c1ccccc1", "c1ccncc1", "c1ccncc1",
    "c1cncnc1", "c1cnccn1", "c1ccnnc1", "c1cc[nH]c1", "Cn1cccc1", "c1ccoc1",
    "c1c[nH]cn1", "Cn1ccnc1", "c1cn[nH]c1", "c1cocn1", "c1cnoc1", "c1nc[nH]n1",
    "O=c1cccc[nH]1", "O=c1cc[nH]c(=O)[nH]1", "O=c1ccocc1",
]  # fmt: skip
BICYCLES = [
    "c1ccc2[nH]ccc2c1", "c1ccc2occc2c1", "C1=Cc2ccccc2C1", "c1ccc2ncccc2c1",
    "c1ccc2[nH]cnc2c1", "c1ccc2ocnc2c1", "c1ccc2c(c1)OCO2", "c1ccn2ccnc2c1",
    "c1ccc2c(c1)CCC2", "c1ncc2nc[nH]c2n1", "c1ccc2ccccc2c1", "O=C1OCc2ccccc21",
]  # fmt: skip

CARBON_SUBSTITUENTS = [
    "C", "CC", "C(C)C", "C=O", "C(C)=O", "C(=O)O", "C(=O)OC", "C(N)=O", "C#N",
    "C=C", "C#C", "CO", "COC", "CN", "CC=O", "CC(=O)O", "CC#N", "C(=O)NC",
    "c1ccccc1", "C=NC",
]  # fmt: skip
HETERO_SUBSTITUENTS = [
    "O", "OC", "N", "NC", "N(C)C", "OC(C)=O", "NC(C)=O", "[N+](=O)[O-]", "NC=O",
    "OC=O",
]  # fmt: skip
FAVOURED = {"C", "O", "N", "OC", "C(=O)O", "C=O", "OC(C)=O", "NC(C)=O"}

# Functional groups of the held-out drugs in other molecules: always in `backbone`.
FORCED_BACKBONE = [
    "CC(=O)Oc1ccccc1", "CC(=O)Oc1ccc(C(=O)O)cc1", "CC(=O)Oc1cccc(C(=O)O)c1",
    "CC(=O)Oc1ccccc1C=O", "CC(=O)Oc1ccccc1C", "CC(=O)Oc1ccccc1C(N)=O",
    "CC(=O)Oc1ccccc1C(C)=O", "CC(=O)Oc1ccccc1C(=O)OC", "CC(=O)Oc1ccccc1O",
    "O=COc1ccccc1C(=O)O", "O=COc1ccccc1", "COc1ccccc1C(=O)O", "Cc1ccccc1C(=O)O",
    "Nc1ccccc1C(=O)O", "COC(=O)c1ccccc1O", "NC(=O)c1ccccc1O", "O=Cc1ccccc1O",
    "O=C(O)c1ccccc1", "O=C(O)c1ccc(O)cc1", "O=C(O)c1cccc(O)c1",
    "CC(=O)Oc1cccnc1C(=O)O", "CC(=O)Oc1ccccc1C#N", "CC(=O)Nc1ccccc1",
    "CC(=O)Nc1ccc(C)cc1", "CC(=O)Nc1ccc(N)cc1", "CC(=O)Nc1cccc(O)c1",
    "CC(=O)Nc1ccccc1O", "CC(=O)Nc1ccc(OC)cc1", "O=CNc1ccc(O)cc1", "O=CNc1ccccc1",
    "Oc1ccccc1", "Cc1ccc(O)cc1", "Nc1ccc(O)cc1", "COc1ccc(O)cc1", "Oc1ccc(O)cc1",
    "CN=Nc1ccccc1", "CN=NC", "CN=NCC", "C(=Nc1ccccc1)c1ccccc1", "CC=Nc1ccccc1",
    "c1ccc(-c2ccccc2)cc1", "CC(=O)C=C(C)O", "O=CC=C(O)C", "CC(=O)/C=C/O",
    "CC(=O)NCC(N)=O", "CNC(=O)CNC(C)=O", "CC(NC(C)=O)C(N)=O", "CC(N)C(=O)NC",
    "CNC(=O)C(C)NC=O", "NCC(=O)O", "CC(N)C(=O)O", "CNC(C)=O", "CC(=O)NC", "CO",
    "CCCO", "CC(C)O", "CCOC", "OCCO", "CCc1ccccc1", "Cc1ccccc1C", "Cc1cccc(C)c1",
    "Cc1ccc2ccccc2c1", "Oc1cccc2ccccc12", "c1ccc2ncccc2c1", "c1ccncc1",
    "Cc1c[nH]c(=O)[nH]c1=O", "Nc1cc[nH]c(=O)n1", "Cn1ccc(=O)[nH]c1=O",
    "Cn1cnc2c1c(=O)[nH]c(=O)[nH]2", "Cn1ccc(=O)n(C)c1=O", "Cn1cnc2ncncc21",
    "NC(N)=O", "CNC(N)=O", "CNC(=O)NC", "CC(=O)OC(C)=O", "CC(=O)OC=O", "CCOC(C)=O",
]  # fmt: skip


def canonical(smiles: str) -> str:
    """Return the canonical SMILES without stereochemistry."""
    return Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)


def n_atoms(smiles: str) -> int:
    """Count all atoms, hydrogen included."""
    return Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms()


def sites(mol: Chem.Mol) -> list[int]:
    """Return one atom of each symmetry class that can carry a substituent."""
    classes: dict[int, int] = {}
    for index, rank in enumerate(Chem.CanonicalRankAtoms(mol, breakTies=False)):
        atom = mol.GetAtomWithIdx(index)
        carbon = atom.GetAtomicNum() == 6
        amine = atom.GetAtomicNum() == 7 and not atom.GetIsAromatic()
        if (carbon or amine) and atom.GetTotalNumHs() > 0:
            classes.setdefault(rank, index)
    return list(classes.values())


def attach(scaffold: str, site: int, substituent: str) -> str | None:
    """Join the first atom of a substituent to a scaffold atom; None if invalid."""
    mol, group = Chem.MolFromSmiles(scaffold), Chem.MolFromSmiles(substituent)
    atom, first = mol.GetAtomWithIdx(site), group.GetAtomWithIdx(0)
    hetero = first.GetAtomicNum() != 6
    carbonyl_h = any(
        bond.GetBondTypeAsDouble() == 2 and bond.GetOtherAtom(atom).GetAtomicNum() == 8
        for bond in atom.GetBonds()
    )
    heteros = sum(n.GetAtomicNum() != 6 for n in atom.GetNeighbors())
    if hetero and (atom.GetAtomicNum() != 6 or carbonyl_h):
        return None
    if hetero and not atom.GetIsAromatic() and (heteros or is_unsaturated(atom)):
        return None
    joined = Chem.RWMol(Chem.CombineMols(mol, group))
    joined.AddBond(site, mol.GetNumAtoms(), Chem.BondType.SINGLE)
    if Chem.SanitizeMol(joined, catchErrors=True) != Chem.SANITIZE_NONE:
        return None
    return canonical(Chem.MolToSmiles(joined))


def is_unsaturated(atom: Chem.Atom) -> bool:
    """Return whether the atom is in a double or triple bond."""
    return any(bond.GetBondTypeAsDouble() > 1 for bond in atom.GetBonds())


def accepted(smiles: str, held_out: set[str]) -> bool:
    """Return whether a molecule is neutral CHNO, closed-shell and of allowed size."""
    mol = Chem.MolFromSmiles(smiles)
    allowed = all(atom.GetSymbol() in "CNO" for atom in mol.GetAtoms())
    radicals = any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    size = MIN_ATOMS <= n_atoms(smiles) <= MAX_ATOMS
    return (
        allowed
        and not radicals
        and size
        and Chem.GetFormalCharge(mol) == 0
        and smiles not in held_out
    )


def draw(rng: random.Random) -> str | None:
    """Draw one molecule: a scaffold with one to three substituents."""
    family = rng.choices([ALKYL, UNSATURATED, RINGS, AROMATIC, BICYCLES],
                         [0.2, 0.1, 0.23, 0.37, 0.1])[0]  # fmt: skip
    smiles = rng.choice(family)
    pool = CARBON_SUBSTITUENTS + HETERO_SUBSTITUENTS
    weights = [3.0 if group in FAVOURED else 1.0 for group in pool]
    for _ in range(rng.choices([1, 2, 3], [0.35, 0.5, 0.15])[0]):
        places = sites(Chem.MolFromSmiles(smiles))
        if not places:
            return None
        joined = attach(smiles, rng.choice(places), rng.choices(pool, weights)[0])
        if joined is None:
            return None
        smiles = joined
    return smiles


def enumerate_molecules(total: int, seed: int) -> list[str]:
    """Return distinct molecules, the forced ones first."""
    RDLogger.DisableLog("rdApp.*")
    rng = random.Random(seed)
    held_out = {canonical(smiles) for smiles in HELD_OUT.values()}
    kept = {s: None for s in map(canonical, FORCED_BACKBONE) if accepted(s, held_out)}
    for attempt in itertools.count():
        if len(kept) >= total or attempt > 100 * total:
            break
        smiles = draw(rng)
        if smiles is None or smiles in kept or not accepted(smiles, held_out):
            continue
        # most molecules have 10-22 atoms; the large ones cost the most
        if n_atoms(smiles) > 20 and rng.random() < 0.65:
            continue
        kept[smiles] = None
    return list(kept)


def split(seed: int = SEED) -> dict[str, list[str]]:
    """Split the molecules into disjoint groups."""
    molecules = enumerate_molecules(sum(GROUP_SIZES.values()), seed)
    forced = {canonical(smiles) for smiles in FORCED_BACKBONE}
    backbone = [smiles for smiles in molecules if smiles in forced]
    others = [smiles for smiles in molecules if smiles not in forced]
    random.Random(seed + 1).shuffle(others)
    groups: dict[str, list[str]] = {}
    for name, size in GROUP_SIZES.items():
        start = backbone if name == "backbone" else []
        missing = size - len(start)
        groups[name], others = start + others[:missing], others[missing:]
    return groups


def write_text(path: Path, text: str) -> None:
    """Write a whole file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105


def main() -> None:
    """Write the split as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("bundled_data"))
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    groups = split(arguments.seed)
    payload = {"seed": arguments.seed, "held_out": HELD_OUT, "groups": groups}
    write_text(arguments.data / "molecules.json", json.dumps(payload, indent=1))
    for name, molecules in groups.items():
        sizes = [n_atoms(smiles) for smiles in molecules]
        mean = sum(sizes) / max(len(sizes), 1)
        print(f"{name}: {len(molecules)} molecules, {mean:.1f} atoms on average")


if __name__ == "__main__":
    main()
