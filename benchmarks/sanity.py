"""Test whether the limits of `Sanity` accept labelled frames and reject garbage.

``python benchmarks/sanity.py`` (minutes) reads the frames of ``../shared/data`` with
`uqcalc.Sanity`, with the reference energy and forces as predictions. Then it makes
garbage of several kinds. No model is run.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from ase.io import iread
from common import print_table, print_targets, target, water_box, write_result

from uqcalc import Sanity
from uqcalc.backbones.prediction import Prediction, geometry
from uqcalc.geometry.surroundings import surroundings
from uqcalc.signals.sanity import ABSURD_FORCE, CROWDED, EXTENT, FORCE, FUSED


DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
CUTOFF = 6.0  # Å; CHGNet's
SOLIDS = {
    "Cu": bulk("Cu", cubic=True) * 2,
    "Al": bulk("Al", cubic=True) * 2,
    "NaCl": bulk("NaCl", "rocksalt", a=5.64, cubic=True),
    "diamond": bulk("C", "diamond", a=3.57, cubic=True),
    "W": bulk("W", cubic=True) * 2,
    "MgO": bulk("MgO", "rocksalt", a=4.21, cubic=True),
}
_WRONG = ("unreliable", "absurd")
MOLECULES = ("CH3CH2OH", "C6H6", "CH3COOH", "H2O", "NH3", "C4H4S", "CH3Cl", "SiH4")


def labelled() -> Iterator[tuple[str, Atoms, float | None, np.ndarray | None]]:
    """Yield the file, the frame, its energy in eV and its forces in eV/Å."""
    for path in sorted(DATA.glob("*/*.xyz")):
        for atoms in iread(str(path)):
            stored = {} if atoms.calc is None else atoms.calc.results
            energy = atoms.info.get("REF_energy", stored.get("energy"))
            forces = atoms.arrays.get("REF_forces", stored.get("forces"))
            yield f"{path.parent.name}/{path.stem}", atoms, energy, forces
    for path in sorted((DATA / "si_zeo22").glob("*.npz")):
        data = {name: np.load(path)[name] for name in np.load(path).files}
        for row, (positions, cell) in enumerate(
            zip(data["positions"], data["cells"], strict=True)
        ):
            symbols = data["symbols"]
            symbols = symbols if symbols.ndim == 1 else symbols[row]
            atoms = Atoms([*map(str, symbols)], positions, cell=cell, pbc=True)
            forces = data["forces"][row]
            yield f"si_zeo22/{path.stem}", atoms, float(data["energies"][row]), forces


def prediction(
    atoms: Atoms, energy: float | None, forces: np.ndarray | None
) -> Prediction:
    """Return the prediction of a model without error."""
    energy = 0.0 if energy is None else float(energy)
    if forces is None:
        forces = np.ones((len(atoms), 3))
    return Prediction(
        **geometry(atoms),
        results={},
        energy=energy,
        forces=np.asarray(forces, dtype=float),
        features=torch.empty(len(atoms), 0),
    )


def verdict(reading) -> str:
    """Return the level of a reading of `Sanity` as a word."""
    if reading.absurd:
        return "absurd"
    if reading.faults:
        return "unreliable"
    return "suspect" if reading.doubts else "sane"


def _arrays(atoms: Atoms) -> tuple:
    return atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc


def read_labelled() -> tuple[list[dict], list[dict]]:
    """Return a row for each file, and the frames that `Sanity` rejects."""
    signal = Sanity(CUTOFF, frozenset())
    seen: dict[str, list] = defaultdict(list)
    called: dict[str, Counter] = defaultdict(Counter)
    named = []
    for name, atoms, energy, forces in labelled():
        reading = signal(prediction(atoms, energy, forces))
        size = 0.0 if forces is None else np.linalg.norm(forces, axis=1).max()
        spread = np.nan if energy is None else energy / len(atoms)
        second = surroundings(*_arrays(atoms), CUTOFF).seconds.min()
        contact = reading.results["sanity_contact"]
        seen[name].append((contact, second, size, spread))
        level = verdict(reading)
        by_symmetry = any("by symmetry" in why for why in reading.doubts)
        unseen = reading.results["sanity_unseen"]
        unjudged = "vanishing" if by_symmetry else "unseen" if unseen else ""
        why = unjudged if unjudged and level == "suspect" else level
        called[name][why] += 1
        if why not in ("sane", "vanishing") and unseen < len(atoms):
            words = (*reading.absurd, *reading.faults, *reading.doubts)
            named.append(
                {"file": name, "frame": str(atoms.symbols), "why": "; ".join(words)}
            )
    rows = []
    for name, values in seen.items():
        contact, second, size, energy = np.array(values).T
        rows.append(
            {
                "kind": "labelled",
                "name": name,
                "frames": len(values),
                "smallest_contact": np.nanmin(contact) if len(contact) else np.nan,
                "smallest_second": float(second.min()),
                "largest_force": float(size.max()),
                "lowest_energy": float(np.nanmin(energy)),
                "highest_energy": float(np.nanmax(energy)),
                **{k: called[name][k] for k in ("sane", "vanishing", "unseen")},
                # rejected for another reason than a partial judgement
                "lost": sum(called[name][k] for k in ("suspect", *_WRONG)),
            }
        )
    return rows, named


def fused(atoms: Atoms, contact: float, rng: np.random.Generator) -> Atoms:
    """Return a copy with one atom moved towards its neighbour, to this contact."""
    moved = atoms.copy()
    first = int(rng.integers(len(moved)))
    distances = moved.get_all_distances(mic=bool(moved.pbc.any()))[first]
    distances[first] = np.inf
    second = int(distances.argmin())
    whole = covalent_radii[moved.numbers[[first, second]]].sum()
    axis = rng.normal(size=3)
    axis *= contact * whole / np.linalg.norm(axis)
    moved.positions[second] = moved.positions[first] + axis
    return moved


def soup(rng: np.random.Generator, *, periodic: bool) -> Atoms:
    """Return atoms of random elements at random places, as dense as a solid."""
    count = int(rng.integers(8, 64))
    edge = (count * rng.uniform(3.0, 12.0)) ** (1 / 3)
    numbers = rng.choice([1, 3, 6, 7, 8, 11, 13, 14, 17, 26, 29, 79], count)
    return Atoms(
        numbers, rng.uniform(0, edge, (count, 3)), cell=[edge] * 3, pbc=periodic
    )


def garbage(seed: int, each: int) -> Iterator[tuple[str, Atoms, float, float]]:
    """Yield the kind, the structure, an energy in eV and a largest force in eV/Å."""
    rng = np.random.default_rng(seed)
    bases = {**SOLIDS, **{name: molecule(name) for name in MOLECULES}}
    for _ in range(each):
        for atoms in bases.values():
            base = atoms.copy()
            base.rattle(0.05, rng=rng)
            yield "fused", fused(base, rng.uniform(0.01, 0.29), rng), -1.0, 1.0
            thrown = base.copy()
            thrown.positions[0] += 40.0 * np.array([0, 0.6, 0.8])
            thrown.pbc = False
            yield "an atom has left", thrown, -1.0, 1.0
            wrong = float(
                -(10 ** rng.uniform(6, 9)) * len(base)
            )  # of W's electrons -4e5
            yield "energy", base, wrong, 1.0
            yield "forces", base, -1.0, 10 ** rng.uniform(3.1, 9)
            far = base.copy()
            far.set_cell(far.cell.array + np.diag([10 ** rng.uniform(4.1, 8), 5, 5]))
            yield "extent", far, -1.0, 1.0
            yield "in nm", _scaled(base, 0.1), -1.0, 1.0
            yield "charge", _charged(base, rng), -1.0, 1.0
        for atoms in SOLIDS.values():
            factor = rng.uniform(0.6, 4.0)
            yield "perfect, at 0.6 to 4 a0", _scaled(atoms, factor), -1.0, 1e-6
            apart = _scaled(atoms, rng.uniform(4.0, 9.0))
            apart.rattle(0.1, rng=rng)
            yield "blown up", apart, -1.0, 1.0
            crushed = _scaled(atoms, rng.uniform(0.05, 0.28))
            crushed.rattle(0.005, rng=rng)
            yield "crushed", crushed, -1.0, 1.0
        for periodic in (True, False):
            yield "random soup", soup(rng, periodic=periodic), -1.0, 1.0
        yield "one atom", Atoms(str(rng.choice(["H", "He", "Na", "U"]))), -1.0, 0.0


def _scaled(atoms: Atoms, factor: float) -> Atoms:
    scaled = atoms.copy()
    scaled.set_cell(scaled.cell * factor, scale_atoms=True)
    if not scaled.pbc.any():
        scaled.positions *= factor
    return scaled


def _charged(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    charged = atoms.copy()
    values = [5, -1, float("nan"), "x", np.float32(2.5)]
    charged.info["charge"] = values[int(rng.integers(len(values)))]
    return charged


def read_garbage(seeds: list[int], each: int) -> tuple[list[dict], list[dict]]:
    """Return the levels of each kind, and the structures that pass."""
    signal = Sanity(CUTOFF, frozenset())
    called: dict[str, Counter] = defaultdict(Counter)
    missed = []
    made = (row for seed in seeds for row in garbage(seed, each))
    for kind, atoms, energy, size in made:
        forces = np.zeros((len(atoms), 3))
        forces[0, 0] = size
        reading = signal(prediction(atoms, energy, forces))
        called[kind][verdict(reading)] += 1
        if verdict(reading) == "sane":
            missed.append(
                {
                    "kind": kind,
                    "structure": str(atoms.symbols),
                    "contact": reading.results["sanity_contact"],
                    "eV_per_atom": energy / len(atoms),
                }
            )
    levels = ("sane", "suspect", "unreliable", "absurd")
    return [
        {
            "kind": "garbage",
            "name": kind,
            "frames": sum(counts.values()),
            **{level: counts[level] for level in levels},
        }
        for kind, counts in called.items()
    ], missed


def timings(repeats: int) -> list[dict]:
    """Return the time of one reading, for structures that pass."""
    rows = []
    for count in (21, 201, 999):
        boxed = water_box(count)
        loose = boxed.copy()
        loose.pbc = False
        copper = bulk("Cu", cubic=True)
        copper *= [max(1, round((count / 4) ** (1 / 3)))] * 3
        copper.rattle(0.05, seed=0)
        structures = {"water": boxed, "no cell": loose, "copper": copper}
        for name, atoms in structures.items():
            for how in ("for the first time", "as it moves"):
                taken = np.array(_times(atoms, repeats, anew=how != "as it moves"))
                rows.append(
                    {
                        "kind": "time",
                        "name": f"{name}, {how}",
                        "atoms": len(atoms),
                        "least_us": 1e6 * float(taken.min()),
                        "median_us": 1e6 * float(np.median(taken)),
                    }
                )
    return rows


def _times(atoms: Atoms, repeats: int, *, anew: bool) -> list[float]:
    """Return the seconds of each reading; between readings atoms move by 0.005 Å."""
    signal, taken = Sanity(5.0, frozenset()), []
    for seed in range(repeats):
        moved = atoms.copy()
        moved.rattle(0.005, seed=seed)
        given = prediction(moved, -1.0, None)
        signal = Sanity(5.0, frozenset()) if anew else signal
        start = time.perf_counter()
        signal(given)
        taken.append(time.perf_counter() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, default=20, help="of each base and kind")
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    made, missed = read_garbage(options.seeds, options.each)
    timed = timings(options.repeats)
    print_table("garbage", made, {k: k for k in made[0] if k != "kind"})
    print_table("times", timed, {k: k for k in timed[0] if k != "kind"})
    print_table("called sane", missed, {k: k for k in missed[0]} if missed else {})
    files, named = read_labelled()
    print_table("labelled frames", files, {k: k for k in files[0] if k != "kind"})
    print_table("not sane", named, {"file": "file", "frame": "frame", "why": "why"})
    lost = sum(row["lost"] for row in files)
    targets = [target("labelled frames lost", lost, 0)]
    targets += [
        target(f"{row['name']}: called sane", row["sane"], 0)
        for row in made
        if row["name"] != "random soup"  # soups without a contact: for the probe
    ]
    print_targets(targets)
    path = write_result(
        "sanity",
        seeds=options.seeds,
        rows=[*files, *made, *timed],
        targets=targets,
        more={
            "not_sane": named,
            "garbage_called_sane": missed,
            "limits": {
                "contact": FUSED,
                "second_contact": CROWDED,
                "force_eV_per_A": FORCE,
                "absurd_force_eV_per_A": ABSURD_FORCE,
                "extent_A": EXTENT,
            },
        },
    )
    print(path)


if __name__ == "__main__":
    main()
