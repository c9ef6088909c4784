"""Fit the probe of the bundled potential, and score it by kind of frame.

The labels are the frames of `probe_frames.py` and `scope_frames.py`. Training,
guarantee and test have no molecule in common. The script writes the probe and
``benchmarks/results/fit_default_probe.json``. With ``--previous`` the file has the
scores of another probe on the same test frames, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from common import print_table, target, write_result

from uqcalc import Labels, Level, Recipe, ReliableCalculator, tap
from uqcalc.backbones import Backbone
from uqcalc.errors import LabelError
from uqcalc.evaluation.guarantee import certify_dataset
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.models.bundled import bare_calculator
from uqcalc.probe.probe import Probe
from uqcalc.statistics import scores


EXCLUDE = ("duplicate",)
RISKS = (0.05, 0.1)  # of a guarantee, the strictest first
SPLITS = ("probe_train", "probe_calibration", "probe_test")
TOLERANCE = 0.2  # eV/Å, RMS over the structure: larger errors spoil dynamics
DESCRIPTION = (
    "For demonstrations, tests and learning. P(RMS force error against GFN2-xTB <= "
    "0.2 eV/Å) for the bundled MACE on neutral molecules of H, C, N, O, their dimers "
    "and clusters; labels from dynamics at 300 to 1000 K, heating to 3000 K, molecules "
    "of 2 to 7 atoms, stretched bonds, dimers and clusters."
)
COLUMNS = {
    "probe": "probe",
    "kind": "kind",
    "frames": "frames",
    "right": "share right",
    "mean_p": "mean P",
    "reliable": "RELIABLE",
    "reliable_wrong": "of them wrong",
    "right_reliable": "right ones RELIABLE",
    "auroc": "AUROC",
}


def load(folder: Path, split: str, every: int = 1) -> list[Atoms]:
    """Return the frames of both scripts, with each ``every``-th frame of a ramp."""
    frames: list[Atoms] = []
    for path in (folder / f"{split}.xyz", folder / f"{split}.scope.xyz"):
        if path.is_file():
            frames += read(path, ":")
    ramps = [i for i, frame in enumerate(frames) if frame.info["kind"] == "ramp"]
    left_out = set(ramps) - set(ramps[::every])
    return [frame for i, frame in enumerate(frames) if i not in left_out]


def kind_of(frame: Atoms) -> str:
    """Return the kind of a frame in the report; some depend on temperature or size."""
    kind: str = frame.info["kind"]
    if kind == "ramp":
        return "ramp to 1500 K" if frame.info["temperature"] < 1500 else "ramp beyond"
    if kind == "stretch" and len(frame) <= 7:
        return "stretch, 2 to 7 atoms"
    return "stretch, larger" if kind == "stretch" else kind


def kept(data: Dataset, frames: Sequence[Atoms]) -> list[Atoms]:
    """Return the frames of ``data``, in its order."""
    left_out = {i for rows in data.excluded.values() for i in rows}
    return [frame for i, frame in enumerate(frames) if i not in left_out]


def judged(
    name: str, probe: Probe, backbone: Backbone, data: Dataset, frames: list[Atoms]
) -> list[dict[str, Any]]:
    """Return a row for each kind of test frame: P, verdicts, and true errors."""
    calc = ReliableCalculator(backbone, probe=probe, importance="flagged")
    assessments = [calc.judge(prediction) for prediction in data.predictions]
    found = [a.results()["probe_reliability"] for a in assessments]
    said = np.nan_to_num(np.array(found, dtype=float))  # NaN counts as P = 0
    level = np.array([int(a.level) for a in assessments])
    right = data.errors <= TOLERANCE
    kinds = np.array([kind_of(frame) for frame in frames])
    everything = np.ones(len(frames), dtype=bool)
    old = np.isin(kinds, ("xtb_md", "ramp to 1500 K", "ramp beyond"))
    lines = [("all", everything), ("all of dynamics and heating", old)]
    lines += [(kind, kinds == kind) for kind in sorted(set(kinds))]
    rows = []
    for kind, mine in lines:
        if not mine.any():
            continue
        reliable = mine & (level == int(Level.RELIABLE))
        rows.append(
            {
                "probe": name,
                "kind": kind,
                "frames": int(mine.sum()),
                "right": float(right[mine].mean()),
                "mean_p": float(said[mine].mean()),
                "reliable": int(reliable.sum()),
                "reliable_wrong": int((reliable & ~right).sum()),
                "right_reliable": _share(reliable & right, mine & right),
                "auroc": scores.auroc(right[mine], said[mine])
                if 0 < right[mine].sum() < mine.sum()
                else None,
            }
        )
    return rows


def _share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.sum() / whole.sum()) if whole.any() else None


def apart(held_out: Dataset, train: Dataset) -> Dataset:
    """Return the structures whose molecule is not in the fit."""
    seen = set(train.groups)
    return held_out.subset([i for i, g in enumerate(held_out.groups) if g not in seen])


def promised(probe: Probe, data: Dataset) -> tuple[Probe, str]:
    """Return the probe with the strictest guarantee, if any, and the reasons."""
    reasons = []
    for risk in RISKS:
        try:
            probe = certify_dataset(probe, data, risk=risk)
        except LabelError as error:
            reasons.append(f"at most {risk}: {error}")
            continue
        return probe, "; ".join([*reasons, f"guarantee: {probe.card.promise}"])
    return probe, "; ".join(["no guarantee", *reasons])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("bundled_data"))
    parser.add_argument("--output", type=Path, default=Path("default.probe"))
    parser.add_argument("--previous", type=Path, help="a probe to compare with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ramp-every",
        type=int,
        default=2,
        help="train on each n-th frame of a ramp: successive frames are alike",
    )
    options = parser.parse_args()
    backbone = tap(bare_calculator())
    frames = {split: load(options.data, split) for split in SPLITS[1:]}
    frames[SPLITS[0]] = load(options.data, SPLITS[0], options.ramp_every)
    labels = Labels("forces", boundary=TOLERANCE, group_key="molecule")
    build = partial(build_dataset, backbone=backbone, labels=labels, exclude=EXCLUDE)
    train, held_out, test = (
        build(frames[split], cache=options.data / f"{split}.features")
        for split in SPLITS
    )
    for split, data in zip(SPLITS, (train, held_out, test), strict=True):
        left_out = {defect: len(rows) for defect, rows in data.excluded.items()}
        print(split, len(data), "structures; left out:", left_out, flush=True)
    recipe = Recipe(seed=options.seed)
    result = fit_datasets(train, None, test, backbone, labels, recipe)
    print(result, flush=True)
    probe = result.probe.with_card(description=DESCRIPTION)
    probe, note = promised(probe, apart(held_out, train))
    print(note, flush=True)
    probe.save(options.output, half=True)
    probe = Probe.load(options.output)  # half precision, as in the package
    tested = kept(test, frames["probe_test"])
    rows = judged("shipped", probe, backbone, test, tested)
    compared = []
    if options.previous is not None:
        previous = Probe.load(options.previous)
        compared = judged("previous", previous, backbone, test, tested)
    print_table("test molecules", rows + compared, COLUMNS)
    write_result(
        "fit_default_probe",
        seeds=[options.seed],
        rows=rows + compared,
        targets=_targets(rows, compared),
        notes=[
            "tested on molecules that neither the probe nor the backbone saw",
            note,
            f"trained on every {options.ramp_every}. frame of each ramp",
        ],
        more={"report": result.report, "training": probe.card.training},
    )


def _targets(
    rows: list[dict[str, Any]], compared: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Compare the probe with the previous one on the same frames."""
    named = {row["kind"]: row for row in rows}
    found = []
    for row in compared:
        mine = named[row["kind"]]
        if row["auroc"] is not None:
            found.append(
                target(
                    f"{row['kind']}: AUROC at least the previous probe's",
                    mine["auroc"],
                    row["auroc"],
                    at_most=False,
                )
            )
        found.append(
            target(
                f"{row['kind']}: RELIABLE and wrong, at most the previous probe's",
                mine["reliable_wrong"],
                row["reliable_wrong"],
            )
        )
    return found


if __name__ == "__main__":
    main()
