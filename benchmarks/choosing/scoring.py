"""A fine-tuned potential on new runs: errors of its frames, and runs that explode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from ramp import BatchedForces, Schedule, new_ramp, run_ramps
from sample import FAILURES, xtb
from train_backbone import ELEMENTS

from uqcalc import label

from .runs import END_K, FRICTION_PER_FS, START_K, STEPS, STRATEGIES
from .systems import System, heavy, seed_of
from .training import train


RUNS, EVERY = 12, 25
SCHEDULE = Schedule(START_K, END_K, STEPS, EVERY, 1.0, FRICTION_PER_FS)
LIMIT = 0.2  # eV/Å
TUNING_STEPS, TUNING_RATE = 100, 0.003
FRAMES = RUNS * (STEPS // EVERY)


def case(system: System, seed: int, strategy: str, folder: Path) -> dict[str, Any]:
    """Choose, label, fine-tune and score; "none" scores the first potential.

    Returns
    -------
    dict
        ``chosen``, ``labelled``: frames. ``error_chosen``: median RMS force error of
        the first potential on the labels, eV/Å. Others: see `scores`.
    """
    model = system.model()
    found: dict[str, Any] = {"system": system.name, "seed": seed, "strategy": strategy}
    if strategy != "none":
        chosen = STRATEGIES[strategy](folder, system, seed)
        target = folder / f"labelled_{strategy.replace(' ', '_')}.xyz"
        target.unlink(missing_ok=True)
        done = label(chosen, "gfn2-xtb", target, workers=0, check=False)
        labels = read(target, ":") if done.labelled else []
        errors = [
            _rms(f.arrays["REF_forces"] - f.arrays["predicted_forces"]) for f in labels
        ]
        found |= {
            "chosen": len(chosen),
            "labelled": len(labels),
            "failed": len(done.failed),
            "error_chosen": float(np.median(errors)),
        }
        order = seed_of(system.name, "tuning", seed)
        old, new = system.prepared(system.frames), system.prepared(labels)
        train(model, system.config, old, new, TUNING_STEPS, TUNING_RATE, order)
    return found | scores(system, seed, model)


def scores(system: System, seed: int, model: torch.nn.Module) -> dict[str, Any]:
    """Heat copies of the molecule; all strategies of a seed have the same starts.

    Returns
    -------
    dict
        ``exploded``: runs that left 100 eV/Å or 15 Å. ``lost``: frames that these runs
        did not reach, and frames on which the reference failed. ``above``: share of all
        frames with a force error above 0.2 eV/Å; lost frames count as above.
        ``above_reached``: the same without lost frames. ``median``: of the errors of
        the reached frames, eV/Å.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forces = BatchedForces(system.fast_model(state), ELEMENTS)
    ramps = []
    for number in range(RUNS):
        rng = np.random.default_rng(seed_of(system.name, "test", seed, number))
        start = system.frames[rng.integers(len(system.frames))]
        atoms = heavy(Atoms(start.numbers, start.positions))
        ramps.append(new_ramp(system.name, atoms, int(rng.integers(2**31)), START_K))
    run_ramps(forces, ramps, SCHEDULE)
    errors, failed = [], 0
    for ramp in ramps:
        frames = [Atoms(ramp.atoms.numbers, place) for _, place in ramp.frames]
        for frame, predicted in zip(frames, _forces(forces, frames), strict=True):
            frame.calc = xtb()
            try:
                errors.append(_rms(frame.get_forces() - predicted))
            except FAILURES:
                failed += 1
    above = int(np.sum(np.array(errors) > LIMIT))
    lost = FRAMES - len(errors)
    return {
        "exploded": sum(bool(ramp.stopped) for ramp in ramps),
        "lost": lost,
        "reference_failed": failed,
        "above": (above + lost) / FRAMES,
        "above_reached": above / max(1, len(errors)),
        "median": float(np.median(errors)),
    }


def _forces(model: BatchedForces, frames: list[Atoms]) -> list[np.ndarray]:
    """Return the forces of all frames, from one evaluation."""
    if not frames:
        return []
    found = model.output(frames)["forces"].detach().numpy().astype(float)
    return list(np.split(found, len(frames)))


def _rms(difference: np.ndarray) -> float:
    """Return the RMS over force components, eV/Å."""
    return float(np.sqrt(np.mean(difference**2)))
