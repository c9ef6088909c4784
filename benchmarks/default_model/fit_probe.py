"""Fit the probe that ships with the package, and compare what it could be fitted to.

Labels: the frames of `probe_frames.py`. Each kind of label (force error, energy
error) and each architecture is fitted once; the shipped probe is the one for force
errors with a named tolerance. Writes the probe and ``results/fit_default_probe.json``.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read


sys.path.insert(0, str(Path(__file__).parent.parent))
from common import target, write_result

from uqcalc import scores, tap
from uqcalc.backbones import Backbone
from uqcalc.default import bare_calculator
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.dataset import Dataset, Labels, build_dataset
from uqcalc.probe.training import FitReport, Recipe, fit_datasets


SPLITS = ("probe_train", "probe_calibration", "probe_test")
TOLERANCE = 0.2  # eV/Å, RMS over the structure: where dynamics goes wrong
DESCRIPTION = (
    "For demonstrations, tests and learning. P(RMS force error against GFN2-xTB <= "
    "0.2 eV/Å) for the bundled MACE on neutral molecules of H, C, N, O; labels from "
    "dynamics at 300 to 1000 K and from heating to 3000 K on the bundled MACE itself."
)


def variants(seed: int, *, published: bool) -> dict[str, tuple[Labels, Recipe]]:
    keys = {"group_key": "molecule"}
    force, energy = Labels("forces", **keys), Labels("energy", **keys)
    named = Labels("forces", boundary=TOLERANCE, **keys)
    standard = Recipe(seed=seed)
    chosen = {
        "shipped: forces, 0.2 eV/Å, standard": (named, standard),
        "forces, median, standard": (force, standard),
        "energy, median, standard": (energy, standard),
    }
    if published:
        paper = Recipe.published(seed=seed)
        chosen["forces, median, probe-2026"] = (force, paper)
        chosen["energy, median, probe-2026"] = (energy, paper)
    return chosen


def without_duplicates(data: Dataset, frames: list[Atoms]) -> list[Atoms]:
    """Return the frames that ``data`` was made of, in its order."""
    left_out = {i for rows in data.excluded.values() for i in rows}
    return [frame for i, frame in enumerate(frames) if i not in left_out]


def relabelled(data: Dataset, frames: list[Atoms], labels: Labels) -> Dataset:
    """Return the same features with the errors of another label."""
    errors = [
        labels.error(prediction, labels.reference(frame))
        for prediction, frame in zip(data.predictions, frames, strict=True)
    ]
    return replace(data, errors=np.array(errors))


def load(folder: Path, backbone: Backbone) -> tuple[list[Dataset], list[list[Atoms]]]:
    labels = Labels("forces", group_key="molecule")
    sets, kept = [], []
    for name in SPLITS:
        frames = read(folder / f"{name}.xyz", ":")
        data = build_dataset(frames, backbone, labels, exclude=("duplicate",))
        print(
            name, len(data), {k: len(v) for k, v in data.excluded.items()}, flush=True
        )
        sets.append(data)
        kept.append(without_duplicates(data, frames))
    return sets, kept


def row(name: str, result: FitReport, frames: list[Atoms]) -> dict[str, Any]:
    report = result.report
    kinds = np.array([frame.info["kind"] for frame in frames])
    out = {
        "variant": name,
        "boundary": result.probe.card.boundary,
        "unit": result.probe.card.unit,
        "epochs": len(result.curve),
        **{k: v for k, v in report.items() if k != "coverage"},
        "coverage": report["coverage"],
    }
    for kind in sorted(set(kinds)):
        mine = kinds == kind
        risk = 1 - result.probability[mine]
        out[f"spearman_{kind}"] = scores.spearman(result.errors[mine], risk)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("default_model_data"))
    parser.add_argument("--output", type=Path, default=Path("default.probe"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--published",
        action="store_true",
        help="also fit the published recipe (about an hour on two cores)",
    )
    options = parser.parse_args()
    backbone = tap(bare_calculator())
    sets, frames = load(options.data, backbone)
    rows = []
    for name, (labels, recipe) in variants(
        options.seed, published=options.published
    ).items():
        pairs = zip(sets, frames, strict=True)
        splits = [relabelled(data, kept, labels) for data, kept in pairs]
        result = fit_datasets(*splits, backbone, labels, recipe)
        print(f"\n== {name}\n{result}", flush=True)
        rows.append(row(name, result, frames[2]))
        if name.startswith("shipped"):
            card = replace(result.probe.card, description=DESCRIPTION)
            probe = Probe(card, result.probe.network, result.probe.statistics)
            probe.save(options.output)
    shipped, force, energy = rows[:3]
    write_result(
        "fit_default_probe",
        seeds=[options.seed],
        rows=rows,
        targets=[
            target(
                f"{score} of force labels, against energy labels (both at the median)",
                force[score],
                energy[score],
                at_most=False,
            )
            for score in ("spearman", "auroc")
        ]
        + [
            target(
                "accuracy of the shipped probe, against the majority class",
                shipped["accuracy"],
                shipped["majority_accuracy"],
                at_most=False,
            )
        ],
        notes=["tested on molecules that neither the probe nor the backbone saw"],
    )


if __name__ == "__main__":
    main()
