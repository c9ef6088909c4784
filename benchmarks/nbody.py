"""Charged particles: CRPS of a perturbed EGNN, dropout, an ensemble and BLIP.

The task of EGNN (arXiv:2102.09844): positions at frame 40 from positions, velocities
and charges at frame 30. P-EGNN is the method of arXiv:2605.19939 with the noise and the
score of uqcalc. The figures of BLIP (arXiv:2508.14022) are from a reproduction with the
authors' package at 3 000 samples.

    python nbody.py --samples 3000 --seeds 0 1 2

Results of other methods, samples and seeds in `results/nbody.json` are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from common import print_table, print_targets, target, write_result
from particles.simulation import Trajectories, energies, simulate
from particles.training import (
    Settings,
    Task,
    train_deterministic,
    train_perturbed,
)

from uqcalc.statistics.crps import fair_crps, gaussian_crps, spread_skill
from uqcalc.statistics.scores import spearman


START, END = 30, 40
SHIFTED = (20, 30)  # an earlier interval of equal length: another distribution
TRAIN, HELD, TEST = 3000, 2000, 2000
MEMBERS = 100
DEFAULT = ("P-EGNN", "ensemble", "dropout")
BLIP = {"crps": 0.0304, "mse": 0.00863, "nll": -1.70}
COLUMNS = {
    "method": "method",
    "samples": "samples",
    "seed": "seed",
    "test": "frames",
    "mse": "MSE",
    "crps": "CRPS, fair",
    "crps_gaussian": "CRPS, Gaussian",
    "nll": "NLL",
    "spread_skill": "spread/skill",
    "spearman": "Spearman",
    "epochs": "epochs",
    "minutes": "minutes",
}


def task_of(runs: Trajectories, rows: slice, frames: tuple[int, int]) -> Task:
    """Return the task of some runs between two frames."""
    start, end = frames
    parts = (
        runs.charges[rows],
        runs.positions[rows, start],
        runs.velocities[rows, start],
        runs.positions[rows, end],
    )
    return Task(*(torch.as_tensor(part, dtype=torch.float32) for part in parts))


def scores(members: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return the scores of members (members, systems, particles, 3)."""
    x, y = members.double().numpy(), truth.double().numpy()
    mean = x.mean(0)
    found = {"mse": float(((mean - y) ** 2).mean())}
    if len(x) == 1:  # a single network: its CRPS is its absolute error
        return found | {"crps": float(np.abs(mean - y).mean())}
    deviation = x.std(0, ddof=1)
    log = np.log(2 * np.pi * deviation**2) + ((y - mean) / deviation) ** 2
    per_system = np.sqrt((deviation**2).mean((1, 2)))
    error = np.sqrt(((mean - y) ** 2).mean((1, 2)))
    return found | {
        "crps": float(fair_crps(x, y).mean()),
        "crps_gaussian": float(gaussian_crps(mean, deviation, y).mean()),
        "nll": float(0.5 * log.mean()),
        "spread_skill": spread_skill(x, y),
        "spearman": spearman(error, per_system),
    }


Predict = Callable[[Task], torch.Tensor]


@dataclass(frozen=True)
class Sets:
    """Systems for training, for the choice of the epoch, and for the tests."""

    train: Task
    held: Task
    tests: dict[str, Task]


def judged(
    method: str, predict: Predict, tests: dict[str, Task], more: dict[str, float]
) -> list[dict]:
    """Return one row for each test set."""
    rows = []
    for name, task in tests.items():
        with torch.no_grad():
            members = predict(task)
        rows.append(
            {"method": method, "test": name, **scores(members, task.target), **more}
        )
        print(rows[-1], flush=True)
    return rows


def plain(network) -> Predict:
    """Return the prediction of one network, as its only member."""
    return lambda task: network(task.charges, task.places, task.velocities)[None]


