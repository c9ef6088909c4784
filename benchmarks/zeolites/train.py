"""Train a small Orb on zeolites, with energies, direct and conservative forces.

    python -m zeolites.train SEED FOLDER             (from benchmarks/)
    python -m zeolites.train SEED FOLDER --everything

An energy head that is trained on energies alone has a poor gradient, and then direct
and conservative forces differ for all structures. So there are three losses: energies,
direct forces, and conservative forces. ``--everything`` trains the larger reference on
all frames. The script needs orb-models 0.5 (Python 3.11), which makes graphs without an
adapter.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from orb_models.forcefield.atomic_system import ase_atoms_to_atom_graphs
from orb_models.forcefield.base import AtomGraphs, batch_graphs
from orb_models.forcefield.direct_regressor import DirectForcefieldRegressor
from scipy.spatial.transform import Rotation

from zeolites.frames import TRAINED, UNSEEN, require_data, silica, split, topology


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from small_orb.model import architecture, save_orb


SIZE = {"latent": 64, "hidden": 128, "steps": 3}
REFERENCE_SIZE = {"latent": 96, "hidden": 192, "steps": 3}
BATCH = 8
STEPS = 3000
PEAK_LEARNING_RATE = 3e-3
# of energies (eV/atom) relative to forces (eV/Å); with more, forces would have no
# weight
ENERGY_WEIGHT = 2.0
ENERGY_SCALE = 0.02  # eV/atom, below which the loss is quadratic
DIRECT_WEIGHT = 2.0  # the direct forces need a larger weight


def main() -> None:
    """Train one model and write its weights and its history."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--everything", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--checks", type=int, default=15, help="rows of the history")
    given = parser.parse_args()
    require_data()
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    name = "reference" if given.everything else f"member_{given.seed}"
    size = REFERENCE_SIZE if given.everything else SIZE
    frames, tests = _frames(everything=given.everything)
    model, history = train(frames, tests, given.seed, size, given.steps, given.checks)
    save_orb(given.folder / f"{name}.safetensors", model, size)
    text = json.dumps(history, indent=1)
    (given.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def train(
    frames: list[Atoms],
    tests: list[Atoms],
    seed: int,
    size: dict[str, int],
    steps: int,
    checks: int,
) -> tuple[DirectForcefieldRegressor, dict]:
    """Return the model after one cycle of the learning rate, and the history."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    started = time.monotonic()
    model = architecture(**size)
    _normalise(model, frames)
    graphs = [_graph(model, atoms) for atoms in frames]
    test_batches = [
        batch_graphs([_graph(model, atoms) for atoms in tests[i : i + BATCH]])
        for i in range(0, len(tests), BATCH)
    ]
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    curve = []
    order: list[int] = []
    for step in range(1, steps + 1):
        if len(order) < BATCH:
            order = rng.permutation(len(graphs)).tolist()
        chosen = [order.pop() for _ in range(BATCH)]
        batch = _turned(batch_graphs([graphs[i] for i in chosen]), rng)
        loss = sum(_losses(model, batch))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        if step % (steps // checks) == 0:
            row = {"step": step, "minutes": (time.monotonic() - started) / 60}
            curve.append(row | errors(model, test_batches))
            print(json.dumps(curve[-1]), flush=True)
    model.eval()
    history = {
        "seed": seed,
        "size": size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "frames": len(frames),
        "steps": steps,
        "batch": BATCH,
        "curve": curve,
    }
    return model, history


def both_forces(
    model: DirectForcefieldRegressor, batch: AtomGraphs, *, create_graph: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return energies (graphs,), direct and conservative forces (atoms, 3)."""
    vectors, _, _ = batch.compute_differentiable_edge_vectors(
        use_stress_displacement=False, use_rotation=False
    )
    batch.edge_features["vectors"] = vectors
    out = model(batch)
    energy = model.heads["energy"].denormalize(out["energy"], batch)
    direct = model.heads["forces"].denormalize(out["forces"], batch)
    positions = batch.node_features["positions"]
    (gradient,) = torch.autograd.grad(
        energy.sum(), [positions], create_graph=create_graph
    )
    return energy, direct, -gradient


def errors(
    model: DirectForcefieldRegressor, batches: list[AtomGraphs]
) -> dict[str, float]:
    """Return root mean square errors per component, in meV/Å and meV/atom."""
    squares: dict[str, list[float]] = {"direct": [], "conservative": [], "energy": []}
    for kept in batches:
        batch = kept.clone()
        energy, direct, conservative = both_forces(model, batch, create_graph=False)
        target = batch.node_targets["forces"]
        squares["direct"].append(float(((direct - target) ** 2).mean()))
        squares["conservative"].append(float(((conservative - target) ** 2).mean()))
        off = (energy - batch.system_targets["energy"]) / batch.n_node
        squares["energy"].append(float((off[off.isfinite()] ** 2).mean()))
    return {
        f"{name}_rmse_mev": float(1000 * np.sqrt(np.nanmean(values)))
        for name, values in squares.items()
    }


def _losses(
    model: DirectForcefieldRegressor, batch: AtomGraphs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    energy, direct, conservative = both_forces(model, batch, create_graph=True)
    target = batch.node_targets["forces"]
    off = (energy - batch.system_targets["energy"]) / batch.n_node
    off = off[off.isfinite()]  # from another functional only forces can be compared
    energies = ((off**2 + ENERGY_SCALE**2).sqrt() - ENERGY_SCALE).sum()
    return (
        ENERGY_WEIGHT * energies / len(batch.n_node),
        DIRECT_WEIGHT * (direct - target).norm(dim=1).mean(),
        (conservative - target).norm(dim=1).mean(),
    )


def _frames(*, everything: bool) -> tuple[list[Atoms], list[Atoms]]:
    if not everything:
        parts = [split(name) for name in TRAINED]
        return [a for part, _ in parts for a in part], [a for _, b in parts for a in b]
    frames = [a for name in (*TRAINED, *UNSEEN) for a in topology(name)]
    frames += [a for kind in ("crystal", "melt_quench") for a in silica(kind)]
    return frames, frames[:: len(frames) // 200]


def _normalise(model: DirectForcefieldRegressor, frames: list[Atoms]) -> None:
    """Put the mean energy into the head; 1 eV an atom and 1 eV/Å are the units."""
    head = model.heads["energy"]
    known = [a for a in frames if "energy" in a.info]
    coefficients = head.reference.linear.weight.detach().numpy().ravel()
    offset = np.mean(
        [(a.info["energy"] - coefficients[a.numbers].sum()) / len(a) for a in known]
    )
    for name, mean in (("energy", float(offset)), ("forces", 0.0)):
        statistics = model.heads[name].normalizer.bn
        statistics.running_mean.fill_(mean)
        statistics.running_var.fill_(1.0)


def _graph(model: DirectForcefieldRegressor, atoms: Atoms) -> AtomGraphs:
    graph = ase_atoms_to_atom_graphs(atoms, model.system_config, device="cpu")
    energy = torch.tensor([atoms.info.get("energy", float("nan"))])
    forces = torch.as_tensor(atoms.arrays["forces"], dtype=torch.float32)
    return graph._replace(
        system_targets={"energy": energy.float()}, node_targets={"forces": forces}
    )


def _turned(batch: AtomGraphs, rng: np.random.Generator) -> AtomGraphs:
    """Rotate each structure at random: Orb has no exact rotational symmetry."""
    turns = Rotation.random(len(batch.n_node), random_state=rng).as_matrix()
    rotation = torch.as_tensor(turns, dtype=torch.float32)
    rows = rotation.repeat_interleave(batch.n_node, dim=0)
    positions = torch.einsum("nij,nj->ni", rows, batch.node_features["positions"])
    forces = torch.einsum("nij,nj->ni", rows, batch.node_targets["forces"])
    batch.node_features["positions"] = positions
    batch.node_targets["forces"] = forces
    batch.system_features["cell"] = batch.system_features["cell"] @ rotation.mT
    return batch


if __name__ == "__main__":
    main()
