"""Compare P from an error model of atoms with P of the shipped probe, on new systems.

The candidate predicts the errors of atoms first. Kernel ridge regression gives the
expected log error of each atom from principal components of its features and its log
force; half the log of the mean squared expected error is the score of a structure. It
is fitted to the labels of the shipped probe and calibrated on left-out groups. It is
compared with the probe as shipped, and with the largest force.

    python benchmarks/error_models.py --cache features

The systems are those of ``new_systems.py`` and, with ``--more``, those of a file of
frames with ``info["element"]``, ``info["run"]`` and ``REF_forces``. Scores are means
over systems; the interval of a difference is a bootstrap over systems, and a second one
over kinds of system, because seven of the systems are silica.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from common import print_table, target, write_result
from new_systems import bootstrap, crystals, dataset, scores, thinned
from numpy.typing import NDArray

import uqcalc
from uqcalc.defaults import shipped_probe
from uqcalc.fitting.crossfit import group_folds
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.probe.calibration import Calibration
from uqcalc.statistics.scores import auroc, expected_calibration_error


sys.path.insert(0, str(Path(__file__).parents[1] / "provenance" / "universal"))
from fit_probe import divide
from mattersim import OPENERS, load_frames


Array = NDArray[np.float64]
# Systems that were used to develop the candidate. The others were not used.
SEEN = ("Li", "zeolite dft", "zeolite edi", "zeolite jbw", "SiO2 melt_quench", "acetyl")
COMPONENTS, CENTRES, FOLDS = 24, 600, 3
RIDGE, FORCE_WIDTH = 3.0, 5.0
FLOOR = 1e-3  # eV/Å


class AtomErrors:
    """Expected log error of atoms: a line in the log force plus a Laplacian kernel."""

    def __init__(self, data: Dataset, seed: int = 0) -> None:
        features, logs = inputs(data)
        errors = np.concatenate(data.atom_errors or [])
        known = np.isfinite(errors) & (errors > 1e-6)
        features, logs, errors = features[known], logs[known], errors[known]
        self.mean, scale = features.mean(axis=0), features.std(axis=0)
        self.scale = np.where(scale > 1e-6, scale, 1.0)
        standard = (features - self.mean) / self.scale
        values, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
        top = slice(-1, -COMPONENTS - 1, -1)
        self.basis = vectors[:, top] / np.sqrt(values[top] + 1e-6)
        self.force = (logs.mean(), logs.std())
        rows = self.rows(features, logs)
        chosen = np.random.default_rng(seed).permutation(len(rows))[:CENTRES]
        self.centres = rows[chosen]
        plain = np.column_stack([np.ones_like(logs), logs, self.kernel(rows)])
        gram = plain.T @ plain + 1e-6 * np.eye(plain.shape[1])
        gram[2:, 2:] += RIDGE * self.kernel(self.centres)
        right = plain.T @ np.log(errors + FLOOR)
        self.weights = np.linalg.solve(gram, right)

    def rows(self, features: Array, logs: Array) -> Array:
        """Return rows (atoms, components + 1) whose L1 distance is the kernel's."""
        components = ((features - self.mean) / self.scale) @ self.basis
        force = (logs - self.force[0]) / (self.force[1] * FORCE_WIDTH)
        return np.column_stack([components.clip(-6, 6) / COMPONENTS, force])

    def kernel(self, rows: Array) -> Array:
        """Return the kernel of rows and centres, (atoms, centres)."""
        pair = torch.from_numpy(rows), torch.from_numpy(self.centres)
        return np.asarray(torch.exp(-torch.cdist(*pair, p=1.0)))

    def __call__(self, data: Dataset) -> list[Array]:
        """Return the expected log errors of the atoms of each structure."""
        features, logs = inputs(data)
        kernel = self.kernel(self.rows(features, logs))
        found = self.weights[0] + self.weights[1] * logs + kernel @ self.weights[2:]
        return np.split(found, np.cumsum(data.sizes)[:-1])


