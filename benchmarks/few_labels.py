"""Ask how good the default network is with a thousand and with 3 900 labels.

Data: features, predictions and PBE labels of SevenNet-0 on six public sets, in
``--data`` (4 875 structures; developers' data). One random split, tested on a fifth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from common import print_table, target, write_result

from uqcalc.backbones import Backbone, Prediction
from uqcalc.probe.dataset import Dataset, Labels
from uqcalc.probe.training import Recipe, fit_datasets


PUBLISHED_ENERGY_AUROC = 0.76  # total energy at the median, 3 900 labels
# Calibration takes a share of each number of labels.
SIZES = {1000: 200, 3900: 400}
COLUMNS = {
    "target": "label (at the median)",
    "recipe": "recipe",
    "labels": "labels",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "ece": "ECE",
    "ece_noise_floor": "its floor",
    "spearman": "Spearman(error, risk)",
}


def load(folder: Path) -> tuple[list[Prediction], dict[str, np.ndarray]]:
    predictions, errors = [], {"energy": [], "forces": []}
    for path in sorted(folder.glob("*.npz")):
        data = np.load(path)
        cuts = np.cumsum(data["n"])[:-1]
        columns = [np.split(data[key], cuts) for key in ("z", "h", "f_pred", "f_ref")]
        for i, (z, h, force, reference) in enumerate(zip(*columns, strict=True)):
            energy = float(data["e_pred"][i])
            atoms = len(z)
            predictions.append(
                Prediction(
                    numbers=z.astype(int),
                    positions=np.zeros((atoms, 3)),
                    cell=np.zeros((3, 3)),
                    pbc=np.ones(3, bool),
                    results={},
                    energy=energy,
                    forces=force.astype(float),
                    features=torch.from_numpy(h.astype(np.float32)),
                )
            )
            difference = force.astype(float) - reference
            errors["energy"].append(abs(energy - float(data["e_ref"][i])))
            errors["forces"].append(float(np.sqrt(np.mean(difference**2))))
    return predictions, {kind: np.array(values) for kind, values in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/sevennet0_mattersim")
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--published", action="store_true", help="slow")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"data must be in a folder, got {options.data}: see --data\n")
    predictions, errors = load(options.data)
    order = np.random.default_rng(options.seed).permutation(len(predictions))
    backbone = cast(
        "Backbone",
        SimpleNamespace(fingerprint="sevennet-0", provides=frozenset({"features"})),
    )
    recipes = {"standard": Recipe(seed=options.seed)}
    if options.published:
        recipes["probe-2026"] = Recipe.published(seed=options.seed)
    names = [str(i) for i in range(len(predictions))]
    rows: list[dict[str, Any]] = []
    for kind, values in errors.items():
        data = Dataset(predictions, values, names, {})
        for size, held in SIZES.items():
            parts = order[: size - held], order[size - held : size], order[3900:]
            for name, recipe in recipes.items():
                splits = [data.subset(part) for part in parts]
                result = fit_datasets(*splits, backbone, Labels(kind), recipe)
                row = {"target": kind, "recipe": name, "labels": size}
                rows.append(row | result.report)
    print_table("SevenNet-0, random split", rows, COLUMNS)
    best = [row for row in rows if row["labels"] == max(SIZES)]
    write_result(
        "few_labels",
        seeds=[options.seed],
        rows=rows,
        targets=[
            target(
                f"AUROC, {row['target']}, {row['labels']} labels, against the "
                "published recipe as measured elsewhere on such a split",
                row["auroc"],
                PUBLISHED_ENERGY_AUROC,
                at_most=False,
            )
            for row in best
            if row["recipe"] == "standard" and row["target"] == "energy"
        ],
        notes=["0.76: published recipe, total energy, from the project's own notes"],
    )


if __name__ == "__main__":
    main()
