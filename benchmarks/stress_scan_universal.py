"""Test whether the stress of a universal potential is trusted far from equilibrium.

Eight crystals of metallic, covalent and ionic bonding are read at 0.5 to 4 times the
lattice constant of the potential, perfect and rattled by 0.03 Å, with the probes that
ship with it. No DFT is run here. The reference is the equation of state of Vinet et al.
(1987, doi:10.1029/JB092iB09p09319), which tends to zero for separated atoms:

    P(x) = 3 B0 (1 - x) / x² exp(3/2 (B' - 1) (1 - x)),   x = a / a0

| symbol | variable |
| --- | --- |
| a0 | the potential's own lattice constant, so that only its shape is compared |
| B0, B' | ``CRYSTALS``: experiment, rounded to a few per cent |

The reference is not exact. A stress counts as wrong only if its pressure is off by more
than the boundary and a tolerance: 30 % of P (50 % below x = 0.8); for ionic crystals
beyond x = 1.1 also the pressure of point charges; for rattled atoms also the difference
that the rattling makes in the potential. Other stresses count as "not known to be
wrong". If the other potential was scanned before, the rows
also count the geometries in which both potentials differ by more than twice the
boundary and one of the two is RELIABLE: at least one of the two is wrong there. This is
a cross-check, not a reference.

    python benchmarks/stress_scan_universal.py --model chgnet
    python benchmarks/stress_scan_universal.py --model sevennet  # with sevenn
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from common import RESULTS, print_table, print_targets, target, write_result
from scipy.optimize import minimize_scalar

from uqcalc import Level, ReliableCalculator, open_model
from uqcalc.defaults import open_probes
from uqcalc.errors import BackboneError
from uqcalc.targets import voigt_stress


@dataclass(frozen=True)
class Crystal:
    """A crystal and its equation of state.

    ``structure`` and ``a`` (Å) are those of `ase.build.bulk`; ``stiffness`` and
    ``slope`` are B0 in GPa and B'. ``charge`` is that of the ions in e, and
    ``madelung`` their Madelung constant for the nearest distance.
    """

    structure: str
    a: float
    stiffness: float
    slope: float
    charge: float = 0.0
    madelung: float = 1.7476


# Al, Cu, W: Dewaele et al. 2004 (doi:10.1103/PhysRevB.70.094112); diamond: Occelli et
# al. 2003 (doi:10.1038/nmat831); MgO: Speziale et al. 2001 (doi:10.1029/2001JB000559);
# Si, GaAs, NaCl: elastic constants under pressure, as in textbooks.
CRYSTALS = {
    "Al": Crystal("fcc", 4.05, 73, 4.5),
    "Cu": Crystal("fcc", 3.61, 133, 5.3),
    "W": Crystal("bcc", 3.16, 296, 4.3),
    "C": Crystal("diamond", 3.57, 446, 3.0),
    "Si": Crystal("diamond", 5.43, 98, 4.2),
    "GaAs": Crystal("zincblende", 5.65, 75, 4.5),
    "NaCl": Crystal("rocksalt", 5.64, 24, 5.1, charge=1),
    "MgO": Crystal("rocksalt", 4.21, 160, 4.0, charge=2),
}
SCALES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.2, 1.35)
SCALES += (1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
RATTLES = (0.0, 0.03)  # Å
COULOMB = 14.399645  # e² / (4 pi eps0) in eV Å
COLUMNS = {
    "scale": "a / a0",
    "geometries": "geometries",
    "refused": "refused",
    "median_pressure_GPa": "median pressure (GPa)",
    "median_reference_GPa": "of the reference",
    "wrong": "wrong",
    "wrong_and_reliable": "wrong and RELIABLE",
    "wrong_and_likely": "wrong and P >= 0.8",
    "others_and_reliable": "others and RELIABLE",
}


def vinet(crystal: Crystal, x: float) -> float:
    """Return the pressure in GPa at ``x`` times the lattice constant."""
    decay = np.exp(1.5 * (crystal.slope - 1) * (1 - x))
    return float(3 * crystal.stiffness * (1 - x) / x**2 * decay)


def tolerance(crystal: Crystal, row: dict[str, Any]) -> float:
    """Return how far the reference of a perfect cell may be off, in GPa."""
    x = row["scale"]
    share = 0.3 if x >= 0.8 else 0.5
    ions = 0.0
    if crystal.charge and x > 1.1:
        near = row["a0_A"] * x / 2  # rock salt: half of the lattice constant
        energy = crystal.madelung * COULOMB * crystal.charge**2 / near
        ions = energy / (3 * 2 * near**3) / units.GPa
    return share * abs(row["reference_GPa"]) + ions


def mark(rows: list[dict[str, Any]], limit: float) -> None:
    """Set ``wrong`` in each row: off by more than ``limit`` and the tolerance."""
    perfect = {
        (row["crystal"], row["scale"]): row["pressure_GPa"]
        for row in rows
        if not row["rattle_A"]
    }
    for row in rows:
        same = perfect[row["crystal"], row["scale"]]
        off = abs(row["pressure_GPa"] - row["reference_GPa"])
        may = tolerance(CRYSTALS[row["crystal"]], row)
        row["wrong"] = bool(off > limit + may + abs(row["pressure_GPa"] - same))


def lattice_constant(cell: Atoms, calc: Any) -> float:
    """Return the factor on the cell at which the potential's energy is lowest."""

    def energy(scale: float) -> float:
        atoms = cell.copy()
        atoms.set_cell(atoms.cell * scale, scale_atoms=True)
        return float(calc.backbone(atoms, ["energy", "forces"]).energy)

    found = minimize_scalar(energy, bounds=(0.94, 1.06), options={"xatol": 1e-3})
    return float(found.x)


