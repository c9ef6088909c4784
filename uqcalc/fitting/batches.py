"""Batches of inputs for the network, from memory or from disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from uqcalc.backbones.prediction import Prediction
from uqcalc.labels.shards import Shards, like_sized, sizes_of
from uqcalc.probe.inputs import chunks
from uqcalc.probe.probe import Probe


BUDGET = 2**29  # largest size of the standardised features in memory, in bytes
_POOL = 2**14  # structures from disk that are shuffled together


class Batch(NamedTuple):
    """Inputs of `ProbeNetwork`; ``charges`` is None for a probe without charges."""

    features: torch.Tensor
    sizes: list[int]
    scalars: torch.Tensor
    charges: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        charges = None if self.charges is None else self.charges.to(device)
        features, scalars = self.features.to(device), self.scalars.to(device)
        return Batch(features, self.sizes, scalars, charges)


class Feed:
    """Gives batches of standardised inputs.

    If the features need at most ``budget`` bytes, all inputs are computed once. Else
    only the scalars are computed once; features are read and standardised for each
    batch.

    Attributes
    ----------
    sizes : array (structures,)
        Atoms of each structure.
    blocks : array (structures,) or None
        Shard of each structure if features are read from disk, else None.
    """

    def __init__(
        self, probe: Probe, predictions: Sequence[Prediction], budget: int = BUDGET
    ) -> None:
        self.sizes = sizes_of(predictions)
        self.blocks: NDArray[np.int64] | None = None
        self._predictions, self._statistics = predictions, probe.statistics
        self._charged = probe.card.charges
        held = int(self.sizes.sum()) * probe.card.feature_dim * 4 <= budget
        self._features: list[torch.Tensor] | None = [] if held else None
        self._charges: list[torch.Tensor] = []
        if not held and isinstance(predictions, Shards):
            self.blocks = predictions.blocks
        scalars = []
        for chunk in chunks(predictions):
            features, sizes, numbers, charges = probe.inputs(chunk)
            scalars.append(numbers)
            if self._features is not None:
                self._features += features.split(sizes)
                if charges is not None:
                    self._charges += charges.split(sizes)
        self._scalars = torch.cat(scalars)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return the structures at ``indices``, in that order."""
        sizes = self.sizes[indices].tolist()
        scalars = self._scalars[indices]
        if self._features is not None:
            features = torch.cat([self._features[i] for i in indices])
            charges = [self._charges[i] for i in indices] if self._charged else []
            return Batch(features, sizes, scalars, _cat(charges))
        chosen = [self._predictions[i] for i in indices]
        features = torch.cat([p.features for p in chosen])
        if self._statistics is not None:
            features = self._statistics.features(features)
        charges = [p.charges for p in chosen if p.charges is not None]
        if not self._charged:
            charges = []
        return Batch(features, sizes, scalars, _cat(charges))


def _cat(charges: Sequence[torch.Tensor]) -> torch.Tensor | None:
    return torch.cat(list(charges)) if charges else None


def passes(
    indices: NDArray[np.int64],
    feed: Feed,
    batch_size: int,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:
    """Yield batches forever; each pass over ``indices`` has another random order."""
    while True:
        for pool in _pools(indices, feed.blocks, rng):
            batches = like_sized(pool, feed.sizes, batch_size)
            for i in rng.permutation(len(batches)):
                yield batches[i]


def _pools(
    indices: NDArray[np.int64],
    blocks: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> Iterator[NDArray[np.int64]]:
    """Yield all indices in random order, in one or several arrays.

    With ``blocks`` (on disk) the blocks come in random order, and structures are
    shuffled within a few blocks, so that few files are open at a time.
    """
    order = rng.permutation(indices)
    if blocks is None:
        yield order
        return
    _, which = np.unique(blocks[order], return_inverse=True)
    rank = rng.permutation(int(which.max()) + 1)[which]
    order = order[np.argsort(rank, kind="stable")]
    for start in range(0, len(order), _POOL):
        yield rng.permutation(order[start : start + _POOL])
