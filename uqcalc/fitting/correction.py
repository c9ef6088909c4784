"""Correct the log-odds of a probe on one system, with a penalty on the correction.

With the residual r = l + s(error) of a labelled structure (l: log-odds of the probe, s:
shift of the boundary, `uqcalc.statistics.systems`) the model is

    κ (r + d(x)) + a = ε,    ε ~ logistic(0, 1)

    d(x) = sum_j w_j k(x, x_j),    k(x, y) = local(x, y) + c p(x) · p(y)

===========  ===========================================================================
symbol       meaning
===========  ===========================================================================
κ, a         scale and shift of the log-odds; log κ ~ N(0, 0.5²), as for `uqcalc.adapt`
d            correction in log-odds, with the labels as centres of the kernel k
local        kernel of the local path of the probe (`KernelPaths.local_kernel`)
p            inputs of the linear path of the probe, minus their mean over the labels;
             c gives both parts of k the same variance. Atoms have the local part only.
===========  ===========================================================================

The likelihood uses the size of each error; errors beyond the boundaries that the probe
covers are censored. The penalty λ κ² wᵀ K w / 2 is chosen on left-out runs; it may be
infinite (no correction). Place and width of the residuals of left-out runs then give
the calibration, as in `uqcalc.adapt`: it contains how far runs lie from each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from uqcalc.fitting.crossfit import group_folds
from uqcalc.probe.regressions import KernelPaths
from uqcalc.statistics.systems import KNOTS, Residuals, Spread, learn_runs, posterior


Array = NDArray[np.float64]
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, np.inf)
MOST = 300  # kernel centres
_FOLDS = 5
_WIDTH = 0.5  # standard deviation of log κ
_LEVEL_PENALTY = 1e-4  # keeps the shift finite if all errors are censored
_STEPS, _CLOSE = 100, 1e-8


class Rows(NamedTuple):
    """Labelled structures, or atoms, with inputs and outputs of the prior.

    Attributes
    ----------
    numbers, features : tensors (rows, numbers), (rows, components)
        Inputs of the local path.
    kernel : KernelPaths
        Local path of the prior.
    logits : array (rows,)
        Log-odds of the prior at its boundary.
    found : Residuals
    folds, runs : list of str
        Groups that are left out together, and runs: rows with correlated errors.
    linear : tensor (rows, width) or None
        Standardised inputs of the linear path of the prior; None without a linear part.
    """

    numbers: torch.Tensor
    features: torch.Tensor
    kernel: KernelPaths
    logits: Array
    found: Residuals
    folds: list[str]
    runs: list[str]
    linear: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Correction:
    """A fitted correction.

    Attributes
    ----------
    rows, weights : arrays (centres,)
        Rows that are kernel centres, and their weights.
    slope : array (width + 1,)
        The linear part of d, with an intercept; empty without one.
    knots : tuple of (logit before, logit after)
        Increasing map of the corrected log-odds of the prior (`Calibration.system`).
    left_out : array (rows,)
        Log-odds after the whole correction, from a fit to other runs (``knots`` are
        fitted to all runs).
    scale, penalty : float
        κ, and λ in units of the mean variance of the kernel; may be infinite.
    gain : float
        Log-likelihood for each row that the correction d adds on left-out runs.
    run : float
        Spread over runs in log-odds.
    """

    rows: NDArray[np.int64]
    weights: Array
    slope: Array
    knots: tuple[tuple[float, float], ...]
    left_out: Array
    scale: float
    penalty: float
    gain: float
    run: float


def fit_correction(
    rows: Rows, spread: Spread, seed: int = 0, most: int = MOST
) -> Correction:
    """Fit κ, a and d with ``most`` centres; left-out runs choose the penalty.

    Raises
    ------
    LabelError
        If there is one group only.
    """
    count = len(rows.logits)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    basis, back, tilt = _basis(rows, chosen)
    folds = min(_FOLDS, max(2, len(set(rows.folds))))
    fold = group_folds(rows.folds, folds, seed)
    tried = {}
    for penalty in PENALTIES:
        tried[penalty] = _left_out(basis, rows, fold, penalty)
    best = max(PENALTIES, key=lambda penalty: tried[penalty][0])
    weights, scale, level = _solve(basis, rows.found, best)
    # a residual of a left-out run is a logit, too: its place and width are checked
    unseen = Residuals(tried[best][1], rows.found.side)
    spread = replace(spread, run=learn_runs(unseen, rows.runs, spread))
    learnt = posterior(unseen, rows.runs, spread)
    knots = learnt.logit(scale * KNOTS + level)
    centres = back @ weights / scale
    return Correction(
        chosen,
        centres,
        tilt @ centres,
        tuple(zip(KNOTS.tolist(), knots.tolist(), strict=True)),
        learnt.logit(tried[best][2]),
        scale,
        best,
        (tried[best][0] - tried[np.inf][0]) / count,
        spread.run,
    )


def _basis(rows: Rows, chosen: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Return B (rows, centres), W, and the linear part for weights of the centres.

    B Bᵀ = K and B = K(rows, centres) W. K has the mean variance 1 over the rows. With
    fewer centres than rows it is the approximation of Nyström. The last matrix gives
    slope and intercept, (width + 1, centres).
    """
    centred = KernelPaths(replace(rows.kernel.shape, centres=len(chosen))).double()
    index = torch.from_numpy(chosen)
    centred.centres.copy_(rows.numbers[index])
    centred.near.copy_(rows.features[index])
    kernel = centred.local_kernel(rows.numbers.double(), rows.features.double()).numpy()
    tilt = np.empty((0, len(chosen)))
    if rows.linear is not None:
        linear, tilt = _linear_part(rows.linear.double().numpy(), kernel, chosen)
        kernel = kernel + linear
    between = kernel[chosen]
    ridge = 1e-6 * between.diagonal().mean()
    factor = np.linalg.cholesky(between + ridge * np.eye(len(chosen)))
    back = np.linalg.inv(factor).T
    basis = kernel @ back
    variance = float(((basis - basis.mean(axis=0)) ** 2).sum(axis=1).mean())
    scale = np.sqrt(max(variance, 1e-12))
    return basis / scale, back / scale, tilt


