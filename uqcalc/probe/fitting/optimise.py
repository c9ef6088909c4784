"""Fit a probe's network to labels: who is watched, where it runs, what it scores."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from uqcalc.errors import LabelError
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.dataset import Dataset
from uqcalc.probe.fitting.loop import Task, train
from uqcalc.probe.recipe import Recipe


_MOST_WATCHED = 8192  # structures


def optimise(
    probe: Probe, data: Dataset, reliable: NDArray[np.bool_], recipe: Recipe
) -> list[tuple[float, float]]:
    """Train the network in place, back to the epoch of the lowest validation loss.

    Returns
    -------
    list of (training loss, validation loss)
        One entry an epoch, or a round of it where there are very many labels.

    Raises
    ------
    LabelError
        If labels come in one group, or no epoch had a finite loss.
    """
    fitting, watching = validation_split(data, np.random.default_rng(recipe.seed))
    task = Task(torch.from_numpy((~reliable).astype(np.int64)), fitting, watching)
    state, curve = train(probe, data.predictions, task, recipe)
    if not np.isfinite([watched for _, watched in curve]).any():
        msg = (
            f"validation loss must become finite, got {curve[-1][1]} after "
            f"{len(curve)} epochs; lower the learning rate"
        )
        raise LabelError(msg)
    probe.network.load_state_dict(state)
    probe.network.eval().requires_grad_(requires_grad=False)
    return curve


def validation_split(
    data: Dataset, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return structures for gradient steps, and a tenth of the groups to watch."""
    groups = sorted(set(data.groups))
    if len(groups) < 2:
        msg = (
            f"training labels must come in at least 2 groups, got {len(groups)}; pass "
            "no group key where frames are independent"
        )
        raise LabelError(msg)
    chosen = rng.permutation(len(groups))[: max(1, len(groups) // 10)]
    held = {groups[i] for i in chosen}
    watched = np.array([group in held for group in data.groups])
    watching = np.flatnonzero(watched)
    if len(watching) > _MOST_WATCHED:
        watching = np.sort(rng.permutation(watching)[:_MOST_WATCHED])
    return np.flatnonzero(~watched), watching


def margins(probe: Probe, data: Dataset) -> NDArray[np.float64]:
    """Return the scores that the calibration takes, (structures,)."""
    sizes, found = data.sizes, np.empty(len(data))
    window = 4096  # read together, sorted: there is little to pad
    for start in range(0, len(data), window):
        near = np.arange(start, min(start + window, len(data)))
        near = near[np.argsort(sizes[near], kind="stable")]
        for first in range(0, len(near), 256):
            rows = near[first : first + 256]
            chosen = [data.predictions[i] for i in rows]
            found[rows] = probe.scores(chosen).double().numpy()
    return found
