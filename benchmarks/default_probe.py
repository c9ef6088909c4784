"""Score the shipped probes beside the simplest things one could ask instead.

Two sets of structures that neither probe was fitted on: frames of the runs of
`halts_when_it_should.py` (bundled MACE, GFN2-xTB forces), and the held-out materials
of `chgnet_probe.py` (CHGNet, PBE forces). Every baseline gets the two parameters of
Platt's calibration on groups of its own, as the probe did.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, target, write_result

from uqcalc import LabelError, Probe, scores
from uqcalc.probe.calibration import calibrate
from uqcalc.probe.dataset import Dataset
from uqcalc.shipped import shipped_probe


EVERY = 20  # frames of 5 fs
COLUMNS = {
    "potential": "potential",
    "detector": "detector",
    "accuracy": "accuracy",
    "mcc": "MCC",
    "auroc": "AUROC",
    "ece": "ECE",
    "ece_noise_floor": "floor",
    "brier": "Brier",
    "spearman": "Spearman(error, risk)",
}


def belief(
    risk: np.ndarray, calibration_risk: np.ndarray, calibration_reliable: np.ndarray
) -> np.ndarray:
    """Return P(reliable) from a risk; the prevalence where it ranks nothing."""
    scale = np.log
    try:
        slope, intercept = calibrate(-scale(calibration_risk), calibration_reliable)
    except LabelError:
        return np.full(len(risk), calibration_reliable.mean())
    return 1 / (1 + np.exp(-(intercept - slope * scale(risk))))


def row(
    potential: str, detector: str, errors: np.ndarray, probability: np.ndarray,
    boundary: float,
) -> dict[str, Any]:  # fmt: skip
    """Return one line: the scores of the report."""
    report = scores.classification_report(errors <= boundary, probability)
    report["spearman"] = scores.spearman(errors, 1 - probability)
    del report["coverage"]
    return {"potential": potential, "detector": detector, **report}


def compare(
    potential: str,
    boundary: float,
    calibration: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Return a line for each risk in `test`, and the majority class's."""
    errors, reliable = test["error"], calibration["error"] <= boundary
    rows = [row(potential, "probe", errors, test["probability"], boundary)]
    constant = np.full(len(errors), reliable.mean())
    rows.append(row(potential, "majority class", errors, constant, boundary))
    for name in sorted(set(test) - {"error", "probability"}):
        probability = belief(test[name], calibration[name], reliable)
        rows.append(row(potential, name, errors, probability, boundary))
    return rows


def run_frames(
    cache: Path, members: Sequence[Path], purpose: str
) -> dict[str, np.ndarray]:
    """Return errors and risks of every twentieth frame of the cached runs."""
    from halting.runs import all_specs, read_run
    from halting.signals import bundled, committee_spread, member, read_arrays

    models = [bundled(), *map(member, members)]
    parts: dict[str, list[np.ndarray]] = {}
    for spec in all_specs():
        if spec.purpose != purpose:
            continue
        run = read_run(cache, spec)
        arrays = read_arrays(cache / f"{spec.name}.signals.npz")
        kept = [i for i in range(0, len(run.positions), EVERY)
                if np.isfinite(arrays["error"][i])]  # fmt: skip
        frames = [frame for i, frame in enumerate(run.frames()) if i in set(kept)]
        found = {
            "error": arrays["error"][kept],
            "probability": 1 - arrays["probe"][kept],
            "largest force": arrays["max_force"][kept],
            "latent distance": arrays["distance_mean"][kept],
            "committee of four": committee_spread(models, frames),
            "number of atoms": np.full(len(kept), float(len(run.numbers))),
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def crystals(data: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return errors and risks of the calibration and test materials for CHGNet."""
    from chgnet.model.dynamics import CHGNetCalculator
    from chgnet_probe import load_frames
    from sklearn.covariance import LedoitWolf

    from uqcalc import Labels, tap
    from uqcalc.probe.dataset import build_dataset

    labels = Labels(forces_key="forces", group_key="material")
    backbone = tap(CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore"))
    whole = build_dataset(
        load_frames(data, 16),
        backbone,
        labels,
        exclude=("duplicate", "unknown elements"),
    )
    train, calibration, test = whole.split((0.7, 0.15, 0.15), 0)
    features = np.concatenate([p.features.numpy() for p in train.predictions])
    near = LedoitWolf().fit(features.astype(float))
    probe = shipped_probe("chgnet")
    expected = probe.card.training["structures"]
    if (len(train), len(test)) != (expected["train"], expected["test"]):
        message = f"split must be the one the probe was fitted on, {expected}"
        raise ValueError(message)
    first, second = (crystal_risks(part, probe, near) for part in (calibration, test))
    return first, second


def crystal_risks(data: Dataset, probe: Probe, near: Any) -> dict[str, np.ndarray]:
    """Return what is asked of each structure of a dataset."""
    forces = [np.linalg.norm(p.forces, axis=1).max() for p in data.predictions]
    far = [
        np.sqrt(near.mahalanobis(p.features.numpy().astype(float))).mean()
        for p in data.predictions
    ]
    return {
        "error": data.errors,
        "probability": probe(data.predictions)[0].numpy().astype(float),
        "largest force": np.maximum(forces, 1e-4),
        "latent distance": np.array(far),
        "number of atoms": np.array([float(len(p.numbers)) for p in data.predictions]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("halting_cache"))
    parser.add_argument("--members", type=Path, nargs=3, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"labels must be in a folder, got {options.data}: see --data\n")
    rows = []
    for potential, boundary, (calibration, test) in (
        (
            "bundled MACE",
            shipped_probe("default").card.boundary,
            [run_frames(options.cache, options.members, p) for p in ("tuning", "test")],
        ),
        ("CHGNet", shipped_probe("chgnet").card.boundary, crystals(options.data)),
    ):
        rows += compare(potential, boundary, calibration, test)
    print_table("shipped probes", rows, COLUMNS)
    ours = {r["potential"]: r["auroc"] for r in rows if r["detector"] == "probe"}
    path = write_result(
        "default_probe",
        seeds=[0],
        rows=rows,
        targets=[
            target(
                f"{r['potential']}: AUROC of {r['detector']} below the probe's",
                r["auroc"],
                ours[r["potential"]],
            )
            for r in rows
            if r["detector"] not in {"probe", "majority class"}
        ],
        notes=[
            "MACE: tested on ten molecules, baselines calibrated on 24 others",
            "MACE: frames 100 fs apart; those of one run resemble each other",
            "CHGNet: materials of chgnet_probe.py's test split; two sets of six are in "
            "CHGNet's own training pool",
        ],
    )
    print(path)


if __name__ == "__main__":
    main()
