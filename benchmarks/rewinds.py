"""Rewind runs of the bundled potential that are heated until it fails.

Molecules that are not among the labels of the potential and its probe are heated from
300 to 3 000 K in 0.1 ps and stay there for 0.06 ps. At each alarm the monitor goes
back. The reference is GFN2-xTB. Three questions: is the restored state right, is the
alarm right, and how do the errors of the steps of `reliable_frames` differ from the
others?

    python rewinds.py --molecules ethanol uracil --seeds 2
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from common import BUNDLED, print_table, print_targets, target, write_result

from uqcalc import Monitor, Rewind, default_calculator, reliable_frames
from uqcalc.targets import force_errors


sys.path.insert(0, str(BUNDLED))
from molecules import HELD_OUT
from sample import FAILURES, embed, seed_of, xtb


START_K, END_K = 300.0, 3000.0
HEATING, STEPS = 200, 320  # steps of 0.5 fs
EVERY = 10  # steps between two labels
REWINDS, BACK_FS = 3, 50.0
COLUMNS = {
    "molecule": "molecule",
    "seed": "seed",
    "rewinds": "rewinds",
    "end": "end",
    "last_step": "last step",
    "alarm_errors": "error at alarms, eV/Å",
    "state_errors": "error of the states gone back to",
    "wrong_kept": "wrong among kept",
    "wrong_left_out": "wrong among left out",
}


def heated(atoms: Atoms, seed: int) -> tuple[Langevin, list[np.ndarray]]:
    """Return dynamics that is heated, and the positions of its steps so far."""
    rng = np.random.RandomState(seed)
    thermalize_momenta(atoms, START_K, rng=rng)
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=START_K,
        friction=0.05 / units.fs,
        fixcm=False,
        rng=rng,
    )
    places: list[np.ndarray] = []

    def heat() -> None:
        places.append(atoms.positions.copy())
        share = min(1.0, dynamics.nsteps / HEATING)
        dynamics.set_temperature(temperature_K=START_K + share * (END_K - START_K))

    dynamics.attach(heat)
    return dynamics, places


class Truth:
    """RMS force errors of geometries of one molecule, in eV/Å; NaN without SCF."""

    def __init__(self, atoms: Atoms) -> None:
        self._ours, self._theirs = atoms.copy(), atoms.copy()
        self._ours.calc = default_calculator().backbone.calculator

    def __call__(self, positions: np.ndarray) -> float:
        """Return the error at these positions (atoms, 3) in Å."""
        self._ours.positions = self._theirs.positions = positions
        self._theirs.calc = xtb()  # not from the density of another geometry
        try:
            wanted = self._theirs.get_forces()
        except FAILURES:
            return float("nan")
        errors = force_errors(self._ours.get_forces(), wanted)
        return float(np.sqrt(np.mean(errors**2) / 3))


def share_wrong(errors: list[float], boundary: float) -> float:
    """Return the share of errors above the boundary; NaN counts as above."""
    return float(np.mean([not e <= boundary for e in errors])) if errors else np.nan


def one_run(name: str, seed: int) -> dict[str, Any]:
    """Run one molecule, and label some of its steps."""
    smiles = HELD_OUT[name]
    atoms = embed(smiles, seed_of(smiles, f"rewinds {seed}"))
    start = atoms.copy()
    atoms.calc = default_calculator()
    most = atoms.calc.signals[0].probe.card.boundary
    dynamics, places = heated(atoms, seed)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "run.jsonl"
        settings = Rewind(max_rewinds=REWINDS, back_fs=BACK_FS, seed=seed)
        monitor = Monitor(dynamics, log=log, on_unreliable=settings)
        dynamics.run(STEPS)
        kept = set(reliable_frames(log).steps.tolist())
    truth = Truth(start)
    errors = {s: truth(places[s]) for s in range(0, len(places), EVERY)}
    return {
        "molecule": name,
        "seed": seed,
        "rewinds": len(monitor.rewinds),
        "end": "halted" if monitor.halted else "finished",
        "last_step": len(places) - 1,
        "path": [[r.step, r.to_step] for r in monitor.rewinds],
        "alarm_errors": [truth(places[r.step]) for r in monitor.rewinds],
        "state_errors": [truth(places[r.to_step]) for r in monitor.rewinds],
        "kept": len(kept),
        "wrong_kept": share_wrong([e for s, e in errors.items() if s in kept], most),
        "wrong_left_out": share_wrong(
            [e for s, e in errors.items() if s not in kept], most
        ),
        "boundary_eV_per_A": most,
    }


def main() -> None:
    """Run all molecules and seeds, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", nargs="+", default=["ethanol", "uracil"])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    rows = []
    for name in options.molecules:
        for seed in range(options.seeds):
            rows.append(one_run(name, seed))
            print(rows[-1], flush=True)
    boundary = rows[0]["boundary_eV_per_A"]
    states = [e for row in rows for e in row["state_errors"]]
    alarms = [e for row in rows for e in row["alarm_errors"]]
    targets = [
        target("right among the states gone back to",
               1 - share_wrong(states, boundary), 0.9, at_most=False),
        target("wrong among the frames of alarms",
               share_wrong(alarms, boundary), 0.5, at_most=False),
        target("wrong among kept, mean over runs",
               float(np.nanmean([r["wrong_kept"] for r in rows])), 0.1),
    ]  # fmt: skip
    print_table("Rewound runs", rows, COLUMNS)
    print_targets(targets)
    write_result("rewinds", seeds=range(options.seeds), rows=rows, targets=targets)


if __name__ == "__main__":
    main()
