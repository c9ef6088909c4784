"""The default probe: weighted sum of attention, linear, trend and local paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from uqcalc.errors import ProbeError
from uqcalc.files.entries import checked
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.network import check_sizes
from uqcalc.probe.numbers import (
    ATOM_NAMES,
    ATOM_TREND,
    NAMES,
    OF_STRESS,
    STRESS_TREND,
    TREND,
    Described,
    FromHost,
    PlainNumbers,
)
from uqcalc.probe.regressions import KernelPaths, KernelShape, LinearPath


PATHS = ("attention", "linear", "trend", "local")
_TREND = PATHS.index("trend")
# Log-odds subtracted for each e-fold of the squared distance beyond the distances of
# held-out labels. No label shows how errors grow there; that they grow is an
# assumption (`benchmarks/README.md` compares other values).
REMOTE = 2.0
CENTRES, ATOM_CENTRES = 4000, 600


class StackedOutput(NamedTuple):
    """Output of all paths for a ragged batch.

    Attributes
    ----------
    parts : tensor (structures, 4)
        Contribution of each of `PATHS` to the score, relative to its mean over the
        labelled structures.
    atoms : tensor (atoms,) or None
        Score of each atom, from its own features and force only.
    distance : tensor (structures,)
        Largest squared Mahalanobis distance of an atom.
    mean_log_distance : tensor (structures,)
        Mean over the atoms of the logarithm of their squared distances.
    elements : tensor (structures,)
        Number of elements.
    beyond : tensor (atoms,) or None
        E-folds of an atom's squared distance beyond the limit; 0 within.
    described : Described or None
        The inputs of the paths.
    log_forces : tensor (atoms,) or None
        Log of the predicted force norms in eV/Å, plus a small floor.
    """

    parts: torch.Tensor
    atoms: torch.Tensor | None
    distance: torch.Tensor
    mean_log_distance: torch.Tensor
    elements: torch.Tensor
    beyond: torch.Tensor | None = None
    described: Described | None = None
    log_forces: torch.Tensor | None = None

    @property
    def score(self) -> torch.Tensor:
        """The sum of the parts, (structures,): larger is more reliable."""
        return self.parts.sum(dim=1)


@dataclass(frozen=True, slots=True)
class StackedShape:
    """Sizes of `StackedPaths`: width of the features, centres of each kernel.

    With ``stress`` the predicted stress is an input (`uqcalc.probe.numbers.OF_STRESS`).
    """

    features: int
    centres: int
    atom_centres: int = 0
    stress: bool = False

    @classmethod
    def from_dict(cls, data: object) -> StackedShape:
        """Rebuild from a card.

        Raises
        ------
        ProbeError
            If an entry is missing, unknown, of another type or not a valid size; the
            message names it.
        """
        what = "paths of a probe"
        shape = cls(**checked(cls, data, what, ProbeError))
        check_sizes({"features": shape.features, "centres": shape.centres}, what)
        check_sizes({"atom_centres": shape.atom_centres}, what, least=0)
        return shape

    def kernel(self, components: int) -> KernelShape:
        """Return the shape of the kernel paths of structures."""
        if not self.stress:
            return KernelShape(len(NAMES), components, self.centres, TREND)
        numbers = len(NAMES) + len(OF_STRESS)
        return KernelShape(numbers, components, self.centres, TREND + STRESS_TREND)

    def atom_kernel(self, components: int) -> KernelShape:
        """Return the shape of the kernel paths of atoms.

        Labels of atoms are many and noisy: the kernel is wider, its ridge larger.
        """
        return KernelShape(
            len(ATOM_NAMES),
            components,
            self.atom_centres,
            ATOM_TREND,
            local_width=0.5,
            local_ridge=3.0,
        )


class StackedPaths(nn.Module):
    """Adds other paths to the attention of a `ProbeNetwork`.

    The score of a structure is a weighted sum of the attention's margin, the linear
    path, the trend and the local path (`uqcalc.probe.regressions`). The weights are not
    negative and were fitted to predictions for left-out groups (stacking; Wolpert 1992,
    doi:10.1016/S0893-6080(05)80023-1).

    Outside the scope, outputs of attention and linear path are arbitrary. There, their
    positive contributions fade with the distance, as the local path does by itself;
    negative contributions stay. Held-out structures set limits on the distance of the
    farthest atom and on the geometric mean of the distances. Beyond either limit the
    trend falls with the distance. Thus the score never rises with the distance far
    outside. Atoms have separate paths, whose inputs are the features and force of
    the atom only; `uqcalc.probe.atomshares` joins them with the structure's error.
    """

    weights: torch.Tensor
    averages: torch.Tensor
    limit: torch.Tensor
    known: torch.Tensor

    def __init__(self, shape: StackedShape) -> None:
        super().__init__()
        self.shape = shape
        self.numbers = PlainNumbers(shape.features, stress=shape.stress)
        components = self.numbers.components
        self.linear = LinearPath(2 * shape.features)
        self.structure = KernelPaths(shape.kernel(components))
        self.atoms: KernelPaths | None = None
        if shape.atom_centres:
            self.atoms = KernelPaths(shape.atom_kernel(components))
        self.register_buffer("weights", torch.ones(len(PATHS)))
        self.register_buffer("averages", torch.zeros(len(PATHS)))
        self.register_buffer("limit", torch.tensor(torch.inf))  # of the distance
        self.register_buffer("known", torch.tensor(torch.inf))  # of its mean log

    def forward(
        self,
        host: FromHost,
        standard: torch.Tensor,
        distances: torch.Tensor,
        statistics: Statistics,
        margin: torch.Tensor,
    ) -> StackedOutput:
        """Join the attention's margin, (structures,), with the other paths."""
        described = self.numbers(host, standard, distances, statistics)
        linear = self.linear(described.pooled)
        trend, local = self.structure(described.numbers, described.components)
        paths = torch.stack([margin, -linear, -trend, -local], dim=1)
        atoms = None
        if self.atoms is not None:
            atoms = -sum(self.atoms(described.atoms, described.atom_features))
        parts = self.join(paths, described.distance, described.mean_log_distance)
        beyond = None if atoms is None else (distances / self.limit).log().clamp(min=0)
        return StackedOutput(
            parts,
            atoms,
            described.distance,
            described.mean_log_distance,
            described.elements,
            beyond,
            described,
            host.log_forces,
        )

    def join(
        self,
        paths: torch.Tensor,
        distance: torch.Tensor,
        mean_log_distance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the contribution of each path to the score, (structures, 4).

        Parameters
        ----------
        paths : tensor (structures, 4)
            Output of each path; larger is more reliable.
        distance, mean_log_distance : tensors (structures,)
            As in `StackedOutput`.
        """
        parts = (paths - self.averages) * self.weights
        away = distance / self.limit
        fading = parts[:, :_TREND]
        fading.sub_(fading.clamp(min=0.0) * (1 - 1 / away.clamp(min=1.0))[:, None])
        beyond = torch.maximum(mean_log_distance - self.known, away.log()).clamp(
            min=0.0
        )
        parts[:, _TREND] -= REMOTE * beyond
        return parts
