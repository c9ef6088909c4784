"""Plain numbers of structures and atoms: inputs of the kernel paths of a probe.

They are atom count, predicted forces, composition, distances of the features from the
labels, the spread of atomic energies and, for a probe of the stress, the predicted
stress. With few labels they predict errors better
than the embedding does (`benchmarks/README.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from ase.units import GPa
from torch import nn

from uqcalc.backbones.prediction import Prediction
from uqcalc.probe.inputs import (
    HOST_SCALARS,
    Ragged,
    Statistics,
    host_scalars,
    log_count,
    on_device,
)
from uqcalc.probe.regressions import LIMIT, standardised
from uqcalc.statistics.mahalanobis import squared_distances
from uqcalc.targets import voigt_stress


HOST = (
    "energy_per_atom", "log_atoms", "log_rms_force", "log_largest_force",
    "log_median_force", "mean_log_force", "elements", "composition_entropy",
    "mean_number", "spread_of_numbers", "smallest_number", "largest_number",
    "log_rarest_element",
)  # fmt: skip
# Further numbers of a probe of the stress.
OF_STRESS = ("log_stress", "log_pressure", "pressure", "log_volume")
FLOOR = 1e-3  # eV/Å: smaller forces count as zero; keeps the logarithm finite
STRESS_FLOOR = 1e-4  # eV/Å³ (16 MPa): the same for the stress
ELEMENTS = 119


class FromHost(NamedTuple):
    """Numbers from the host arrays of a ragged batch, on the device of its features.

    Attributes
    ----------
    sizes : sequence of int
        Atoms of each structure.
    numbers : tensor (structures, 13)
        Named in `HOST`; the first four are those of `inputs.host_scalars`.
    shares : tensor (structures, 119)
        Share of each element among the atoms.
    log_forces : tensor (atoms,)
    of_stress : tensor (structures, 4) or (structures, 0)
        Named in `OF_STRESS`; none if the probe does not read the stress.
    """

    sizes: Sequence[int]
    numbers: torch.Tensor
    shares: torch.Tensor
    log_forces: torch.Tensor
    of_stress: torch.Tensor


def from_host(
    predictions: Sequence[Prediction],
    atom_energies: np.ndarray,
    counts: np.ndarray,
    device: torch.device,
    of_cells: float | None = None,
    *,
    stress: bool = False,
) -> FromHost:
    """Compute the numbers of a ragged batch that need only host arrays.

    Parameters
    ----------
    predictions : sequence of Prediction
    atom_energies : array (119,)
        eV that are subtracted from the predicted energy.
    counts : array (119,)
        Atoms of each element in the labels.
    device : torch.device
    of_cells : float, optional
        As for `uqcalc.probe.inputs.log_count`.
    stress : bool
        Whether to give `stress_numbers`.
    """
    rows, logs = [], []
    for p in predictions:
        log_atoms = log_count(p, of_cells)
        row, log_forces = _numbers_and_shares(p, atom_energies, counts, log_atoms)
        rows.append(np.concatenate([row, stress_numbers(p)]) if stress else row)
        logs.append(log_forces)
    both = on_device(device, np.stack(rows))
    shares = slice(len(HOST), len(HOST) + ELEMENTS)
    return FromHost(
        [len(p.numbers) for p in predictions],
        both[:, : len(HOST)],
        both[:, shares],
        on_device(device, np.concatenate(logs, dtype=np.float32)),
        both[:, shares.stop :],
    )


def stress_numbers(prediction: Prediction) -> np.ndarray:
    """Return four numbers of the predicted stress in float32, named in `OF_STRESS`.

    Log of the RMS over the nine components and of the absolute pressure, in eV/Å³; the
    pressure itself, compressed by asinh in units of 1 GPa (positive in a compressed
    cell); log of the volume per atom in Å³. All are NaN for a prediction without a
    stress, as that of a molecule.
    """
    if "stress" not in prediction.results or not prediction.pbc.all():
        return np.full(len(OF_STRESS), np.nan, dtype=np.float32)
    xx, yy, zz, yz, xz, xy = voigt_stress(prediction.results["stress"]).tolist()
    pressure = -(xx + yy + zz) / 3
    squares = xx**2 + yy**2 + zz**2 + 2 * (yz**2 + xz**2 + xy**2)
    volume = abs(float(np.linalg.det(prediction.cell))) / len(prediction.numbers)
    found = (
        math.log(math.sqrt(squares / 9) + STRESS_FLOOR),
        math.log(abs(pressure) + STRESS_FLOOR),
        math.asinh(pressure / GPa),
        math.log(volume),
    )
    return np.array(found, dtype=np.float32)


def log_forces(prediction: Prediction) -> np.ndarray:
    """Return the log of the force norms in eV/Å, plus `FLOOR`, (atoms,)."""
    squares = np.einsum("ij,ij->i", prediction.forces, prediction.forces)
    logs: np.ndarray = np.log(np.sqrt(squares) + FLOOR)
    return logs


def _numbers_and_shares(
    prediction: Prediction,
    atom_energies: np.ndarray,
    counts: np.ndarray,
    log_atoms: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (13 + 119,) in float32, and the log of each force norm."""
    numbers = prediction.numbers
    squares = np.einsum("ij,ij->i", prediction.forces, prediction.forces)
    norms = np.sqrt(squares)
    logs = np.log(norms + FLOOR)
    ordered = np.sort(norms)
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    composition = _composition(numbers.astype(np.int64).tobytes())
    row = np.empty(len(HOST) + ELEMENTS, dtype=np.float32)
    row[:HOST_SCALARS] = host_scalars(
        numbers, prediction.energy, squares, atom_energies, log_atoms
    )
    row[HOST_SCALARS : len(HOST)] = (
        math.log(median + FLOOR),
        logs.mean(),
        *composition.numbers,
        math.log(counts[composition.present].min() + 1),
    )
    row[len(HOST) :] = composition.shares
    return row, logs


