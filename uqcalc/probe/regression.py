"""What the regressions of a probe share: standardised inputs, ranks, ridge."""

from __future__ import annotations

import torch


LIMIT = 6.0  # standard deviations: what is beyond is far from the labels


def standardised(
    rows: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return rows in standard deviations, and in their logarithm far from the mean.

    Labels of one crystal are narrow, and all of its melt is far away: a bound would
    make one of it, while the logarithm keeps the order. No number stays none.
    """
    standard = (rows - mean) / scale
    # inf - inf is NaN: what overflowed must not pass for a large number
    return LIMIT * (standard / LIMIT).asinh() + (standard - standard)


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
