"""Batched heating ramps of many molecules with an accelerated MACE model."""

from dataclasses import dataclass, field

import numpy as np
import torch
from ase import Atoms, units
from fast import accelerate, set_pairs


SHAPE = {"model": {"hidden_irreps": "64x0e", "max_ell": 2}}
MAX_FORCE, MAX_DISTANCE = 100.0, 15.0


@dataclass(frozen=True)
class Schedule:
    """A linear ramp of the heat bath, and the interval of the kept frames."""

    start_K: float
    end_K: float
    steps: int
    every: int
    timestep_fs: float = 0.5
    friction_per_fs: float = 0.05

    def temperature(self, step: int) -> float:
        """Return the bath's temperature (K) at a step."""
        return self.start_K + (self.end_K - self.start_K) * step / self.steps


@dataclass
class Ramp:
    """State and collected frames of one molecule: (temperature, positions)."""

    molecule: str
    atoms: Atoms
    velocities: np.ndarray
    rng: np.random.Generator
    frames: list[tuple[float, np.ndarray]] = field(default_factory=list)
    stopped: str = ""


def dense_edges(
    positions: torch.Tensor, present: torch.Tensor, cutoff: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return senders, pair numbers and absence flags, one row per present atom."""
    n_max = positions.shape[1]
    mask = torch.cdist(positions, positions, compute_mode=
                       "donot_use_mm_for_euclid_dist") < cutoff  # fmt: skip
    mask &= present[:, :, None] & present[:, None, :]
    mask &= ~torch.eye(n_max, dtype=torch.bool)
    upper = mask.triu()
    numbers = upper.flatten().cumsum(0).view_as(mask) * upper
    numbers = numbers + numbers.transpose(1, 2)
    width = max(int(mask.sum(-1).max()), 1)
    columns = mask.to(torch.int8).topk(width, dim=-1).indices
    index = torch.full(present.shape, -1, dtype=torch.int64)
    index[present] = torch.arange(int(present.sum()))
    senders = index[:, None, :].expand(-1, n_max, -1).gather(2, columns)
    pairs = numbers.gather(2, columns)
    return senders[present], pairs[present], pairs[present] == 0


class BatchedForces:
    """Several molecules in one evaluation of an accelerated model."""

    def __init__(self, model: torch.nn.Module, elements: list[int]) -> None:
        self.model = model.requires_grad_(requires_grad=False)
        self.elements = elements
        self.cutoff = float(model.r_max)

    def __call__(self, ramps: list[Ramp]) -> list[np.ndarray]:
        """Return the forces (eV/Angstrom) of every molecule."""
        forces = self.output([ramp.atoms for ramp in ramps])["forces"]
        sizes = [len(ramp.atoms) for ramp in ramps]
        return np.split(forces.numpy().astype(float), np.cumsum(sizes)[:-1])

    def output(self, frames: list[Atoms]) -> dict[str, torch.Tensor]:
        """Return the model's output for all frames, their atoms one after another."""
        sizes = [len(atoms) for atoms in frames]
        present = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        stacked = np.concatenate([atoms.positions for atoms in frames])
        positions = torch.tensor(stacked, dtype=torch.float32)
        padded = torch.zeros(*present.shape, 3)
        padded[present] = positions
        senders, pairs, missing = dense_edges(padded, present, self.cutoff)
        own = torch.arange(len(positions))[:, None].expand_as(senders)
        senders = torch.where(missing, own, senders)
        shift = torch.tensor([4 * self.cutoff, 0.0, 0.0])
        shifts = missing.flatten()[:, None] * shift
        first = torch.zeros(int(pairs.max()) + 1, dtype=torch.int64)
        first[pairs.flatten()] = torch.arange(pairs.numel())
        numbers = np.concatenate([atoms.numbers for atoms in frames])
        species = torch.tensor(np.searchsorted(self.elements, numbers))
        counts = torch.tensor(sizes)
        batch = {
            "positions": positions,
            "node_attrs": torch.eye(len(self.elements))[species],
            "edge_index": torch.stack([senders.flatten(), own.flatten()]),
            "shifts": shifts,
            "unit_shifts": shifts,
            "cell": torch.zeros(3 * len(frames), 3),
            "ptr": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
            "batch": torch.repeat_interleave(torch.arange(len(frames)), counts),
        }
        set_pairs(self.model, pairs.flatten(), first[1:])
        output: dict[str, torch.Tensor] = self.model(batch)
        return output


def batched(model: torch.nn.Module) -> BatchedForces:
    """Return an accelerated copy of a model with the shape of the bundled one."""
    return BatchedForces(accelerate(model, SHAPE), model.atomic_numbers.tolist())


def kick(ramp: Ramp, forces: np.ndarray, timestep_fs: float) -> None:
    """Kick by half a step (B of BAOAB)."""
    masses = ramp.atoms.get_masses()[:, None]
    ramp.velocities += 0.5 * timestep_fs * units.fs * forces / masses


def drift(ramp: Ramp, schedule: Schedule, temperature: float) -> None:
    """Move, thermalise, move (A, O, A of BAOAB)."""
    masses = ramp.atoms.get_masses()[:, None]
    half = 0.5 * schedule.timestep_fs * units.fs
    keep = np.exp(-schedule.friction_per_fs * schedule.timestep_fs)
    noise = ramp.rng.normal(size=ramp.velocities.shape)
    thermal = np.sqrt((1 - keep**2) * units.kB * temperature / masses)
    ramp.atoms.positions += half * ramp.velocities
    ramp.velocities = keep * ramp.velocities + thermal * noise
    ramp.atoms.positions += half * ramp.velocities


def broken(ramp: Ramp, forces: np.ndarray) -> str:
    """Return the reason why a ramp must stop; empty if it continues."""
    distance = np.linalg.norm(ramp.atoms.positions - ramp.atoms.positions.mean(0),
                              axis=1).max()  # fmt: skip
    largest = np.linalg.norm(forces, axis=1).max()
    if not np.isfinite(largest) or largest > MAX_FORCE:
        return "force"
    return "distance" if distance > MAX_DISTANCE else ""


def run_ramps(model: BatchedForces, ramps: list[Ramp], schedule: Schedule) -> None:
    """Heat all molecules linearly; frames are collected in each `Ramp`."""
    active = list(ramps)
    forces = model(active)
    for step in range(1, schedule.steps + 1):
        temperature = schedule.temperature(step)
        for ramp, force in zip(active, forces, strict=True):
            kick(ramp, force, schedule.timestep_fs)
            drift(ramp, schedule, temperature)
        forces = model(active)
        for ramp, force in zip(active, forces, strict=True):
            kick(ramp, force, schedule.timestep_fs)
            ramp.stopped = broken(ramp, force)
            if step % schedule.every == 0 and not ramp.stopped:
                ramp.frames.append((temperature, ramp.atoms.positions.copy()))
        going = [not ramp.stopped for ramp in active]
        forces = [force for force, on in zip(forces, going, strict=True) if on]
        active = [ramp for ramp, on in zip(active, going, strict=True) if on]
        if not active:
            return


def new_ramp(molecule: str, atoms: Atoms, seed: int, start_K: float) -> Ramp:
    """Start a ramp with momenta drawn at its lowest temperature."""
    rng = np.random.default_rng(seed)
    scale = np.sqrt(units.kB * start_K / atoms.get_masses()[:, None])
    return Ramp(molecule, atoms, scale * rng.normal(size=(len(atoms), 3)), rng)