class Composition(NamedTuple):
    """Numbers of a composition, from the elements alone.

    ``present`` are their atomic numbers, ``shares`` (119,) their shares among the
    atoms, ``numbers`` the six numbers of `HOST` from "elements" to "largest_number".
    """

    present: list[int]
    shares: np.ndarray
    numbers: tuple[float, ...]


@lru_cache(maxsize=8)
def _composition(numbers: bytes) -> Composition:
    """Describe atomic numbers, given as 64-bit integers; in a run they are constant."""
    atoms = np.frombuffer(numbers, dtype=np.int64)
    share = np.bincount(atoms, minlength=ELEMENTS) / len(atoms)
    present = share.nonzero()[0].tolist()
    shares = share[present].tolist()
    centre = sum(x * z for x, z in zip(shares, present, strict=True))
    second = sum(x * z**2 for x, z in zip(shares, present, strict=True))
    described = (
        len(present),
        -sum(x * math.log(x) for x in shares),
        centre,
        math.sqrt(max(0.0, second - centre**2)),
        present[0],
        present[-1],
    )
    return Composition(present, share, described)


DEVICE = (
    "log_mean_distance", "log_largest_distance", "log_mean_rigidity",
    "log_largest_rigidity", "log_smallest_rigidity", "spread_of_atomic_energies",
    "largest_atomic_energy", "smallest_atomic_energy", "log_rigidity_of_mean",
    "log_distance_of_mean", "log_rigidity_of_sum",
)  # fmt: skip
NAMES = HOST + DEVICE
_LOG_ATOMS, _ELEMENTS = HOST.index("log_atoms"), HOST.index("elements")
# Numbers that are assumed to stay monotone in the error outside the labels.
TREND = tuple(
    NAMES.index(name)
    for name in (
        "log_atoms", "log_rms_force", "log_largest_force", "log_median_force",
        "mean_log_force", "log_mean_distance", "log_largest_distance",
        "log_mean_rigidity", "log_largest_rigidity", "log_rigidity_of_mean",
        "log_distance_of_mean", "log_rigidity_of_sum",
    )
)  # fmt: skip
# Of the numbers of the stress: its size, and the size of the pressure.
STRESS_TREND = (len(NAMES), len(NAMES) + 1)
ATOM_NAMES = ("log_force", "log_distance", "log_rigidity", "atomic_energy")
ATOM_TREND = (0, 1, 2)
_LOG_DISTANCE = slice(1, 2)  # of `ATOM_NAMES`
COMPONENTS = 16  # principal components, of pooled and of atomic features