def _linear_part(
    inputs: Array, kernel: Array, chosen: NDArray[np.int64]
) -> tuple[Array, Array]:
    """Return the linear part of the kernel, and slope and intercept of the centres."""
    middle = inputs.mean(axis=0)
    centred = inputs - middle
    between = kernel[chosen]
    variance = between.diagonal().mean() - between.mean()
    share = variance / max(float((centred**2).sum(axis=1).mean()), 1e-12)
    slopes = share * centred[chosen].T
    return centred @ slopes, np.vstack([slopes, -middle @ slopes])


def _left_out(
    basis: Array, rows: Rows, fold: NDArray[np.int64], penalty: float
) -> tuple[float, Array, Array]:
    """Return the log-likelihood of left-out runs, their residuals and log-odds."""
    found, total = rows.found, 0.0
    values, logits = np.empty(len(fold)), np.empty(len(fold))
    for number in range(int(fold.max()) + 1):
        fit, held = fold != number, fold == number
        some = Residuals(found.value[fit], found.side[fit])
        weights, scale, level = _solve(basis[fit], some, penalty)
        moved = level + basis[held] @ weights
        values[held] = scale * found.value[held] + moved
        logits[held] = scale * rows.logits[held] + moved
        loss = _loss(values[held], found.side[held]).sum()
        total -= loss - np.log(scale) * np.count_nonzero(found.side[held] == 0)
    return total, values, logits


def _loss(z: Array, side: NDArray[np.int64]) -> Array:
    """Return minus the log-likelihood of standard logistic residuals, (rows,)."""
    below, above = np.logaddexp(0.0, -z), np.logaddexp(0.0, z)
    return np.where(side == 0, below + above, np.where(side < 0, below, above))


def _solve(
    basis: Array, found: Residuals, penalty: float
) -> tuple[Array, float, float]:
    """Return (κ Bᵀ-weights, κ, a) of the largest penalised likelihood, by Newton.

    The loss is convex in the weights, κ and a but for the prior of log κ; steps are
    halved until the loss falls.
    """
    width = basis.shape[1] if np.isfinite(penalty) else 0
    design = np.column_stack([basis[:, :width], found.value, np.ones(len(basis))])
    ridge = np.append(np.full(width, penalty), [0.0, _LEVEL_PENALTY])
    known = int(np.count_nonzero(found.side == 0))

    def loss(x: Array) -> float:
        if x[width] <= 0:
            return np.inf
        log = np.log(x[width])
        fit = float(_loss(design @ x, found.side).sum()) - known * log
        return float(fit + 0.5 * ridge @ x**2 + 0.5 * (log / _WIDTH) ** 2)

    x = np.zeros(width + 2)
    x[width] = 1.0
    value = loss(x)
    for _ in range(_STEPS):
        step = _step(design, found.side, ridge, x, known)
        length = 1.0
        while not (now := loss(x - length * step)) <= value and length > 1e-9:
            length /= 2
        if not now <= value:
            break
        x = x - length * step
        done, value = value - now < _CLOSE * max(1.0, abs(value)), now
        if done:
            break
    weights = np.zeros(basis.shape[1])
    weights[:width] = x[:width]
    return weights, float(x[width]), float(x[width + 1])


def _step(
    design: Array, side: NDArray[np.int64], ridge: Array, x: Array, known: int
) -> Array:
    """Return Newton's step, (width + 2,)."""
    p = expit(design @ x)
    slope = np.where(side == 0, 2 * p - 1, np.where(side < 0, p - 1, p))
    curve = np.where(side == 0, 2 * p * (1 - p), p * (1 - p))
    gradient = design.T @ slope + ridge * x
    hessian = (design.T * curve) @ design + np.diag(ridge + 1e-9)
    kappa, log = x[-2], np.log(x[-2])
    gradient[-2] += (log / _WIDTH**2 - known) / kappa
    # without the negative part, so that the step goes down
    bend = known + max(0.0, (1 - log) / _WIDTH**2)
    hessian[-2, -2] += bend / kappa**2
    return np.asarray(np.linalg.solve(hessian, gradient))
