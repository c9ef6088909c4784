"""Fit the probes of CHGNet 0.3.0 and SevenNet-0 that ship with the package.

The labels are PBE(+U) forces, stresses and energies of the benchmark sets of
microsoft/mattersim (MIT), in ``--data``. One set of predictions serves all targets.
Structures of one reduced formula are a group, so each material is in one split only. A
fifth of the groups is for the guarantee and a fifth for the test, the same for each
target. Two of the six sets (MPtrj) are in the training pool of both potentials; the
cards say so.

    python provenance/universal/fit_probe.py --model chgnet --cache features
    python provenance/universal/fit_probe.py --model sevennet --cache features

The second needs sevenn. ``--target`` fits one target only. ``--output`` is a
folder: the probe of the forces is NAME.probe there, another one NAME.TARGET.probe.

With ``--probe`` and ``--scope`` nothing is fitted: the limit on the mean distance is
learned again from the labels of the fit (`mean_limit`), and the probe is certified,
scored and written.

With ``--before`` another probe of the forces is scored on the same test structures. The
split of the groups includes structures without information, as in earlier versions. So
the test structures are unseen for a probe of an earlier version, too.

``--features`` has the features of these structures from SevenNet, without stresses. The
script computes some of them again to check them, and reads the others, which saves an
hour. Its stresses are computed for ``--stresses`` structures, drawn at random.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from common import target, write_result
from mattersim import (
    KEYS,
    OPENERS,
    REGIMES,
    Source,
    check_stress,
    load_dataset,
    open_source,
)
from mean_limit import with_mean_limit

import uqcalc
from uqcalc.backbones import Prediction
from uqcalc.errors import LabelError
from uqcalc.evaluation.evaluation import Evaluation, evaluate_dataset
from uqcalc.evaluation.guarantee import certify_dataset
from uqcalc.evaluation.readings import read_structures
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.defects import NO_INFORMATION
from uqcalc.probe.inputs import chunks
from uqcalc.probe.numbers import stress_numbers
from uqcalc.statistics import scores
from uqcalc.targets import TARGETS


NAMES = {"chgnet": "CHGNet 0.3.0", "sevennet": "SevenNet-0 (11 July 2024)"}
BOUNDARIES = {
    "stress": "0.5 GPa",
    "forces": "0.2 eV/angstrom",
    "energy_per_atom": "30 meV/atom",
}
REFERENCE = {
    "chgnet": "PBE(+U) with the energy corrections of the Materials Project (2020)",
    "sevennet": "PBE(+U)",
}
DESCRIPTION = (
    "P({meaning} <= boundary) for {name} on crystals of up to 40 atoms, against "
    "{reference}. Labels: benchmark sets of microsoft/mattersim (MIT licence), of "
    "which the MPtrj frames are in the potential's own training pool. Other quantities "
    "are not judged."
)
MOST_ECE = 0.05  # a probe with a larger one is not shipped
LEAST_TRUSTED = 0.05  # smallest useful share of P >= 0.8
DRAWS = 2000  # of `lead`


def divide(data: Dataset, known: Sequence[str], seed: int) -> list[np.ndarray]:
    """Return rows for fit, guarantee and test: 60/20/20 % of the ``known`` groups."""
    names = np.random.default_rng(seed).permutation(sorted(set(known)))
    groups = np.asarray(data.groups)
    ends = (len(names) * 6 // 10, len(names) * 8 // 10)
    parts = np.split(names, ends)
    return [np.flatnonzero(np.isin(groups, part)) for part in parts]


def by_regime(
    result: Evaluation, test: Dataset, sets: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the scores of each regime on the test structures."""
    rows = []
    for name, regime in REGIMES.items():
        chosen = np.flatnonzero([s == name for s in sets])
        part = test.subset(chosen)
        seen = evaluate_dataset(result.probe, part)
        novelty = torch.cat(
            [result.probe.read(c).novelty for c in chunks(part.predictions)]
        )
        rows.append(
            {
                "regime": regime,
                "set": name,
                **seen.report,
                "beyond_scope": float((novelty > 1).float().mean()),
                **atom_scores(result.probe, part),
            }
        )
    return rows


