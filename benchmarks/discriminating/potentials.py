"""Train a small MACE on the frames of one system, periodic or not.

Shape and losses are those of the bundled backbone (``provenance/bundled``), with
neighbour lists for periodic cells and a fixed number of steps. So a repetition on one
thread of a CPU gives the same model. A GPU sums in another order each time.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import BUNDLED


sys.path.insert(0, str(BUNDLED))
from fast import accelerate, set_pairs

from uqcalc.models.bundled import build_model, import_mace


Batch = dict[str, torch.Tensor]
# as in the training of the bundled backbone
FORCE_WEIGHT, ENERGY_WEIGHT = 100.0, 1000.0
FORCE_DELTA, ENERGY_DELTA = 0.3, 0.02  # eV/Å and eV/atom
EMA_DECAY = 0.995
PARTS = ("positions", "node_attrs", "energy", "forces")
WARM_UP = 100  # steps
HELD_OUT_BATCH = 8


@dataclass(frozen=True)
class Training:
    """Training data of one potential; frames have ``energy`` and ``forces``."""

    steps: int
    batch_size: int
    r_max: float = 4.5
    learning_rate: float = 0.01
    seed: int = 20
    channels: int = 64


def trained(
    folder: Path,
    train: Sequence[Atoms],
    held_out: Sequence[Atoms],
    how: Training,
    device: str = "cpu",
) -> torch.nn.Module:
    """Return the model stored in the folder, or train it on ``device`` and store it."""
    from safetensors.torch import load, save

    path = folder / "backbone.safetensors"
    if not path.is_file():
        model, config = fit(train, held_out, how, device)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(config, indent=1)
        (folder / "backbone.json").write_text(text + "\n", encoding="utf-8")
        state = {
            k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()
        }
        partial = path.with_suffix(".partial")
        partial.write_bytes(save(state))
        partial.replace(path)
    config = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    model = build_model(config)
    model.load_state_dict(load(path.read_bytes()))
    return model


def fit(
    train: Sequence[Atoms],
    held_out: Sequence[Atoms],
    how: Training,
    device: str = "cpu",
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the averaged model, and its configuration with the final errors."""
    torch.set_num_threads(1)
    import_mace()
    elements = sorted({int(z) for atoms in train for z in atoms.numbers})
    e0 = fit_energies(train, elements)
    samples = [prepare(atoms, elements, e0, how.r_max) for atoms in train]
    tests = [prepare(atoms, elements, e0, how.r_max) for atoms in held_out]
    config = configuration(samples, elements, e0, how)
    started = time.monotonic()
    model, curve = optimise(samples, tests, config, how, device)
    config["training"] = {
        **asdict(how),
        "device": device,
        "frames": len(samples),
        "held_out_frames": len(tests),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "train": errors(model, samples[:: max(1, len(samples) // 100)]),
        "held_out": errors(model, tests),
        "curve": curve,
    }
    return model, config


def fit_energies(frames: Sequence[Atoms], elements: Sequence[int]) -> np.ndarray:
    """Return one energy for each element (eV), rounded as in the model."""
    counts = np.array([[(a.numbers == z).sum() for z in elements] for a in frames])
    energies = np.array([a.info["energy"] for a in frames])
    solution = np.linalg.lstsq(counts.astype(float), energies, rcond=None)[0]
    return solution.astype(np.float32).astype(float)


def prepare(
    atoms: Atoms, elements: Sequence[int], e0: np.ndarray, r_max: float
) -> Batch:
    """Turn a labelled frame into tensors: those of `structure`, energy and forces."""
    species = np.searchsorted(elements, atoms.numbers)
    energy = atoms.info["energy"] - e0[species].sum()
    return structure(atoms, elements, r_max) | {
        "energy": torch.tensor([energy], dtype=torch.float32),
        "forces": torch.tensor(atoms.arrays["forces"], dtype=torch.float32),
    }


def structure(atoms: Atoms, elements: Sequence[int], r_max: float) -> Batch:
    """Turn a frame into tensors; atoms have equally many edges, absent ones are -1."""
    from mace.data.neighborhood import get_neighborhood

    (senders, receivers), shifts, units, _ = get_neighborhood(
        atoms.positions, r_max, tuple(atoms.pbc), atoms.cell.array
    )
    counts = np.bincount(receivers, minlength=len(atoms))
    order = np.argsort(receivers, kind="stable")
    present = np.arange(counts.max()) < counts[:, None]
    table = {
        "senders": np.full(present.shape, -1),
        "pairs": np.zeros(present.shape, dtype=np.int64),
        "shifts": np.zeros((*present.shape, 3), dtype=np.float32),
    }
    table["senders"][present] = senders[order]
    table["pairs"][present] = numbered_pairs(senders, receivers, units)[order] + 1
    table["shifts"][present] = shifts[order]
    species = np.searchsorted(elements, atoms.numbers)
    return {
        "positions": torch.tensor(atoms.positions, dtype=torch.float32),
        "node_attrs": torch.eye(len(elements))[torch.tensor(species)],
        **{key: torch.from_numpy(value) for key, value in table.items()},
    }


def numbered_pairs(
    senders: np.ndarray, receivers: np.ndarray, units: np.ndarray
) -> np.ndarray:
    """Return each edge's pair number (edges,), the same for both directions."""
    forth = np.column_stack([senders, receivers, units]).astype(np.int64)
    back = np.column_stack([receivers, senders, -units]).astype(np.int64)
    unlike = forth != back
    first = unlike.argmax(axis=1)[:, None]
    smaller = np.take_along_axis(forth < back, first, axis=1)
    keys = np.where(smaller, forth, back)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def collate(samples: Sequence[Batch], r_max: float) -> Batch:
    """Join frames, labelled or not.

    A missing edge joins an atom to itself, beyond the cutoff.
    """
    sizes = torch.tensor([len(s["positions"]) for s in samples])
    ptr = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    given = [key for key in PARTS if key in samples[0]]
    batch = {key: torch.cat([s[key] for s in samples]) for key in given}
    width = max(s["senders"].shape[1] for s in samples)
    receivers = torch.arange(int(ptr[-1]))[:, None].expand(-1, width)
    senders, pairs = receivers.clone(), torch.zeros_like(receivers)
    shifts = torch.zeros(*receivers.shape, 3)
    shifts[..., 0] = 4 * r_max
    total = 0
    for sample, start in zip(samples, ptr[:-1].tolist(), strict=True):
        present = sample["senders"] >= 0
        rows, columns = present.nonzero(as_tuple=True)
        at = (rows + start, columns)
        senders[at] = sample["senders"][present] + start
        shifts[at] = sample["shifts"][present]
        pairs[at] = sample["pairs"][present] + total
        total += int(sample["pairs"].max())
    first = torch.zeros(total + 1, dtype=torch.int64)
    first[pairs.flatten()] = torch.arange(pairs.numel())
    flat = shifts.reshape(-1, 3)
    edges = torch.stack([senders.flatten(), receivers.flatten()])
    return batch | {
        "edge_index": edges,
        "shifts": flat,
        "unit_shifts": flat,
        "cell": torch.zeros(3 * len(samples), 3),
        "pairs": pairs.flatten(),
        "first": first[1:],
        "ptr": ptr,
        "sizes": sizes,
        "batch": torch.repeat_interleave(torch.arange(len(samples)), sizes),
    }


def configuration(
    samples: Sequence[Batch], elements: Sequence[int], e0: np.ndarray, how: Training
) -> dict[str, Any]:
    """Return the configuration that `uqcalc.models.bundled.build_model` reads."""
    edges = sum(int((s["senders"] >= 0).sum()) for s in samples)
    nodes = sum(len(s["positions"]) for s in samples)
    square = float(torch.cat([s["forces"].flatten() for s in samples]).square().mean())
    block = "RealAgnosticResidualInteractionBlock"
    model = {
        "dtype": "float32",
        "atomic_numbers": list(elements),
        "atomic_energies": e0.tolist(),
        "r_max": how.r_max,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": block,
        "interaction_cls_first": block,
        "num_interactions": 2,
        "hidden_irreps": f"{how.channels}x0e",
        "MLP_irreps": "16x0e",
        "correlation": 3,
        "radial_MLP": [64, 64, 64],
        "avg_num_neighbors": edges / nodes,
        "atomic_inter_scale": math.sqrt(square),
        "atomic_inter_shift": 0.0,
    }
    return {"architecture": "ScaleShiftMACE", "seed": how.seed, "model": model}


def optimise(
    samples: Sequence[Batch],
    tests: Sequence[Batch],
    config: dict[str, Any],
    how: Training,
    device: str,
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    """Return the averaged weights after one cosine decay, and the errors by step."""
    model = accelerate(build_model(config), config).to(device)
    average = build_model(config).to(device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=how.learning_rate, amsgrad=True, weight_decay=1e-6
    )
    generator = torch.Generator().manual_seed(how.seed)
    started, curve = time.monotonic(), []
    order: list[int] = []
    for step in range(1, how.steps + 1):
        if len(order) < how.batch_size:
            order = torch.randperm(len(samples), generator=generator).tolist()
        chosen = [samples[order.pop()] for _ in range(how.batch_size)]
        factor = min(1.0, step / WARM_UP)
        factor *= 0.5 * (1.0 + math.cos(math.pi * step / how.steps))
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * factor
        energy, force = off_by(model, collate(chosen, how.r_max), training=True)
        loss = FORCE_WEIGHT * huber(force, FORCE_DELTA)
        loss = loss + ENERGY_WEIGHT * huber(energy, ENERGY_DELTA)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        follow(average, model, min(EMA_DECAY, (1 + step) / (10 + step)))
        if step % (how.steps // 10) == 0:
            minutes = round((time.monotonic() - started) / 60, 2)
            row = {"step": step, "minutes": minutes, **errors(average, tests)}
            curve.append(row)
            print(json.dumps(row), flush=True)
    return average, curve


def huber(error: torch.Tensor, delta: float) -> torch.Tensor:
    """Return the mean Huber loss of an error."""
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=delta)


def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the averaged weights a little towards the current ones."""
    with torch.no_grad():
        for mean, now in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1.0 - decay)


def off_by(
    model: torch.nn.Module, batch: Batch, *, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return errors of the energy per atom and of the forces."""
    device = next(model.parameters()).device
    batch = {key: part.to(device, non_blocking=True) for key, part in batch.items()}
    set_pairs(model, batch["pairs"], batch["first"])
    out = model(batch, training=training, compute_force=True)
    energy = (out["interaction_energy"] - batch["energy"]) / batch["sizes"]
    return energy, out["forces"] - batch["forces"]


def errors(model: torch.nn.Module, samples: Sequence[Batch]) -> dict[str, float]:
    """Return root mean square errors: meV/Å over components, and meV/atom."""
    energies, forces = [], []
    for start in range(0, len(samples), HELD_OUT_BATCH):
        r_max = float(model.r_max)
        batch = collate(samples[start : start + HELD_OUT_BATCH], r_max)
        energy, force = off_by(model, batch, training=False)
        energies.append(energy.detach())
        forces.append(force.detach().flatten())
    rms = [1e3 * float(torch.cat(e).square().mean().sqrt()) for e in (energies, forces)]
    return {
        "energy_rmse_mev_per_atom": round(rms[0], 3),
        "force_rmse_mev_per_angstrom": round(rms[1], 2),
    }
