"""Corrections from labels of one system that were added to a probe, the prior.

Let l be the log-odds of the prior at some boundary. Inside the scope of the added
labels the log-odds are g(l + d(x)). The map g is increasing (`Calibration.system`), and
the correction d is a kernel machine on the numbers and principal components of the
prior (`KernelPaths.local`), plus a part that is linear in mean and spread of the
features (`LinearPath`). For atoms d has the first part only. The probability of the
added labels has the weight w, that of the prior the weight 1 - w:

    w = 1 - log(novelty) / log(4), from 0 to 1

The novelty is that of the scope of the added labels. So w is 1 inside this scope and 0
from four times its limits on: there the prior judges alone, as before. Structures with
elements that the labels of the prior lack have a prior probability of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from uqcalc.probe.inputs import Ragged, Statistics
from uqcalc.probe.numbers import Described
from uqcalc.probe.regressions import KernelPaths, LinearPath
from uqcalc.probe.scope import FAR, Scope
from uqcalc.probe.stacked import StackedShape


class AddedOutput(NamedTuple):
    """Output of the added labels for a ragged batch.

    Attributes
    ----------
    correction : tensor (structures,)
        d, added to the log-odds of the prior.
    atom_correction : tensor (atoms,) or None
        The same for single atoms.
    novelty : tensor (structures,)
        Distance from the added labels, in units of their limits.
    weight, atom_weight : tensors (structures,), (atoms,)
        w of each structure; of each atom, from its own distance only.
    foreign, atom_foreign : boolean tensors (structures,), (atoms,)
        Whether an element is not in the labels of the prior.
    """

    correction: torch.Tensor
    atom_correction: torch.Tensor | None
    novelty: torch.Tensor
    weight: torch.Tensor
    atom_weight: torch.Tensor
    foreign: torch.Tensor
    atom_foreign: torch.Tensor


class AddedPaths(nn.Module):
    """Kernel machines and feature statistics of the added labels.

    Parameters
    ----------
    shape : StackedShape
        That of the prior, with the centres of the added labels.
    components : int
        Principal components of the prior.
    """

    counts: torch.Tensor
    prior_counts: torch.Tensor

    def __init__(self, shape: StackedShape, components: int) -> None:
        super().__init__()
        self.statistics = Statistics(shape.features)
        self.structure = KernelPaths(shape.kernel(components))
        self.linear = LinearPath(2 * shape.features)
        self.atoms: KernelPaths | None = None
        if shape.atom_centres:
            self.atoms = KernelPaths(shape.atom_kernel(components))
        # atoms of each element, in the added labels and in those of the prior
        self.register_buffer("counts", torch.zeros(119))
        self.register_buffer("prior_counts", torch.zeros(119))

    def forward(
        self,
        described: Described,
        features: torch.Tensor,
        numbers: torch.Tensor,
        sizes: Sequence[int],
        scope: Scope,
    ) -> AddedOutput:
        """Return the corrections and their weights.

        Parameters
        ----------
        described : Described
            Numbers of the prior.
        features : tensor (atoms, dim)
            As the backbone gives them.
        numbers : integer tensor (atoms,)
        sizes : sequence of int
            Atoms of each structure.
        scope : Scope
            Of the added labels.
        """
        own = self.statistics
        distances = own.distances(own.features(features), numbers)
        distances = distances.masked_fill(self.counts[numbers] < 1, torch.inf)
        ragged = Ragged(sizes, features.device)
        logs = ragged.mean((distances + 1e-6).log()[:, None])[:, 0]
        largest = ragged.max(distances[:, None])[:, 0]
        novelty = scope.novelty(largest, logs, described.elements)
        foreign = self.prior_counts[numbers] < 1
        of_atoms = None
        if self.atoms is not None:
            of_atoms = self.atoms.local(described.atoms, described.atom_features)
        return AddedOutput(
            self.structure.local(described.numbers, described.components)
            + self.linear(described.pooled),
            of_atoms,
            novelty,
            _weight(novelty),
            _weight(distances / scope.distance),
            ragged.max(foreign.to(features.dtype)[:, None])[:, 0] > 0,
            foreign,
        )


def mixed(
    prior: torch.Tensor,
    added: torch.Tensor,
    weight: torch.Tensor,
    foreign: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted mean of two probabilities; NaN stays NaN."""
    prior = prior.masked_fill(foreign, 0.0)
    return weight * added + (1 - weight) * prior


def _weight(novelty: torch.Tensor) -> torch.Tensor:
    return (1 - novelty.log() / math.log(FAR)).clamp(0.0, 1.0)
