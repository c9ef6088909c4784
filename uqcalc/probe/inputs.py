"""What enters the network: standardised with statistics kept in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from uqcalc.backbones.prediction import Prediction
from uqcalc.probe.moments import Moments, chunks


HOST_SCALARS = 4
SCALARS = HOST_SCALARS + 2
# Beyond this many standard deviations more is not more informative.
CLAMP = 10.0


def raw_scalars(prediction: Prediction, atom_energies: np.ndarray) -> np.ndarray:
    """Return the published inputs as they are: energy in eV and atom count.

    Of the energy only ``atom_energies`` (119,) are taken off, where the released
    training does (`uqcalc.probe.released`).
    """
    numbers = prediction.numbers
    energy = prediction.energy - atom_energies[numbers].sum()
    return np.array([energy, len(numbers)], dtype=np.float32)


def host_scalars(
    numbers: np.ndarray,
    energy: float,
    squares: np.ndarray,
    atom_energies: np.ndarray,
) -> np.ndarray:
    """Return four numbers that stay in range when size and composition change.

    Per-atom energy in eV after ``atom_energies`` (119,) is subtracted, log of the
    atom count, log of the RMS force component and of the largest force in eV/Å; of the
    forces it takes the squared norms, (atoms,).
    """
    rms = math.sqrt(squares.mean() / 3)
    worst = math.sqrt(squares.max())
    rest = (energy - atom_energies[numbers].sum()) / len(numbers)
    floor = 1e-3  # eV/Å: below it a force is zero for this purpose
    logs = [math.log(x) for x in (len(numbers), rms + floor, worst + floor)]
    return np.array([rest, *logs], dtype=np.float32)


def scalars_of(prediction: Prediction, atom_energies: np.ndarray) -> np.ndarray:
    """Return `host_scalars` of a prediction."""
    squares = np.einsum("ij,ij->i", prediction.forces, prediction.forces)
    return host_scalars(prediction.numbers, prediction.energy, squares, atom_energies)


def on_device(device: torch.device, array: np.ndarray) -> torch.Tensor:
    """Copy to the device; CUDA has read the array on return and is not waited for."""
    return torch.from_numpy(array).to(device, non_blocking=device.type == "cuda")


class Statistics(nn.Module):
    """Means, scales and per-element Gaussians of what a probe was fitted on.

    The squared Mahalanobis distance of an atom's features to those of its own
    element in the labels, divided by the width, says how unusual the atom is
    (Lee et al. 2018, arXiv:1807.03888, class-conditional with shared covariance).
    """

    feature_mean: torch.Tensor
    feature_scale: torch.Tensor
    element_mean: torch.Tensor
    whitening: torch.Tensor
    scalar_mean: torch.Tensor
    scalar_scale: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))
        self.register_buffer("element_mean", torch.zeros(119, features))
        self.register_buffer("whitening", torch.eye(features))
        self.register_buffer("scalar_mean", torch.zeros(SCALARS))
        self.register_buffer("scalar_scale", torch.ones(SCALARS))

    def features(self, features: torch.Tensor) -> torch.Tensor:
        """Return standardised features, (atoms, dim)."""
        return (features - self.feature_mean) / self.feature_scale

    def distances(self, standard: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return the squared Mahalanobis distance per dimension, (atoms,)."""
        centred = standard - self.element_mean[numbers]
        return (centred @ self.whitening).square().mean(dim=1)

    def scalars(
        self, host: torch.Tensor, distances: torch.Tensor, sizes: Sequence[int]
    ) -> torch.Tensor:
        """Join host scalars (batch, 4) and distances to (batch, 6), standardised."""
        joined = torch.cat([host, _log_mean_and_worst(distances, sizes)], dim=1)
        standard = (joined - self.scalar_mean) / self.scalar_scale
        # inf - inf is NaN: what overflowed must not come back into range by the clamp
        return standard.clamp(-CLAMP, CLAMP) + (standard - standard)

    @torch.no_grad()
    def learn(
        self,
        predictions: Sequence[Prediction],
        moments: Moments,
        atom_energies: np.ndarray,
    ) -> None:
        """Set all statistics from labelled structures, streaming."""
        self.feature_mean.copy_(moments.mean)
        self.feature_scale.copy_(moments.scale)
        self.element_mean.copy_(moments.element_mean)
        shrinkage = 1e-3 * torch.eye(len(moments.mean), dtype=torch.float64)
        factor = torch.linalg.cholesky(moments.within + shrinkage)
        self.whitening.copy_(torch.linalg.inv(factor).T)
        pieces = []
        for chunk in chunks(predictions):
            host = [scalars_of(p, atom_energies) for p in chunk]
            standard = self.features(torch.cat([p.features for p in chunk]))
            numbers = torch.from_numpy(np.concatenate([p.numbers for p in chunk]))
            ends = _log_mean_and_worst(
                self.distances(standard, numbers), [len(p.numbers) for p in chunk]
            )
            pieces.append(torch.cat([torch.from_numpy(np.stack(host)), ends], dim=1))
        joined = torch.cat(pieces)
        spread = joined.std(dim=0)
        self.scalar_mean.copy_(joined.mean(dim=0))
        self.scalar_scale.copy_(torch.where(spread > 1e-6, spread, 1.0))


def _log_mean_and_worst(distances: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return log of mean and of largest distance of each structure, (batch, 2)."""
    pieces = distances.split(list(sizes)) if len(sizes) > 1 else (distances,)
    both = torch.stack([x for piece in pieces for x in (piece.mean(), piece.amax())])
    return both.view(-1, 2).add(1e-6).log()
