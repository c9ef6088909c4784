"""Latent distance, a baseline from the features of the training frames."""

from __future__ import annotations

import numpy as np
from sklearn.covariance import LedoitWolf


class LatentDistance:
    """Mahalanobis distance of the features of each atom to those of training frames.

    One shrunk covariance (Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4) per
    element, from the frames that the potential was trained on.
    """

    def __init__(self, numbers: np.ndarray, features: np.ndarray) -> None:
        self.fits = {
            int(z): LedoitWolf().fit(features[numbers == z]) for z in np.unique(numbers)
        }

    def __call__(self, numbers: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return the distance of every atom."""
        distances = np.empty(len(numbers))
        for z in np.unique(numbers):
            rows = numbers == z
            squared = self.fits[int(z)].mahalanobis(features[rows])
            distances[rows] = np.sqrt(squared)
        return distances
