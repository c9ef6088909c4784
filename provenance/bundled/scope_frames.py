"""Label kinds of frames that are absent in dynamics of one molecule.

Kinds: ``small`` (2 to 7 atoms, rattled and scaled), ``mmff`` (thermal frames of a force
field, 300 to 2500 K, all molecules), ``stretch`` (one bond at 0.6 to 2.5 times its
length, with hydrogens pulled off to 8 Å; for training molecules also nearly relaxed
ones at 1.2 to 1.6 times, where the potential begins to fail), ``dimer`` (two molecules,
1.2 to 8 Å apart), ``cluster`` (2 to 12 equal molecules), ``scaled`` (the whole molecule
at 0.75 to 1.5 times its size) and ``large`` (drugs of 27 to 50 atoms, as ``mmff`` and
``stretch``). No molecule is in two splits; a dimer belongs to the split of its first
molecule.

The reference is that of the backbone: GFN2-xTB of the whole system with the lowest
number of unpaired electrons (none, or one for radicals) and an electronic temperature
of 300 K. GFN2-xTB has no spin polarisation: two radicals far apart have half-filled
orbitals and no bond, whether their spins are paired or not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from molecules import canonical, write_text
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from sample import FAILURES, embed, read_groups, seed_of, snapshot, write_frames
from tblite.ase import TBLite


# Closed shells first, then radicals; by split, so that the test has other molecules.
SMALL = {
    "probe_train": [
        "[H][H]", "N#N", "O=O", "[C-]#[O+]", "O", "C", "N", "C#N", "O=C=O", "C#C",
        "C=C", "C=O", "CO", "OO", "NN", "[N-]=[N+]=O", "N=O", "O=CO", "C=C=O", "CN",
        "NC=O", "CC#N", "C1CO1", "O=[N+]([O-])O", "CC=O", "C=N", "NO",
        "[OH]", "[CH3]", "[NH2]", "[N]=O", "[CH]=O", "[O]O",
    ],
    "probe_calibration": [
        "N=C=O", "C#CC", "N#CC#N", "C=[N+]=[N-]", "O=CC=O", "ON=O", "C=NO",
        "O=[N+][O-]",
    ],
    "probe_test": [
        "N=N", "[C-]#[N+]C", "C#CC#N", "C=C=C", "[O-][O+]=O", "C1=CC1", "OC#N",
        "C=C=N", "NC#N", "O=C=C=C=O", "[CH]=C", "C[O]",
    ],
}  # fmt: skip
CLUSTERS = {
    "probe_train": {"O": (2, 3, 4, 6, 8, 10), "N": (2, 4), "CO": (2, 4), "C": (3,),
                    "N#N": (4,), "O=C=O": (3,), "C=O": (3,), "[H][H]": (4,)},
    "probe_calibration": {"O": (5, 9), "C#N": (3,), "OO": (3,)},
    "probe_test": {"O": (7, 12), "O=CO": (2, 4), "C#C": (3,), "CN": (3,)},
}  # fmt: skip
LARGE = {
    "probe_train": [
        "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "CCN(CC)CC(=O)Nc1c(C)cccc1C",
        "CCN(CC)CCOC(=O)c1ccc(N)cc1", "CN(C)CCOC(c1ccccc1)c1ccccc1", "CCCCCCCCCC=O",
        "CC1=C(C(=O)C)C(c2ccccc2)C(C(C)=O)=C(C)N1", "CN1CCC(CC1)OC(=O)c1ccccc1",
        "OC(c1ccccc1)(c1ccccc1)C1CCNCC1", "CC(C)NCC(O)COc1cccc2ccccc12",
        "CCOC(=O)C1(c2ccccc2)CCN(C)CC1",
    ],
    "probe_calibration": [
        "COc1ccc2cc(ccc2c1)C(C)C(=O)O", "CNC(C)C(O)c1ccccc1OCC", "CCCCOc1ccc(CC)cc1",
    ],
    "probe_test": [
        "CC(C(=O)O)c1cccc(c1)C(=O)c1ccccc1", "CC(C)NCC(O)c1ccc(O)c(CO)c1",
        "CC(C)(C)NCC(O)c1cc(O)cc(O)c1", "CN1C2CCC1CC(C2)OC(=O)C(CO)c1ccccc1",
        "CC12CCC(CC1CCC2O)C(=O)OC",
    ],
}  # fmt: skip
# For training only: molecules of 15 to 30 atoms, with a few stretched bonds each.
PARTLY = [
    "CCOC(=O)c1ccccc1", "CC(C)CC(N)C(=O)O", "OCCc1ccccc1", "CCCCCC(=O)O",
    "CC(=O)Oc1ccccc1", "NC(=O)c1cccnc1", "COc1ccc(C=O)cc1O", "CC1CCCCC1O",
    "CCCNC(=O)CC", "CN(C)CCO", "CC(O)CN1CCOCC1", "NCCc1c[nH]cn1", "CCC(C)OC(C)=O",
    "Cc1ccc(O)c(C)c1", "CC(C)=CCCC(C)=CCO", "CCN(CC)C(=O)c1ccccc1",
]  # fmt: skip
COUNTS = {
    "small": 16, "small_stretch": 12, "mmff": 12, "stretch": 8, "dimer": 3,
    "cluster": 8, "scaled": 2, "large_mmff": 10, "large_stretch": 16,
    "partly": 4, "more_partly": 12,
}  # fmt: skip
START_K, END_K, MMFF_STEPS, STEP_FS = 300.0, 2500.0, 1400, 0.5
FRICTION_PER_FS = 0.05
KCAL_MOL = units.kcal / units.mol
_LEAST_PARTLY = 12  # atoms; smaller molecules have enough stretched bonds


@dataclass(frozen=True)
class Made:
    """A geometry without a label."""

    kind: str
    atoms: Atoms
    temperature: float = 0.0
    factor: float = 1.0


def reference(atoms: Atoms) -> TBLite:
    """Return GFN2-xTB with the fewest unpaired electrons."""
    odd = int(atoms.numbers.sum()) % 2
    return TBLite(method="GFN2-xTB", verbosity=0, multiplicity=1 + odd)


def bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Return the pairs of atoms closer than 1.25 times their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.25 * np.add.outer(radii, radii)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))]


def nearest(atoms: Atoms) -> tuple[int, int]:
    """Return the closest pair of atoms."""
    distances = atoms.get_all_distances()
    np.fill_diagonal(distances, np.inf)
    first, second = sorted(np.unravel_index(distances.argmin(), distances.shape))
    return int(first), int(second)


def side(atoms: Atoms, bond: tuple[int, int]) -> np.ndarray | None:
    """Return the atoms on the second atom's side of a bond; None within a ring."""
    links: dict[int, list[int]] = {}
    for i, j in bonds(atoms):
        if (i, j) != bond:
            links.setdefault(i, []).append(j)
            links.setdefault(j, []).append(i)
    seen, front = {bond[1]}, [bond[1]]
    while front:
        found = [k for k in links.get(front.pop(), []) if k not in seen]
        seen.update(found)
        front += found
    return None if bond[0] in seen else np.array(sorted(seen))


