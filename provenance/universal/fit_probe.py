"""Fit the probes of CHGNet 0.3.0 and SevenNet-0 that ship with the package.

The labels are PBE(+U) forces of the benchmark sets of microsoft/mattersim (MIT), in
``--data``. Structures of one reduced formula are a group, so each material is in one
split only. A fifth of the groups is for the guarantee and a fifth for the test. Two of
the six sets (MPtrj) are in the training pool of both potentials; the cards say so.

    python provenance/universal/fit_probe.py --model chgnet
    python provenance/universal/fit_probe.py --model sevennet  # with sevenn

With ``--before`` another probe is scored on the same test structures. The split of the
groups includes structures without information, as in earlier versions. So the test
structures are unseen for a probe of an earlier version, too.

``--features`` has the features of these structures from SevenNet. The script computes
some of them again to check them, and reads the others, which saves an hour.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.io import read


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from common import target, write_result

import uqcalc
from uqcalc.backbones import Backbone, Prediction
from uqcalc.errors import LabelError
from uqcalc.evaluation.evaluation import Evaluation, evaluate_dataset
from uqcalc.evaluation.guarantee import certify_dataset
from uqcalc.evaluation.readings import read_structures
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.labels.defects import NO_INFORMATION, vanishing
from uqcalc.labels.groups import reduced_formula
from uqcalc.probe.inputs import chunks
from uqcalc.probe.seen import geometry_hashes
from uqcalc.statistics import scores


REGIMES = {
    "alexandria-random-1k": "relaxed",
    "mptrj-random-1k": "MPtrj, at random (training pool)",
    "mptrj-highest-stress-1k": "strained (training pool)",
    "mpf-TP": "hot and dense",
    "mpf-alkali-TP": "hot and dense, alkali metals",
    "random-TP": "random cells",
}
NAMES = {"chgnet": "CHGNet 0.3.0", "sevennet": "SevenNet-0 (11 July 2024)"}
DESCRIPTION = (
    "P(RMS force error against PBE(+U) <= boundary) for {name} on crystals of up to 40 "
    "atoms. Labels: benchmark sets of microsoft/mattersim (MIT licence), of which the "
    "MPtrj frames are in the potential's own training pool. Energies are not judged."
)
CHECKED = 3  # structures of each set with features that are computed again


def chgnet() -> BaseCalculator:
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")


def sevennet() -> BaseCalculator:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


OPENERS: dict[str, Callable[[], BaseCalculator]] = {
    "chgnet": chgnet,
    "sevennet": sevennet,
}


def load_frames(folder: Path, largest: int) -> list[Atoms]:
    frames = []
    for name in REGIMES:
        for row, frame in enumerate(read(folder / f"{name}.xyz", ":")):
            if len(frame) <= largest:
                frame.info.update(set=name, row=row)
                frames.append(frame)
    return frames


def stored(
    frames: Sequence[Atoms], folder: Path, backbone: Backbone, labels: uqcalc.Labels
) -> tuple[Dataset, list[str], list[str]]:
    """Return the dataset from stored predictions, the sets, and the groups.

    A few predictions are checked. Sets are those of the kept structures; groups include
    those of structures that are left out because their forces vanish by symmetry.
    """
    known: list[str] = []
    kept: list[Atoms] = []
    by_row = {(a.info["set"], a.info["row"]): a for a in frames}
    predictions, errors, of_atoms, groups, sets = [], [], [], [], []
    seen: set[bytes] = set()
    for name in REGIMES:
        data = np.load(folder / f"{name}.npz")
        cuts = np.cumsum(data["n"])[:-1]
        columns = [np.split(data[k], cuts) for k in ("h", "f_pred")]
        for i, (row, features, forces) in enumerate(
            zip(data["index"], *columns, strict=True)
        ):
            frame = by_row.get((name, int(row)))
            if frame is None:
                continue
            key = frame.positions.tobytes() + frame.cell.array.tobytes()
            if key in seen:
                continue
            seen.add(key)
            prediction = Prediction(
                numbers=frame.numbers,
                positions=frame.positions,
                cell=frame.cell.array,
                pbc=frame.pbc,
                results={},
                energy=float(data["e_pred"][i]),
                forces=forces.astype(float),
                features=torch.from_numpy(features.astype(np.float32)),
            )
            if i < CHECKED:
                _check(prediction, backbone, frame)
            reference = labels.reference(frame)
            known.append(reduced_formula(frame))
            zero = vanishing(prediction.forces, reference)
            if zero.all():
                continue
            difference = prediction.forces - reference
            predictions.append(prediction)
            errors.append(float(np.sqrt(np.mean(difference**2))))
            size = np.linalg.norm(difference, axis=1)
            of_atoms.append(np.where(zero, np.nan, size))
            groups.append(known[-1])
            kept.append(frame)
            sets.append(name)
    data = Dataset(
        predictions,
        np.array(errors),
        groups,
        {NO_INFORMATION: [0] * (len(known) - len(groups))},
        atom_errors=of_atoms,
        labels=labels,
        fingerprint=backbone.fingerprint,
        geometries=geometry_hashes(kept, range(len(kept))),
    )
    return data, sets, known


def _check(prediction: Prediction, backbone: Backbone, frame: Atoms) -> None:
    fresh = backbone(Atoms(frame), ["energy", "forces"])
    # the stored features have half precision
    np.testing.assert_allclose(
        prediction.features, fresh.features, rtol=2e-2, atol=5e-3
    )
    np.testing.assert_allclose(prediction.forces, fresh.forces, atol=2e-3, rtol=2e-3)


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
        atoms = torch.cat(
            [result.probe.read(c).atoms for c in chunks(part.predictions)]
        ).numpy()
        errors = np.concatenate(part.atom_errors or [])
        said = np.isfinite(errors)  # NaN where forces vanish by symmetry
        errors, atoms = errors[said], atoms[said]
        right = errors <= (result.probe.card.atom_boundary or 0.0)
        rows.append(
            {
                "regime": regime,
                "set": name,
                **seen.report,
                "beyond_scope": float((novelty > 1).float().mean()),
                "atoms_auroc": scores.auroc(right, atoms),
                "atoms_ece": scores.expected_calibration_error(right, atoms),
            }
        )
    return rows


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(OPENERS), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    parser.add_argument(
        "--features", type=Path, default=Path("../shared/data/sevennet0_mattersim")
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--probe", type=Path, help="score this one, fit none")
    parser.add_argument("--before", type=Path, help="probe to compare with")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--boundary", default="0.2 eV/angstrom")
    parser.add_argument("--risk", type=float, default=0.1, help="of the guarantee")
    parser.add_argument("--largest", type=int, default=40, help="atoms")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"labels must be in a folder, got {options.data}: see --data\n")
    labels = uqcalc.Labels(
        "forces", forces_key="forces", group_key="formula", boundary=options.boundary
    )
    backbone = uqcalc.tap(OPENERS[options.model]())
    frames = load_frames(options.data, options.largest)
    if options.model == "sevennet":
        data, sets, known = stored(frames, options.features, backbone, labels)
    else:
        data = build_dataset(
            frames,
            backbone,
            labels,
            exclude=("duplicate", "unknown elements"),
            cache=options.cache,
        )
        left_out = {i for rows in data.excluded.values() for i in rows}
        sets = [a.info["set"] for i, a in enumerate(frames) if i not in left_out]
        blank = [frames[i] for i in data.excluded.get(NO_INFORMATION, [])]
        known = [*data.groups, *map(reduced_formula, blank)]
    fitting, promising, testing = divide(data, known, options.seed)
    test = data.subset(testing)
    recipe = uqcalc.Recipe(seed=options.seed)
    result: Evaluation
    if options.probe is not None:
        result = evaluate_dataset(uqcalc.Probe.load(options.probe), test)
    else:
        result = fit_datasets(
            data.subset(fitting), None, test, backbone, labels, recipe
        )
    probe, promise = result.probe, None
    try:
        probe = certify_dataset(probe, data.subset(promising), risk=options.risk)
        promise = probe.card.promise
    except LabelError as refused:
        print("no guarantee:", refused)
    regimes = by_regime(result, test, [sets[i] for i in testing])
    name = NAMES[options.model]
    shown = ("regime", "structures", "prevalence", "accuracy", "auroc", "ece")
    report = probe.card.report | {
        "regimes": [
            {k: None if row[k] != row[k] else row[k] for k in (*shown, "atoms_auroc")}
            for row in regimes
        ]  # NaN (if all are of one class) is not valid JSON
    }
    probe = probe.with_card(description=DESCRIPTION.format(name=name), report=report)
    output = options.output or Path(f"{options.model}.probe")
    probe.save(output, half=True)
    print(result)
    force = np.array([np.linalg.norm(p.forces, axis=1).max() for p in test.predictions])
    right = test.errors <= probe.card.boundary
    rows = [{"regime": "all", **probe.card.training, **result.report}, *regimes]
    if options.before is not None:
        rows.append(compared(uqcalc.Probe.load(options.before), probe, test))
        print(rows[-1])
    write_result(
        f"{options.model}_probe",
        seeds=[options.seed],
        rows=rows,
        targets=[
            target(
                "accuracy against the majority class",
                result.report["accuracy"],
                result.report["majority_accuracy"],
                at_most=False,
            ),
            target(
                "AUROC against the largest force",
                result.report["auroc"],
                scores.auroc(right, -force),
                at_most=False,
            ),
        ],
        notes=[
            f"structures of at most {options.largest} atoms, without the "
            f"{len(data.excluded.get(NO_INFORMATION, []))} whose forces vanish by "
            "symmetry; groups are reduced "
            "formulas: no material is in two splits",
            "two of the six sets (MPtrj) are in the potential's own training pool",
            f"guarantee: {promise}",
            f"file of {output.stat().st_size} bytes",
        ],
    )


if __name__ == "__main__":
    main()
