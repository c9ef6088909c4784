"""First and second moments of features, streamed in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from uqcalc.backbones.prediction import Prediction


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
