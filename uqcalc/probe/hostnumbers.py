"""Plain numbers of a structure that are on the host anyway: forces, composition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from uqcalc.backbones.prediction import Prediction
from uqcalc.probe.inputs import HOST_SCALARS, host_scalars, on_device


HOST = (
    "energy_per_atom", "log_atoms", "log_rms_force", "log_largest_force",
    "log_median_force", "mean_log_force", "elements", "composition_entropy",
    "mean_number", "spread_of_numbers", "smallest_number", "largest_number",
    "log_rarest_element",
)  # fmt: skip
FLOOR = 1e-3  # eV/Å: below it a force is zero for this purpose
_ELEMENTS = 119


class FromHost(NamedTuple):
    """What a ragged batch's host arrays say, on the device of its features.

    Attributes
    ----------
    sizes : list of int
        Atoms of each structure.
    numbers : tensor (structures, 13)
        As `HOST` names them; the first four are those of `inputs.host_scalars`.
    shares : tensor (structures, 119)
        Of each element among the atoms.
    log_forces : tensor (atoms,)
    """

    sizes: list[int]
    numbers: torch.Tensor
    shares: torch.Tensor
    log_forces: torch.Tensor


def from_host(
    predictions: Sequence[Prediction],
    atom_energies: np.ndarray,
    counts: np.ndarray,
    device: torch.device,
) -> FromHost:
    """Describe a ragged batch by what is on the host.

    Parameters
    ----------
    predictions : sequence of Prediction
    atom_energies : array (119,)
        eV that are taken off the predicted energy.
    counts : array (119,)
        Atoms of each element in the labels.
    device : torch.device
    """
    rows, logs = [], []
    for p in predictions:
        row, log_forces = _numbers_and_shares(p, atom_energies, counts)
        rows.append(row)
        logs.append(log_forces)
    both = on_device(device, np.stack(rows))
    return FromHost(
        [len(p.numbers) for p in predictions],
        both[:, : len(HOST)],
        both[:, len(HOST) :],
        on_device(device, np.concatenate(logs, dtype=np.float32)),
    )


def _numbers_and_shares(
    prediction: Prediction, atom_energies: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (13 + 119,) in float32, and log of the norm of each force."""
    numbers = prediction.numbers
    squares = np.einsum("ij,ij->i", prediction.forces, prediction.forces)
    norms = np.sqrt(squares)
    logs = np.log(norms + FLOOR)
    # plain floats: a step finds no library code in the caches, and elements are few
    share = np.bincount(numbers, minlength=_ELEMENTS) / len(numbers)
    present = share.nonzero()[0].tolist()
    shares = share[present].tolist()
    centre = sum(x * z for x, z in zip(shares, present, strict=True))
    second = sum(x * z**2 for x, z in zip(shares, present, strict=True))
    ordered = np.sort(norms)
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    row = np.empty(len(HOST) + _ELEMENTS, dtype=np.float32)
    row[:HOST_SCALARS] = host_scalars(
        numbers, prediction.energy, squares, atom_energies
    )
    row[HOST_SCALARS : len(HOST)] = (
        math.log(median + FLOOR),
        logs.mean(),
        len(present),
        -sum(x * math.log(x) for x in shares),
        centre,
        math.sqrt(max(0.0, second - centre**2)),
        present[0],
        present[-1],
        math.log(counts[present].min() + 1),
    )
    row[len(HOST) :] = share
    return row, logs
