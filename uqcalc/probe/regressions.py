"""The regressions of a probe: the linear path, the trend and the local path.

All of them are ridge regressions of the rank of the error; ranks limit the effect of
outliers. Inputs of the linear path are the mean and the spread of the features. The
trend is the mean of a linear model and a wide kernel machine, both on the numbers that
are assumed to stay monotone in the error. The local path has a narrow Laplacian kernel
on all numbers and on the principal components of the features, and is fitted to the
residuals of the trend. It fades with the distance from the labels; far outside, only
the trend remains.

With more labels than centres the kernel machines use the subset-of-regressors
approximation, whose cost is linear in the labels (Rudi et al. 2017, arXiv:1705.10958).
Laplacian kernels are as good as trees on such inputs (Radhakrishnan et al. 2024,
doi:10.1126/science.adi5639) and need far less space in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import nn


LIMIT = 6.0  # standard deviations: larger values are far from the labels
_PENALTY = 1.0  # ridge penalty per standardised feature
# A spread below this share of the largest spread is rounding: the feature is constant.
_CONSTANT = 1e-4
_ROWS = 4096  # rows of the kernel matrix held at once


def standardised(
    rows: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return rows in standard deviations, compressed by asinh far from the mean.

    Labels of one crystal have a small spread, and all of its melt is far away. Clipping
    would map the whole melt to one value; asinh compresses but keeps the order. NaN
    stays NaN, infinity becomes NaN.
    """
    standard = (rows - mean) / scale
    # inf - inf is NaN: an overflow must not become a large finite number
    return LIMIT * (standard / LIMIT).asinh() + (standard - standard)


def ranks(errors: torch.Tensor) -> torch.Tensor:
    """Return ranks of the errors, scaled to -½ ... ½; ties get their mean rank."""
    _, inverse, counts = errors.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    middle: torch.Tensor = last - counts.double() / 2
    scaled: torch.Tensor = middle[inverse] / len(errors) - 0.5
    return scaled


def ridge(rows: torch.Tensor, values: torch.Tensor, penalty: float) -> torch.Tensor:
    """Return slopes and intercept, (width + 1,); the intercept has no penalty."""
    centre, level = rows.mean(dim=0), values.mean()
    centred = rows - centre
    gram = centred.T @ centred + penalty * torch.eye(rows.shape[1], dtype=rows.dtype)
    slopes = torch.linalg.solve(gram, centred.T @ (values - level))
    return torch.cat([slopes, (level - centre @ slopes)[None]])


@final
class LinearPath(nn.Module):
    """Expected rank of the error, linear in mean and spread of the features.

    If errors depend on the kind of molecule or grow along a direction of the features,
    few labels suffice, and the path extrapolates (`benchmarks/README.md`).
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

        Ranks of labels lie from -½ to ½; the output can lie outside.
        """
        standard = standardised(pooled, self.centre, self.scale)
        return standard @ self.slope[:-1] + self.slope[-1]

    @classmethod
    @torch.no_grad()
    def fit(cls, pooled: torch.Tensor, errors: torch.Tensor) -> Self:
        """Fit to the ranks of errors (rows,)."""
        path = cls(pooled.shape[1]).double()
        rows = pooled.double()
        spread = rows.std(dim=0)
        constant = spread <= _CONSTANT * spread.max()
        path.centre.copy_(rows.mean(dim=0))
        path.scale.copy_(spread.masked_fill(constant, 1.0))
        standard = standardised(rows, path.centre, path.scale)
        path.slope.copy_(ridge(standard, ranks(errors), _PENALTY * rows.shape[1]))
        return path.float()


@dataclass(frozen=True, slots=True)
class KernelShape:
    """Sizes and fixed constants of `KernelPaths`.

    Attributes
    ----------
    numbers, features : int
        Width of the two inputs.
    centres : int
        Number of labelled points that are kernel centres.
    trend : tuple of int
        Columns of the numbers that are inputs of the trend.
    trend_width, local_width, feature_width : float
        Kernel widths of the trend, of the local path on the numbers, and of the local
        path on the features; mean absolute difference, in standard deviations.
    ridge, trend_ridge, local_ridge : float
    """

    numbers: int
    features: int
    centres: int
    trend: tuple[int, ...]
    trend_width: float = 4.0
    local_width: float = 0.25
    feature_width: float = 0.5
    ridge: float = 10.0
    trend_ridge: float = 1.0
    local_ridge: float = 0.5


