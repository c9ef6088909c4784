"""Correct P on a system without labels, from properties of the system.

Three ways are compared: P as it is, P with the shift of the system integrated over its
spread ("integrated"), and P with a mean of the shift that depends on the system
("ridge"). The model is that of `uqcalc.statistics.systems`, without labels of the
system.

Families of crystals (anions, or none) are left out one at a time, except for 30
structures of other systems, so that their elements are known. A probe is fitted to the
rest and predicts the family. Systems are the chemical systems of the family with
at least five structures. Spread and ridge for a family come from the left-out
predictions of the other families. The ridge regression of the shift uses shares of the
groups of the periodic table, and means over the system: of the probe's numbers, with
the predicted forces, of the principal components of the features, and of the log-odds.
Its penalty is chosen by leaving out families.

    python benchmarks/unlabelled.py --features ../shared/data/sevennet0_mattersim
    python benchmarks/unlabelled.py --model chgnet --cache features

The second scores a shipped probe, as it is and integrated with the spread on its card,
on the systems of benchmarks/new_systems.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from common import target, write_result
from discriminating.labelled import Labelled, load
from new_systems import bootstrap, crystals, dataset, molecules, scores
from numpy.typing import NDArray

import uqcalc
from uqcalc.defaults import shipped_probe
from uqcalc.fitting.stacking import fit_joined
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.inputs import chunks
from uqcalc.statistics.systems import (
    Residuals,
    Spread,
    learn_system_spread,
    posterior,
    residuals,
)


Array = NDArray[np.float64]
BOUNDARY = 0.2  # eV/Å
# The first class with an element of the structure is its family.
FAMILIES = {
    "oxides": "O",
    "fluorides": "F",
    "halides": "Cl Br I",
    "chalcogenides": "S Se Te",
    "pnictides": "N P As Sb Bi",
    "hydrides": "H",
    "carbides, borides, silicides": "C B Si Ge",
    "with alkali or alkaline earth metals": "Li Na K Rb Cs Be Mg Ca Sr Ba",
}
REST = "other metals"
FEWEST = 5  # structures of a system
LABELS, EPOCHS = 1000, 10  # of each fit
# Structures of the left-out family that stay, of other systems than the tested ones: an
# element without labels gets no probability.
KNOWN = 30
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
NOTHING = Residuals(np.empty(0), np.empty(0, int))


@dataclass(frozen=True, eq=False)
class System:
    """Structures of one system, with outputs of a probe fitted without its family."""

    name: str
    family: str
    logits: Array
    errors: Array
    found: Residuals
    known: Array

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which structures are right."""
        return self.errors <= BOUNDARY


def family_of(numbers: NDArray[np.int64]) -> str:
    """Return the family of a structure."""
    symbols = {chemical_symbols[z] for z in numbers}
    for name, members in FAMILIES.items():
        if symbols & set(members.split()):
            return name
    return REST


def left_out_family(
    data: Labelled, family: str, families: NDArray[np.str_], seed: int = 0
) -> list[System]:
    """Fit to the other families, and return the systems of this one."""
    others = np.flatnonzero(families != family)
    own = np.flatnonzero(families == family)
    rng = np.random.default_rng(seed)
    systems_of = np.array([" ".join(symbols(p.numbers)) for p in data.predictions])
    few = rng.permutation(own)[:KNOWN]
    own = own[~np.isin(systems_of[own], systems_of[few])]
    chosen = np.concatenate([rng.permutation(others)[:LABELS], few])
    labels = uqcalc.Labels("forces", boundary=BOUNDARY, group_key="formula")
    backbone: Any = SimpleNamespace(fingerprint="stored", provides=frozenset())
    recipe = uqcalc.Recipe(epochs=EPOCHS)
    train = data.dataset("forces", chosen, grouped=True)
    probe, _ = fit_joined(train, backbone, labels, recipe, BOUNDARY)
    known = [i for i in own if not probe.unseen_elements(data.predictions[i].numbers)]
    if not known:
        return []
    names = systems_of[known]
    part = data.dataset("forces", np.array(known), grouped=True)
    logits, inputs = described(probe, part)
    calibration = probe.card.calibration
    found = residuals(logits, part.errors, calibration.boundaries, calibration.shifts)
    systems = []
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        if len(rows) >= FEWEST:
            systems.append(
                System(
                    str(name),
                    family,
                    logits[rows],
                    part.errors[rows],
                    Residuals(found.value[rows], found.side[rows]),
                    inputs[rows].mean(axis=0),
                )
            )
    return systems


