"""One molecule at a time: labelled frames, a small MACE, and its probe."""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from common import BUNDLED
from safetensors.torch import load_file

from uqcalc import Labels, Probe, ReliableCalculator, fit
from uqcalc.models.bundled import build_model


sys.path.insert(0, str(BUNDLED))
from fast import accelerate
from sample import embed, snapshot, xtb
from train_backbone import (
    configuration,
    fit_energies,
    prepare,
    write_model,
)

from .training import train


SYSTEMS = {
    "ethanol": "CCO",
    "malonaldehyde": "O=C/C=C\\O",
    "acetamide": "CC(N)=O",
}
# Number of frames of each run and temperature (K) of each run.
TRAINING = [(120, 300.0), (120, 300.0)]
FOR_PROBE = [(30, 300.0)] * 6 + [(30, 600.0)] * 4
SPACING_FS, EQUILIBRATION_FS = 10.0, 100.0
STEPS, RATE = 1200, 0.01  # of the first training
TRITIUM = 3.016  # with this mass of hydrogen a time step of 1 fs is possible at 1500 K


@dataclass(frozen=True)
class System:
    """A molecule with its first potential.

    Attributes
    ----------
    name : str
    frames : list of Atoms
        Labels on which the first model was trained.
    config : dict
        Configuration of the model.
    state : dict of tensors
        Weights of the first model.
    probe : Path
        File of the probe of the first model.
    """

    name: str
    frames: list[Atoms]
    config: dict[str, Any]
    state: dict[str, torch.Tensor]
    probe: Path

    def model(self, state: dict[str, torch.Tensor] | None = None) -> torch.nn.Module:
        """Return the plain model with the first or other weights."""
        model = build_model(self.config)
        model.load_state_dict(self.state if state is None else state)
        return model

    def fast_model(
        self, state: dict[str, torch.Tensor] | None = None
    ) -> torch.nn.Module:
        """Return the same with faster modules, for batches."""
        return accelerate(self.model(state), self.config)

    def calculator(self) -> ReliableCalculator:
        """Return the first potential with its probe."""
        return ReliableCalculator(bare(self.model()), Probe.load(self.probe))

    def prepared(self, frames: list[Atoms]) -> list[dict[str, torch.Tensor]]:
        """Return the tensors of labelled frames for a training."""
        e0 = np.zeros(9)
        e0 = np.array(self.config["model"]["atomic_energies"])
        return [prepare(frame, e0) for frame in frames]


def bare(model: torch.nn.Module) -> Any:
    """Return an ASE calculator of a model."""
    from mace.calculators import MACECalculator

    return MACECalculator(models=model, device="cpu", default_dtype="float32")


def seed_of(*words: object) -> int:
    """Return a seed that depends on these words alone."""
    return zlib.crc32(repr(words).encode()) & 0x7FFFFFFF


def system_of(name: str, folder: Path) -> System:
    """Read a system; make its missing parts."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "frames.xyz"
    if not data.is_file():
        _whole(data, _sampled(name, "training", TRAINING))
    held = folder / "for_probe.xyz"
    if not held.is_file():
        _whole(held, _sampled(name, "probe", FOR_PROBE))
    frames = read(data, ":")
    if not (folder / "backbone.json").is_file():
        _first_model(name, frames, folder)
    config = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    state = load_file(folder / "backbone.safetensors")
    system = System(name, frames, config, state, folder / "first.probe")
    if not system.probe.is_file():
        labels = Labels("forces", group_key="run")
        report = fit(read(held, ":"), bare(system.model()), labels)
        report.probe.save(system.probe)
    return system


def heavy(atoms: Atoms) -> Atoms:
    """Give hydrogen atoms the mass of tritium."""
    masses = atoms.get_masses()
    masses[atoms.numbers == 1] = TRITIUM
    atoms.set_masses(masses)
    return atoms


def _first_model(name: str, frames: list[Atoms], folder: Path) -> None:
    e0 = fit_energies(frames)
    samples = [prepare(frame, e0) for frame in frames]
    config = configuration(frames, samples, seed_of(name, "network"))
    config["model"] |= {"hidden_irreps": "32x0e", "num_interactions": 1}
    config["model"]["radial_MLP"] = [32, 32]
    model = build_model(config)
    train(model, config, samples, [], STEPS, RATE, seed_of(name, "order"))
    write_model(folder, model, config)


def _sampled(name: str, purpose: str, runs: list[tuple[int, float]]) -> list[Atoms]:
    """Return labelled frames of runs of GFN2-xTB."""
    frames = []
    for number, (count, temperature) in enumerate(runs):
        seed = seed_of(name, purpose, number)
        rng = np.random.RandomState(seed)
        atoms = heavy(embed(SYSTEMS[name], seed))
        atoms.calc = xtb()
        thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
        bath = {"temperature_K": temperature, "friction": 0.05 / units.fs}
        dynamics = Langevin(atoms, 1.0 * units.fs, **bath, fixcm=False, rng=rng)
        dynamics.run(round(EQUILIBRATION_FS))
        for _ in range(count):
            dynamics.run(round(SPACING_FS))
            frame = snapshot(atoms, SYSTEMS[name], temperature, "xtb_md")
            frame.info["run"] = f"{purpose}{number}"
            frames.append(frame)
    return frames


def _whole(path: Path, frames: list[Atoms]) -> None:
    partial = path.with_name(f"partial_{path.name}")
    write(partial, frames, format="extxyz")
    partial.replace(path)
