"""Train the small MACE backbone on GFN2-xTB frames within a wall-clock budget."""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from fast import accelerate, set_pairs
from molecules import write_text
from safetensors.torch import save

from uqcalc.models.bundled import build_model


ELEMENTS = [1, 6, 7, 8]
R_MAX = 4.5
FORCE_WEIGHT, ENERGY_WEIGHT = 100.0, 1000.0
FORCE_DELTA, ENERGY_DELTA = 0.3, 0.02
WARM_UP = 0.01
EMA_DECAY = 0.995

Batch = dict[str, torch.Tensor]


@dataclass
class Settings:
    """Settings of the command line."""

    minutes: float
    seed: int
    batch_size: int
    learning_rate: float
    evaluate_every: int
    output: Path


def fit_energies(frames: list[Atoms]) -> np.ndarray:
    """Fit one energy per element to the total energies."""
    counts = np.array([[(a.numbers == z).sum() for z in ELEMENTS] for a in frames])
    energies = np.array([a.info["REF_energy"] for a in frames])
    return np.linalg.lstsq(counts.astype(float), energies, rcond=None)[0]


def prepare(atoms: Atoms, e0: np.ndarray) -> Batch:
    """Turn a frame into tensors with a neighbour list."""
    distances = atoms.get_all_distances()
    np.fill_diagonal(distances, np.inf)
    neighbours = [np.flatnonzero(row < R_MAX) for row in distances]
    senders = np.full((len(atoms), max(map(len, neighbours))), -1)
    for row, own in zip(senders, neighbours, strict=True):
        row[: len(own)] = own
    rows = np.arange(len(atoms))[:, None]
    lower, upper = np.minimum(rows, senders), np.maximum(rows, senders)
    codes = np.where(senders < 0, -1, lower * len(atoms) + upper)
    pairs = np.searchsorted(np.unique(codes[codes >= 0]), codes) + 1
    pairs[senders < 0] = 0
    species = np.searchsorted(ELEMENTS, atoms.numbers)
    target = atoms.info["REF_energy"] - e0[species].sum()
    return {
        "positions": torch.tensor(atoms.positions, dtype=torch.float32),
        "node_attrs": torch.eye(len(ELEMENTS))[torch.tensor(species)],
        "senders": torch.tensor(senders),
        "pairs": torch.tensor(pairs),
        "energy": torch.tensor([target], dtype=torch.float32),
        "forces": torch.tensor(atoms.arrays["REF_forces"], dtype=torch.float32),
    }


def collate(samples: list[Batch]) -> Batch:
    """Concatenate prepared frames into one batch, equally many edges per atom.

    A missing edge joins an atom to itself, shifted beyond the cutoff. Its contribution
    is exactly zero, and the convolution can use matrix products.
    """
    sizes = torch.tensor([len(s["positions"]) for s in samples])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    batch = {
        key: torch.cat([s[key] for s in samples])
        for key in ("positions", "node_attrs", "energy", "forces")
    }
    width = max(s["senders"].shape[1] for s in samples)
    receivers = torch.arange(int(ptr[-1]))[:, None].expand(-1, width)
    senders = receivers.clone()
    pairs, total = torch.zeros_like(senders), 0
    for sample, start, stop in zip(samples, ptr[:-1], ptr[1:], strict=True):
        own = sample["senders"]
        senders[start:stop, : own.shape[1]] = own.clamp(min=0) + start
        numbers = torch.where(own < 0, 0, sample["pairs"] + total)
        pairs[start:stop, : own.shape[1]] = numbers
        total = int(numbers.max())
    missing = pairs == 0
    senders = torch.where(missing, receivers, senders)
    batch["edge_index"] = torch.stack([senders.flatten(), receivers.flatten()])
    batch["shifts"] = missing.flatten()[:, None] * torch.tensor([4 * R_MAX, 0.0, 0.0])
    batch["unit_shifts"] = batch["shifts"]
    batch["cell"] = torch.zeros(3 * len(samples), 3)
    first = torch.zeros(total + 1, dtype=torch.int64)
    first[pairs.flatten()] = torch.arange(pairs.numel())
    batch["pairs"], batch["first"] = pairs.flatten(), first[1:]
    batch["ptr"], batch["sizes"] = ptr, sizes
    batch["batch"] = torch.repeat_interleave(torch.arange(len(samples)), sizes)
    return batch