def atom_scores(probe: uqcalc.Probe, part: Dataset) -> dict[str, float]:
    """Return the scores of single atoms; empty for a probe without them."""
    if part.atom_errors is None or probe.card.atom_boundary is None:
        return {}
    said = torch.cat([probe.read(c).atoms for c in chunks(part.predictions)]).numpy()
    errors = np.concatenate(part.atom_errors)
    known = np.isfinite(errors)  # NaN where forces vanish by symmetry
    right = errors[known] <= probe.card.atom_boundary
    return {
        "atoms_auroc": scores.auroc(right, said[known]),
        "atoms_ece": scores.expected_calibration_error(right, said[known]),
    }


def baselines(data: Dataset, of: str) -> dict[str, np.ndarray]:
    """Return the risks that need no probe: larger is less reliable."""
    some = data.predictions
    found = {"largest force": np.array([_largest_force(p) for p in some])}
    if of == "stress":
        numbers = np.array([stress_numbers(p) for p in some])
        largest = [np.abs(p.results["stress"]).max() for p in some]
        found |= {"largest stress": np.array(largest), "pressure": numbers[:, 1]}
    return found


def _largest_force(prediction: Prediction) -> float:
    return float(np.linalg.norm(prediction.forces, axis=1).max())


def lead(
    right: np.ndarray, belief: np.ndarray, other: np.ndarray, groups: Sequence[str]
) -> tuple[float, float, float]:
    """Return how far the AUROC of ``belief`` is above that of ``other``, with interval.

    The interval is the central 95 % of a paired bootstrap over groups: each draw takes
    groups with replacement and scores both on the same structures.
    """
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(place == k) for k in range(place.max() + 1)]

    def difference(rows: np.ndarray) -> float:
        truth = right[rows]
        return scores.auroc(truth, belief[rows]) - scores.auroc(truth, other[rows])

    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        drawn = rng.integers(len(members), size=len(members))
        found.append(difference(np.concatenate([members[k] for k in drawn])))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return difference(np.arange(len(right))), float(low), float(high)


def called_reliable(probe: uqcalc.Probe, data: Dataset) -> np.ndarray:
    """Return which structures are RELIABLE with the policy of the probe."""
    seen = read_structures(probe, data.predictions)
    return ~seen.outside & ~seen.weak & (seen.probability >= probe.card.suspect)


def compared(
    before: uqcalc.Probe, probe: uqcalc.Probe, test: Dataset
) -> dict[str, Any]:
    """Return the scores of another probe, and counts of RELIABLE with both or one."""
    right = test.errors <= probe.card.boundary
    old, new = called_reliable(before, test), called_reliable(probe, test)
    return {
        "regime": "all, the probe before",
        **evaluate_dataset(before, test).report,
        "right_reliable_before": int((old & right).sum()),
        "right_reliable_now": int((new & right).sum()),
        "right_reliable_kept": float((old & new & right).sum() / (old & right).sum()),
        "wrong_reliable_before": int((old & ~right).sum()),
        "wrong_reliable_now": int((new & ~right).sum()),
    }


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(OPENERS), required=True)
    parser.add_argument(
        "--target", choices=BOUNDARIES, action="append", help="by default all"
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    parser.add_argument(
        "--features", type=Path, default=Path("../shared/data/sevennet0_mattersim")
    )
    parser.add_argument("--output", type=Path, default=Path(), help="folder")
    parser.add_argument("--probe", type=Path, help="score this one, fit none")
    parser.add_argument(
        "--scope", action="store_true", help="learn its limit on the mean distance anew"
    )
    parser.add_argument("--before", type=Path, help="probe of forces to compare with")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--boundary", help="another one, for one target")
    parser.add_argument("--risk", type=float, default=0.1, help="of the guarantee")
    parser.add_argument("--largest", type=int, default=40, help="atoms")
    parser.add_argument("--stresses", type=int, help="structures with a stress")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"labels must be in a folder, got {options.data}: see --data\n")
    return options


def main() -> None:
    options = options_given()
    source = open_source(
        options.model, options.data, options.features, options.cache, options.largest
    )
    # the stress first: features that are kept without it are computed again
    for name in options.target or BOUNDARIES:
        fit_target(source, name, options)


def some_rows(source: Source, name: str, options: argparse.Namespace) -> Any:
    """Return the frames of a target, None for all; fewer for a costly stress."""
    if name != "stress" or options.stresses is None:
        return None
    order = np.random.default_rng(options.seed).permutation(len(source.frames))
    return np.sort(order[: options.stresses]).tolist()


