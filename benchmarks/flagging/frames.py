"""Frames with GFN2-xTB labels: breaking bonds, ions, zwitterions, molecules at rest.

Needs ``rdkit`` and the extra xtb. Every frame has ``kind``, ``molecule``,
``REF_energy`` (eV) and ``REF_forces`` (eV/Å) of closed-shell GFN2-xTB.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculatorError
from ase.constraints import FixBondLengths
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from rdkit import Chem
from rdkit.Chem import AllChem
from tblite.ase import TBLite


FAILURES = (CalculatorError, RuntimeError)
# Neither in ASE's g2 set nor among the labels of the bundled probe.
MOLECULES = {
    "neopentyl alcohol": "CC(C)(C)CO",
    "1-amino-2-propanol": "CC(O)CN",
    "cyclopropylmethanol": "OCC1CC1",
    "2,3-dimethyloxirane": "CC1OC1C",
    "1,2-dimethylaziridine": "CC1CN1C",
    "2-methylcyclobutanone": "CC1CCC1=O",
    "cyclohexene oxide": "C1CCC2OC2C1",
    "methylacetylacetone, enol": "CC(O)=C(C)C(C)=O",
    "5-methylsalicylaldehyde": "Cc1ccc(O)c(C=O)c1",
    "serine": "NC(CO)C(=O)O",
    "leucine methyl ester": "COC(=O)C(N)CC(C)C",
    "4-methoxyphenethylamine": "COc1ccc(CCN)cc1",
    "2-aminocyclohexanol": "NC1CCCCC1O",
    "N-(2-hydroxyethyl)isobutyramide": "CC(C)C(=O)NCCO",
    "octanol": "CCCCCCCCO",
    "alanylalanine": "CC(N)C(=O)NC(C)C(=O)O",
    "pantolactone": "CC1(C)COC(=O)C1O",
    "geraniol": "CC(C)=CCCC(C)=CCO",
}
IONS = {
    "methylammonium": "C[NH3+]",
    "acetate": "CC(=O)[O-]",
    "tetramethylammonium": "C[N+](C)(C)C",
    "ethoxide": "CC[O-]",
    "pyridinium": "c1cc[nH+]cc1",
    "protonated acetone": "CC(C)=[OH+]",
    "guanidinium": "NC(=[NH2+])N",
    "phenolate": "[O-]c1ccccc1",
    "hydrogen malonate": "[O-]C(=O)CC(=O)O",
    "imidazolium": "c1c[nH+]c[nH]1",
    "malonate": "[O-]C(=O)CC(=O)[O-]",
    "ethylenediammonium": "[NH3+]CC[NH3+]",
    "nitrate ester anion": "[O-]CCO[N+](=O)[O-]",
    "choline": "C[N+](C)(C)CCO",
}
ZWITTERIONS = {
    "glycine": "[NH3+]CC(=O)[O-]",
    "alanine": "CC([NH3+])C(=O)[O-]",
    "beta-alanine": "[NH3+]CCC(=O)[O-]",
    "betaine": "C[N+](C)(C)CC(=O)[O-]",
    "proline": "O=C([O-])C1CCC[NH2+]1",
    "phenylalanine": "[NH3+]C(Cc1ccccc1)C(=O)[O-]",
    "trimethylamine oxide": "C[N+](C)(C)[O-]",
    "glycylglycine": "[NH3+]CC(=O)NCC(=O)[O-]",
    "4-aminobutyrate": "[NH3+]CCCC(=O)[O-]",
    "serine": "[NH3+]C(CO)C(=O)[O-]",
}
# Pairs of molecules between which a proton moves: donor, acceptor (SMILES).
PAIRS = {
    "formic acid and methylamine": ("OC=O", "CN"),
    "phenol and pyridine": ("Oc1ccccc1", "c1ccncc1"),
    "acetic acid and acetamide": ("CC(=O)O", "CC(N)=O"),
}
FACTORS = (1.1, 1.2, 1.3, 1.45, 1.6, 1.8, 2.1)
BONDS = {(6, 6): "C-C", (6, 8): "C-O", (1, 8): "O-H", (1, 7): "N-H"}
MOST_BONDS = 2  # of a kind in one molecule
REST = 8  # frames of dynamics at 300 K, 25 fs apart
RATTLED = (0.0, 0.02, 0.04)  # Å
CONFORMERS = 3
RELAXED = 15  # steps of FIRE with the stretched distance fixed


def seed_of(name: str) -> int:
    """Return a seed made from a name."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def embedded(smiles: str, seed: int) -> tuple[Chem.Mol, Atoms]:
    """Return a molecule in an MMFF94 geometry."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
        AllChem.EmbedMolecule(molecule, randomSeed=seed, useRandomCoords=True)
    if AllChem.MMFFHasAllMoleculeParams(molecule):
        AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
    else:
        AllChem.UFFOptimizeMolecule(molecule, maxIters=2000)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    return molecule, Atoms(numbers, molecule.GetConformer().GetPositions())


def labelled(atoms: Atoms, kind: str, name: str, charge: int = 0) -> Atoms | None:
    """Return the frame with its labels; None if GFN2-xTB does not converge."""
    frame = Atoms(atoms.numbers, positions=atoms.positions)
    tried = frame.copy()
    tried.calc = TBLite(method="GFN2-xTB", verbosity=0, charge=charge)
    try:
        frame.info["REF_energy"] = float(tried.get_potential_energy())
        frame.arrays["REF_forces"] = np.array(tried.get_forces())
    except FAILURES:
        return None
    frame.info |= {"kind": kind, "molecule": name}
    if charge:
        frame.info["true_charge"] = charge
    return frame


def relaxed(
    atoms: Atoms, pairs: list[tuple[int, int]] | None = None, steps: int = 200
) -> Atoms:
    """Return the frame after a few steps on GFN2-xTB, with some distances fixed."""
    found = atoms.copy()
    found.calc = TBLite(method="GFN2-xTB", verbosity=0)
    if pairs:
        found.set_constraint(FixBondLengths(pairs))
    try:
        FIRE(found, logfile=None).run(fmax=0.03, steps=steps)
    except FAILURES:
        return atoms
    return Atoms(found.numbers, positions=found.positions)


def at_rest(start: Atoms, name: str) -> Iterator[Atoms | None]:
    """Yield the minimum, and GFN2-xTB dynamics at 300 K."""
    yield labelled(start, "at rest", name)
    atoms, rng = start.copy(), np.random.RandomState(seed_of(name))
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    thermalize_momenta(atoms, 300.0, rng=rng)
    dynamics = Langevin(
        atoms,
        1.0 * units.fs,
        temperature_K=300.0,
        friction=0.05 / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(60)
    for _ in range(REST):
        dynamics.run(25)
        yield labelled(atoms, "at rest", name)


def stretches(molecule: Chem.Mol, rest: Atoms, name: str) -> Iterator[Atoms | None]:
    """Yield bonds outside rings, stretched rigidly to 1.1 to 2.1 times their length."""
    counts: dict[str, int] = {}
    bonds = [bond for bond in molecule.GetBonds() if not bond.IsInRing()]
    np.random.RandomState(seed_of(name)).shuffle(bonds)
    for bond in bonds:
        ends = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        kind = BONDS.get(tuple(sorted(int(rest.numbers[i]) for i in ends)))
        if kind is None or counts.get(kind, 0) == MOST_BONDS:
            continue
        counts[kind] = counts.get(kind, 0) + 1
        parted = Chem.RWMol(molecule)
        parted.RemoveBond(*ends)
        moving = min(Chem.GetMolFrags(parted), key=len)
        still, far = ends if ends[1] in moving else ends[::-1]
        apart = rest.positions[far] - rest.positions[still]
        for factor in FACTORS:
            drawn = rest.copy()
            drawn.positions[list(moving)] += apart * (factor - 1.0)
            yield labelled(drawn, kind, name)


def ring_openings(molecule: Chem.Mol, rest: Atoms, name: str) -> Iterator[Atoms | None]:
    """Yield stretched bonds of a ring; the other atoms are relaxed for a few steps."""
    rings = [ring for ring in molecule.GetRingInfo().AtomRings() if len(ring) < 6]
    if not rings:
        return
    ring = min(rings, key=len)
    for pair in list(pairwise(ring))[:MOST_BONDS]:
        drawn = rest.copy()
        for factor in FACTORS:
            length = rest.get_distance(*pair) * factor
            drawn.set_distance(*pair, length, fix=0.5)
            drawn = relaxed(drawn, [pair], RELAXED)
            yield labelled(drawn, "ring opening", name)


def transfers(rest: Atoms, name: str) -> Iterator[Atoms | None]:
    """Yield transfers of the most mobile proton to another N or O, rest relaxed."""
    found = _hydrogen_bond(rest)
    if found is None:
        return
    donor, proton, acceptor = found
    whole = rest.get_distance(donor, acceptor)
    for span in (max(2.4, whole - 0.3), 2.5):
        for share in (0.42, 0.46, 0.5, 0.54, 0.58):
            drawn = rest.copy()
            if abs(span - whole) > 0.01:
                drawn.set_distance(donor, acceptor, span, fix=0.5)
            axis = drawn.positions[acceptor] - drawn.positions[donor]
            drawn.positions[proton] = drawn.positions[donor] + share * axis
            pairs = [(donor, proton), (proton, acceptor)]
            drawn = relaxed(drawn, pairs, RELAXED)
            yield labelled(drawn, "proton transfer", name)


def _hydrogen_bond(rest: Atoms) -> tuple[int, int, int] | None:
    """Return donor, proton and acceptor of the shortest hydrogen bond up to 2.3 Å."""
    distances = rest.get_all_distances()
    polar = np.flatnonzero(np.isin(rest.numbers, (7, 8)))
    best, shortest = None, 2.3
    for proton in np.flatnonzero(rest.numbers == 1):
        donor, *others = polar[np.argsort(distances[proton, polar])]
        if distances[proton, donor] > 1.2:
            continue
        for acceptor in others:
            if distances[proton, acceptor] < shortest:
                shortest = distances[proton, acceptor]
                best = (int(donor), int(proton), int(acceptor))
    return best


def paired(donor: str, acceptor: str, name: str) -> Atoms:
    """Return two molecules with a hydrogen bond between them, on GFN2-xTB."""
    first, second = (embedded(s, seed_of(name))[1] for s in (donor, acceptor))
    proton = _acid_proton(first)
    held = int(np.argsort(first.get_distances(proton, range(len(first))))[1])
    out = first.positions[proton] - first.positions[held]
    out /= np.linalg.norm(out)
    base = max(
        np.flatnonzero(np.isin(second.numbers, (7, 8))), key=lambda i: _free(second, i)
    )
    centre = second.positions.mean(axis=0) - second.positions[base]
    second.rotate(centre, out)
    second.translate(first.positions[proton] + 1.75 * out - second.positions[base])
    return relaxed(first + second)


def _acid_proton(atoms: Atoms) -> int:
    oxygens = atoms.numbers == 8
    distances = atoms.get_all_distances()
    return min(
        np.flatnonzero(atoms.numbers == 1),
        key=lambda i: distances[i, oxygens].min(),
    )


def _free(atoms: Atoms, index: int) -> float:
    """Return how far an atom is from the others' centre, fewer neighbours first."""
    distances = np.sort(atoms.get_distances(index, range(len(atoms))))
    return -float((distances < 1.7).sum())


