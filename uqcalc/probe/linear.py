"""The linear path: a ridge regression of the error's rank on pooled features."""

from __future__ import annotations

from typing import Self, final

import torch
from torch import nn


_PENALTY = 1.0  # of the slopes of standardised features, per feature
LIMIT = 6.0  # standard deviations; beyond it more is not more informative


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
        """Return the expected rank from -½ to ½, (rows,), from (rows, width)."""
        standard = standardised(pooled, self.centre, self.scale)
        return standard @ self.slope[:-1] + self.slope[-1]

    @classmethod
    @torch.no_grad()
    def fit(cls, pooled: torch.Tensor, errors: torch.Tensor) -> Self:
        """Fit to errors (rows,), of which only the ranks matter."""
        path = cls(pooled.shape[1]).double()
        rows = pooled.double()
        spread = rows.std(dim=0)
        constant = spread <= 1e-6 * spread.max()
        path.centre.copy_(rows.mean(dim=0))
        path.scale.copy_(spread.masked_fill(constant, 1.0))
        standard = standardised(rows, path.centre, path.scale)
        path.slope.copy_(ridge(standard, ranks(errors), _PENALTY * rows.shape[1]))
        return path.float()


def standardised(
    rows: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return rows in standard deviations, none beyond `LIMIT`; no number stays none."""
    standard = (rows - mean) / scale
    # inf - inf is NaN: what overflowed must not come back into range by the clamp
    return standard.clamp(-LIMIT, LIMIT) + (standard - standard)


def ranks(errors: torch.Tensor) -> torch.Tensor:
    """Return ranks scaled to -½ ... ½; the same errors get the same one, on average."""
    _, inverse, counts = errors.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    middle: torch.Tensor = last - counts.double() / 2
    scaled: torch.Tensor = middle[inverse] / len(errors) - 0.5
    return scaled


def ridge(rows: torch.Tensor, values: torch.Tensor, penalty: float) -> torch.Tensor:
    """Return slopes and the intercept, which is not penalised, (width + 1,)."""
    centre, level = rows.mean(dim=0), values.mean()
    centred = rows - centre
    gram = centred.T @ centred + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    slopes = torch.linalg.solve(gram, centred.T @ (values - level))
    return torch.cat([slopes, (level - centre @ slopes)[None]])