def predict(
    model: torch.nn.Module, batch: Batch, *, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return errors of the energy per atom and of the forces."""
    set_pairs(model, batch["pairs"], batch["first"])
    out = model(batch, training=training, compute_force=True)
    energy = (out["interaction_energy"] - batch["energy"]) / batch["sizes"]
    return energy, out["forces"] - batch["forces"]


def huber(error: torch.Tensor, delta: float) -> torch.Tensor:
    """Return the mean Huber loss of an error."""
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=delta)


def evaluate(model: torch.nn.Module, samples: list[Batch]) -> dict[str, float]:
    """Return the RMSE of forces (meV/Angstrom) and of energies (meV/atom)."""
    energies, forces = [], []
    for start in range(0, len(samples), 16):
        batch = collate(samples[start : start + 16])
        energy, force = predict(model, batch, training=False)
        energies.append(energy.detach())
        forces.append(force.detach().flatten())
    rms = [1e3 * float(torch.cat(e).square().mean().sqrt()) for e in (energies, forces)]
    return {
        "energy_rmse_mev_per_atom": round(rms[0], 3),
        "force_rmse_mev_per_angstrom": round(rms[1], 2),
    }


def configuration(frames: list[Atoms], train: list[Batch], seed: int) -> dict[str, Any]:
    """Return the JSON configuration from which the model is rebuilt."""
    edges = sum(int((s["senders"] >= 0).sum()) for s in train)
    nodes = sum(len(s["positions"]) for s in train)
    scale = float(torch.cat([s["forces"].flatten() for s in train]).square().mean())
    block = "RealAgnosticResidualInteractionBlock"
    model = {
        "dtype": "float32",
        "atomic_numbers": ELEMENTS,
        "atomic_energies": [float(e) for e in fit_energies(frames)],
        "r_max": R_MAX,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": block,
        "interaction_cls_first": block,
        "num_interactions": 2,
        "hidden_irreps": "64x0e",
        "MLP_irreps": "16x0e",
        "correlation": 3,
        "radial_MLP": [64, 64, 64],
        "avg_num_neighbors": edges / nodes,
        "atomic_inter_scale": math.sqrt(scale),
        "atomic_inter_shift": 0.0,
    }
    return {"architecture": "ScaleShiftMACE", "seed": seed, "model": model}


def write_model(path: Path, model: torch.nn.Module, config: dict[str, Any]) -> None:
    """Write weights and configuration to temporary files, which are then renamed."""
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / "backbone.safetensors.tmp"
    temporary.write_bytes(save(state))
    os.replace(temporary, path / "backbone.safetensors")  # noqa: PTH105
    write_text(path / "backbone.json", json.dumps(config, indent=1) + "\n")


class Trainer:
    """Training loop: AdamW, cosine decay over the wall-clock budget, EMA weights."""

    def __init__(self, config: dict[str, Any], settings: Settings) -> None:
        self.settings = settings
        self.config = config
        self.model = accelerate(build_model(config), config)
        self.shadow = build_model(config)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            amsgrad=True,
            weight_decay=1e-6,
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.start = time.monotonic()
        self.steps = 0

    def progress(self) -> float:
        """Return the fraction of the wall-clock budget that is spent."""
        return (time.monotonic() - self.start) / (60.0 * self.settings.minutes)

    def step(self, batch: Batch) -> float:
        """Take one optimiser step and update the averaged weights."""
        progress = min(self.progress(), 1.0)
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        factor *= min(1.0, progress / WARM_UP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        energy, force = predict(self.model, batch, training=True)
        loss = FORCE_WEIGHT * huber(force, FORCE_DELTA)
        loss = loss + ENERGY_WEIGHT * huber(energy, ENERGY_DELTA)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.steps += 1
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            pairs = zip(self.shadow.parameters(), self.model.parameters(), strict=True)
            for average, current in pairs:
                average.lerp_(current, 1.0 - decay)
        return float(loss)

    def epoch(self, train: list[Batch]) -> float:
        """Run one shuffled epoch, or as much of it as the budget allows."""
        order = torch.randperm(len(train), generator=self.generator).tolist()
        size = self.settings.batch_size
        losses = []
        for start in range(0, len(order), size):
            if self.progress() >= 1.0:
                break
            batch = collate([train[i] for i in order[start : start + size]])
            losses.append(self.step(batch))
            if self.steps % 100 == 0:
                mean = sum(losses[-100:]) / len(losses[-100:])
                minutes = (time.monotonic() - self.start) / 60
                text = f"step {self.steps} loss {mean:.3f} {minutes:.1f} min"
                print(text, flush=True)
        return sum(losses) / max(len(losses), 1)

    def report(self, epoch: int, validation: dict[str, list[Batch]]) -> None:
        """Evaluate the averaged weights and write them with their errors."""
        figures = {name: evaluate(self.shadow, s) for name, s in validation.items()}
        training = self.config["training"]
        training["epochs"] = epoch
        training["steps"] = self.steps
        training["minutes"] = round((time.monotonic() - self.start) / 60, 1)
        training["validation"] = figures
        first = next(iter(figures.values()))["force_rmse_mev_per_angstrom"]
        training["learning_curve"].append([training["minutes"], epoch, first])
        write_model(self.settings.output, self.shadow, self.config)
        print(f"epoch {epoch} {json.dumps(figures)}", flush=True)

    def run(self, train: list[Batch], validation: dict[str, list[Batch]]) -> None:
        """Train until the budget is spent."""
        epoch = 0
        while self.progress() < 1.0:
            epoch += 1
            loss = self.epoch(train)
            minutes = (time.monotonic() - self.start) / 60
            print(f"epoch {epoch} loss {loss:.3f} {minutes:.1f} min", flush=True)
            if epoch % self.settings.evaluate_every == 0 or self.progress() >= 1.0:
                self.report(epoch, validation)


def load_validation(path: Path, e0: np.ndarray) -> dict[str, list[Batch]]:
    """Return the validation frames of each temperature."""
    frames = ase.io.read(path, ":")
    temperatures = sorted({a.info["temperature"] for a in frames})
    return {
        f"{t:.0f} K": [prepare(a, e0) for a in frames if a.info["temperature"] == t]
        for t in temperatures
    }


def parse() -> tuple[Path, Settings]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("bundled_data"))
    parser.add_argument("--output", type=Path, default=Path("uqcalc/data"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--evaluate-every", type=int, default=2)
    options = vars(parser.parse_args())
    return options.pop("data"), Settings(**options)


def main() -> None:
    """Prepare the data once, then train."""
    data, settings = parse()
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    frames = ase.io.read(data / "backbone.xyz", ":")
    e0 = fit_energies(frames)
    train = [prepare(atoms, e0) for atoms in frames]
    validation = load_validation(data / "backbone_validation.xyz", e0)
    config = configuration(frames, train, settings.seed)
    config["training"] = {
        "reference": "GFN2-xTB",
        "frames": len(frames),
        "molecules": len({a.info["molecule"] for a in frames}),
        "validation_molecules": 40,
        "learning_curve_columns": ["minutes", "epoch", "meV/Angstrom at 300 K"],
        "learning_curve": [],
    }
    print(f"{len(train)} frames, {config['model']['avg_num_neighbors']:.1f} neighbours")
    Trainer(config, settings).run(train, validation)


if __name__ == "__main__":
    main()
