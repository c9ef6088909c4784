"""Plain numbers of structures and atoms: what the kernel paths of a probe read.

Atom count, predicted forces, composition, how unusual the features are and how the
energy is spread over the atoms say more about errors than the embedding does where
labels are few (`benchmarks/README.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from uqcalc.backbones.prediction import Prediction
from uqcalc.probe.hostnumbers import FLOOR, HOST, host_numbers
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.ragged import Ragged
from uqcalc.probe.regression import LIMIT, standardised


DEVICE = (
    "log_mean_distance", "log_largest_distance", "log_mean_rigidity",
    "log_largest_rigidity", "log_smallest_rigidity", "spread_of_atomic_energies",
    "largest_atomic_energy", "smallest_atomic_energy", "log_rigidity_of_mean",
    "log_distance_of_mean", "log_rigidity_of_sum",
)  # fmt: skip
NAMES = HOST + DEVICE
# Those whose relation to the error keeps its direction outside the labels.
TREND = tuple(
    NAMES.index(name)
    for name in (
        "log_atoms", "log_rms_force", "log_largest_force", "log_median_force",
        "mean_log_force", "log_mean_distance", "log_largest_distance",
        "log_mean_rigidity", "log_largest_rigidity", "log_rigidity_of_mean",
        "log_distance_of_mean", "log_rigidity_of_sum",
    )
)  # fmt: skip
ATOM_NAMES = ("log_force", "log_distance", "log_rigidity", "atomic_energy")
ATOM_TREND = (0, 1, 2)
COMPONENTS = 16  # of the pooled features, and of those of single atoms


class Described(NamedTuple):
    """A batch in plain numbers, standardised but for `pooled` and `distance`.

    Attributes
    ----------
    numbers : tensor (structures, 24)
    pooled : tensor (structures, 2 dim)
        Mean and spread of the features, as they are.
    components : tensor (structures, components)
        Principal components of these.
    atoms : tensor (atoms, 4)
    atom_features : tensor (atoms, components)
        Principal components of the features.
    distance : tensor (structures,)
        The largest Mahalanobis distance of an atom, as it is (`Statistics.distances`).
    """

    numbers: torch.Tensor
    pooled: torch.Tensor
    components: torch.Tensor
    atoms: torch.Tensor
    atom_features: torch.Tensor
    distance: torch.Tensor


class Raw(NamedTuple):
    """Numbers (structures, 24), (atoms, 4), pooled features (structures, 2 dim)."""

    numbers: torch.Tensor
    atoms: torch.Tensor
    pooled: torch.Tensor
    distance: torch.Tensor


class PlainNumbers(nn.Module):
    """Computes them, with what `fitting.learning` learnt of labelled structures.

    The rigidity of an atom is ``xᵀ C⁻¹ x`` per dimension of its standardised features x
    with their second moment C over the labels: local prediction rigidity, inverted
    (Bigi et al. 2024, doi:10.1088/2632-2153/ad805f). Atomic energies are the part of
    the predicted energy that is linear in the features, which needs no second pass.
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

    def __init__(self, features: int, components: int = COMPONENTS) -> None:
        super().__init__()
        self.components = components
        self._counts: np.ndarray | None = None
        for name, shape in (
            ("rigidity", (features, features)),
            ("energy_weights", (features,)),
            ("element_counts", (119,)),
            ("mean", (len(NAMES),)),
            ("scale", (len(NAMES),)),
            ("atom_mean", (len(ATOM_NAMES),)),
            ("atom_scale", (len(ATOM_NAMES),)),
            ("pooled_mean", (2 * features,)),
            ("pooled_basis", (2 * features, components)),
            ("atom_basis", (features, components)),
        ):
            self.register_buffer(name, torch.zeros(shape))

    def forward(
        self,
        predictions: Sequence[Prediction],
        standard: torch.Tensor,
        distances: torch.Tensor,
        statistics: Statistics,
        atom_energies: np.ndarray,
    ) -> Described:
        """Describe a ragged batch.

        Parameters
        ----------
        predictions : sequence of Prediction
        standard : tensor (atoms, dim)
            Standardised features.
        distances : tensor (atoms,)
            Of `Statistics.distances`.
        atom_energies : array (119,)
            eV that are taken off the predicted energy.
        """
        raw = self.raw(predictions, standard, distances, statistics, atom_energies)
        return Described(
            standardised(raw.numbers, self.mean, self.scale),
            raw.pooled,
            ((raw.pooled - self.pooled_mean) @ self.pooled_basis).clamp(-LIMIT, LIMIT),
            standardised(raw.atoms, self.atom_mean, self.atom_scale),
            (standard @ self.atom_basis).clamp(-LIMIT, LIMIT),
            raw.distance,
        )

    def raw(
        self,
        predictions: Sequence[Prediction],
        standard: torch.Tensor,
        distances: torch.Tensor,
        statistics: Statistics,
        atom_energies: np.ndarray,
    ) -> Raw:
        """Return the same before it is standardised; arguments as of `forward`."""
        device = standard.device
        ragged = Ragged([len(p.numbers) for p in predictions], device)
        norms = [_norms(p.forces) for p in predictions]
        host = [
            host_numbers(p, f, atom_energies, self._known_counts())
            for p, f in zip(predictions, norms, strict=True)
        ]
        before = _on(device, np.stack(host))
        rigidity = (standard @ self.rigidity).square().mean(dim=1)
        energies = standard @ self.energy_weights
        logs = np.log(np.concatenate(norms) + FLOOR).astype(np.float32)
        atoms = torch.stack(
            [
                _on(device, logs),
                (distances + 1e-6).log(),
                (rigidity + 1e-6).log(),
                energies,
            ],
            dim=1,
        )
        mean = ragged.mean(standard)
        spread = (ragged.mean(standard.square()) - mean.square()).clamp(min=0.0).sqrt()
        whole = ((mean @ self.rigidity).square().mean(dim=1) + 1e-9).log()
        centre = mean - self._expected(predictions, statistics, device)
        away = ((centre @ statistics.whitening).square().mean(dim=1) + 1e-9).log()
        together = [whole, away, whole + 2 * before[:, HOST.index("log_atoms")]]
        ends, largest = _ends(ragged, distances, rigidity, energies)
        return Raw(
            torch.cat([before, torch.stack(ends + together, dim=1)], dim=1),
            atoms,
            torch.cat([mean, spread], dim=1),
            largest,
        )

    def set_counts(self, counts: torch.Tensor) -> None:
        """Take how many atoms of each element, (119,), the labels hold."""
        self.element_counts.copy_(counts)
        self._counts = None

    def _known_counts(self) -> np.ndarray:
        if self._counts is None:  # on the host, where it is needed at every step
            self._counts = self.element_counts.cpu().numpy()
        return self._counts

    def _expected(
        self,
        predictions: Sequence[Prediction],
        statistics: Statistics,
        device: torch.device,
    ) -> torch.Tensor:
        """Return the mean features that the composition alone lets one expect."""
        shares = np.stack(
            [
                np.bincount(p.numbers, minlength=119) / len(p.numbers)
                for p in predictions
            ]
        )
        return _on(device, shares.astype(np.float32)) @ statistics.element_mean


def _ends(
    ragged: Ragged,
    distances: torch.Tensor,
    rigidity: torch.Tensor,
    energies: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return means and extremes over atoms, and the largest distance as it is."""
    per_atom = torch.stack([distances, rigidity, energies, energies.square()], dim=1)
    means, tops, lows = (
        ragged.mean(per_atom),
        ragged.max(per_atom),
        ragged.min(per_atom),
    )
    variance = (means[:, 3] - means[:, 2].square()).clamp(min=0.0)
    ends = [
        (means[:, 0] + 1e-6).log(),
        (tops[:, 0] + 1e-6).log(),
        (means[:, 1] + 1e-6).log(),
        (tops[:, 1] + 1e-6).log(),
        (lows[:, 1] + 1e-6).log(),
        variance.sqrt(),
        tops[:, 2],
        lows[:, 2],
    ]
    return ends, tops[:, 0]


def _norms(forces: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", forces, forces)))


def _on(device: torch.device, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=device.type == "cuda")