def scan(calc: ReliableCalculator) -> list[dict[str, Any]]:
    """Return one row for each geometry."""
    rows = []
    for name, crystal in CRYSTALS.items():
        cell = bulk(name, crystal.structure, a=crystal.a, cubic=True)
        own = lattice_constant(cell, calc) * crystal.a
        for x in SCALES:
            for rattle in RATTLES:
                atoms = cell.copy()
                atoms.set_cell(np.eye(3) * own * x, scale_atoms=True)
                atoms.rattle(rattle, seed=5)
                row = {"crystal": name, "a0_A": own, "scale": x, "rattle_A": rattle}
                row["reference_GPa"] = vinet(crystal, x)
                rows.append(row | read(calc, atoms))
    return rows


def read(calc: ReliableCalculator, atoms: Atoms) -> dict[str, Any]:
    """Return the pressure in GPa and the verdict on a geometry.

    A geometry that the potential refuses (too many neighbours) has no pressure; it is
    not RELIABLE.
    """
    try:
        found = calc.assess(atoms, use="moving_cell")
    except BackboneError as error:
        return {
            "pressure_GPa": np.nan,
            "refused": True,
            "reliable": False,
            "level": "refused",
            "p_stress": np.nan,
            "novelty": np.nan,
            "reasons": [str(error)],
        }
    stress = voigt_stress(calc.recall(atoms)["stress"])
    pressure = -float(stress[:3].mean()) / units.GPa
    reading = found.reading("probe_stress")
    return {
        "pressure_GPa": pressure,
        "refused": False,
        "reliable": found.level is Level.RELIABLE,
        "level": found.level.name,
        "p_stress": 1 - float(reading.risk),
        "novelty": float(reading.results["probe_novelty_stress"]),
        "reasons": list(found.verdict.reasons),
    }


def summary(scale: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts at one scale."""
    wrong = np.array([row["wrong"] for row in rows])
    trusted = np.array([row["reliable"] for row in rows])
    likely = np.array([row["p_stress"] >= 0.8 for row in rows])
    return {
        "scale": scale,
        "geometries": len(rows),
        "refused": sum(row["refused"] for row in rows),
        "median_pressure_GPa": float(np.nanmedian([r["pressure_GPa"] for r in rows])),
        "median_reference_GPa": float(np.median([r["reference_GPa"] for r in rows])),
        "wrong": int(wrong.sum()),
        "wrong_and_reliable": int((wrong & trusted).sum()),
        "wrong_and_likely": int((wrong & likely).sum()),
        "others_and_reliable": int((~wrong & trusted).sum()),
    }


def cross_check(
    other: str, rows: list[dict[str, Any]], limit: float
) -> tuple[int, int] | None:
    """Return geometries in which the potentials differ, and those RELIABLE in one.

    None if the other potential was not scanned.
    """
    path = RESULTS / f"stress_scan_{other}.json"
    if not path.is_file():
        return None
    theirs = {
        (r["crystal"], r["scale"], r["rattle_A"]): r
        for r in json.loads(path.read_text(encoding="utf-8"))["geometries"]
    }
    differ, trusted = 0, 0
    for row in rows:
        match = theirs[row["crystal"], row["scale"], row["rattle_A"]]
        if abs(row["pressure_GPa"] - match["pressure_GPa"]) > 2 * limit:
            differ += 1
            trusted += row["reliable"]
    return differ, trusted


def main() -> None:
    """Scan the crystals and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("chgnet", "sevennet"), default="chgnet")
    parser.add_argument("--probe", action="append", help="files; by default shipped")
    options = parser.parse_args()
    model = options.model
    probes = open_probes(options.probe or [model])
    calc = ReliableCalculator(open_model(model, device="cpu"), probes)
    [stress] = [p.card for p in probes if p.card.target == "stress"]
    limit = stress.boundary / units.GPa
    rows = scan(calc)
    mark(rows, limit)
    table = [summary(x, [r for r in rows if r["scale"] == x]) for x in SCALES]
    trusted = sum(row["wrong_and_reliable"] for row in table)
    targets = [target("wrong and RELIABLE", trusted, 0)]
    notes = [f"boundary {limit:g} GPa; {sum(r['wrong'] for r in rows)} wrong"]
    other = {"chgnet": "sevennet", "sevennet": "chgnet"}[model]
    checked = cross_check(other, rows, limit)
    if checked is not None:
        notes.append(
            f"cross-check, no reference: {model} and {other} differ by more than "
            f"{2 * limit:g} GPa in {checked[0]} geometries; {model} is RELIABLE in "
            f"{checked[1]} of them"
        )
    write_result(
        f"stress_scan_{model}",
        seeds=[5],
        rows=table,
        targets=targets,
        notes=notes,
        more={"geometries": rows},
    )
    print_table(f"stress of {model} far from equilibrium", table, COLUMNS)
    print(*notes, sep="\n")
    print_targets(targets)


if __name__ == "__main__":
    main()