def symbols(numbers: NDArray[np.int64]) -> list[str]:
    """Return the sorted symbols of a structure."""
    return sorted({chemical_symbols[z] for z in numbers})


@torch.inference_mode()
def described(probe: uqcalc.Probe, data: Dataset) -> tuple[Array, Array]:
    """Return log-odds, and the inputs of the regression of each structure."""
    logits, rows = [], []
    for chunk in chunks(data.predictions):
        output = probe.path_output(chunk)
        if output.described is None:
            continue
        odds = probe.card.calibration.logits(output.score)
        logits.append(odds)
        groups = np.stack([shares(p.numbers) for p in chunk])
        columns = (
            output.described.numbers,
            output.described.components,
            odds[:, None],
            torch.from_numpy(groups).float(),
        )
        rows.append(torch.cat(columns, dim=1))
    return torch.cat(logits).double().numpy(), torch.cat(rows).double().numpy()


def shares(numbers: NDArray[np.int64]) -> Array:
    """Return the share of each column of the periodic table, (19,); f elements last."""
    found = np.zeros(19)
    for z in numbers:
        found[column(int(z))] += 1 / len(numbers)
    return found


def column(z: int) -> int:
    """Return the column of an element, from 0 to 17; 18 for f elements."""
    if 57 <= z <= 70 or 89 <= z <= 102:
        return 18
    for noble in (2, 10, 18, 36, 54, 86, 118):
        if z <= noble:
            right = noble - z
            before = z - {2: 0, 10: 2, 18: 10, 36: 18, 54: 36, 86: 54, 118: 86}[noble]
            return before - 1 if before <= 2 else max(17 - right, 2)
    return 18


def spread_of(systems: list[System]) -> Spread:
    """Return the spread over systems."""
    system = learn_system_spread([one.found for one in systems])
    return Spread(system, 0.3, len(systems))


def places(systems: list[System], spread: Spread) -> tuple[Array, Array]:
    """Return the shift of each system and its standard deviation."""
    # one run each: only the spread over systems matters here
    found = [
        posterior(one.found, [str(i) for i in range(len(one.errors))], spread).place
        for one in systems
    ]
    mean, deviation = np.transpose(found)
    return mean, deviation


class Ridge:
    """Ridge regression of the shift of systems; the penalty is chosen on families."""

    def __init__(self, systems: list[System], spread: Spread) -> None:
        shift, deviation = places(systems, spread)
        weight = 1 / (spread.system**2 + deviation**2)
        inputs = np.array([one.known for one in systems])
        family = np.array([one.family for one in systems])
        losses = [
            sum(
                float(weight[held] @ (shift[held] - guess) ** 2)
                for name in np.unique(family)
                for held in [family == name]
                for guess in [
                    self._fit(inputs[~held], shift[~held], weight[~held], penalty)(
                        inputs[held]
                    )
                ]
            )
            for penalty in PENALTIES
        ]
        self.penalty = PENALTIES[int(np.argmin(losses))]
        self.mean = self._fit(inputs, shift, weight, self.penalty)
        self.explained = 1 - min(losses) / float(weight @ shift**2)

    @staticmethod
    def _fit(inputs: Array, shift: Array, weight: Array, penalty: float) -> Any:
        centre = inputs.mean(axis=0)
        scale = np.maximum(inputs.std(axis=0), 1e-6)
        rows = np.column_stack([(inputs - centre) / scale, np.ones(len(inputs))])
        rows = np.clip(rows, -4.0, 4.0)
        ridge = np.diag([*np.full(inputs.shape[1], penalty), 1.0])
        gram = (rows.T * weight) @ rows + ridge * weight.mean()
        slopes = np.linalg.solve(gram, rows.T @ (weight * shift))

        def mean(new: Array) -> Array:
            standard = np.clip((new - centre) / scale, -4.0, 4.0)
            return np.asarray(standard @ slopes[:-1] + slopes[-1])

        return mean


