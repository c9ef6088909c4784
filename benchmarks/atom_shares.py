"""P of atoms from the error of their structure, on systems without labels in the fit.

A probe as shipped judges each atom by itself. "Shares" judges the same scores with
`uqcalc.probe.atomshares`: P of an atom follows from the error of its structure and the
share of the atom in it. The shares are learnt from the structures of the guarantee, a
fifth of the formulas, which are not in the fit of the probe. A further fifth is the
test.

    python benchmarks/atom_shares.py --model sevennet --cache features --more more.xyz

Ceilings: "noise" is the Spearman coefficient that the true scale of the error of each
atom would have if the components of the error are normal, within structures whose log
errors spread as they do. "Own labels" is a ridge regression on half of the frames of
the same system (log force, score, principal components). "True error" is the model
with the true error of each structure in place of its distribution.

Ideas for P of structures, each a logistic regression on the structures of the
guarantee: "relative" adds the log of error over force, from a ridge regression on mean
features; "force outside" uses trend and forces only beyond the scope. Two structures in
one cell, far apart, show how P of an atom depends on the other one.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import print_table, target, write_result
from error_models import further, kind
from new_systems import bootstrap, crystals, dataset, scores
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge

import uqcalc
from uqcalc.defaults import shipped_probe
from uqcalc.fitting.atoms import held_out_shares
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.atomshares import AtomShares
from uqcalc.probe.calibration import interpolate
from uqcalc.probe.inputs import chunks
from uqcalc.probe.numbers import log_forces
from uqcalc.statistics.scores import auroc, expected_calibration_error


sys.path.insert(0, str(Path(__file__).parents[1] / "provenance" / "universal"))
from fit_probe import divide
from mattersim import load_dataset, open_source


Array = NDArray[np.float64]
FEWEST = 8  # atoms of a structure for a rank correlation
CHI_VARIANCE = (
    0.2337  # of the log of a chi variable with three degrees, trigamma(3/2)/4
)
FLOOR, ROUNDING = 1e-3, 1e-6  # eV/Å
COMPONENTS = 8


@dataclass(frozen=True)
class Seen:
    """Outputs of a probe for a dataset: structures, and atoms (the last three)."""

    data: Dataset
    logits: Array
    parts: Array
    novelty: Array
    atoms: Array
    scores: Array
    log_forces: Array

    @property
    def errors(self) -> Array:
        """Errors of atoms; NaN for rounding."""
        errors = np.concatenate(self.data.atom_errors or [])
        return np.where(errors > ROUNDING, errors, np.nan)

    def split(self, values: Array) -> list[Array]:
        """Return values of atoms by structure."""
        return np.split(values, np.cumsum(self.data.sizes)[:-1])

    @property
    def forces(self) -> Array:
        """Log RMS and largest log force of structures, (structures, 2)."""
        each = self.split(self.log_forces)
        return np.array([[np.log(np.exp(2 * x).mean()) / 2, x.max()] for x in each])


def look(probe: uqcalc.Probe, data: Dataset) -> Seen:
    """Read a dataset with a probe."""
    found: dict[str, list[Any]] = {name: [] for name in ("p", "n", "a", "s", "l")}
    for chunk in chunks(data.predictions):
        output, read = probe.path_output(chunk), probe.read(chunk)
        found["p"].append(output.parts)
        found["n"].append(read.novelty)
        found["a"].append(read.atoms)
        found["s"].append(output.atoms)
        found["l"] += [log_forces(p) for p in chunk]
    parts, novelty, atoms, own = (
        torch.cat(found[name]).double().numpy() for name in "pnas"
    )
    logits = probe.card.calibration.logits(torch.from_numpy(parts.sum(axis=1)))
    logs = np.concatenate(found["l"])
    return Seen(data, logits.numpy(), parts, novelty, atoms, own, logs)


def within(seen: Seen, risk: Array) -> float:
    """Return the mean Spearman coefficient within structures of risk and error."""
    rows = zip(seen.split(risk.round(6)), seen.split(seen.errors), strict=True)
    found = []
    for said, true in rows:
        known = np.isfinite(true)
        if known.sum() >= FEWEST and np.ptp(said[known]) > 0 < np.ptp(true[known]):
            found.append(spearmanr(said[known], true[known])[0])
    return float(np.mean(found)) if found else np.nan


def noise_ceiling(seen: Seen) -> float:
    """Return the Spearman coefficient of a true scale (see above)."""
    logs = [np.log(e[np.isfinite(e)]) for e in seen.split(seen.errors)]
    logs = [each for each in logs if len(each) >= FEWEST]
    if not logs:
        return np.nan
    spread = np.mean([each.var(ddof=1) for each in logs]) - CHI_VARIANCE
    rng = np.random.default_rng(0)
    found = []
    for each in logs:
        scale = rng.normal(0, np.sqrt(max(spread, 1e-12)), len(each))
        error = scale + np.log(rng.chisquare(3, len(each))) / 2
        found.append(spearmanr(scale, error)[0])
    return float(np.mean(found))


def own_labels(seen: Seen, boundary: float) -> tuple[float, float]:
    """Return ECE of atoms and Spearman of a regression on half of the frames."""
    features = torch.cat([p.features for p in seen.data.predictions]).double().numpy()
    standard = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    basis = np.linalg.svd(standard, full_matrices=False)[2][:COMPONENTS].T
    rows = np.column_stack([seen.log_forces, seen.scores, standard @ basis])
    errors, structure = (
        seen.errors,
        np.repeat(*[np.arange(len(seen.data)), seen.data.sizes]),
    )
    fitted = (structure % 2 == 0) & np.isfinite(errors)
    model = Ridge(alpha=1.0).fit(rows[fitted], np.log(errors[fitted]))
    said = model.predict(rows)
    rest = np.sort(np.log(errors[fitted]) - said[fitted])
    chance = np.searchsorted(rest, np.log(boundary) - said) / len(rest)
    tested = (structure % 2 == 1) & np.isfinite(errors)
    hidden = np.where(structure % 2 == 1, errors, np.nan)
    other = replace(seen, data=replace(seen.data, atom_errors=seen.split(hidden)))
    ece = expected_calibration_error(errors[tested] <= boundary, chance[tested])
    return ece, within(other, said)


def true_error(seen: Seen, shares: AtomShares, boundary: float) -> Array:
    """Return P of atoms if the error of their structure is known."""
    given = (torch.from_numpy(x) for x in (seen.scores, seen.log_forces))
    share = shares.shares(*given, seen.data.sizes.tolist())
    level = np.log(np.repeat(seen.data.errors, seen.data.sizes))
    left = np.log(boundary) - torch.from_numpy(level) - share
    found: Array = interpolate(left, shares.knots).sigmoid().numpy()
    return found


def of_atoms(seen: Seen, chance: Array, boundary: float) -> dict[str, float]:
    """Return scores of P of atoms."""
    known = np.isfinite(seen.errors)
    right, said = seen.errors[known] <= boundary, chance[known].clip(1e-6, 1 - 1e-6)
    loss = -np.log(np.where(right, said, 1 - said)).mean()
    return {
        "ece": expected_calibration_error(right, said),
        "log_loss": float(loss),
        "gap": abs(float(said.mean() - right.mean())),
        "auroc": auroc(right, said) if 0 < right.mean() < 1 else np.nan,
        "spearman": within(seen, -chance),
    }


def contradictions(seen: Seen, chance: Array) -> float:
    """Return the share of structures with P >= 0.8 and mean P of atoms < 0.6."""
    means = np.array([each.mean() for each in seen.split(chance)])
    return float(np.mean((seen.logits >= logit(0.8)) & (means < 0.6)))


class Ideas:
    """Log-odds of structures from further numbers; see the top of the file."""

    def __init__(self, fitted: Dataset, promised: Seen, boundary: float) -> None:
        rows = self._mean_features(fitted)
        self.mean, self.scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
        forces = [
            np.log(np.exp(2 * log_forces(p)).mean()) / 2 for p in fitted.predictions
        ]
        relative = np.log(fitted.errors + FLOOR) - np.array(forces)
        self.ridge = Ridge(alpha=30.0).fit((rows - self.mean) / self.scale, relative)
        right = promised.data.errors <= boundary
        self.models = {
            name: LogisticRegression().fit(self._rows(promised, name), right)
            for name in ("relative", "force outside")
        }

    def __call__(self, seen: Seen) -> dict[str, Array]:
        """Return log-odds by idea; "probe" are those of the probe."""
        found = {"probe": seen.logits}
        for name, model in self.models.items():
            found[name] = model.decision_function(self._rows(seen, name))
        inside = seen.novelty <= 1
        found["force outside"] = np.where(inside, seen.logits, found["force outside"])
        return found

    def _rows(self, seen: Seen, name: str) -> Array:
        if name == "force outside":
            return np.column_stack([seen.parts[:, 2], seen.forces])
        rows = (self._mean_features(seen.data) - self.mean) / self.scale
        return np.column_stack([seen.logits, self.ridge.predict(rows)])

    @staticmethod
    def _mean_features(data: Dataset) -> Array:
        some = [p.features.double().mean(dim=0) for p in data.predictions]
        return torch.stack(some).numpy()


def far_apart(probes: dict[str, uqcalc.Probe], test: Dataset) -> list[dict[str, Any]]:
    """Return the scores of atoms of two structures in one large cell.

    One of them is right and the other wrong, at the boundary of the probe.
    """
    boundary = probes["alone"].card.boundary
    rng = np.random.default_rng(0)
    good, bad = (
        rng.permutation(np.flatnonzero(part))
        for part in (test.errors <= boundary, test.errors > boundary)
    )
    rows = list(zip(good[:100], bad[:100], strict=False))
    cell, found = 1000 * np.eye(3), []
    joined = []
    for pair in rows:
        a, b = (test.predictions[i] for i in pair)
        both = {
            "energy": a.energy + b.energy,
            "forces": np.concatenate([a.forces, b.forces]),
        }
        joined.append(
            replace(
                a,
                numbers=np.concatenate([a.numbers, b.numbers]),
                positions=np.concatenate([a.positions, b.positions]),
                cell=cell,
                results=both,
                energy=both["energy"],
                forces=both["forces"],
                features=torch.cat([a.features, b.features]),
            )
        )
    errors = [np.concatenate([test.atom_errors[i] for i in pair]) for pair in rows]
    for name, probe in probes.items():
        said = torch.cat([probe.read(c).atoms for c in chunks(joined)]).numpy()
        first = np.concatenate(
            [
                np.arange(len(e)) < test.sizes[i]
                for e, (i, _) in zip(errors, rows, strict=True)
            ]
        )
        true = np.concatenate(errors)
        for part, which in (("right", first), ("wrong", ~first)):
            some = which & (true > ROUNDING)
            limit = probe.card.atom_boundary
            found.append(
                {
                    "kind": "far apart", "model": name, "part": part,
                    "pairs": len(rows), "right": float(np.mean(true[some] <= limit)),
                    "mean_p": float(said[some].mean()),
                }
            )  # fmt: skip
    return found


def differences(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, Any]:
    """Return means over systems, and intervals of differences to the first model."""
    kinds = np.array([kind(row["system"]) for row in rows])
    entry: dict[str, Any] = {"kind": "mean", "systems": len(rows)}
    for name in names:
        for key in {
            k.removesuffix(f"_{name}") for k in rows[0] if k.endswith(f"_{name}")
        }:
            now = np.array([row[f"{key}_{name}"] for row in rows])
            entry[f"{key}_{name}"] = float(np.nanmean(now))
            less = now - np.array([row[f"{key}_{names[0]}"] for row in rows])
            known = np.isfinite(less)
            if name == names[0] or not known.any():
                continue
            entry[f"{key}_{name}_less"] = bootstrap(less[known])
            each = [less[known & (kinds == k)] for k in np.unique(kinds[known])]
            entry[f"{key}_{name}_less_kinds"] = bootstrap(
                np.array([x.mean() for x in each])
            )
    return entry


def judge(
    seen: Seen,
    chances: dict[str, Array],
    odds: dict[str, Array],
    limits: tuple[float, float],
) -> dict[str, Any]:
    """Return the scores of all models on one set."""
    row: dict[str, Any] = {"structures": len(seen.data)}
    right = seen.data.errors <= limits[0]
    middle = seen.data.errors <= np.median(seen.data.errors)
    for name, chance in chances.items():
        found = of_atoms(seen, chance, limits[1])
        row |= {f"atoms_{key}_{name}": value for key, value in found.items()}
        row[f"contradictions_{name}"] = contradictions(seen, chance)
    for name, logits in (odds | {"largest force": -seen.forces[:, 1]}).items():
        loss, gap, mean = scores(logits, right)
        row[f"auroc_{name}"] = auroc(middle, logits)
        if name != "largest force":
            row |= {
                f"log_loss_{name}": loss,
                f"gap_{name}": gap,
                f"mean_p_{name}": mean,
            }
            both = 0 < right.mean() < 1
            row[f"auroc_at_boundary_{name}"] = auroc(right, logits) if both else np.nan
            chance = 1 / (1 + np.exp(-logits))
            row[f"ece_{name}"] = expected_calibration_error(right, chance)
    return row | {"right": float(right.mean())}


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("chgnet", "sevennet"), default="sevennet")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--more", type=Path, help="labelled frames of more systems")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--most", type=int, default=16, help="frames of a system")
    parser.add_argument("--some", type=int, help="structures of each part, at random")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"systems must be in a folder, got {options.data}: see --data\n")
    return options


def main() -> None:
    options = options_given()
    warnings.simplefilter("ignore", uqcalc.LabelWarning)
    probe = shipped_probe(options.model)
    if probe is None or probe.card.atom_boundary is None:
        sys.exit(f"the package must ship a probe of {options.model} with P of atoms")
    alone = probe.with_card(atom_shares=None)
    limits = (probe.card.boundary, probe.card.atom_boundary)
    source = open_source(
        options.model,
        options.data / "mattersim",
        options.data / "sevennet0_mattersim",
        options.cache,
        40,
    )
    labels = uqcalc.Labels("forces", forces_key="forces", group_key="formula")
    whole, _ = load_dataset(source, labels)
    parts = []
    for rows in divide(whole, source.groups, 0):
        sound = rows[~whole.exploded()[rows]]
        order = np.random.default_rng(0).permutation(len(sound))[: options.some]
        parts.append(whole.subset(np.sort(sound[order])))
    fitted, promising, test = parts
    promised = look(alone, promising)
    shares, _ = held_out_shares(
        probe.card, promising, promised.split(promised.scores), promised.logits
    )
    if shares is None:
        sys.exit("shares must be better than single atoms on held-out labels, got none")
    joined = probe.with_card(atom_shares=shares)
    ideas = Ideas(fitted, promised, limits[0])

    def row_of(data: Dataset) -> tuple[Seen, dict[str, Any]]:
        seen = look(alone, data)
        chances = {"alone": seen.atoms, "shares": look(joined, data).atoms}
        chances["true error"] = true_error(seen, shares, limits[1])
        return seen, judge(seen, chances, ideas(seen), limits)

    inside = {"kind": "in distribution", **row_of(test)[1]}
    apart = far_apart({"alone": alone, "shares": joined}, test)
    systems = list(crystals(options.data, options.most))
    if options.more is not None:
        systems += further(options.more, options.most)
    rows: list[dict[str, Any]] = []
    for name, frames in systems:
        folder = None if options.cache is None else options.cache / "systems"
        data = dataset(frames, source.backbone, folder, name)
        seen, row = row_of(data)
        ece, spearman = own_labels(seen, limits[1])
        row |= {"noise_spearman": noise_ceiling(seen), "own_ece": ece}
        rows.append({"kind": "system", "system": name, **row, "own_spearman": spearman})
        print(rows[-1], flush=True)
    atoms = differences(rows, ("alone", "shares", "true error"))
    structures = differences(rows, ("probe", *ideas.models, "largest force"))
    atoms |= {
        key: float(np.nanmean([row[key] for row in rows]))
        for key in ("noise_spearman", "own_spearman", "own_ece")
    }
    shown = ("system", "right", "atoms_ece_alone", "atoms_ece_shares", "own_ece")
    print_table("systems", rows, {name: name for name in shown})
    for entry in (inside, *apart, atoms, structures):
        print(entry)
    write_result(
        f"atom_shares_{options.model}",
        seeds=[0],
        rows=[inside, atoms, structures, *apart, *rows],
        targets=[
            target(
                "log loss of atoms on new systems less that of single atoms, upper "
                "bound over kinds of system",
                atoms["atoms_log_loss_shares_less_kinds"][1],
                0,
            ),
            target("ECE of atoms on new systems", atoms["atoms_ece_shares"], 0.05),
            target(
                "Spearman coefficient within structures of new systems",
                atoms["atoms_spearman_shares"],
                0.65,
                at_most=False,
            ),
        ],
        notes=[
            f"at most {options.most} frames of a system; shares learnt from "
            f"{len(promising)} structures of MatterSim, tested on {len(test)}",
            f"shares: score {shares.score:.3g}, force {shares.force:.3g}",
        ],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