class Described(NamedTuple):
    """Plain numbers of a batch; all standardised but `pooled` and the last three.

    Attributes
    ----------
    numbers : tensor (structures, 24), or (structures, 28) with those of the stress
    pooled : tensor (structures, 2 dim)
        Mean and spread of the features, not standardised again.
    components : tensor (structures, components)
        Principal components of ``pooled``.
    atoms : tensor (atoms, 4)
    atom_features : tensor (atoms, components)
        Principal components of the features.
    distance : tensor (structures,)
        The largest squared Mahalanobis distance of an atom (`Statistics.distances`).
    mean_log_distance : tensor (structures,)
        Mean over the atoms of the logarithm of these squared distances.
    elements : tensor (structures,)
        Number of elements.
    """

    numbers: torch.Tensor
    pooled: torch.Tensor
    components: torch.Tensor
    atoms: torch.Tensor
    atom_features: torch.Tensor
    distance: torch.Tensor
    mean_log_distance: torch.Tensor
    elements: torch.Tensor


class Raw(NamedTuple):
    """As `Described`, before standardisation and without principal components."""

    numbers: torch.Tensor
    atoms: torch.Tensor
    pooled: torch.Tensor
    distance: torch.Tensor
    mean_log_distance: torch.Tensor


class PlainNumbers(nn.Module):
    """Computes the plain numbers, with statistics fitted to labelled structures.

    The rigidity of an atom is ``xᵀ C⁻¹ x / dim`` of its standardised features x, where
    C is their second moment over the labels: inverse local prediction rigidity (Bigi
    et al. 2024, doi:10.1088/2632-2153/ad805f). `uqcalc.PredictionRigidity` differs: its
    C is the second moment of features that are summed over the atoms of a structure,
    and it gives ``alpha² xᵀ C⁻¹ x`` in eV², not divided by dim. Here the number is an
    input of the kernel paths, which learn its scale. Atomic energies are the part of
    the predicted energy that is linear in the features; they need no second pass.
    """

    rigidity: torch.Tensor
    energy_weights: torch.Tensor
    element_counts: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    atom_mean: torch.Tensor
    atom_scale: torch.Tensor
    pooled_mean: torch.Tensor
    pooled_basis: torch.Tensor
    atom_basis: torch.Tensor

    def __init__(
        self, features: int, components: int = COMPONENTS, *, stress: bool = False
    ) -> None:
        super().__init__()
        self.components = components
        self.stress = stress
        count = len(NAMES) + (len(OF_STRESS) if stress else 0)
        # as for `uqcalc.probe.inputs.log_count`; the probe sets it
        self.of_cells: float | None = None
        self._counts: np.ndarray | None = None
        for name, shape in (
            ("rigidity", (features, features)),
            ("energy_weights", (features,)),
            ("element_counts", (119,)),
            ("mean", (count,)),
            ("scale", (count,)),
            ("atom_mean", (len(ATOM_NAMES),)),
            ("atom_scale", (len(ATOM_NAMES),)),
            ("pooled_mean", (2 * features,)),
            ("pooled_basis", (2 * features, components)),
            ("atom_basis", (features, components)),
        ):
            self.register_buffer(name, torch.zeros(shape))

    def host(
        self, predictions: Sequence[Prediction], atom_energies: np.ndarray
    ) -> FromHost:
        """Return the numbers that need no features.

        ``atom_energies`` (119,) in eV are subtracted from the energy.
        """
        if self._counts is None:  # keep a copy on the host: every step needs it
            self._counts = self.element_counts.cpu().numpy()
        return from_host(
            predictions,
            atom_energies,
            self._counts,
            self.mean.device,
            self.of_cells,
            stress=self.stress,
        )

    def forward(
        self,
        host: FromHost,
        standard: torch.Tensor,
        distances: torch.Tensor,
        statistics: Statistics,
    ) -> Described:
        """Describe a ragged batch.

        Parameters
        ----------
        host : FromHost
            From `host`.
        standard : tensor (atoms, dim)
            Standardised features.
        distances : tensor (atoms,)
            From `Statistics.distances`.
        statistics : Statistics
        """
        raw = self.raw(host, standard, distances, statistics)
        return Described(
            standardised(raw.numbers, self.mean, self.scale),
            raw.pooled,
            ((raw.pooled - self.pooled_mean) @ self.pooled_basis).clamp(-LIMIT, LIMIT),
            standardised(raw.atoms, self.atom_mean, self.atom_scale),
            (standard @ self.atom_basis).clamp(-LIMIT, LIMIT),
            raw.distance,
            raw.mean_log_distance,
            host.numbers[:, _ELEMENTS],
        )

    def raw(
        self,
        host: FromHost,
        standard: torch.Tensor,
        distances: torch.Tensor,
        statistics: Statistics,
    ) -> Raw:
        """Return the numbers before standardisation; arguments as for `forward`."""
        ragged = Ragged(host.sizes, standard.device)
        rigidity = squared_distances(standard, self.rigidity)
        energies = standard @ self.energy_weights
        unusual = torch.stack([distances, rigidity], dim=1)
        atoms = torch.cat(
            [host.log_forces[:, None], (unusual + 1e-6).log(), energies[:, None]], dim=1
        )
        mean = ragged.mean(standard)
        spread = (ragged.mean(standard.square()) - mean.square()).clamp(min=0.0).sqrt()
        centre = mean - host.shares @ statistics.element_mean
        squares = [
            squared_distances(mean, self.rigidity),
            squared_distances(centre, statistics.whitening),
        ]
        whole = (torch.stack(squares, dim=1) + 1e-9).log()
        of_sum = whole[:, :1] + 2 * host.numbers[:, _LOG_ATOMS, None]
        ends, largest = _ends(ragged, unusual, energies)
        return Raw(
            torch.cat([host.numbers, ends, whole, of_sum, host.of_stress], dim=1),
            atoms,
            torch.cat([mean, spread], dim=1),
            largest,
            ragged.mean(atoms[:, _LOG_DISTANCE])[:, 0],
        )

    def set_counts(self, counts: torch.Tensor) -> None:
        """Set the number of atoms of each element in the labels, (119,)."""
        self.element_counts.copy_(counts)
        self._counts = None


def _ends(
    ragged: Ragged, unusual: torch.Tensor, energies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and extremes over atoms, and the largest distance without log."""
    per_atom = torch.cat(
        [unusual, energies[:, None], energies.square()[:, None]], dim=1
    )
    means, tops, lows = (
        ragged.mean(per_atom),
        ragged.max(per_atom),
        ragged.min(per_atom),
    )
    variance = (means[:, 3:] - means[:, 2:3].square()).clamp(min=0.0)
    distance, rigidity = slice(0, 1), slice(1, 2)
    positive = [
        means[:, distance],
        tops[:, distance],
        means[:, rigidity],
        tops[:, rigidity],
        lows[:, rigidity],
    ]
    ends = [
        (torch.cat(positive, dim=1) + 1e-6).log(),
        variance.sqrt(),
        tops[:, 2:3],
        lows[:, 2:3],
    ]
    return torch.cat(ends, dim=1), tops[:, 0]
