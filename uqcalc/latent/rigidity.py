"""Prediction rigidity of a linear last layer, from plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

import torch
from torch import nn


# Of the rigidity, per structure of the fit; ranks change little from 1e-3 to 1.
ZETA2 = 1e-2
# Below this share of the largest scale a feature is always zero.
_CONSTANT = 1e-6


@final
class Rigidity(nn.Module):
    """Variance of a linear last layer: ``alpha^2 f^T (F^T F / n + zeta^2 I)^-1 f``.

    F are the features of the fit's n structures, summed over the atoms of each, f those
    of a structure, or of one atom: the inverse of the prediction rigidity (Bigi et al.
    2024, doi:10.1088/2632-2153/ad805f; n is part of alpha here). Features are scaled to
    a mean square of 1 before, so that ``zeta^2`` means the same for all of them.

    Parameters
    ----------
    tensors : mapping
        "scale" (dim,), "basis" and "eigenvalues" of F^T F / structures, "alpha2" in
        the unit of the errors squared, "zeta2".
    """

    scale: torch.Tensor
    basis: torch.Tensor
    eigenvalues: torch.Tensor
    alpha2: torch.Tensor
    zeta2: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name in ("scale", "basis", "eigenvalues", "alpha2", "zeta2"):
            self.register_buffer(name, tensors[name])

    @classmethod
    def fit(cls, gram: torch.Tensor, structures: int, zeta2: float = ZETA2) -> Self:
        """Fit to ``gram`` = F^T F, (dim, dim), of so many structures."""
        mean = gram.detach().cpu().double() / structures
        scale = mean.diagonal().sqrt()
        scale = torch.where(scale > _CONSTANT * scale.max(), scale, scale.max())
        values, basis = torch.linalg.eigh(mean / scale / scale[:, None])
        return cls(
            {
                "scale": scale,
                "basis": basis.contiguous(),  # sums then go as they do from a file
                "eigenvalues": values.clamp(min=0),
                "alpha2": torch.tensor(1.0, dtype=torch.float64),
                "zeta2": torch.tensor(zeta2, dtype=torch.float64),
            }
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the variance for each row of (rows, dim), (rows,) float64."""
        squares = (features.double() / self.scale @ self.basis).square()
        shares: torch.Tensor = squares / (self.eigenvalues + self.zeta2)
        return self.alpha2 * shares.sum(dim=-1)

    def scaled(self, alpha: float) -> Self:
        """Return the same with this alpha, in the unit of the errors."""
        state = dict(self.state_dict())
        return type(self)(state | {"alpha2": torch.full_like(self.alpha2, alpha**2)})

    def calibrated(self, sums: torch.Tensor, errors: torch.Tensor) -> Self:
        """Return the same with alpha of maximum likelihood.

        Errors of structures that were not in the fit are taken for Gaussian, of mean
        zero: then ``alpha^2 = mean(error^2 / variance)``.

        Parameters
        ----------
        sums, errors : tensors (structures, dim), (structures,)
        """
        variances = self.scaled(1.0)(sums)
        ratios = errors.double().square() / variances
        return self.scaled(float(ratios.mean().sqrt()))
