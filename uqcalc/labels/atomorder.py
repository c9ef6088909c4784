"""Labels of forces that belong to other atoms, or to another orientation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


# Choices. Made-up forces of 12 atoms with random errors of half their size have a
# cosine of 0.9 and a share of 0.14; after a permutation 0 and 0.02.
_ALIGNED = 0.5
_SHARE = 0.1
_FEWEST_ATOMS = 4
_SMALLEST = 0.05  # eV/Å; RMS force of structures that are compared


def in_another_order(
    predicted: Sequence[NDArray[np.float64]], labels: Sequence[NDArray[np.float64]]
) -> bool:
    r"""Return whether labels seem to be of the same atoms in another order or frame.

    In most structures forces and labels are not aligned (the cosine of the angle
    between the two vectors of all components is below 0.5), and yet the sorted norms
    agree:

        \sum_i (\|F\|_(i) - \|L\|_(i))^2 < 0.1 \sum_i \|F_i - L_i\|^2

    with norms sorted within the structure. Both hold if atoms are permuted or the
    structure is turned, and not if the potential is poor.

    Parameters
    ----------
    predicted, labels : sequences of arrays (atoms, 3)
        In eV/Å. Structures with fewer than four atoms, with small forces or with NaN do
        not count; with fewer than five structures left the answer is False.
    """
    found = [
        _is_other(f, label)
        for f, label in zip(predicted, labels, strict=True)
        if len(f) >= _FEWEST_ATOMS and _rms(f) > _SMALLEST and _rms(label) > _SMALLEST
    ]
    return len(found) >= 5 and float(np.mean(found)) > 0.5


def _rms(forces: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(forces**2)))


def _is_other(predicted: NDArray[np.float64], label: NDArray[np.float64]) -> bool:
    cosine = np.vdot(predicted, label) / np.sqrt(
        np.vdot(predicted, predicted) * np.vdot(label, label)
    )
    norms, others = (np.sort(np.linalg.norm(x, axis=1)) for x in (predicted, label))
    apart = np.sum((predicted - label) ** 2)
    return bool(cosine < _ALIGNED and np.sum((norms - others) ** 2) < _SHARE * apart)