def inputs(data: Dataset) -> tuple[Array, Array]:
    """Return the features and log force norms of all atoms."""
    some = [data.predictions[i] for i in range(len(data))]
    features = np.concatenate([p.features.double().numpy() for p in some])
    forces = np.concatenate([np.linalg.norm(p.forces, axis=1) for p in some])
    return features, np.log(forces + FLOOR)


def score_of(logs: list[Array]) -> Array:
    """Return minus half the log of the mean squared expected error, by structure."""
    return np.array([-np.log(np.exp(2 * each).mean()) / 2 for each in logs])


class Candidate:
    """`AtomErrors` with calibrations of structures and atoms on left-out groups."""

    def __init__(self, data: Dataset, boundary: float, atom_boundary: float) -> None:
        fold = group_folds(data.groups, FOLDS, 0)
        held: list[Array] = [np.empty(0)] * len(data)
        for k in range(FOLDS):
            model = AtomErrors(data.subset(np.flatnonzero(fold != k)))
            rows = np.flatnonzero(fold == k)
            for row, logs in zip(rows, model(data.subset(rows)), strict=True):
                held[row] = logs
        self.model = AtomErrors(data)
        self.structure = Calibration.fit(
            score_of(held), data.errors, data.groups, boundary
        )
        errors = np.concatenate(data.atom_errors or [])
        known = np.isfinite(errors) & (errors > 1e-6)
        groups = np.repeat(np.asarray(data.groups), data.sizes)[known]
        self.atoms = Calibration.fit(
            -np.concatenate(held)[known], errors[known], groups.tolist(), atom_boundary
        )

    def __call__(self, data: Dataset) -> tuple[Array, Array]:
        """Return the log-odds of structures, and P of all atoms."""
        logs = self.model(data)
        score = torch.from_numpy(score_of(logs))
        of_atoms = self.atoms.logits(-torch.from_numpy(np.concatenate(logs)))
        return self.structure.logits(score).numpy(), of_atoms.sigmoid().numpy()


def of_probe(probe: uqcalc.Probe, data: Dataset) -> tuple[Array, Array]:
    """Return the log-odds of structures and P of all atoms, of a probe."""
    score = torch.cat([probe.scores([p]) for p in data.predictions]).double()
    read = [probe.read([p]).atoms for p in data.predictions]
    atoms = torch.cat([each for each in read if each is not None]).double()
    return probe.card.calibration.logits(score).numpy(), atoms.numpy()


def judged(
    found: tuple[Array, Array], data: Dataset, boundary: float, atom_boundary: float
) -> dict[str, float]:
    """Return the scores of one model on one system.

    The AUROC is that at the median error of the system, because most systems have only
    right or only wrong frames at the boundary.
    """
    logits, atoms = found
    loss, gap, mean = scores(logits, data.errors <= boundary)
    below = np.concatenate(data.atom_errors or []) <= atom_boundary
    return {
        "mean_p": mean,
        "gap": gap,
        "log_loss": loss,
        "auroc": auroc(data.errors <= np.median(data.errors), logits),
        "atoms_ece": expected_calibration_error(below, atoms),
    }


def further(path: Path, most: int) -> Iterator[tuple[str, list[Atoms]]]:
    """Yield the elements of a file of labelled frames."""
    groups: dict[str, list[Atoms]] = {}
    for atoms in read(path, ":"):
        groups.setdefault(str(atoms.info["element"]), []).append(atoms)
    for name, frames in groups.items():
        yield name, thinned(frames, most)


def kind(system: str) -> str:
    """Return the kind of a system: zeolites and SiO2 are one, acetylacetone is one."""
    if system.startswith(("zeolite", "SiO2")):
        return "silica"
    return system.split()[0]


