"""The linear path: a ridge regression of the error's rank on pooled features."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import nn

from uqcalc.probe.regression import ranks, ridge, standardised


_PENALTY = 1.0  # of the slopes of standardised features, per feature
# Below this share of the largest spread a number is constant but for rounding.
_CONSTANT = 1e-4


@final
class LinearPath(nn.Module):
    """Expected rank of the error from mean and spread of the features, linearly.

    Where errors belong to kinds of molecules, or grow along a direction of the
    features, it finds that with few labels and holds beyond them
    (`benchmarks/README.md`).
    """

    centre: torch.Tensor
    scale: torch.Tensor
    slope: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("slope", torch.zeros(width + 1))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return the expected rank, (rows,), from (rows, width).

        The labels' are from -½ to ½; unlike them it has no bounds.
        """
        standard = standardised(pooled, self.centre, self.scale)
        return standard @ self.slope[:-1] + self.slope[-1]

    @classmethod
    @torch.no_grad()
    def fit(cls, pooled: torch.Tensor, errors: torch.Tensor) -> Self:
        """Fit to errors (rows,), of which only the ranks matter."""
        path = cls(pooled.shape[1]).double()
        rows = pooled.double()
        spread = rows.std(dim=0)
        constant = spread <= _CONSTANT * spread.max()
        path.centre.copy_(rows.mean(dim=0))
        path.scale.copy_(spread.masked_fill(constant, 1.0))
        standard = standardised(rows, path.centre, path.scale)
        path.slope.copy_(ridge(standard, ranks(errors), _PENALTY * rows.shape[1]))
        return path.float()
