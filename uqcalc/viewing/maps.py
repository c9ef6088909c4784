"""A map in two dimensions: similar structures are near each other."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray


_LEAST = 20  # structures; for fewer, UMAP shows no more than PCA
_SEED = 0


def map_of(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """Return places in two dimensions, (structures, 2), and the name of the method.

    UMAP (arXiv:1802.03426) with a fixed seed if the package umap-learn is installed and
    there are at least 20 structures; otherwise the first two principal components.

    Parameters
    ----------
    vectors : array (structures, numbers)
        Embeddings or descriptors, without NaN.
    """
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(np.asarray(vectors, dtype=float))
    umap = _umap() if len(scaled) >= _LEAST else None
    if umap is None:
        return _principal(scaled), "PCA"
    near = min(15, len(scaled) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hides warnings of numba and scikit-learn
        found = umap.UMAP(n_neighbors=near, random_state=_SEED, n_jobs=1)
        return np.asarray(found.fit_transform(scaled), dtype=float), "UMAP"


def _umap() -> Any:
    """Return the package umap-learn; None if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # no Tensorflow
            import umap
    except ImportError:
        return None
    return umap


def _principal(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first two principal components; zeros where there are fewer."""
    from sklearn.decomposition import PCA

    places = np.zeros((len(scaled), 2))
    parts = min(2, *scaled.shape)
    if len(scaled) > 1:
        places[:, :parts] = PCA(parts, svd_solver="full").fit_transform(scaled)
    return places
