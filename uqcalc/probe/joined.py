"""The default probe: attention, a line, a trend and what holds near labels, joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from uqcalc.entries import checked
from uqcalc.errors import ProbeError
from uqcalc.probe.hostnumbers import FromHost
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.kernel import KernelPaths, KernelShape
from uqcalc.probe.linear import LinearPath
from uqcalc.probe.network import check_sizes
from uqcalc.probe.numbers import ATOM_NAMES, ATOM_TREND, NAMES, TREND, PlainNumbers


PATHS = ("attention", "linear", "trend", "local")
_ATTENTION, _TREND = PATHS.index("attention"), PATHS.index("trend")
# What a structure loses of its score for each e-fold of its atoms' squared distances
# beyond those that held-out labels had. No label says how errors grow there; that they
# do is what is assumed (`benchmarks/README.md` has what other values do).
REMOTE = 2.0
CENTRES, ATOM_CENTRES = 4000, 600


class JoinedOutput(NamedTuple):
    """What the paths say of a ragged batch.

    Attributes
    ----------
    parts : tensor (structures, 4)
        What each of `PATHS` adds to the score, beside what it adds to that of the
        average labelled structure.
    atoms : tensor (atoms,) or None
        Score of each atom, from its own surroundings alone.
    distance : tensor (structures,)
        Largest squared Mahalanobis distance of an atom.
    remoteness : tensor (structures,)
        Mean over the atoms of the logarithm of their squared distances.
    """

    parts: torch.Tensor
    atoms: torch.Tensor | None
    distance: torch.Tensor
    remoteness: torch.Tensor

    @property
    def score(self) -> torch.Tensor:
        """The sum of the parts, (structures,): larger is more reliable."""
        return self.parts.sum(dim=1)


@dataclass(frozen=True, slots=True)
class JoinedShape:
    """Sizes of `Joined`: of its features, and how many centres each kernel has."""

    features: int
    centres: int
    atom_centres: int = 0

    @classmethod
    def from_dict(cls, data: object) -> JoinedShape:
        """Rebuild from a card.

        Raises
        ------
        ProbeError
            Naming an entry that is missing, unknown, of another type or no size.
        """
        what = "paths of a probe"
        shape = cls(**checked(cls, data, what, ProbeError))
        check_sizes({"features": shape.features, "centres": shape.centres}, what)
        check_sizes({"atom_centres": shape.atom_centres}, what, least=0)
        return shape

    def kernel(self, components: int) -> KernelShape:
        """Return the shape of the paths of structures."""
        return KernelShape(len(NAMES), components, self.centres, TREND)

    def atom_kernel(self, components: int) -> KernelShape:
        """Return the shape of the paths of atoms; their labels are many and noisy."""
        return KernelShape(
            len(ATOM_NAMES),
            components,
            self.atom_centres,
            ATOM_TREND,
            narrow=0.5,
            narrow_ridge=3.0,
        )


class Joined(nn.Module):
    """Adds other paths to the attention of a `ProbeNetwork`.

    The score of a structure is a weighted sum of the attention's margin, a linear path
    (`uqcalc.probe.linear`), the trend and the local path (`uqcalc.probe.kernel`), with
    weights of one sign that were fitted to predictions for groups left out (stacking;
    Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1). Outside the scope a network's
    answer is arbitrary: there the attention's part fades with the distance, as the
    local path does by itself, and line and trend remain. Where the atoms are, in the
    geometric mean, farther from the labels than those of held-out structures were, the
    trend falls with the distance itself, whatever the labels could show. Atoms have
    paths of their own, which read nothing but the atom: its features, its force.
    """

    weights: torch.Tensor
    averages: torch.Tensor
    limit: torch.Tensor
    known: torch.Tensor

    def __init__(self, shape: JoinedShape) -> None:
        super().__init__()
        self.shape = shape
        self.numbers = PlainNumbers(shape.features)
        components = self.numbers.components
        self.linear = LinearPath(2 * shape.features)
        self.structure = KernelPaths(shape.kernel(components))
        self.atoms: KernelPaths | None = None
        if shape.atom_centres:
            self.atoms = KernelPaths(shape.atom_kernel(components))
        self.register_buffer("weights", torch.ones(len(PATHS)))
        self.register_buffer("averages", torch.zeros(len(PATHS)))
        self.register_buffer("limit", torch.tensor(torch.inf))  # of the distance
        self.register_buffer("known", torch.tensor(torch.inf))  # of the remoteness

    def forward(
        self,
        host: FromHost,
        standard: torch.Tensor,
        distances: torch.Tensor,
        statistics: Statistics,
        margin: torch.Tensor,
    ) -> JoinedOutput:
        """Join the attention's margin, (structures,), with the other paths."""
        described = self.numbers(host, standard, distances, statistics)
        linear = self.linear(described.pooled)
        trend, local = self.structure(described.numbers, described.components)
        paths = torch.stack([margin, -linear, -trend, -local], dim=1)
        atoms = None
        if self.atoms is not None:
            atoms = -sum(self.atoms(described.atoms, described.atom_features))
        parts = (paths - self.averages) * self.weights
        parts[:, _ATTENTION] *= (self.limit / described.distance).clamp(max=1.0)
        beyond = (described.remoteness - self.known).clamp(min=0.0)
        parts[:, _TREND] -= REMOTE * beyond
        return JoinedOutput(parts, atoms, described.distance, described.remoteness)
