"""A small MACE for one molecule, from a few hundred GFN2-xTB frames at 300 K.

The frames come from independent GFN2-xTB trajectories, so that potential and probe
never share one. The trainer is that of the bundled potential, with fewer channels.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from common import BUNDLED
from safetensors.torch import load


sys.path.insert(0, str(BUNDLED))
from fast import accelerate
from ramp import BatchedForces
from sample import embed, seed_of, snapshot, write_frames, xtb
from train_backbone import (
    Settings,
    Trainer,
    configuration,
    fit_energies,
    prepare,
)

from uqcalc.models.bundled import build_model


CHANNELS = 16
TRAINING_STEPS = 1000
SPACING_FS, WARM_UP_FS = 20.0, 200.0
FRICTION = 0.02  # 1/fs
# purpose -> temperature, trajectories, frames of each
SETS = {
    "potential": (300.0, 9, 40),
    "cold": (300.0, 5, 40),
    "hot": (600.0, 5, 20),
}


@dataclass(frozen=True)
class Molecule:
    """A molecule, its number of heated runs, and whether these chose the trigger.

    With ``of``, frames, potential and probes are those of another entry, and only the
    runs are new: other starts, velocities and noise, from ``seed``.
    """

    name: str
    smiles: str
    ramps: int
    seen: bool
    of: str = ""
    seed: int = 0


MOLECULES = {
    m.name: m
    for m in (
        Molecule("ethanol", "CCO", 12, seen=True),
        Molecule("ethanol again", "CCO", 10, seen=False, of="ethanol", seed=1),
        Molecule("malonaldehyde", "OC=CC=O", 8, seen=False),
        Molecule("uracil", "O=C1C=CNC(=O)N1", 8, seen=False),
        Molecule("salicylic acid", "OC(=O)c1ccccc1O", 8, seen=False),
    )
}


def sample(molecule: Molecule, purpose: str, path: Path) -> list[Atoms]:
    """Return labelled frames of one purpose, and write them unless they exist."""
    if path.is_file():
        return list(read(path, ":"))
    kelvin, trajectories, count = SETS[purpose]
    frames = []
    for number in range(trajectories):
        name = f"{purpose} {number}"
        rng = np.random.RandomState(seed_of(molecule.smiles, name))
        atoms = embed(molecule.smiles, seed_of(molecule.smiles, name))
        atoms.calc = xtb()
        thermalize_momenta(atoms, 2 * kelvin, rng=rng)  # from a minimum
        dynamics = Langevin(
            atoms,
            1.0 * units.fs,
            temperature_K=kelvin,
            friction=FRICTION / units.fs,
            fixcm=False,
            rng=rng,
        )
        dynamics.run(round(WARM_UP_FS))
        for _ in range(count):
            dynamics.run(round(SPACING_FS))
            frame = snapshot(atoms, molecule.smiles, kelvin, "xtb_md")
            frame.info["run"] = name
            frames.append(frame)
    write_frames(path, frames)
    return frames


class StepTrainer(Trainer):
    """Ends after a number of steps: a wall-clock time would depend on the load."""

    def progress(self) -> float:
        """Return the fraction of the steps that are done."""
        return self.steps / TRAINING_STEPS


def train(frames: list[Atoms], test: list[Atoms], folder: Path) -> None:
    """Train the potential and write it to ``folder``, unless it exists."""
    if (folder / "backbone.safetensors").is_file():
        return
    torch.manual_seed(0)
    e0 = fit_energies(frames)
    samples = [prepare(frame, e0) for frame in frames]
    config = configuration(frames, samples, seed=0)
    config["model"]["hidden_irreps"] = f"{CHANNELS}x0e"
    config["training"] = {"frames": len(frames), "learning_curve": []}
    settings = Settings(
        minutes=0.0,
        seed=0,
        batch_size=10,
        learning_rate=0.01,
        evaluate_every=10_000,  # once, at the end
        output=folder,
    )
    StepTrainer(config, settings).run(
        samples, {"300 K": [prepare(a, e0) for a in test]}
    )


def read_model(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the trained potential and its configuration."""
    config = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    model = build_model(config)
    model.load_state_dict(load((folder / "backbone.safetensors").read_bytes()))
    return model, config


def batched(folder: Path) -> BatchedForces:
    """Return the trained potential for several structures at once."""
    model, config = read_model(folder)
    elements = model.atomic_numbers.tolist()
    return BatchedForces(accelerate(model, config), elements)
