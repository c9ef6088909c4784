"""Compare the bundled probe with the simplest alternatives.

The structures are frames of the runs of `halts_when_it_should.py` (bundled MACE,
GFN2-xTB forces); the probe was not fitted on them. Each baseline is calibrated by
Platt's method on other groups, like the probe.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, target, write_result

from uqcalc.defaults import shipped_probe
from uqcalc.errors import LabelError
from uqcalc.probe.calibration import platt
from uqcalc.statistics import scores


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
    """Return P(reliable) from a risk; the prevalence if the risk does not rank."""
    scale = np.log
    try:
        slope, intercept = platt(-scale(calibration_risk), calibration_reliable)
    except LabelError:
        return np.full(len(risk), calibration_reliable.mean())
    return 1 / (1 + np.exp(-(intercept - slope * scale(risk))))


def row(
    potential: str, detector: str, errors: np.ndarray, probability: np.ndarray,
    boundary: float,
) -> dict[str, Any]:  # fmt: skip
    """Return the scores of the report as a row."""
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
    """Return a row for each risk in `test`, and one for the majority class."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("halting_cache"))
    parser.add_argument("--members", type=Path, nargs=3, required=True)
    options = parser.parse_args()
    calibration, test = (
        run_frames(options.cache, options.members, part) for part in ("tuning", "test")
    )
    boundary = shipped_probe("default").card.boundary
    rows = compare("bundled MACE", boundary, calibration, test)
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
            "MACE: frames 100 fs apart; frames of one run are alike",
        ],
    )
    print(path)


if __name__ == "__main__":
    main()
