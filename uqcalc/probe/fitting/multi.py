"""Training by several processes, each on a device of its own: Lightning Fabric."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import MissingExtraError
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.fitting.loop import Task, train
from uqcalc.probe.recipe import Recipe
from uqcalc.probe.storage.shardfile import ShardWriter
from uqcalc.probe.storage.shards import Shards


Trained = tuple[dict[str, torch.Tensor], list[tuple[float, float]]]
_LOSSES = "losses by epoch"


def train_on_many(
    probe: Probe, predictions: Sequence[Prediction], task: Task, recipe: Recipe
) -> Trained:
    """Do what `uqcalc.probe.fitting.loop.train` does, on the devices of the recipe.

    Every process reads the predictions from disk. Those in memory are written to a
    temporary folder first.

    Raises
    ------
    MissingExtraError
        If Lightning Fabric is absent.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        what = "training on several devices"
        raise MissingExtraError(what, "lightning-fabric", "multi") from error
    strategy = "auto" if recipe.devices == 1 else "ddp_spawn"
    fabric = Fabric(
        accelerator=recipe.accelerator, devices=recipe.devices, strategy=strategy
    )
    with TemporaryDirectory() as folder:
        shards = _on_disk(predictions, probe, Path(folder) / "shards")
        job = _Job(probe, shards, task, recipe, Path(folder) / "trained.safetensors")
        if recipe.devices == 1:
            job(fabric)
        else:
            fabric.launch(job)
        state = load_file(job.output)
    losses = state.pop(_LOSSES)
    return state, [(trained, watched) for trained, watched in losses.tolist()]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What each process does. One object: Fabric would take arguments apart."""

    probe: Probe
    shards: Shards
    task: Task
    recipe: Recipe
    output: Path

    def __call__(self, fabric: Any) -> None:
        """Train; the first process writes the outcome, too large for Fabric's pipe."""
        probe = deepcopy(self.probe)  # its memory is shared by the processes
        with torch.random.fork_rng(devices=[]):
            seed = self.recipe.seed + fabric.global_rank  # of the dropout
            torch.default_generator.manual_seed(seed)
            engine = _OfFabric(fabric)
            state, curve = train(engine, probe, self.shards, self.task, self.recipe)
        if fabric.global_rank == 0:
            losses = torch.tensor(curve, dtype=torch.float64)
            save_file(state | {_LOSSES: losses}, self.output)


def _on_disk(predictions: Sequence[Prediction], probe: Probe, path: Path) -> Shards:
    if isinstance(predictions, Shards):
        return predictions
    with ShardWriter(path, probe.card.fingerprint) as writer:
        for prediction in predictions:
            writer.add(prediction)
    return Shards.open(path)


class _OfFabric:
    """The engine of one process among several."""

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric
        self.rank: int = fabric.global_rank
        self.size: int = fabric.world_size
        self.device: torch.device = fabric.device

    def prepare(
        self, network: nn.Module, optimiser: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move both to the device, and tie the processes' gradients together."""
        wrapped, stepper = self._fabric.setup(network, optimiser)
        return wrapped, stepper

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients, averaged over the processes."""
        self._fabric.backward(loss)

    def clip(self, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Bound the norm of the gradients by 1."""
        self._fabric.clip_gradients(network, optimiser, max_norm=1.0)

    def total(self, values: torch.Tensor) -> list[float]:
        """Return values summed over the processes."""
        summed = self._fabric.all_reduce(values, reduce_op="sum")
        return [float(value) for value in np.atleast_1d(summed.cpu().numpy())]
