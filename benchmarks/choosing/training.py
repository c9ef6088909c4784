"""Training with a fixed number of steps, from any start."""

from __future__ import annotations

import math
from typing import Any

import torch
from fast import accelerate
from train_backbone import (
    ENERGY_DELTA,
    ENERGY_WEIGHT,
    FORCE_DELTA,
    FORCE_WEIGHT,
    collate,
    huber,
    predict,
)

from uqcalc.models.bundled import build_model


BATCH, EMA = 8, 0.98
Samples = list[dict[str, torch.Tensor]]


def train(
    model: torch.nn.Module,
    config: dict[str, Any],
    old: Samples,
    new: Samples,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Train a model in place; half of each batch is from ``new`` labels, if any.

    AdamW with a warm-up and a cosine decay. The model gets the averaged weights.
    """
    fast = build_model(config)
    fast.load_state_dict(model.state_dict())
    fast = accelerate(fast, config)
    optimizer = torch.optim.AdamW(
        fast.parameters(), lr=rate, amsgrad=True, weight_decay=1e-6
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        factor = min(1.0, 20 * (step + 1) / steps)
        factor *= 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        batch = collate(_drawn(old, new, generator))
        energy, force = predict(fast, batch, training=True)
        loss = FORCE_WEIGHT * huber(force, FORCE_DELTA)
        loss = loss + ENERGY_WEIGHT * huber(energy, ENERGY_DELTA)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(fast.parameters(), 10.0)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            pairs = zip(model.parameters(), fast.parameters(), strict=True)
            for average, current in pairs:
                average.lerp_(current, 1.0 - decay)


def _drawn(old: Samples, new: Samples, generator: torch.Generator) -> Samples:
    half = BATCH // 2 if new else 0
    rows = torch.randint(len(old), (BATCH - half,), generator=generator).tolist()
    batch = [old[row] for row in rows]
    if half:
        rows = torch.randint(len(new), (half,), generator=generator).tolist()
        batch += [new[row] for row in rows]
    return batch