def judged(systems: list[System]) -> list[dict[str, Any]]:
    """Return the scores of each system; spread and ridge are of other families."""
    rows = []
    for family in sorted({one.family for one in systems}):
        others = [one for one in systems if one.family != family]
        spread = spread_of(others)
        ridge = Ridge(others, spread)
        plain = posterior(NOTHING, [], spread)
        for one in [s for s in systems if s.family == family]:
            mean = float(ridge.mean(one.known[None])[0])
            moved = posterior(NOTHING, [], spread, mean)
            given = {
                "before": one.logits,
                "integrated": plain.logit(one.logits),
                "ridge": moved.logit(one.logits),
            }
            row: dict[str, Any] = {
                "system": one.name,
                "family": family,
                "structures": len(one.errors),
                "right": float(one.right.mean()),
                "spread": spread.system,
                "ridge_mean": mean,
                "ridge_penalty": ridge.penalty,
                "ridge_explained": ridge.explained,
            }
            rows.append(row | scored(given, one.right))
    return rows


def scored(given: dict[str, Array], right: NDArray[np.bool_]) -> dict[str, float]:
    """Return log loss and gap of each way."""
    found = {}
    for name, logits in given.items():
        loss, gap, _ = scores(logits, right)
        found |= {f"log_loss_{name}": loss, f"gap_{name}": gap}
    return found


def summary(rows: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Return means over systems, and intervals of the difference to P as it is."""
    entry: dict[str, Any] = {"model": model, "systems": len(rows)}
    for kind in ("log_loss", "gap"):
        before = np.array([row[f"{kind}_before"] for row in rows])
        entry[f"{kind}_before"] = float(before.mean())
        for name in ("integrated", "ridge"):
            if f"{kind}_{name}" in rows[0]:
                values = np.array([row[f"{kind}_{name}"] for row in rows])
                entry[f"{kind}_{name}"] = float(values.mean())
                entry[f"{kind}_{name}_less_before"] = bootstrap(values - before)
    return entry


def foreign(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the scores of a shipped probe on new systems."""
    with contextlib.redirect_stdout(io.StringIO()):
        backbone = uqcalc.tap(uqcalc.open_model(options.model, device="cpu"))
    probe = shipped_probe(options.model)
    if probe is None:
        raise SystemExit(f"no probe ships for {options.model}")
    spread = Spread.of_card(probe.card.training)
    plain = posterior(NOTHING, [], spread)
    systems = crystals(options.data, options.most)
    if options.molecules is not None:
        systems = molecules(options.molecules, options.most)
    rows = []
    for name, frames in systems:
        data = dataset(frames, backbone, options.cache, name)
        score = torch.cat([probe.scores([p]) for p in data.predictions]).double()
        logits = probe.card.calibration.logits(score).numpy()
        right = data.errors <= probe.card.boundary
        given = {"before": logits, "integrated": plain.logit(logits)}
        row = {"system": name, "structures": len(data), "right": float(right.mean())}
        rows.append(row | {"spread": spread.system} | scored(given, right))
        print(rows[-1], flush=True)
    return rows


def families(folder: Path) -> list[dict[str, Any]]:
    """Return the scores of the systems of left-out families."""
    data = load(sorted(folder.glob("*.npz")), folder)
    of = np.array([family_of(p.numbers) for p in data.predictions])
    systems = []
    for family in [*FAMILIES, REST]:
        found = left_out_family(data, family, of)
        systems += found
        count = int((of == family).sum())
        print(f"{family}: {count} structures, {len(found)} systems", flush=True)
    return judged(systems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, help="stored features of SevenNet-0")
    parser.add_argument("--model", choices=("chgnet", "default"), default="chgnet")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--molecules", type=Path, help="labelled frames of molecules")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--most", type=int, default=200, help="frames of a system")
    options = parser.parse_args()
    given = options.features or options.molecules or options.data
    if not given.exists():
        parser.exit(2, f"systems must be in {given}, which is not there\n")
    warnings.simplefilter("ignore", uqcalc.LabelWarning)
    if options.features is not None:
        name, rows = "families", families(options.features)
    else:
        name, rows = options.model, foreign(options)
    mean = summary(rows, name)
    print({k: np.round(v, 3).tolist() if k != "model" else v for k, v in mean.items()})
    write_result(
        f"unlabelled_{name}",
        seeds=[0],
        rows=[{"kind": "mean", **mean}] + [{"kind": "system", **row} for row in rows],
        targets=[
            target(
                f"log loss of new systems, {way} over P as it is",
                mean[f"log_loss_{way}"] / mean["log_loss_before"],
                1.0,
                at_most=True,
            )
            for way in ("integrated", "ridge")
            if f"log_loss_{way}" in mean
        ],
        notes=["means over systems; the gap is |mean P - share of right structures|"],
    )


if __name__ == "__main__":
    main()
