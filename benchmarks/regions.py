"""Calibration of P of a region (`atoms=`): a functional group, a third of a molecule.

The frames are thermal ones (300 to 2 500 K) of test molecules of the bundled probe,
with GFN2-xTB forces, from scope_frames.py of provenance/bundled. For each frame one
region of each kind is judged, and the true error is that of its atoms only. It is
compared with P of the atoms read as a separate structure, the method before
uqcalc.probe.regions.

    python regions.py --frames bundled_data/probe_test.scope.xyz
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.neighborlist import build_neighbor_list, natural_cutoffs
from common import BUNDLED, print_table, print_targets, target, write_result
from numpy.typing import NDArray

from uqcalc import ReliableCalculator
from uqcalc.backbones.prediction import Prediction
from uqcalc.defaults import shipped_probe
from uqcalc.models.bundled import bare_calculator
from uqcalc.probe.probe import Probe
from uqcalc.signals.probe import ProbeSignal
from uqcalc.signals.region import Region
from uqcalc.statistics import scores
from uqcalc.targets import force_errors


FEWEST = 6
BATCH = 64
RMS, WORST = "RMS of the region", "its least reliable atom"
RESULT = "probe_region_reliability"
KINDS = ("whole", "functional group", "connected third")
COLUMNS = {
    "region": "region",
    "of": "P of",
    "structures": "frames",
    "prevalence": "right",
    "mean": "mean P",
    "ece": "ECE",
    "floor": "floor",
    "auroc": "AUROC",
}


def test_frames(path: Path, kind: str, start: int, every: int) -> list[Atoms]:
    """Return labelled test frames of one kind with at least six atoms."""
    frames = [f for f in ase.io.read(path, ":") if f.info["kind"] == kind]
    return [f for f in frames if len(f) >= FEWEST][start::every]


def bonded(atoms: Atoms) -> list[NDArray[np.int64]]:
    """Return the partners of each atom."""
    pairs = build_neighbor_list(
        atoms, natural_cutoffs(atoms, 1.2), bothways=True, self_interaction=False
    )
    return [np.unique(pairs.get_neighbors(i)[0]) for i in range(len(atoms))]


def functional_group(
    atoms: Atoms, partners: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> list[int] | None:
    """Return N or O, its partners, and the H and O atoms on these; None without any."""
    centres = [i for i, z in enumerate(atoms.numbers) if z in (7, 8)]
    if not centres:
        return None
    centre = int(rng.choice(centres))
    found = {centre, *partners[centre].tolist()}
    for i in partners[centre]:
        found |= {int(j) for j in partners[i] if atoms.numbers[j] in (1, 8)}
    return sorted(found)


def connected_third(
    atoms: Atoms, partners: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> list[int]:
    """Return a random connected third of the atoms, grown bond by bond."""
    wanted = max(1, round(len(atoms) / 3))
    found = [int(rng.integers(len(atoms)))]
    while len(found) < wanted:
        rim = sorted({int(j) for i in found for j in partners[i]} - set(found))
        if not rim:
            break
        found.append(int(rng.choice(rim)))
    return sorted(found)


def regions(frames: Sequence[Atoms]) -> Iterator[tuple[int, str, list[int]]]:
    """Yield (frame, kind, atoms) of each region to judge."""
    rng = np.random.default_rng(0)
    for index, atoms in enumerate(frames):
        partners = bonded(atoms)
        yield index, KINDS[0], list(range(len(atoms)))
        group = functional_group(atoms, partners, rng)
        if group is not None and len(group) < len(atoms):
            yield index, KINDS[1], group
        yield index, KINDS[2], connected_third(atoms, partners, rng)


def read(
    probe: Probe, predictions: Sequence[Prediction], asked: Sequence[tuple[int, Any]]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Return P of each region read as a structure, and P of each of its atoms."""
    energies = probe.card.element_energies()
    rms, atoms = [], []
    for start in range(0, len(asked), BATCH):
        rows = asked[start : start + BATCH]
        parts = [Region(chosen).part(predictions[i], energies) for i, chosen in rows]
        found = probe.read(parts)
        rms.append(found.reliability.double().numpy())
        sizes = [len(chosen) for _, chosen in rows]
        atoms += [p.double().numpy() for p in found.atoms.split(sizes)]
    return np.concatenate(rms), atoms


def row(
    kind: str, of: str, right: NDArray[np.bool_], said: NDArray[np.float64],
    groups: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return the scores of one probability of one kind of region."""
    return {
        "region": kind,
        "of": of,
        "structures": len(right),
        "prevalence": float(right.mean()),
        "mean": float(said.mean()),
        "ece": scores.expected_calibration_error(right, said),
        "floor": scores.calibration_chance(right, said, groups).mean,
        "auroc": scores.auroc(right, said),
    }


def judged(frames: Sequence[Atoms]) -> list[dict[str, Any]]:
    """Return the rows of all kinds of regions."""
    probe, card = shipped_probe("default"), shipped_probe("default").card
    calculator = ReliableCalculator(bare_calculator(dtype="float64"), probe)
    predictions = [calculator.backbone(atoms, ["energy", "forces"]) for atoms in frames]
    errors = [
        force_errors(p.forces, atoms.arrays["REF_forces"])
        for p, atoms in zip(predictions, frames, strict=True)
    ]
    found = list(regions(frames))
    said, atoms = read(probe, predictions, [(i, chosen) for i, _, chosen in found])
    own = [errors[i][chosen] for i, _, chosen in found]
    # as the boundary: root mean square over the three components of each force
    rms = np.array([np.sqrt(np.mean(e**2) / 3) for e in own])
    least = np.array([p.min() for p in atoms])
    at_least = np.array([e[p.argmin()] for e, p in zip(own, atoms, strict=True)])
    largest = np.array([e.max() for e in own])
    package = np.array(
        [
            float(ProbeSignal(probe, atoms=c)(predictions[i]).results[RESULT])
            for i, _, c in found
        ]
    )
    rows = []
    for kind in KINDS:
        mine = np.array([k == kind for _, k, _ in found])
        groups = [frames[i].info["molecule"] for i, k, _ in found if k == kind]
        for of, right, p in (
            (RMS, rms <= card.boundary, package),
            ("RMS, a structure of its own", rms <= card.boundary, said),
            (WORST, at_least <= card.atom_boundary, least),
            ("all its atoms", largest <= card.atom_boundary, least),
        ):
            rows.append(row(kind, of, right[mine], p[mine], groups))
        sizes = [len(chosen) for _, k, chosen in found if k == kind]
        rows[-1]["atoms"] = float(np.mean(sizes))
    return rows


def main() -> None:
    """Read the frames, judge the regions, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    data = BUNDLED / "bundled_data" / "probe_test.scope.xyz"
    parser.add_argument("--frames", type=Path, default=data)
    parser.add_argument("--kind", default="mmff")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    frames = test_frames(options.frames, options.kind, options.start, options.every)
    rows = judged(frames)
    print_table("Probabilities of regions", rows, COLUMNS)
    targets = [
        target(f"ECE of P, {r['region']}, {r['of']}", r["ece"], 0.05)
        for r in rows
        if r["region"] != KINDS[0] and r["of"] in (RMS, WORST)
    ]
    print_targets(targets)
    molecules = len({f.info["molecule"] for f in frames})
    write_result(
        "regions",
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=[
            f"{len(frames)} frames of {molecules} test molecules of the probe: every "
            f"{options.every}. from {options.start}. on, of the kind {options.kind}"
        ],
    )


if __name__ == "__main__":
    main()
