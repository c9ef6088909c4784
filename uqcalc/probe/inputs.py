"""Inputs of the network, standardised with statistics stored in the probe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from uqcalc.backbones.prediction import Prediction
from uqcalc.statistics.mahalanobis import squared_distances, whitening


class Ragged:
    """Reduces rows of atoms, (atoms, k), to rows of structures, (structures, k).

    A single structure, as in a step of dynamics, needs no segments and is faster.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = sizes
        self._lengths: torch.Tensor | None = None
        if len(sizes) > 1:
            self._lengths = lengths(sizes, device)

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
        # unsafe: the check of the lengths would wait for the device
        return torch.segment_reduce(rows, how, lengths=self._lengths, unsafe=True)


def lengths(sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the atoms of each structure on the device, (structures,).

    The last ones are kept: in a run of many systems they are the same at each step, and
    a copy of a list waits for the device.
    """
    return _lengths(tuple(sizes), device)


@lru_cache(maxsize=8)
def _lengths(sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(mode=False):
        return torch.tensor(sizes, device=device)


CHUNK, CHUNK_ATOMS = 512, 2**14  # largest number of structures and atoms in a chunk
# A smaller spread is rounding of single precision: the feature is constant.
_CONSTANT, _NOTHING = 1e-6, 1e-8  # relative to the mean of the feature, and absolute


class Moments:
    """Count, mean and second moment of features, of all atoms and of each element.

    Standardisation and distances are computed from these, in float64. Sums are taken
    about the mean of the first chunk. About 0, the variance of an almost constant
    feature would be a small difference of two large numbers.

    Attributes
    ----------
    atoms : int
    counts : tensor (119,)
        Atoms of each element.
    mean, scale : tensor (dim,)
        Mean and standard deviation of each feature; scale 1 for a constant feature.
    element_mean : tensor (119, dim)
        Mean standardised features of each element; 0 for an element without atoms.
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
    """Yield the predictions in order, in chunks that fit into memory."""
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


# Added to the diagonal of second moments of standardised features.
SHRINKAGE = 1e-3
HOST_SCALARS = 4
LOG_ATOMS = 1  # column of `host_scalars` that holds the size
SCALARS = HOST_SCALARS + 2
# Scalars are clamped to this many standard deviations.
CLAMP = 10.0


def raw_scalars(prediction: Prediction, atom_energies: np.ndarray) -> np.ndarray:
    """Return the inputs of the published network: energy in eV and atom count.

    ``atom_energies`` (119,) in eV are subtracted from the energy, as in the released
    training (`uqcalc.probe.official`). Nothing is standardised.
    """
    numbers = prediction.numbers
    energy = prediction.energy - atom_energies[numbers].sum()
    return np.array([energy, len(numbers)], dtype=np.float32)


def log_count(prediction: Prediction, of_cells: float | None) -> float:
    """Return the logarithm of the number of atoms; ``of_cells`` for periodic ones.

    The size of a periodic cell is a choice of the user, and errors of forces are those
    of any supercell. Such cells have the mean of the labelled molecules instead, 0
    without molecules. ``of_cells`` is None where the size counts, as for total
    energies, whose errors grow with the cell.
    """
    if of_cells is not None and prediction.pbc.any():
        return of_cells
    return math.log(len(prediction.numbers))


def log_count_of_cells(predictions: Sequence[Prediction]) -> float:
    """Return the mean log count of the molecules among labels; 0 without molecules."""
    logs = [math.log(len(p.numbers)) for p in predictions if not p.pbc.any()]
    return float(np.mean(logs)) if logs else 0.0


def distinct_atoms(prediction: Prediction) -> int:
    """Return the number of atoms that differ in element or force, to 1 meV/Å.

    In an exact supercell each atom occurs several times; it counts once.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", prediction.forces, prediction.forces))
    return len(np.unique(prediction.numbers + 1j * norms.round(3)))


def host_scalars(
    numbers: np.ndarray,
    energy: float,
    squares: np.ndarray,
    atom_energies: np.ndarray,
    log_atoms: float | None = None,
) -> np.ndarray:
    """Return four numbers that depend little on size and composition.

    Energy per atom in eV after subtraction of ``atom_energies`` (119,); ``log_atoms``
    (`log_count`; by default the log of the number of atoms); log of the RMS force
    component and of the largest force norm, in eV/Å.
    ``squares`` (atoms,) are the squared norms of the forces.
    """
    rms = math.sqrt(squares.mean() / 3)
    worst = math.sqrt(squares.max())
    rest = (energy - atom_energies[numbers].sum()) / len(numbers)
    floor = 1e-3  # eV/Å: smaller forces count as zero; keeps the logarithm finite
    if log_atoms is None:
        log_atoms = math.log(len(numbers))
    logs = [math.log(x) for x in (rms + floor, worst + floor)]
    return np.array([rest, log_atoms, *logs], dtype=np.float32)


def scalars_of(
    prediction: Prediction, atom_energies: np.ndarray, of_cells: float | None
) -> np.ndarray:
    """Return `host_scalars` of a prediction; ``of_cells`` as for `log_count`."""
    squares = np.einsum("ij,ij->i", prediction.forces, prediction.forces)
    return host_scalars(
        prediction.numbers,
        prediction.energy,
        squares,
        atom_energies,
        log_count(prediction, of_cells),
    )


def on_device(device: torch.device, array: np.ndarray) -> torch.Tensor:
    """Copy an array to the device.

    On CUDA the function does not wait for the device. The caller may change the array
    after the return.
    """
    return torch.from_numpy(array).to(device, non_blocking=device.type == "cuda")


class Statistics(nn.Module):
    """Means, scales and per-element Gaussians of the labelled structures.

    An atom is unusual if its features are far from those of its element in the labels.
    The measure is the squared Mahalanobis distance divided by the number of features,
    (x - m)ᵀ C⁻¹ (x - m) / dim (Lee et al. 2018, arXiv:1807.03888, class-conditional
    with shared covariance).

    `uqcalc.LatentDistance` gives the square root of the same formula with another C: it
    shrinks C (Ledoit & Wolf), and an element with many atoms has its own. Here all
    elements share one C plus 1e-3 I, so that the file of a probe holds one matrix, and
    its calibration was fitted to these distances.
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

    def of_cells(self) -> float:
        """Return the mean log count of the labels, for periodic cells (`log_count`)."""
        return float(self.scalar_mean[LOG_ATOMS])

    def features(self, features: torch.Tensor) -> torch.Tensor:
        """Return standardised features, (atoms, dim)."""
        return (features - self.feature_mean) / self.feature_scale

    def distances(self, standard: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return the squared Mahalanobis distance per dimension, (atoms,)."""
        return squared_distances(standard - self.element_mean[numbers], self.whitening)

    def scalars(
        self, host: torch.Tensor, distances: torch.Tensor, sizes: Sequence[int]
    ) -> torch.Tensor:
        """Join host scalars (batch, 4) and distances to (batch, 6), standardised."""
        merged = torch.cat([host, _log_mean_and_worst(distances, sizes)], dim=1)
        standard = (merged - self.scalar_mean) / self.scalar_scale
        # inf - inf is NaN: the clamp must not turn an overflow into a normal value
        return standard.clamp(-CLAMP, CLAMP) + (standard - standard)

    @torch.no_grad()
    def learn(
        self,
        predictions: Sequence[Prediction],
        moments: Moments,
        atom_energies: np.ndarray,
        *,
        sized: bool = True,
    ) -> None:
        """Set all statistics from labelled structures, read in chunks.

        With ``sized=False`` the size of periodic cells does not count (`log_count`).
        """
        of_cells = None if sized else log_count_of_cells(predictions)
        self.feature_mean.copy_(moments.mean)
        self.feature_scale.copy_(moments.scale)
        self.element_mean.copy_(moments.element_mean)
        self.whitening.copy_(whitening(moments.within, SHRINKAGE))
        pieces = []
        for chunk in chunks(predictions):
            host = [scalars_of(p, atom_energies, of_cells) for p in chunk]
            standard = self.features(torch.cat([p.features for p in chunk]))
            numbers = torch.from_numpy(np.concatenate([p.numbers for p in chunk]))
            ends = _log_mean_and_worst(
                self.distances(standard, numbers), [len(p.numbers) for p in chunk]
            )
            pieces.append(torch.cat([torch.from_numpy(np.stack(host)), ends], dim=1))
        merged = torch.cat(pieces)
        spread = merged.std(dim=0)
        self.scalar_mean.copy_(merged.mean(dim=0))
        self.scalar_scale.copy_(torch.where(spread > 1e-6, spread, 1.0))


def _log_mean_and_worst(distances: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return the log of the mean and of the largest distance, (batch, 2)."""
    ragged = Ragged(sizes, distances.device)
    column = distances[:, None]
    ends = torch.cat([ragged.mean(column), ragged.max(column)], dim=1)
    return ends.add(1e-6).log()
