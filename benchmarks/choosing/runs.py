"""Runs that show where the first potential fails, and the frames chosen from them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from scipy.stats import spearmanr

from uqcalc import Level, Monitor, ReliableCalculator, select
from uqcalc.watching.harvest import NOVELTY_KEY
from uqcalc.watching.monitor import WRECKED

from .systems import System, heavy, seed_of


RUNS, STEPS, HARVEST = 3, 300, 30
START_K, END_K, FRICTION_PER_FS = 300.0, 1500.0, 0.05
LABELS = 30


def runs_of(system: System, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Heat the molecule with its first potential; return the results of each run.

    Each run harvests. ``pool_N.xyz`` has the judged frames up to the first alarm
    (every second step, and every UNRELIABLE one), ``harvest_N.xyz`` those after it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    calculator = system.calculator()
    return [_run(system, seed, number, calculator, folder) for number in range(RUNS)]


def _run(
    system: System,
    seed: int,
    number: int,
    calculator: ReliableCalculator,
    folder: Path,
) -> dict[str, Any]:
    rng = np.random.RandomState(seed_of(system.name, "run", seed, number))
    start = system.frames[rng.randint(len(system.frames))]
    atoms = heavy(Atoms(start.numbers, start.positions))
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature_K=START_K, rng=rng)
    bath = {"temperature_K": START_K, "friction": FRICTION_PER_FS / units.fs}
    dynamics = Langevin(atoms, 1.0 * units.fs, **bath, fixcm=False, rng=rng)
    rise = (END_K - START_K) / STEPS
    dynamics.attach(
        lambda: dynamics.set_temperature(temperature_K=START_K + rise * dynamics.nsteps)
    )
    path = folder / f"harvest_{number}.xyz"
    path.unlink(missing_ok=True)
    monitor = Monitor(
        dynamics, flagged=path, on_unreliable="harvest", max_harvest=HARVEST
    )
    pool: list[Atoms] = []

    def keep() -> None:
        judged = monitor.last
        if judged is None or (monitor.harvest is not None and monitor.harvest.begun):
            return
        if judged.level is Level.UNRELIABLE or dynamics.nsteps % 2 == 0:
            pool.append(monitor.snapshot())

    dynamics.attach(keep)
    dynamics.run(STEPS)
    for frame in pool:
        frame.info["run"] = number
    write(folder / f"pool_{number}.xyz", pool, format="extxyz")
    harvested = read(path, ":") if path.is_file() and path.stat().st_size else []
    alarm = monitor.acted_on
    return {
        "run": number,
        "steps": monitor.step,
        "halted": monitor.reason if monitor.halted else "",
        "alarm": pool[-1].info["step"] + 1 if monitor.harvest.begun else None,
        "acted_on": None if alarm is None else alarm.step,
        "harvested": len(harvested),
        "harvest_steps": [int(frame.info["step"]) for frame in harvested],
        "novelty": [float(frame.info[NOVELTY_KEY]) for frame in harvested],
    }


def _pool(folder: Path) -> list[Atoms]:
    return [f for n in range(RUNS) for f in read(folder / f"pool_{n}.xyz", ":")]


def _flagged(folder: Path) -> list[Atoms]:
    from uqcalc import read_assessment

    return [f for f in _pool(folder) if read_assessment(f).level is Level.UNRELIABLE]


def _harvested(folder: Path) -> list[Atoms]:
    paths = [folder / f"harvest_{number}.xyz" for number in range(RUNS)]
    frames = []
    for number, path in enumerate(paths):
        if path.is_file() and path.stat().st_size:
            for frame in read(path, ":"):
                frame.info["run"] = number
                frames.append(frame)
    return frames


def _random(folder: Path, system: System, seed: int) -> list[Atoms]:
    pool = _pool(folder)
    rng = np.random.default_rng(seed_of(system.name, "random", seed))
    rows = rng.choice(len(pool), min(LABELS, len(pool)), replace=False)
    return [pool[row] for row in sorted(rows)]


def _top(folder: Path, system: System, seed: int) -> list[Atoms]:
    del system, seed
    every = len(_pool(folder))  # no limit for an event: the highest risks alone
    return list(select(_flagged(folder), LABELS, diverse=False, per_event=every))


def _spread(folder: Path, system: System, seed: int) -> list[Atoms]:
    del seed
    calculator = system.calculator()
    return list(select(_flagged(folder), LABELS, group="run", calculator=calculator))


def _last(folder: Path, system: System, seed: int) -> list[Atoms]:
    del system, seed
    frames = _flagged(folder)
    names = sorted({frame.info["run"] for frame in frames})
    share = math.ceil(LABELS / max(1, len(names)))
    ends = [[f for f in frames if f.info["run"] == n][-share:] for n in names]
    return [frame for end in ends for frame in end][:LABELS]


def _harvest(folder: Path, system: System, seed: int) -> list[Atoms]:
    del system, seed
    return list(select(_harvested(folder), LABELS, group="run"))


STRATEGIES: dict[str, Callable[[Path, System, int], list[Atoms]]] = {
    "random": _random,
    "top risk": _top,
    "spread": _spread,
    "last": _last,
    "harvest": _harvest,
}


def harvest_of(folder: Path) -> dict[str, Any]:
    """Return the results of the harvests of a molecule and seed; labels must exist."""
    runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    frames = read(folder / "labelled_harvest.xyz", ":")
    novelty = [frame.info[NOVELTY_KEY] for frame in frames]
    gaps = [f.arrays["REF_forces"] - f.arrays["predicted_forces"] for f in frames]
    errors = [float(np.sqrt(np.mean(gap**2))) for gap in gaps]
    return {
        "alarms": sum(run["alarm"] is not None for run in runs),
        "kept": sum(run["harvested"] for run in runs),
        "full": sum("budget" in run["halted"] for run in runs),
        "impossible": sum(run["halted"].startswith(WRECKED) for run in runs),
        "far": max(max(run["novelty"], default=0.0) for run in runs),
        "rank": float(spearmanr(novelty, errors).statistic),
    }
