"""First and second moments of features, streamed in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from uqcalc.backbones.prediction import Prediction


CHUNK, CHUNK_ATOMS = 512, 2**14  # structures held at once, and atoms


class Moments:
    """Count, sum and second moment of features, overall and of each element.

    Everything that standardisation and distances need follows from these, in float64.

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
        for chunk in chunks(predictions):
            features = torch.cat([p.features for p in chunk]).double()
            numbers = torch.cat([torch.from_numpy(p.numbers) for p in chunk])
            counts += torch.bincount(numbers, minlength=119)
            sums.index_add_(0, numbers, features)
            second += features.T @ features
        self.atoms = int(counts.sum())
        self.counts = counts
        self.mean = sums.sum(dim=0) / self.atoms
        covariance = second / self.atoms - torch.outer(self.mean, self.mean)
        spread = covariance.diagonal().clamp(min=0.0).sqrt()
        self.scale = torch.where(spread > 1e-8, spread, 1.0)
        self.uncentred = covariance / torch.outer(self.scale, self.scale)
        centred = sums - counts[:, None] * self.mean
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
