"""Train or fine-tune a small MACE: the trainer of `loop.yaml`.

    python train.py labels.xyz before.json after.json --seed 1

A trainer of your own needs the same: read labels and a model, write a model, and end
with status 0. This one writes models as numbers (`uqcalc.models.safemace`).
"""

import argparse
import math

import numpy as np
import torch
from ase.io import read

from uqcalc.models.safemace import load_safe_mace, save_safe_mace


BATCH = 8


def train(data, model_in, model_out, seed, steps, rate):
    """Train a model on labelled frames; half of each batch has new labels, if any."""
    torch.manual_seed(seed)
    model = load_safe_mace(model_in)
    frames = read(data, ":")
    samples = [as_sample(model, frame) for frame in frames]
    # labels of the loop have the name of the reference
    new = [k for k, frame in enumerate(frames) if "uqcalc_reference" in frame.info]
    old = [k for k in range(len(frames)) if k not in set(new)]
    rng = np.random.default_rng(seed)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, amsgrad=True)
    for step in range(steps):
        slow = min(1.0, 20 * (step + 1) / steps)  # start slowly, and end slowly
        slow *= 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * slow
        half = BATCH // 2 if new and old else 0
        drawn = [*rng.choice(old or new, BATCH - half), *rng.choice(new or old, half)]
        loss = loss_of(model, [samples[k] for k in drawn])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        average.update_parameters(model)
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    save_safe_mace(average.module, model_out)


def as_sample(model, frame):
    """Return a frame as MACE wants it, with its labels."""
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.tools import AtomicNumberTable

    keys = KeySpecification({"energy": "REF_energy"}, {"forces": "REF_forces"})
    return AtomicData.from_config(
        config_from_atoms(frame, key_specification=keys),
        z_table=AtomicNumberTable([int(z) for z in model.atomic_numbers]),
        cutoff=float(model.r_max),
    )


def loss_of(model, samples):
    """Return the Huber loss of forces and of the energy per atom."""
    from mace.tools.torch_geometric.batch import Batch

    batch = Batch.from_data_list(samples)
    out = model(batch.to_dict(), training=True, compute_force=True)
    atoms = batch.ptr.diff()
    huber = torch.nn.functional.huber_loss
    forces = huber(out["forces"], batch.forces, delta=0.3)
    energy = huber(out["energy"] / atoms, batch.energy / atoms, delta=0.02)
    return 100 * forces + 1000 * energy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data")
    parser.add_argument("model_in")
    parser.add_argument("model_out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    train(given.data, given.model_in, given.model_out, given.seed, given.steps, 0.003)
