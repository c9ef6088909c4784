"""How closely two routes to one result must agree, on any processor.

Processors sum in different orders, so two routes differ by some roundings of the terms.
Bounds are relative to the size of the terms: to the largest compared element, or to
``of`` if the terms cancel. One route that runs twice is compared bitwise, without these
bounds.
"""

from __future__ import annotations

import numpy as np
import torch


FLOAT64 = 1e-9  # millions of roundings of 1e-16
FLOAT32 = 1e-5  # a hundred roundings of 6e-8: a few sums
NETWORK = 1e-4  # a thousand of them: tens of float32 layers, forward and backward


def host(value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=float)


def close(ours, theirs, bound=FLOAT32, *, of=None):
    """Assert that no element differs by more than ``bound`` times the largest one."""
    ours, theirs = host(ours), host(theirs)
    assert ours.shape == theirs.shape
    size = np.abs(theirs if of is None else host(of))
    limit = bound * size[np.isfinite(size)].max(initial=0.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)
