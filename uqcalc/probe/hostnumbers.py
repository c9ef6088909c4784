"""Plain numbers of a structure that are on the host anyway: forces, composition."""

from __future__ import annotations

import math

import numpy as np

from uqcalc.backbones.prediction import Prediction
from uqcalc.probe.inputs import host_scalars


HOST = (
    "energy_per_atom", "log_atoms", "log_rms_force", "log_largest_force",
    "log_median_force", "mean_log_force", "elements", "composition_entropy",
    "mean_number", "spread_of_numbers", "smallest_number", "largest_number",
    "log_rarest_element",
)  # fmt: skip
FLOOR = 1e-3  # eV/Å: below it a force is zero for this purpose


def host_numbers(
    prediction: Prediction,
    norms: np.ndarray,
    atom_energies: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """Return the numbers that `HOST` names, (13,) in float32.

    Parameters
    ----------
    prediction : Prediction
    norms : array (atoms,)
        Of the predicted forces, in eV/Å.
    atom_energies : array (119,)
        eV that are taken off the predicted energy.
    counts : array (119,)
        Atoms of each element in the labels.
    """
    numbers = prediction.numbers
    first = host_scalars(numbers, prediction.energy, prediction.forces, atom_energies)
    present_counts = np.bincount(numbers, minlength=119)
    present = present_counts.nonzero()[0]
    shares = present_counts[present] / len(numbers)
    middle = float(shares @ present)
    rest = (
        math.log(float(np.median(norms)) + FLOOR),
        float(np.log(norms + FLOOR).mean()),
        len(present),
        -float(shares @ np.log(shares)),
        middle,
        math.sqrt(max(0.0, float(shares @ present**2) - middle**2)),
        present[0],
        present[-1],
        math.log(float(counts[present].min()) + 1),
    )
    return np.concatenate([first, np.array(rest)], dtype=np.float32)