def means(rows: list[dict[str, Any]], which: str) -> dict[str, Any]:
    """Return means over systems, and the intervals of the differences."""
    entry: dict[str, Any] = {"kind": "mean", "systems": which, "count": len(rows)}
    kinds = np.array([kind(row["system"]) for row in rows])
    for name in ("gap", "log_loss", "auroc", "atoms_ece"):
        now = np.array([row[f"{name}_candidate"] for row in rows])
        before = np.array([row[f"{name}_probe"] for row in rows])
        entry |= {f"{name}_candidate": now.mean(), f"{name}_probe": before.mean()}
        less = now - before
        by_kind = np.array([less[kinds == k].mean() for k in np.unique(kinds)])
        entry[f"{name}_difference"] = bootstrap(less)
        entry[f"{name}_difference_over_kinds"] = bootstrap(by_kind)
    force = np.array([row["auroc_force"] for row in rows])
    now = np.array([row["auroc_candidate"] for row in rows])
    return entry | {
        "auroc_force": force.mean(),
        "auroc_less_force": bootstrap(now - force),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--more", type=Path, help="labelled frames of more systems")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--most", type=int, default=16, help="frames of a system")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"systems must be in a folder, got {options.data}: see --data\n")
    warnings.simplefilter("ignore", uqcalc.LabelWarning)
    backbone = uqcalc.tap(OPENERS["chgnet"]())
    probe = shipped_probe("chgnet")
    if probe is None or probe.card.atom_boundary is None:
        parser.exit(2, "the package must ship a probe of CHGNet with P of atoms\n")
    limits = (probe.card.boundary, probe.card.atom_boundary)
    labels = uqcalc.Labels("forces", forces_key="forces", group_key="formula")
    whole = build_dataset(
        load_frames(options.data / "mattersim", 40),
        backbone,
        labels,
        exclude=("duplicate", "unknown elements"),
        cache=options.cache,
    )
    known = ~whole.exploded()
    whole = whole.subset(np.flatnonzero(known))
    fitting, _, testing = divide(whole, whole.groups, 0)
    candidate = Candidate(whole.subset(fitting), *limits)
    systems = list(crystals(options.data, options.most))
    if options.more is not None:
        systems += further(options.more, options.most)
    rows: list[dict[str, Any]] = []
    for name, frames in systems:
        data = dataset(frames, backbone, options.cache, name)
        row: dict[str, Any] = {"kind": "system", "system": name, "frames": len(data)}
        row |= {"looked_at": name.startswith(SEEN)}
        row["right"] = float(np.mean(data.errors <= limits[0]))
        for label, found in (
            ("candidate", candidate(data)),
            ("probe", of_probe(probe, data)),
        ):
            seen = judged(found, data, *limits)
            row |= {f"{key}_{label}": value for key, value in seen.items()}
        largest = [np.linalg.norm(p.forces, axis=1).max() for p in data.predictions]
        right = data.errors <= np.median(data.errors)
        row["auroc_force"] = auroc(right, -np.array(largest))
        rows.append(row)
    test = whole.subset(testing)
    right = test.errors <= limits[0]
    logits = candidate(test)[0]
    inside = {
        "kind": "in distribution",
        "structures": len(test),
        "auroc_candidate": auroc(right, logits),
        "ece_candidate": expected_calibration_error(right, 1 / (1 + np.exp(-logits))),
    }
    together = [
        means(rows, "all"),
        means([row for row in rows if not row["looked_at"]], "not looked at"),
    ]
    shown = ("system", "right", "mean_p_probe", "mean_p_candidate", "gap_probe")
    print_table("systems", rows, {name: name for name in (*shown, "gap_candidate")})
    for entry in (*together, inside):
        print(entry)
    unseen = together[-1]
    write_result(
        "error_models",
        seeds=[0],
        rows=[*together, inside, *rows],
        targets=[
            target("gap less the probe's, upper bound", unseen["gap_difference"][1], 0),
            target(
                "gap less the probe's, over kinds of system, upper bound",
                unseen["gap_difference_over_kinds"][1],
                0,
            ),
            target(
                "AUROC within systems less the largest force's, lower bound",
                unseen["auroc_less_force"][0],
                0,
                at_most=False,
            ),
            target("per-atom ECE", unseen["atoms_ece_candidate"], 0.05),
        ],
        notes=[
            f"at most {options.most} frames of a system; targets on the systems that "
            "were not looked at while the candidate was built",
        ],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
