"""What enters the network: standardised with statistics kept in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from uqcalc.backbones.prediction import Prediction


class Ragged:
    """Reduces rows of atoms, (atoms, k), to rows of structures, (structures, k).

    One structure, which is what a step of dynamics brings, takes the short way.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = sizes
        self._lengths: torch.Tensor | None = None
        if len(sizes) > 1:
            self._lengths = torch.tensor(sizes, device=device)

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over the atoms of each structure."""
        return self._reduce(rows, "mean")

    def max(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the largest value among the atoms of each structure."""
        return self._reduce(rows, "max")

    def min(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the smallest value among the atoms of each structure."""
        return self._reduce(rows, "min")

    def _reduce(self, rows: torch.Tensor, how: str) -> torch.Tensor:
        if self._lengths is None:
            if how == "mean":
                return rows.mean(dim=0, keepdim=True)
            extreme = rows.amax if how == "max" else rows.amin
            return extreme(dim=0, keepdim=True)
        return torch.segment_reduce(rows, how, lengths=self._lengths)


CHUNK, CHUNK_ATOMS = 512, 2**14  # structures held at once, and atoms
# A spread below these is rounding of single precision, not a feature that varies.
_CONSTANT, _NOTHING = 1e-6, 1e-8  # of the feature's mean, and by itself


class Moments:
    """Count, sum and second moment of features, overall and of each element.

    Everything that standardisation and distances need follows from these, in float64.
    They are summed about the mean of the first chunk: about 0, the variance of a
    feature that hardly varies would be a difference of two large numbers.

    Attributes
    ----------
    atoms : int
    counts : tensor (119,)
        Atoms of each element.
    mean, scale : tensor (dim,)
        Of all features; a constant one has scale 1.
    element_mean : tensor (119, dim)
        Of the standardised features of each element, 0 where there is none.
    within, uncentred : tensor (dim, dim)
        Second moments of the standardised features about the mean of their element,
        and about 0.
    """

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        dim = predictions[0].features.shape[1]
        counts = torch.zeros(119, dtype=torch.float64)
        sums = torch.zeros(119, dim, dtype=torch.float64)
        second = torch.zeros(dim, dim, dtype=torch.float64)
        about: torch.Tensor | None = None
        for chunk in chunks(predictions):
            features = torch.cat([p.features for p in chunk]).double()
            about = features.mean(dim=0) if about is None else about
            features = features - about
            numbers = torch.cat([torch.from_numpy(p.numbers) for p in chunk])
            counts += torch.bincount(numbers, minlength=119)
            sums.index_add_(0, numbers, features)
            second += features.T @ features
        self.atoms = int(counts.sum())
        self.counts = counts
        shift = sums.sum(dim=0) / self.atoms
        self.mean = shift if about is None else about + shift
        covariance = second / self.atoms - torch.outer(shift, shift)
        spread = covariance.diagonal().clamp(min=0.0).sqrt()
        varies = spread > (_CONSTANT * self.mean.abs()).clamp(min=_NOTHING)
        self.scale = torch.where(varies, spread, 1.0)
        self.uncentred = covariance / torch.outer(self.scale, self.scale)
        centred = sums - counts[:, None] * shift
        self.element_mean = centred / counts.clamp(min=1)[:, None] / self.scale
        between = self.element_mean.T @ (counts[:, None] * self.element_mean)
        self.within = self.uncentred - between / self.atoms


def chunks(predictions: Sequence[Prediction]) -> Iterator[list[Prediction]]:
    """Yield the predictions in order, as many at a time as memory surely holds."""
    chunk: list[Prediction] = []
    atoms = 0
    for index in range(len(predictions)):
        prediction = predictions[index]
        atoms += len(prediction.numbers)
        if chunk and (len(chunk) == CHUNK or atoms > CHUNK_ATOMS):
            yield chunk
            chunk, atoms = [], len(prediction.numbers)
        chunk.append(prediction)
    if chunk:
        yield chunk


HOST_SCALARS = 4
SCALARS = HOST_SCALARS + 2
# Beyond this many standard deviations more is not more informative.
CLAMP = 10.0


def raw_scalars(prediction: Prediction, atom_energies: np.ndarray) -> np.ndarray:
    """Return the published inputs as they are: energy in eV and atom count.

    Of the energy only ``atom_energies`` (119,) are taken off, where the released
    training does (`uqcalc.probe.official`).
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
