"""Readings of each detector for each kept frame, and the true error.

The accelerated model evaluates batches; `check_product` compares the risks with those
of `ReliableCalculator` for single frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from latent import LatentDistance
from ramp import BatchedForces, batched
from safetensors.torch import load

from halting.runs import Run
from uqcalc.backbones import Prediction
from uqcalc.calculator import default_calculator
from uqcalc.models.bundled import build_model, load_model


BATCH = 32


@dataclass(frozen=True)
class Signals:
    """Risks of one run's frames, each (frames,), larger is worse.

    `error` is the true error: RMS over the force components, eV/Å; NaN if unknown.
    `verdict` is 0 for RELIABLE, 0.5 for SUSPECT, 1 for UNRELIABLE with the default
    policy: P, scope, sanity and flags.
    """

    error: np.ndarray
    probe: np.ndarray
    verdict: np.ndarray
    max_force: np.ndarray
    distance_mean: np.ndarray
    distance_max: np.ndarray


def bundled() -> BatchedForces:
    """Return the bundled potential."""
    return batched(load_model())


def member(folder: Path) -> BatchedForces:
    """Return a potential that `train_backbone.py` wrote."""
    config = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    model = build_model(config)
    model.load_state_dict(load((folder / "backbone.safetensors").read_bytes()))
    return batched(model)


def outputs(model: BatchedForces, frames: list[Atoms]) -> Iterator[list[Prediction]]:
    """Yield the predictions of all frames, batch by batch."""
    for start in range(0, len(frames), BATCH):
        batch = frames[start : start + BATCH]
        out = model.output(batch)
        cuts = np.cumsum([len(atoms) for atoms in batch])[:-1].tolist()
        forces = np.split(out["forces"].numpy(), cuts)
        width = out["node_feats"].shape[1] // 2  # the last of two interactions
        features = out["node_feats"][:, -width:].detach().tensor_split(cuts)
        energies = out["energy"].detach().numpy()
        yield [
            Prediction(
                numbers=atoms.numbers,
                positions=atoms.positions,
                cell=atoms.cell.array,
                pbc=atoms.pbc,
                results={"energy": float(energy), "forces": force},
                energy=float(energy),
                forces=force,
                features=feature,
            )
            for atoms, energy, force, feature in zip(
                batch, energies, forces, features, strict=True
            )
        ]


def write_training_features(source: Path, target: Path) -> None:
    """Cache the features of each fourth training frame of the potential."""
    frames = ase.io.read(source, "::4")
    found = [p for batch in outputs(bundled(), frames) for p in batch]
    write_arrays(
        target,
        numbers=np.concatenate([p.numbers for p in found]),
        features=np.concatenate([p.features.numpy() for p in found]),
    )


def read_signals(
    model: BatchedForces, distance: LatentDistance | None, run: Run
) -> Signals:
    """Evaluate one run; the distances are NaN without ``distance``."""
    calculator = default_calculator()
    rows: dict[str, list[np.ndarray]] = {name: [] for name in Signals.__annotations__}
    done = 0
    for batch in outputs(model, run.frames()):
        forces = np.stack([p.forces for p in batch])
        truth = run.truth[done : done + len(batch)]
        done += len(batch)
        judged = [calculator.judge(p) for p in batch]
        far = np.full((len(batch), 1), np.nan)
        if distance is not None:
            parts = [distance(p.numbers, p.features.numpy()) for p in batch]
            far = np.stack(parts)
        rows["error"].append(np.sqrt(np.mean((forces - truth) ** 2, axis=(1, 2))))
        rows["probe"].append(np.array([found.readings[0].risk for found in judged]))
        rows["verdict"].append(np.array([int(found.level) / 2 for found in judged]))
        rows["max_force"].append(np.linalg.norm(forces, axis=2).max(axis=1))
        rows["distance_mean"].append(far.mean(axis=1))
        rows["distance_max"].append(far.max(axis=1))
    return Signals(**{name: np.concatenate(parts) for name, parts in rows.items()})


def committee_spread(models: list[BatchedForces], frames: list[Atoms]) -> np.ndarray:
    """Return the disagreement of the committee in each frame, in eV/Å.

    Standard deviation over the members, RMS over the force components.
    """
    forces = [
        np.stack([p.forces for batch in outputs(model, frames) for p in batch])
        for model in models
    ]
    return np.sqrt(np.mean(np.var(forces, axis=0, ddof=1), axis=(1, 2)))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to a temporary file, which is then renamed."""
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote."""
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def check_product(run: Run, signals: Signals, every: int = 97) -> float:
    """Return the largest difference of the risk to that of `ReliableCalculator`."""
    calculator = default_calculator()
    differences = [
        abs(calculator.assess(atoms).readings[0].risk - signals.probe[index])
        for index, atoms in enumerate(run.frames())
        if index % every == 0
    ]
    return float(max(differences))