def perturbed_egnn(sets: Sets, settings: Settings, seed: int) -> list[dict]:
    """Train and judge P-EGNN."""
    network, facts = train_perturbed(sets.train, sets.held, settings, seed)
    generator = torch.Generator().manual_seed(seed)

    def members(task: Task) -> torch.Tensor:
        parts = [network.members(task, 10, generator) for _ in range(MEMBERS // 10)]
        return torch.cat(parts)

    return judged("P-EGNN", members, sets.tests, facts)


def deterministic_egnn(sets: Sets, settings: Settings, seed: int) -> list[dict]:
    """Train and judge one network with the squared error."""
    network, facts = train_deterministic(sets.train, sets.held, settings, seed)
    return judged("EGNN", plain(network), sets.tests, facts)


def ensemble(sets: Sets, settings: Settings, seed: int) -> list[dict]:
    """Train five networks; judge the first of them and all together."""
    networks = []
    rows: list[dict] = []
    for member in range(5):
        start = seed + 100 * member
        network, facts = train_deterministic(sets.train, sets.held, settings, start)
        networks.append(network)
        if not member:
            rows += judged("EGNN", plain(network), sets.tests, facts)

    def members(task: Task) -> torch.Tensor:
        return torch.cat([plain(network)(task) for network in networks])

    return rows + judged("ensemble of 5", members, sets.tests, {})


def dropout(sets: Sets, settings: Settings, seed: int) -> list[dict]:
    """Train and judge a network with dropout in training and test."""
    own = replace(settings, dropout=0.1)
    network, facts = train_deterministic(sets.train, sets.held, own, seed)

    def members(task: Task) -> torch.Tensor:
        network.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.cat([plain(network)(task) for _ in range(MEMBERS)])

    return judged("MC dropout", members, sets.tests, facts)


METHODS = {
    "P-EGNN": perturbed_egnn,
    "EGNN": deterministic_egnn,
    "ensemble": ensemble,  # includes EGNN
    "dropout": dropout,
}


def drift(runs: Trajectories) -> float:
    """Return the median relative change of the energy between two frames."""
    first, last = (
        energies(runs.charges, runs.positions[:, k], runs.velocities[:, k])
        for k in (START, END)
    )
    return float(np.median(np.abs(last - first) / np.abs(first)))


def targets_of(rows: Sequence[dict]) -> list[dict]:
    """Return the targets at 3 000 samples; empty without these."""
    own = [
        row
        for row in rows
        if row["method"] == "P-EGNN"
        and row["samples"] == TRAIN
        and row["test"] == f"{START} to {END}"
    ]
    if not own:
        return []
    mean = {k: float(np.mean([row[k] for row in own])) for k in _SCORED}
    return [
        target("CRPS, fair, 19 % below BLIP", mean["crps"], 0.0246),
        target("CRPS, Gaussian, 19 % below BLIP", mean["crps_gaussian"], 0.0246),
        target("spread/skill, low", mean["spread_skill"], 0.9, at_most=False),
        target("spread/skill, high", mean["spread_skill"], 1.1),
    ]


_SCORED = ("crps", "crps_gaussian", "spread_skill")


def earlier() -> list[dict]:
    """Return the rows of earlier runs."""
    from common import RESULTS, read_result

    return read_result("nbody")["rows"] if (RESULTS / "nbody.json").is_file() else []


def main() -> None:
    """Simulate, train and judge; write the result after every method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[TRAIN])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--members", type=int, default=4, help="of a training step")
    parser.add_argument("--cache", type=Path, default=Path("nbody.npz"))
    options = parser.parse_args()
    runs = _cached(options.cache)
    print(f"median relative change of the energy: {drift(runs):.1e}")
    held = task_of(runs, slice(TRAIN, TRAIN + HELD), (START, END))
    last = slice(TRAIN + HELD, TRAIN + HELD + TEST)
    tests = {
        f"{a} to {b}": task_of(runs, last, (a, b)) for a, b in ((START, END), SHIFTED)
    }
    settings = Settings(options.epochs, members=options.members)
    rows = earlier()
    for samples, seed, method in product(
        options.samples, options.seeds, options.methods
    ):
        sets = Sets(task_of(runs, slice(0, samples), (START, END)), held, tests)
        more = {"samples": samples, "seed": seed}
        found = [row | more for row in METHODS[method](sets, settings, seed)]
        own = {_key(row) for row in found}
        rows = [row for row in rows if _key(row) not in own] + found
        write_result(
            "nbody",
            seeds=sorted({row["seed"] for row in rows}),
            rows=rows,
            targets=targets_of(rows),
            more={
                "blip_at_3000": BLIP,
                "energy_change": drift(runs),
                "settings": asdict(settings),
            },
        )
    print_table("Charged particles", rows, COLUMNS)
    print_targets(targets_of(rows))


def _key(row: dict) -> tuple:
    return tuple(row[name] for name in ("method", "test", "samples", "seed"))


def _cached(path: Path) -> Trajectories:
    if path.is_file():
        with np.load(path) as stored:
            return Trajectories(*(stored[k] for k in ("charges", "places", "speeds")))
    runs = simulate(TRAIN + HELD + TEST, END + 1, seed=43)
    np.savez(path, charges=runs.charges, places=runs.positions, speeds=runs.velocities)
    return runs


if __name__ == "__main__":
    main()
