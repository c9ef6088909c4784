"""A small MACE for one system, from a few hundred frames at 300 K, and a committee.

Trainer and neighbour lists are those of `discriminating.potentials`, with fewer
channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from discriminating.potentials import Training, collate, structure, trained
from fast import accelerate, set_pairs
from ramp import BatchedForces
from safetensors.torch import load

from uqcalc.models.bundled import build_model


HOW = Training(steps=1000, batch_size=10, seed=0, channels=16)
MEMBERS = 4  # of a committee, the potential of the runs included
HELD_OUT_EVERY = 4  # of the 200 frames at 300 K that fit the probe


class PeriodicForces(BatchedForces):
    """Several periodic structures in one evaluation of an accelerated model."""

    def output(self, frames: list[Atoms]) -> dict[str, torch.Tensor]:
        """Return the model's output for all frames, their atoms one after another."""
        parts = [structure(atoms, self.elements, self.cutoff) for atoms in frames]
        batch = collate(parts, self.cutoff)
        set_pairs(self.model, batch["pairs"], batch["first"])
        output: dict[str, torch.Tensor] = self.model(batch)
        return output


def train(
    frames: Sequence[Atoms], held_out: Sequence[Atoms], folder: Path, seed: int = 0
) -> None:
    """Train a potential and write it to ``folder``, unless it exists."""
    torch.manual_seed(seed)
    how = Training(**{**vars(HOW), "seed": seed})
    trained(folder, labelled(frames), labelled(held_out[::HELD_OUT_EVERY]), how)


def labelled(frames: Sequence[Atoms]) -> list[Atoms]:
    """Return copies whose labels have the names that the trainer reads."""
    copies = [atoms.copy() for atoms in frames]
    for atoms in copies:
        atoms.info["energy"] = atoms.info["REF_energy"]
        atoms.arrays["forces"] = atoms.arrays["REF_forces"]
    return copies


def read_model(folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the trained potential and its configuration."""
    config = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    model = build_model(config)
    model.load_state_dict(load((folder / "backbone.safetensors").read_bytes()))
    return model, config


def batched(folder: Path, *, periodic: bool) -> BatchedForces:
    """Return the trained potential for several structures at once."""
    model, config = read_model(folder)
    made = PeriodicForces if periodic else BatchedForces
    return made(accelerate(model, config), model.atomic_numbers.tolist())


def member_folders(folder: Path) -> list[Path]:
    """Return the folders of the potential and of the further members."""
    return [folder, *(folder / f"member {n}" for n in range(1, MEMBERS))]
