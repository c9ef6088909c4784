"""Compare rules for the default boundary: sound runs pass, failing runs are halted.

The potential is the bundled one, the reference is GFN2-xTB. Each molecule has two sets
of labels: runs at 300 K, and runs at 300 to 1 500 K. Each rule chooses a boundary from
the errors of the labels, and a probe is fitted with this boundary. The probes then
judge each fifth step of runs at 300 K and of runs that are heated until they fail,
with the default trigger of `Monitor`.

    python benchmarks/default_boundary.py
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculatorError
from common import BUNDLED, print_table, write_result
from tblite.ase import TBLite


sys.path.insert(0, str(BUNDLED))
from ramp import BatchedForces, Schedule, batched, new_ramp, run_ramps

import uqcalc
from uqcalc import Labels, Probe, Recipe
from uqcalc.backbones import Backbone, Prediction
from uqcalc.errors import LabelError
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.models.bundled import bare_calculator, load_model
from uqcalc.probe.scope import FAR, FAR_LOWEST
from uqcalc.watching.trigger import Trigger


MOLECULES = {"ethanol": "CH3CH2OH", "acetamide": "CH3CONH2"}
STEP, FRICTION = 1.0, 0.02  # fs, 1/fs
WARM_UP, APART = 60, 5  # steps before a run, and between judged frames
HOTTEST = 2500.0  # K
MIXED = [300.0, 900.0, 1500.0]
RUNS, LABELLED = (
    8,
    (60, 6),
)  # runs of each temperature; steps of a run, and between labels
TOLERANCE = 0.2  # eV/Å: a run fails when half of its errors exceed it
LATE = 100.0  # fs after the failure, as in halts_when_it_should.py
RULES: dict[str, Callable[[np.ndarray], float]] = {
    "the default": lambda e: Labels("forces").chosen_boundary(e),
    "median": lambda e: float(np.median(e)),
    "0.1 eV/Å": lambda _: 0.1,
    "3 medians": lambda e: 3 * float(np.median(e)),
    "1.5 times the 90th percentile": lambda e: 1.5 * float(np.percentile(e, 90)),
    "5 medians": lambda e: 5 * float(np.median(e)),
    "2 medians, at most the 90th percentile": lambda e: _capped(e, 2),
}
_LONG = ("sound_halts", "failing_halts", "failures")
COLUMNS = {
    "molecule": "molecule",
    "labels": "labels",
    "rule": "rule",
    "boundary": "boundary (eV/Å)",
    "beyond": "labels beyond",
    "sound_halted": "sound halted",
    "sound": "sound runs",
    "failing_in_time": "failing halted in time",
    "failing": "failing runs",
    "median_late_fs": "fs after the failure (median)",
    "outcome": "outcome",
}


class Run(NamedTuple):
    """Predictions for the frames of a run, and the true errors of some."""

    predictions: list[Prediction]
    errors: np.ndarray  # eV/Å, RMS, of every other frame


def _capped(errors: np.ndarray, factor: float) -> float:
    return float(min(factor * np.median(errors), np.percentile(errors, 90)))


def simulate(
    forces: BatchedForces, start: Atoms, copies: int, schedule: Schedule, seed: int
) -> list[list[Atoms]]:
    """Return the frames of several runs after the warm-up."""
    kelvin = schedule.start_K
    ramps = [
        new_ramp("", start.copy(), seed + copy, 2 * kelvin) for copy in range(copies)
    ]
    run_ramps(forces, ramps, Schedule(kelvin, kelvin, WARM_UP, WARM_UP, STEP, 0.05))
    for ramp in ramps:
        ramp.frames.clear()
    run_ramps(forces, ramps, schedule)
    return [[Atoms(start.numbers, x) for _, x in ramp.frames] for ramp in ramps]


def truth(frame: Atoms) -> np.ndarray | None:
    """Return the forces of GFN2-xTB, or None if it does not converge."""
    try:
        return np.asarray(TBLite(verbosity=0).get_forces(frame.copy()))
    except (CalculatorError, RuntimeError):
        return None


def watched(backbone: Backbone, runs: list[list[Atoms]]) -> list[Run]:
    """Return runs with the true error of each second frame; inf without a reference."""
    found = []
    for frames in runs:
        predictions, errors = backbone.predict_many(frames), []
        for frame, prediction in zip(frames[::2], predictions[::2], strict=True):
            forces = truth(frame)
            miss = np.inf if forces is None else prediction.forces - forces
            errors.append(float(np.sqrt(np.mean(np.square(miss)))))
        found.append(Run(predictions, np.array(errors)))
    return found


def labelled(backbone: Backbone, runs: list[list[Atoms]]) -> tuple[Dataset, Dataset]:
    """Return labels for the fit and for the test; each run is a group."""
    frames = []
    for number, run in enumerate(runs):
        for frame in run:
            if (forces := truth(frame)) is not None:
                frame.arrays["REF_forces"] = forces
                frame.info["run"] = str(number)
                frames.append(frame)
    labels = Labels("forces", group_key="run")
    train, test = build_dataset(frames, backbone, labels).split((0.85, 0.15), seed=0)
    return train, test


def halt(probe: Probe, seen: list[Prediction]) -> int | None:
    """Return the step at which a `Monitor` with default settings halts."""
    found = probe.read(seen)
    bad = ~(found.reliability.double().numpy() >= probe.card.unreliable)
    for value, limit in ((found.novelty, FAR), (found.worst_atom, FAR_LOWEST)):
        if value is not None:
            bad |= ~(value.double().numpy() <= limit)
    trigger = Trigger.usual(STEP)
    every = np.repeat(bad, APART)  # a frame counts until the next one
    count = np.convolve(every, np.ones(trigger.window or 1))[: len(every)]
    acted = np.flatnonzero(every & (count >= trigger.needed))
    return int(acted[0]) if len(acted) else None


def failure(run: Run) -> int | None:
    """Return the first step at which half of five errors exceed the tolerance."""
    beyond = np.convolve(run.errors > TOLERANCE, np.ones(5))[: len(run.errors)]
    failing = np.flatnonzero(beyond >= 2.5)
    return int(failing[0]) * 2 * APART if len(failing) else None


def fitted(
    data: tuple[Dataset, Dataset], backbone: Backbone, boundary: float, epochs: int
) -> Probe | str:
    """Return a probe with this boundary, or the reason for the refusal."""
    labels = Labels("forces", group_key="run", boundary=boundary)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few labels are part of the question
            recipe = Recipe(epochs=epochs)
            return fit_datasets(data[0], None, data[1], backbone, labels, recipe).probe
    except LabelError as error:
        return str(error)


def judged(probe: Probe, kinds: dict[str, list[Run]]) -> dict[str, Any]:
    """Return how many runs of each kind are halted, and the delay in failing runs."""
    row: dict[str, Any] = {"outcome": "fitted"}
    for kind, runs in kinds.items():
        halts = [halt(probe, one.predictions) for one in runs]
        row[kind] = len(runs)
        row[f"{kind}_halted"] = sum(h is not None for h in halts)
        row[f"{kind}_halts"] = halts
    late = [
        (h - failed) * STEP
        for h, one in zip(row["failing_halts"], kinds["failing"], strict=True)
        if h is not None and (failed := failure(one)) is not None
    ]
    row["failures"] = [failure(one) for one in kinds["failing"]]
    row["failing_in_time"] = sum(fs <= LATE for fs in late)
    row["median_late_fs"] = float(np.median(late)) if late else None
    return row


def of_molecule(
    name: str,
    backbone: Backbone,
    forces: BatchedForces,
    options: argparse.Namespace,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each rule and set of labels, and the errors of the runs."""
    start, count = molecule(MOLECULES[name]), options.runs
    sound = Schedule(300.0, 300.0, options.steps, APART, STEP, FRICTION)
    hot = Schedule(300.0, HOTTEST, options.steps, APART, STEP, FRICTION)
    heated = watched(backbone, simulate(forces, start, count, hot, 100))
    kinds = {
        "sound": watched(backbone, simulate(forces, start, count, sound, 0)),
        "failing": [one for one in heated if failure(one) is not None],
    }
    notes = [
        f"{name}, {kind}: {len(runs)} runs, true RMS errors (10, 50, 90, 100 %) "
        f"{np.round(_quantiles(runs), 3).tolist()} eV/Å"
        for kind, runs in kinds.items()
    ]
    print("\n".join(notes), flush=True)
    sets = {"300 K": [300.0] * len(MIXED), "300 to 1500 K": MIXED}
    rows = []
    for labels, temperatures in sets.items():
        made = []
        for seed, kelvin in enumerate(temperatures):
            steady = Schedule(kelvin, kelvin, *LABELLED, STEP, FRICTION)
            made += simulate(forces, start, RUNS, steady, 1000 + RUNS * seed)
        data = labelled(backbone, made)
        errors = data[0].errors
        notes.append(
            f"{name}, {len(errors)} labels, {labels}: errors (10, 50, 90, 100 %) "
            f"{np.round(np.percentile(errors, (10, 50, 90, 100)), 3).tolist()} eV/Å"
        )
        done: dict[float, dict[str, Any]] = {}
        for rule, choose in RULES.items():
            boundary = choose(errors)
            beyond = float(np.mean(errors > boundary))
            head = {"molecule": name, "labels": labels, "rule": rule}
            if boundary not in done:
                probe = fitted(data, backbone, boundary, options.epochs)
                refused = isinstance(probe, str)
                done[boundary] = {"outcome": probe} if refused else judged(probe, kinds)
            rows.append(
                head | {"boundary": boundary, "beyond": beyond} | done[boundary]
            )
            print({k: v for k, v in rows[-1].items() if k not in _LONG}, flush=True)
    return rows, notes


def _quantiles(runs: list[Run]) -> np.ndarray:
    known = np.concatenate([one.errors for one in runs])
    return np.asarray(np.percentile(known[np.isfinite(known)], (10, 50, 90, 100)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", nargs="+", default=list(MOLECULES))
    parser.add_argument("--runs", type=int, default=6, help="of each kind")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args()
    backbone, forces = uqcalc.tap(bare_calculator()), batched(load_model())
    rows, notes = [], []
    for name in options.molecules:
        more, said = of_molecule(name, backbone, forces, options)
        rows += more
        notes += said
        write_result("default_boundary", seeds=[0], rows=rows, notes=notes)
    print_table("default boundaries", rows, COLUMNS)


if __name__ == "__main__":
    main()
