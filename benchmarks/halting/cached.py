"""The cached runs, and the risk of one detector along each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halting.judging import Trace, find_onset
from halting.runs import RunSpec, all_specs
from halting.signals import read_arrays


@dataclass(frozen=True)
class Cached:
    """One run with all its readings."""

    spec: RunSpec
    arrays: dict[str, np.ndarray]

    @property
    def onset(self) -> int | None:
        """Return the frame at which the run fails."""
        return find_onset(self.arrays["error"])

    def trace(self, risk: np.ndarray) -> Trace:
        """Return the run with this risk."""
        return Trace(self.spec.molecule, self.spec.kind, risk, self.onset)


def read_cache(
    folder: Path, purpose: str, seeds: int, *, committee: bool
) -> list[Cached]:
    """Read the runs of one purpose; refuse an incomplete cache."""
    found = []
    for spec in all_specs(seeds):
        if spec.purpose != purpose:
            continue
        arrays = read_arrays(folder / f"{spec.name}.signals.npz")
        if committee:
            spread = folder / f"{spec.name}.committee.npz"
            arrays["committee"] = read_arrays(spread)["spread"]
        found.append(Cached(spec, arrays))
    return found


def traces(runs: Sequence[Cached], name: str) -> list[Trace]:
    """Return the runs with the risk of one detector."""
    keys = {
        "verdict": "verdict",
        "probe": "probe",
        "committee of four": "committee",
        "largest force": "max_force",
        "latent distance": "distance_mean",
        "latent distance, farthest atom": "distance_max",
    }
    return [run.trace(run.arrays[keys[name]]) for run in runs]
