"""The stages after the runs: each reads the cache and adds a file to each run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from halting.judging import AFTER_FS, find_onset
from halting.runs import FRAME_FS, RunSpec, read_run
from halting.signals import (
    LatentDistance,
    bundled,
    check_product,
    committee_spread,
    member,
    read_arrays,
    read_signals,
    write_arrays,
)


# single and batched float32 evaluations differ in the last digits
SAME_RISK = 1e-4
TRAINING = "training_features.npz"


def make_signals(specs: list[RunSpec], folder: Path) -> None:
    """Evaluate all signals except the committee; compare one run with the package."""
    torch.set_num_threads(1)
    model = bundled()
    distance = None  # without training frames of the potential
    if (folder / TRAINING).is_file():
        distance = LatentDistance(**read_arrays(folder / TRAINING))
    for spec in specs:
        run = read_run(folder, spec)
        signals = read_signals(model, distance, run)
        if spec is specs[0] and (off := check_product(run, signals)) > SAME_RISK:
            message = f"batched risks must be the product's, got {off} off in {spec}"
            raise RuntimeError(message)
        write_arrays(folder / f"{spec.name}.signals.npz", **asdict(signals))


def make_committee(specs: list[RunSpec], folder: Path, members: list[Path]) -> None:
    """Evaluate the committee on the frames that decide.

    A halt more than 100 fs after the failure is late in any case, so the frames after
    that are NaN.
    """
    torch.set_num_threads(1)
    models = [bundled(), *map(member, members)]
    for spec in specs:
        run = read_run(folder, spec)
        error = read_arrays(folder / f"{spec.name}.signals.npz")["error"]
        onset = find_onset(error)
        frames = run.frames()
        end = len(frames) if onset is None else onset + round(AFTER_FS / FRAME_FS) + 1
        spread = np.full(len(frames), np.nan)
        spread[:end] = committee_spread(models, frames[:end])
        write_arrays(folder / f"{spec.name}.committee.npz", spread=spread)
