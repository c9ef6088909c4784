"""Compare the spread of a learned perturbation with a probe of the same labels.

The potential does not change: only the noise is trained (arXiv:2605.19939), on 250 or
1 000 labels. The same frames fit a probe. The frames of the test are of other groups
(molecules, compositions).

    python new_molecules.py --output new_molecules.xyz
    python perturbed.py --model default --molecules new_molecules.xyz
    python perturbed.py --model chgnet --labels 1000

``default`` is the bundled MACE with labels of GFN2-xTB: training and first test at 300
and 600 K, then the same molecules of the test at 1 000 K and along scans of a bond.
``chgnet`` is CHGNet with labels of PBE(+U) (MatterSim).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from common import print_table, write_result
from discriminating.judging import judge

import uqcalc
from uqcalc import tap
from uqcalc.fitting.recipe import Recipe
from uqcalc.labels.groups import divide, group_names
from uqcalc.labels.labels import Labels
from uqcalc.models.named import open_model
from uqcalc.perturbation.fitting import PerturbationSettings, perturb
from uqcalc.perturbation.members import PerturbedBackbone
from uqcalc.perturbation.perturbation import Perturbation
from uqcalc.statistics.crps import fair_crps, spread_skill
from uqcalc.types import Backbone


MEMBERS = 16
TESTED = 300  # frames of a test set
LARGEST = 24  # atoms of a crystal
KEYS = {
    "default": Labels(group_key="molecule"),
    "chgnet": Labels(group_key="formula"),
}
COLUMNS = {
    "model": "model",
    "labels": "labels",
    "layers": "layers",
    "test": "test",
    "signal": "signal",
    "structures": "n",
    "auroc": "AUROC",
    "spearman": "Spearman",
    "aurc": "AURC / random",
    "crps": "CRPS, eV/Å",
    "mae": "MAE, eV/Å",
    "spread_skill": "spread/skill",
    "minutes": "minutes of training",
}


def molecules(path: Path) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    """Return frames for the training and the test sets, by molecule."""
    frames = read(path, ":")
    names = [str(atoms.info["molecule"]) for atoms in frames]
    fit, _ = divide(names, (0.5, 0.5), seed=0)
    chosen = {names[row] for row in fit}
    sets: dict[str, list[Atoms]] = {"train": [], "300, 600 K": [], "1000 K": []}
    sets["scans of a bond"] = []
    for atoms, name in zip(frames, names, strict=True):
        if atoms.info.get("kind") == "scan":
            kind = "scans of a bond"
        else:
            hot = float(atoms.info["temperature"]) > 700
            kind = "1000 K" if hot else "300, 600 K"
        if name not in chosen:
            sets[kind].append(atoms)
        elif kind == "300, 600 K":
            sets["train"].append(atoms)
    train = sets.pop("train")
    return train, {key: some(rows, TESTED) for key, rows in sets.items()}


def crystals(folder: Path) -> tuple[list[Atoms], dict[str, list[Atoms]]]:
    """Return frames for the training and the test set, by composition.

    Hot and dense crystals of at most `LARGEST` atoms, which are in the training of no
    potential here; forces alone are labels.
    """
    frames = []
    for name in ("mpf-TP", "mpf-alkali-TP", "random-TP"):
        for atoms in read(folder / f"{name}.xyz", ":"):
            forces = atoms.get_forces()
            if len(atoms) > LARGEST or np.abs(forces).max() < 1e-3:
                continue
            plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
            plain.arrays["REF_forces"] = forces
            plain.info["formula"] = atoms.get_chemical_formula(empirical=True)
            frames.append(plain)
    fit, rest = divide(group_names(frames, "formula"), (0.7, 0.3), seed=0)
    tests = {"other compositions": some([frames[i] for i in rest], TESTED)}
    return [frames[i] for i in fit], tests


def some(frames: Sequence[Atoms], count: int) -> list[Atoms]:
    """Return at most ``count`` random frames."""
    rows = np.random.default_rng(0).permutation(len(frames))[:count]
    return [frames[i] for i in np.sort(rows)]


def rows_of(
    backbone: Backbone,
    found: Perturbation,
    probe: uqcalc.Probe,
    frames: Sequence[Atoms],
    keys: Labels,
) -> list[dict[str, Any]]:
    """Return one row for each signal on one test set."""
    perturbed = PerturbedBackbone(backbone, found, MEMBERS, seed=1)
    truth = [keys.reference(atoms) for atoms in frames]
    plain = backbone.predict_many(frames)
    members = [perturbed.evaluate_members(atoms).forces for atoms in frames]
    pairs = list(zip(plain, truth, strict=True))
    errors = np.array([np.sqrt(np.mean((p.forces - t) ** 2)) for p, t in pairs])
    spread = np.array([np.sqrt(m.var(0, ddof=1).mean()) for m in members])
    scores = np.concatenate([np.ravel(probe.scores([p])) for p in plain])
    largest = np.array([np.linalg.norm(p.forces, axis=1).max() for p in plain])
    x = np.concatenate([m.reshape(MEMBERS, -1) for m in members], axis=1)
    y = np.concatenate([t.ravel() for t in truth])
    single = np.concatenate([p.forces.ravel() for p in plain])
    risks = {"perturbation": spread, "probe": -scores, "largest force": largest}
    rows: list[dict[str, Any]] = [
        {"signal": name, **judge(errors, risk, None, 0.0, own_median=True)}
        for name, risk in risks.items()
    ]
    rows[0] |= {
        "crps": float(fair_crps(x, y).mean()),
        "spread_skill": spread_skill(x, y),
    }
    return [row | {"mae": float(np.abs(single - y).mean())} for row in rows]


def main() -> None:
    """Train, judge and write the result; other models and labels are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=KEYS, default="default")
    parser.add_argument("--molecules", type=Path, default=Path("new_molecules.xyz"))
    parser.add_argument("--data", type=Path, default=Path("../../shared/data"))
    parser.add_argument("--labels", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--layers", nargs="*", default=[], help="by default its own")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument(
        "--noise-rate", type=float, default=PerturbationSettings().noise_rate
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    keys = KEYS[options.model]
    if options.model == "default":
        if not options.molecules.is_file():
            raise SystemExit("perturbed: needs frames of new_molecules.py, got none")
        frames, tests = molecules(options.molecules)
    else:
        if not (options.data / "mattersim").is_dir():
            raise SystemExit("perturbed: needs ../shared/data/mattersim, got none")
        frames, tests = crystals(options.data / "mattersim")
    backbone = tap(open_model(options.model))
    settings = PerturbationSettings(
        members=4, epochs=options.epochs, noise_rate=options.noise_rate
    )
    rows = earlier(options.model, options.labels, layers := " ".join(options.layers))
    for count in options.labels:
        train = some(frames, count)
        start = time.perf_counter()
        found = perturb(backbone, train, keys, layers=options.layers, settings=settings)
        minutes = (time.perf_counter() - start) / 60
        print(count, found.card.report, flush=True)
        report = uqcalc.fit(train, backbone, keys, Recipe())
        for name, test in tests.items():
            head = {"model": options.model, "labels": len(train), "test": name}
            head |= {"layers": layers or "default", "noise_rate": options.noise_rate}
            more = rows_of(backbone, found, report.probe, test, keys)
            more[0] |= {"minutes": minutes, **found.card.report}
            rows += [head | row for row in more]
        write_result("perturbed", seeds=[0], rows=rows)
    print_table("The spread of a perturbation", rows, COLUMNS)


def earlier(model: str, labels: Sequence[int], layers: str) -> list[dict]:
    """Return the rows of earlier runs with other models, labels or layers."""
    from common import RESULTS, read_result

    if not (RESULTS / "perturbed.json").is_file():
        return []
    rows = read_result("perturbed")["rows"]
    now = {(model, count, layers or "default") for count in labels}
    return [r for r in rows if (r["model"], r["labels"], r["layers"]) not in now]


if __name__ == "__main__":
    main()