class KernelPaths(nn.Module):
    """Trend and local path: error rank from plain numbers and principal components."""

    slope: torch.Tensor
    centres: torch.Tensor
    near: torch.Tensor
    wide_weights: torch.Tensor
    narrow_weights: torch.Tensor

    def __init__(self, shape: KernelShape) -> None:
        super().__init__()
        self.shape = shape
        self._columns: torch.Tensor | None = None
        self._trend_centres: torch.Tensor | None = None
        for name, size in (
            ("slope", (len(shape.trend) + 1,)),
            ("centres", (shape.centres, shape.numbers)),
            ("near", (shape.centres, shape.features)),
            ("wide_weights", (shape.centres,)),
            ("narrow_weights", (shape.centres,)),
        ):
            self.register_buffer(name, torch.zeros(size))

    def forward(
        self, numbers: torch.Tensor, features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (trend, local), each (rows,): expected rank of the error from -½ to ½.

        Parameters
        ----------
        numbers : tensor (rows, numbers)
        features : tensor (rows, features)
        """
        if len(numbers) > _ROWS:  # the whole kernel matrix would need too much memory
            pairs = zip(numbers.split(_ROWS), features.split(_ROWS), strict=True)
            pieces = [torch.stack(self(*pair)) for pair in pairs]
            trend, local = torch.cat(pieces, dim=1)
            return trend, local
        some = self._trend(numbers)
        slopes = self.slope[:-1]
        against = some @ slopes.clamp(min=0.0)
        # a large value lowers the expected error only up to the limit of the labels
        favour = some.clamp(max=LIMIT) @ slopes.clamp(max=0.0)
        linear = against + favour + self.slope[-1]
        wide = self._trend_kernel(some) @ self.wide_weights
        return (linear + wide) / 2, self.local(numbers, features)

    def local(self, numbers: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Return the output of the local path alone, (rows,)."""
        return self.local_kernel(numbers, features) @ self.narrow_weights

    def _trend(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the columns of the trend, at least -`LIMIT` standard deviations.

        Values far below the labels must not raise the trust.
        """
        if self._columns is None:  # on the device: a list would be copied at every step
            with torch.inference_mode(mode=False):
                device = self.centres.device
                self._columns = torch.tensor(self.shape.trend, device=device)
        return numbers.index_select(1, self._columns).clamp(min=-LIMIT)

    def _trend_kernel(self, some: torch.Tensor) -> torch.Tensor:
        if self._trend_centres is None:  # kept: indexing costs as much as the distances
            with torch.inference_mode(mode=False):
                self._trend_centres = self._trend(self.centres)
        width = self.shape.trend_width * len(self.shape.trend)
        return _laplacian(some, self._trend_centres, width)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> KernelPaths:  # noqa: FBT001, FBT002  (torch's signature)
        self._columns = self._trend_centres = None  # moved or cast: index them again
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def local_kernel(
        self, numbers: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        """Return the kernel of the local path, (rows, centres)."""
        shape = self.shape
        close = _laplacian(numbers, self.centres, shape.local_width * shape.numbers)
        alike = _laplacian(features, self.near, shape.feature_width * shape.features)
        return alike.add_(1).mul_(close)

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        shape: KernelShape,
        numbers: torch.Tensor,
        features: torch.Tensor,
        errors: torch.Tensor,
        seed: int,
    ) -> KernelPaths:
        """Fit both paths to the ranks of errors (rows,)."""
        rows = len(numbers)
        generator = torch.Generator().manual_seed(seed)
        chosen = (
            torch.randperm(rows, generator=generator)[: shape.centres].sort().values
        )
        paths = cls(shape).double()
        numbers, features = numbers.double(), features.double()
        paths.centres.copy_(numbers[chosen])
        paths.near.copy_(features[chosen])
        rank = ranks(errors)
        some = paths._trend(numbers)
        paths.slope.copy_(ridge(some, rank, shape.ridge))
        smooth = _machine(paths._trend_kernel, [some], chosen, rank, shape.trend_ridge)
        paths.wide_weights.copy_(smooth)
        paths.narrow_weights.zero_()
        rest = rank - paths(numbers, features)[0]
        local = _machine(
            paths.local_kernel, [numbers, features], chosen, rest, shape.local_ridge
        )
        paths.narrow_weights.copy_(local)
        return paths.float()


def _laplacian(left: torch.Tensor, right: torch.Tensor, width: float) -> torch.Tensor:
    return torch.cdist(left, right, p=1.0).div_(-width).exp_()


def _machine(
    kernel: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    chosen: torch.Tensor,
    values: torch.Tensor,
    penalty: float,
) -> torch.Tensor:
    """Return the weights of kernel ridge regression; kernel rows come in blocks."""
    between = kernel(*(part[chosen] for part in inputs))
    unit = torch.eye(len(chosen), dtype=between.dtype)
    if len(chosen) == len(values):
        return _solve(between + penalty * unit, values)
    gram, right = penalty * between, torch.zeros_like(between[0])
    for start in range(0, len(values), _ROWS):
        rows = kernel(*(part[start : start + _ROWS] for part in inputs))
        gram += rows.T @ rows
        right += rows.T @ values[start : start + _ROWS]
    gram += 1e-8 * gram.diagonal().mean() * unit
    return _solve(gram, right)


def _solve(matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Solve a linear system with a positive definite matrix."""
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(values[:, None], factor)[:, 0]