def stretched(
    atoms: Atoms,
    rng: np.random.Generator,
    factors: tuple[float, float] = (0.6, 2.5),
    off: float = 0.125,
) -> tuple[Atoms, float]:
    """Return a copy with one bond shorter or longer, and the factor.

    In half of the frames the bond is one to hydrogen, if there is one. A fragment moves
    as a whole. In rings, and in one of four frames, the atom moves alone. A share
    ``off`` of atoms or fragments is pulled off, up to 8 Å.
    """
    known = bonds(atoms) or [nearest(atoms)]
    of_hydrogen = [b for b in known if 1 in atoms.numbers[list(b)]]
    if of_hydrogen and rng.random() < 0.5:
        known = of_hydrogen
    first, second = known[rng.integers(len(known))]
    if atoms.numbers[first] == 1:
        first, second = second, first
    bond = (first, second) if first < second else (second, first)
    moving = side(atoms, bond)
    if moving is not None and bond != (first, second):
        moving = np.setdiff1d(np.arange(len(atoms)), moving)
    if moving is None or rng.random() < 0.25:
        moving = np.array([second])
    along = atoms.positions[second] - atoms.positions[first]
    length = float(np.linalg.norm(along))
    factor = rng.uniform(*factors)
    if rng.random() < off:
        factor = rng.uniform(2.5, 8.0) / length
    copy = atoms.copy()
    copy.positions[moving] += (factor - 1) * along
    return copy, float(factor)


def rattled(atoms: Atoms, rng: np.random.Generator, width: float) -> Atoms:
    """Return a copy with normal displacements (Å)."""
    copy = atoms.copy()
    copy.positions += width * rng.normal(size=copy.positions.shape)
    return copy


