"""Whether a prediction and a reference agree up to round-off."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqcalc.targets import voigt_stress


# Largest force that counts as zero [eV/Å]. Reference forces are symmetrised or in
# double precision; predicted forces are single-precision sums of terms up to 100 eV/Å.
ZERO_REFERENCE, _PREDICTED = 1e-4, 1e-3
# Largest RMS difference relative to the RMS of the prediction: round-off of single
# precision. The errors of a potential are a thousand times larger.
_FORCES = 1e-4
_NOTHING = 1e-6  # eV/Å or eV/Å³: round-off of files
# Energies: round-off of single precision, relative and for each atom [eV]. The third
# number limits the tolerance of one atom [eV]: relative to an all-electron energy of
# thousands of eV, real errors are as small as round-off.
_ENERGY, _ENERGY_OF_ATOM, _MOST_OF_ATOM = 3e-7, 1e-6, 1e-5


def vanishing(predicted: ArrayLike, reference: ArrayLike) -> NDArray[np.bool_]:
    """Return on which atoms both forces are zero up to round-off, (atoms,) of bool.

    Parameters
    ----------
    predicted, reference : arrays (atoms, 3)
        In eV/Å; NaN gives False.
    """
    sizes = [
        np.linalg.norm(np.asarray(forces, dtype=float), axis=1)
        for forces in (predicted, reference)
    ]
    return np.asarray((sizes[0] <= _PREDICTED) & (sizes[1] <= ZERO_REFERENCE))


def same_result(quantity: str, predicted: ArrayLike, reference: ArrayLike) -> bool:
    """Return whether a reference equals the prediction up to round-off.

    Parameters
    ----------
    quantity : {"energy", "forces", "stress"}
    predicted, reference : float, arrays (atoms, 3), or stresses (6,) or (3, 3)
        In eV, eV/Å or eV/Å³. NaN gives False. An energy must be divided by the number
        of atoms.
    """
    if quantity == "stress":
        predicted, reference = voigt_stress(predicted), voigt_stress(reference)
    ours = np.asarray(predicted, dtype=float)
    apart = _rms(ours - np.asarray(reference, dtype=float))
    if quantity == "energy":
        return apart <= min(_ENERGY_OF_ATOM + _ENERGY * _rms(ours), _MOST_OF_ATOM)
    return apart <= _NOTHING + _FORCES * _rms(ours)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