def ions(given: dict[str, str], kind: str) -> Iterator[Atoms | None]:
    """Yield conformers of charged molecules in MMFF94 geometries, rattled."""
    for name, smiles in given.items():
        for number in range(CONFORMERS):
            molecule, atoms = embedded(smiles, seed_of(name) + number)
            charge = Chem.GetFormalCharge(molecule)
            atoms.rattle(RATTLED[number % len(RATTLED)], seed=number)
            yield labelled(atoms, kind, name, charge)


def all_frames() -> Iterator[Atoms]:
    """Yield every labelled frame; frames without convergence are left out."""
    for name, smiles in MOLECULES.items():
        molecule, start = embedded(smiles, seed_of(name))
        rest = relaxed(start)
        for part in (
            at_rest(rest, name),
            stretches(molecule, rest, name),
            ring_openings(molecule, rest, name),
            transfers(rest, name),
        ):
            yield from (frame for frame in part if frame is not None)
    for name, both in PAIRS.items():
        rest = paired(*both, name)
        for part in (at_rest(rest, name), transfers(rest, name)):
            yield from (frame for frame in part if frame is not None)
    for given, kind in ((IONS, "ion"), (ZWITTERIONS, "zwitterion")):
        yield from (frame for frame in ions(given, kind) if frame is not None)