def turned(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Return a copy at the origin in a random orientation."""
    copy = atoms.copy()
    copy.positions -= copy.positions.mean(axis=0)
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    copy.positions = copy.positions @ (matrix * np.sign(np.diag(upper))).T
    return copy


def beside(one: Atoms, other: Atoms, gap: float, rng: np.random.Generator) -> Atoms:
    """Return both with their nearest atoms ``gap`` Å apart, in a random direction."""
    mine, theirs = turned(one, rng), turned(other, rng)
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    low, high = 0.0, 60.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        moved = theirs.positions + middle * direction
        apart = np.linalg.norm(mine.positions[:, None] - moved[None], axis=-1).min()
        low, high = (middle, high) if apart < gap else (low, middle)
    theirs.positions += high * direction
    return mine + theirs


def cluster(atoms: Atoms, count: int, rng: np.random.Generator) -> Atoms:
    """Return ``count`` copies, each 1.7 to 2.6 Å from those before it."""
    whole = turned(atoms, rng)
    for _ in range(count - 1):
        whole = beside(whole, atoms, rng.uniform(1.7, 2.6), rng)
    return whole


def mmff_frames(
    smiles: str,
    count: int,
    purpose: str,
    kelvins: tuple[float, float] = (START_K, END_K),
    steps: int = MMFF_STEPS,
) -> list[tuple[float, Atoms]]:
    """Heat a molecule on MMFF94, by default from 300 to 2500 K within 0.7 ps.

    Returns (temperature, frame) pairs.
    """
    first, last = kelvins
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    seed = seed_of(smiles, purpose)
    start = embed(smiles, seed)
    properties = AllChem.MMFFGetMoleculeProperties(mol)
    if properties is None:
        return []
    mol.AddConformer(Chem.Conformer(len(start)), assignId=True)
    conformer = mol.GetConformer()
    conformer.SetPositions(start.positions)
    field = AllChem.MMFFGetMoleculeForceField(mol, properties)
    rng = np.random.default_rng(seed)
    masses = start.get_masses()[:, None]
    x = start.positions.copy()
    velocity = np.sqrt(units.kB * first / masses) * rng.normal(size=x.shape)
    keep = np.exp(-FRICTION_PER_FS * STEP_FS)
    dt = STEP_FS * units.fs
    found = []
    force = _mmff_force(field, conformer, x)
    for step in range(1, steps + 1):
        temperature = first + (last - first) * step / steps
        velocity += 0.5 * dt * force / masses
        x = x + 0.5 * dt * velocity
        noise = np.sqrt((1 - keep**2) * units.kB * temperature / masses)
        velocity = keep * velocity + noise * rng.normal(size=x.shape)
        x = x + 0.5 * dt * velocity
        force = _mmff_force(field, conformer, x)
        velocity += 0.5 * dt * force / masses
        if step % (steps // count) == 0:
            found.append((temperature, Atoms(start.numbers, positions=x)))
    return found


def _mmff_force(field: Any, conformer: Any, positions: np.ndarray) -> np.ndarray:
    conformer.SetPositions(positions)
    field.Initialize()  # otherwise RDKit uses the distances of the step before
    return -KCAL_MOL * np.array(field.CalcGrad()).reshape(-1, 3)


def of_small(smiles: str) -> Iterator[Made]:
    """Make the frames of a molecule of 2 to 7 atoms."""
    atoms = relaxed(smiles)
    rng = np.random.default_rng(seed_of(smiles, "small"))
    for index in range(COUNTS["small"]):
        copy = rattled(atoms, rng, 10 ** rng.uniform(-2, -0.5))
        if index % 4 == 3:
            copy.positions *= rng.uniform(0.7, 1.8)
        yield Made("small", copy)
    for _ in range(COUNTS["small_stretch"]):
        copy, factor = stretched(rattled(atoms, rng, 0.03), rng)
        yield Made("stretch", copy, factor=factor)


def relaxed(smiles: str) -> Atoms:
    """Return the molecule at a GFN2-xTB minimum, or near one."""
    from ase.optimize import BFGS

    atoms = embed(smiles, seed_of(smiles, "small"))
    atoms.calc = reference(atoms)
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=60)
    return Atoms(atoms.numbers, positions=atoms.positions)


def of_molecule(smiles: str, partners: list[str], *, large: bool) -> Iterator[Made]:
    """Make the frames of a molecule of the enumeration, or of a drug."""
    prefix = "large_" if large else ""
    rng = np.random.default_rng(seed_of(smiles, "scope"))
    thermal = mmff_frames(smiles, COUNTS[prefix + "mmff"], "mmff")
    for temperature, frame in thermal:
        yield Made("large" if large else "mmff", frame, temperature)
    cool = [frame for _, frame in thermal[: max(1, len(thermal) // 3)]]
    cool = cool or [embed(smiles, seed_of(smiles, "scope"))]
    for _ in range(COUNTS[prefix + "stretch"]):
        copy, factor = stretched(cool[rng.integers(len(cool))], rng)
        yield Made("stretch", copy, factor=factor)
    if large:
        return
    for _ in range(COUNTS["scaled"]):
        copy, factor = cool[0].copy(), rng.uniform(0.75, 1.5)
        copy.positions *= factor
        yield Made("scaled", copy, factor=factor)
    for _ in range(COUNTS["dimer"]):
        partner = partners[rng.integers(len(partners))]
        other = embed(partner, seed_of(partner, "small"))
        gap = rng.uniform(1.2, 3.5) if rng.random() < 0.75 else rng.uniform(3.5, 8.0)
        mine = cool[rng.integers(len(cool))]
        yield Made("dimer", beside(mine, other, gap, rng), factor=gap)


def partly_stretched(smiles: str, count: int) -> Iterator[Made]:
    """Make bonds at 1.2 to 1.6 times their length, and frames of the relaxation."""
    atoms = embed(smiles, seed_of(smiles, "partly"))
    if len(atoms) < _LEAST_PARTLY:
        return
    rng = np.random.default_rng(seed_of(smiles, "partly"))
    yield Made("mmff", atoms)
    for _ in range(count):
        copy, factor = stretched(rattled(atoms, rng, 0.01), rng, (1.2, 1.6), 0.0)
        yield Made("stretch", copy, factor=factor)


def of_clusters(split: str) -> Iterator[tuple[str, Made]]:
    """Make the clusters of a split; each size is a group of its own."""
    for smiles, sizes in CLUSTERS[split].items():
        atoms = relaxed(smiles)
        for size in sizes:
            name = f"{smiles} x {size}"
            rng = np.random.default_rng(seed_of(name, "cluster"))
            for _ in range(COUNTS["cluster"]):
                whole = cluster(rattled(atoms, rng, 0.03), size, rng)
                yield name, Made("cluster", whole)


def of_split(split: str, molecules: list[str]) -> Iterator[tuple[str, Made]]:
    """Make all frames of a split, the cheap ones first."""
    small = [s for s in SMALL[split] if s != "[H][H]"]
    for smiles in SMALL[split]:
        yield from ((smiles, made) for made in of_small(smiles))
    yield from of_clusters(split)
    named = {canonical(smiles) for every in SMALL.values() for smiles in every}
    for smiles in (one for one in molecules if one not in named):
        partners = small if zlib_even(smiles) else molecules
        for made in of_molecule(smiles, partners, large=False):
            yield smiles, made
    for smiles in LARGE[split]:
        for made in of_molecule(smiles, [], large=True):
            yield smiles, made
    if split != "probe_train":
        return
    counts = dict.fromkeys(molecules, COUNTS["partly"])
    counts |= dict.fromkeys(PARTLY, COUNTS["more_partly"])
    for smiles, count in counts.items():
        yield from ((smiles, made) for made in partly_stretched(smiles, count))


def zlib_even(smiles: str) -> bool:
    """Return true for half of the molecules."""
    return seed_of(smiles, "partner") % 2 == 0


def labelled(name: str, made: Made) -> Atoms | str:
    """Return the labelled frame, or the reason for a missing label."""
    atoms = made.atoms
    atoms.calc = reference(atoms)
    try:
        frame = snapshot(atoms, name, made.temperature, made.kind)
    except FAILURES as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return f"{name}, {made.kind}, {made.factor:.2f}: {reason}"
    frame.info["factor"] = made.factor
    if not np.isfinite(frame.arrays["REF_forces"]).all():
        return f"{name}, {made.kind}, {made.factor:.2f}: forces that are no numbers"
    return frame


def sample_split(data: Path, split: str, most: int | None) -> None:
    """Label one split and write it with a summary."""
    molecules = read_groups(data)[split][:most]
    frames: list[Atoms] = []
    lost: list[str] = []
    start = time.monotonic()
    for name, made in of_split(split, molecules):
        found = labelled(name, made)
        if isinstance(found, str):
            lost.append(found)
        else:
            frames.append(found)
        if len(frames) % 500 == 0:
            elapsed = time.monotonic() - start
            print(f"{split} {len(frames)} frames {elapsed:.0f} s", flush=True)
    write_frames(data / f"{split}.scope.xyz", frames)
    kinds = [frame.info["kind"] for frame in frames]
    summary = {
        "frames": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "molecules": len({frame.info["molecule"] for frame in frames}),
        "not_converged": len(lost),
        "not_converged_frames": lost,
    }
    write_text(data / f"{split}.scope.json", json.dumps(summary, indent=1))
    print(f"{split}: {len(frames)} frames, {len(lost)} without label", flush=True)


def main() -> None:
    """Label the splits, one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("bundled_data"))
    parser.add_argument("--splits", nargs="+", default=list(SMALL))
    parser.add_argument("--molecules", type=int, help="of each split; all by default")
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    for split in options.splits:
        sample_split(options.data, split, options.molecules)


if __name__ == "__main__":
    main()