def fit_target(source: Source, name: str, options: argparse.Namespace) -> None:
    """Fit, certify, score and write the probe of one target."""
    labels = uqcalc.Labels(
        name,
        **KEYS,
        group_key="formula",
        boundary=options.boundary or BOUNDARIES[name],
    )
    if name == "stress":
        check_stress(source)
    data, sets = load_dataset(source, labels, some_rows(source, name, options))
    fitting, promising, testing = divide(data, source.groups, options.seed)
    test = data.subset(testing)
    if options.probe is not None:
        given = uqcalc.Probe.load(options.probe)
        if options.scope:
            given = with_mean_limit(given, data.subset(fitting))
        result: Evaluation = evaluate_dataset(given, test)
    else:
        result = fit_datasets(
            data.subset(fitting),
            None,
            test,
            source.backbone,
            labels,
            uqcalc.Recipe(seed=options.seed),
        )
    probe = certified(result.probe, data.subset(promising), options.risk)
    regimes = by_regime(result, test, [sets[i] for i in testing])
    probe = probe.with_card(
        description=DESCRIPTION.format(
            name=NAMES[options.model],
            meaning=TARGETS[name].meaning,
            reference=REFERENCE[options.model] if labels.of_energy else "PBE(+U)",
        ),
        report=result.report | {"regimes": [short(row) for row in regimes]},
    )
    own = options.model if name == "forces" else f"{options.model}.{name}"
    path = probe.save(options.output / f"{own}.probe", half=True)
    print(result)
    rows = [{"regime": "all", **probe.card.training, **result.report}, *regimes]
    if options.before is not None and name == "forces":
        rows.append(compared(uqcalc.Probe.load(options.before), probe, test))
        print(rows[-1])
    blank = len(data.excluded.get(NO_INFORMATION, []))
    notes = [
        f"structures of at most {options.largest} atoms"
        + (f", without the {blank} whose forces vanish by symmetry" if blank else "")
        + "; groups are reduced formulas: no material is in two splits",
        "two of the six sets (MPtrj) are in the potential's own training pool",
        f"guarantee: {probe.card.promise}",
        f"file of {path.stat().st_size} bytes",
    ]
    right = test.errors <= probe.card.boundary
    leads = {}
    for what, risk in baselines(test, labels.of).items():
        leads[what] = found = lead(right, result.probability, -risk, test.groups)
        key = what.replace(" ", "_")
        rows[0] |= {
            f"auroc_{key}": scores.auroc(right, -risk),
            f"lead_on_{key}": found[0],
            f"lead_on_{key}_interval": list(found[1:]),
        }
    trusted = float(np.mean(result.probability >= probe.card.suspect))
    rows[0]["trusted"] = trusted
    write_result(
        f"{own.replace('.', '_')}_probe",
        seeds=[options.seed],
        rows=rows,
        targets=(targets := targets_of(result, leads, trusted)),
        notes=notes,
    )
    for entry in targets:
        print(entry)


def certified(probe: uqcalc.Probe, held: Dataset, risk: float) -> uqcalc.Probe:
    """Return the probe with a guarantee, if its labels give one."""
    try:
        return certify_dataset(probe, held, risk=risk)
    except LabelError as refused:
        print("no guarantee:", refused)
        return probe


def short(row: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of a regime for the card; NaN is not valid JSON."""
    shown = ("regime", "structures", "prevalence", "accuracy", "auroc", "ece")
    found = {key: row.get(key, np.nan) for key in (*shown, "atoms_auroc")}
    return {k: None if value != value else value for k, value in found.items()}


def targets_of(
    result: Evaluation, leads: dict[str, tuple[float, float, float]], trusted: float
) -> list[dict[str, Any]]:
    """Return the targets that a probe meets if it is shipped."""
    report = result.report
    return [
        target(
            "accuracy against the majority class",
            report["accuracy"],
            report["majority_accuracy"],
            at_most=False,
        ),
        *(
            target(f"AUROC above the {what}, lower bound", low, 0.0, at_most=False)
            for what, (_, low, _) in leads.items()
        ),
        target(
            "share of structures with a P of RELIABLE",
            trusted,
            LEAST_TRUSTED,
            at_most=False,
        ),
        target("expected calibration error", report["ece"], MOST_ECE),
    ]


if __name__ == "__main__":
    main()
