"""Monotone map from a score to a probability, at any boundary: Platt or isotonic.

Every card holds a calibration. Torch, scikit-learn and SciPy are imported inside the
functions that need them, so that reading a card does not need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelError, ProbeError
from uqcalc.files.entries import checked
from uqcalc.showing import in_words


if TYPE_CHECKING:
    import torch

# Labels in each step of an isotonic curve, and the smallest number of steps for which
# the curve is tried. Fewer labels or steps would fit noise.
_STEP = 50
_FEWEST_STEPS = 20
_FOLDS = 5
_PERCENTILES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)


@dataclass(frozen=True, slots=True)
class Calibration:
    """P(error <= b) from a score, for any boundary b; it grows with the score.

    At the probe's own boundary the logit is ``slope * score + intercept`` (Platt 1999).
    Isotonic ``knots`` (Zadrozny & Elkan 2002, doi:10.1145/775047.775151) correct it
    where enough held-out labels show that they fit better. Another boundary adds a
    constant to the logit: a proportional-odds model (McCullagh 1980). Thus
    probabilities never decrease when the boundary grows. A NaN score gives NaN.

    Attributes
    ----------
    slope, intercept : float
    knots : tuple of (logit before, logit after)
        Both increase. Linear between the knots, slope 1 outside them.
    boundaries, shifts : tuples of float
        Increasing. The shift is 0 at the probe's own boundary and is interpolated in
        the logarithm of the boundary.
    labels : int
        Number of held-out labels that it was fitted to.
    system : tuple of (logit before, logit after)
        Correction for one system, learnt from its labels (`uqcalc.adapt`); empty
        without one. It is applied last, at every boundary; linear between its knots
        and beyond them.
    """

    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    boundaries: tuple[float, ...] = ()
    shifts: tuple[float, ...] = ()
    labels: int = 0
    system: tuple[tuple[float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Calibration:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            If an entry is missing, unknown or of another type; the message names it.
        """
        return cls(**checked(cls, data, "calibration of a probe", ProbeError))

    def logits(
        self,
        score: torch.Tensor,
        boundary: float | None = None,
        correction: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logit of P(error <= boundary) on the device of ``score``.

        A ``correction`` is added to the logit before the correction for one system.

        Raises
        ------
        ProbeError
            If the boundary lies outside the errors of the labels.
        """
        bent = self.slope * score + self.intercept
        if self.knots:
            bent = interpolate(bent, self.knots)
        if boundary is not None:
            bent = bent + self.shift(boundary)
        if correction is not None:
            bent = bent + correction
        return self.adapted(bent)

    def adapted(self, logits: torch.Tensor) -> torch.Tensor:
        """Return log-odds after the correction for one system, if there is one."""
        return interpolate(logits, self.system) if self.system else logits

    def moved(self, logits: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of P(error <= boundaries) from those at the own boundary.

        Boundaries outside the errors of the labels count as the nearest one inside.

        Parameters
        ----------
        logits : tensor ()
        boundaries : tensor (n,)
        """
        bent = self._unadapted(logits)
        levels = tuple(zip(np.log(self.boundaries).tolist(), self.shifts, strict=True))
        asked = boundaries.log().clamp(levels[0][0], levels[-1][0])
        return self.adapted(bent + interpolate(asked, levels))

    def middle(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the error that is exceeded with P = 1/2, from the own log-odds.

        At most and at least that of the labels' errors that the calibration covers.
        """
        wanted = self._unadapted(logits.new_zeros(())) - self._unadapted(logits)
        levels = self._levels
        return interpolate(wanted.clamp(levels[0][0], levels[-1][0]), levels).exp()

    def log_errors(self, logits: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Return the log of the errors that are not exceeded with given P.

        The inverse of P(error <= b) in log(b); linear in the log-odds beyond the errors
        of the labels.

        Parameters
        ----------
        logits : tensor (structures,)
            At the own boundary.
        levels : tensor (levels,)
            Log-odds of the wanted P.

        Returns
        -------
        tensor (structures, levels)
        """
        wanted = self._unadapted(levels) - self._unadapted(logits)[:, None]
        return interpolate(wanted, _extended(self._levels))

    @property
    def log_variance(self) -> float:
        """Variance of log(error) at a given P: pi²/3 over the squared slope.

        The slope is that of the log-odds against log(error), from odds of 1/e to e.
        """
        shifts, logs = zip(*self._levels, strict=True)
        low, high = np.interp([-1.0, 1.0], shifts, logs)
        return float(np.pi**2 / 3 * ((high - low) / 2) ** 2)

    @property
    def _levels(self) -> tuple[tuple[float, float], ...]:
        """Pairs (shift, log(boundary)), both increasing."""
        shifts, first = np.unique(self.shifts, return_index=True)
        logs = np.log(self.boundaries)[first]
        return tuple(zip(shifts.tolist(), logs.tolist(), strict=True))

    def _unadapted(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the log-odds before `adapted`."""
        if not self.system:
            return logits
        return interpolate(
            logits, tuple((after, before) for before, after in self.system)
        )

    def at(self, boundary: float, unit: str = "") -> Calibration:
        """Return the calibration whose own boundary is ``boundary``, in ``unit``.

        Raises
        ------
        ProbeError
            As in `shift`.
        """
        moved = self.shift(boundary, unit)
        shifts = tuple(shift - moved for shift in self.shifts)
        if not self.knots:
            return replace(self, intercept=self.intercept + moved, shifts=shifts)
        knots = tuple((before, after + moved) for before, after in self.knots)
        return replace(self, knots=knots, shifts=shifts)

    def shift(self, boundary: float, unit: str = "") -> float:
        """Return what a boundary adds to the logit at the probe's own boundary.

        ``unit`` is that of the boundary, for messages.
        """
        if not self.boundaries:
            msg = (
                "boundary must be the one that this probe was fitted for, got "
                f"{in_words(boundary, unit)}; fit the probe again for another boundary"
            )
            raise ProbeError(msg)
        low, high = self.boundaries[0], self.boundaries[-1]
        if not low * (1 - 1e-9) <= boundary <= high * (1 + 1e-9):
            least, most, given = (in_words(x, unit) for x in (low, high, boundary))
            msg = (
                f"boundary must lie between {least} and {most}, the range of "
                f"the errors of the probe's labels, got {given}; choose one "
                "inside, or fit a probe on other labels"
            )
            raise ProbeError(msg)
        return float(np.interp(np.log(boundary), np.log(self.boundaries), self.shifts))

    @classmethod
    def fit(
        cls,
        score: ArrayLike,
        errors: ArrayLike,
        groups: Sequence[str],
        boundary: float,
        slope_factor: float = 1.0,
    ) -> Calibration:
        """Fit to scores of held-out structures.

        Parameters
        ----------
        score, errors : arrays (structures,)
        groups : sequence of str
            Cross-validation of the isotonic curve keeps each group in one fold.
        boundary : float
            Errors up to it are reliable; in the unit of ``errors``.
        slope_factor : float
            Multiplies the slope; the intercept keeps the mean probability unchanged.
            A factor below 1 moves the probabilities towards their mean.

        Raises
        ------
        LabelError
            As in `platt`.
        """
        scores, truth = np.asarray(score, float), np.asarray(errors, float)
        reliable = truth <= boundary
        slope, intercept = platt(scores, reliable)
        if slope_factor != 1.0:
            slope, intercept = _widened(slope, intercept, scores, slope_factor)
        straight = slope * scores + intercept
        knots = _isotonic(straight, reliable, groups)
        bent = straight
        if knots:
            bent = _bent(straight, knots)
        boundaries, shifts = _shifts(bent, truth, boundary)
        return cls(slope, intercept, knots, boundaries, shifts, len(scores))


_FAR = 100.0  # log-odds


@lru_cache(maxsize=64)
def _extended(
    levels: tuple[tuple[float, float], ...],
) -> tuple[tuple[float, float], ...]:
    """Return knots with one more at each end, on the line through the last three.

    A single step at an end may be short and steep.
    """
    if len(levels) < 2:
        msg = "a calibration must be at two boundaries or more, got one"
        raise ValueError(msg)
    (x0, y0), (x1, y1) = levels[0], levels[min(2, len(levels) - 1)]
    (u0, v0), (u1, v1) = levels[max(-3, -len(levels))], levels[-1]
    first = (x0 - _FAR, y0 - _FAR * (y1 - y0) / (x1 - x0))
    last = (u1 + _FAR, v1 + _FAR * (v1 - v0) / (u1 - u0))
    return (first, *levels, last)


def _widened(
    slope: float, intercept: float, scores: NDArray[np.float64], factor: float
) -> tuple[float, float]:
    """Return ``factor`` times the slope, and the intercept that keeps the mean P."""
    from scipy.optimize import brentq
    from scipy.special import expit

    wanted = float(expit(slope * scores + intercept).mean())
    centred = factor * slope * (scores - scores.mean())
    level = brentq(lambda c: expit(centred + c).mean() - wanted, -60.0, 60.0)
    return factor * slope, float(level - factor * slope * scores.mean())


def _shifts(
    logits: NDArray[np.float64], errors: NDArray[np.float64], boundary: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return boundaries, and for each the shift that makes its mean P right."""
    from scipy.optimize import brentq
    from scipy.special import expit

    wanted = np.percentile(errors, _PERCENTILES)
    levels = np.unique([*wanted[wanted > 0], boundary])
    shifts = []
    for level in levels:
        share = (np.sum(errors <= level) + 0.5) / (len(errors) + 1)
        gap = brentq(lambda d, s=share: expit(logits + d).mean() - s, -60.0, 60.0)
        shifts.append(float(gap))
    own = shifts[int(np.searchsorted(levels, boundary))]
    above = np.maximum.accumulate(np.array(shifts) - own)
    return tuple(levels.tolist()), tuple(above.tolist())


def _isotonic(
    logits: NDArray[np.float64], reliable: NDArray[np.bool_], groups: Sequence[str]
) -> tuple[tuple[float, float], ...]:
    """Return knots if they beat the straight line on left-out groups, else ()."""
    if len(logits) < _STEP * _FEWEST_STEPS or len(set(groups)) < _STEP * _FOLDS:
        return ()
    from sklearn.model_selection import GroupKFold

    gain = 0.0
    for fit, judge in GroupKFold(_FOLDS).split(logits, groups=groups):
        bent = _bent(logits[judge], _knots(logits[fit], reliable[fit]))
        truth = reliable[judge]
        gain += float(np.sum(_loss(logits[judge], truth) - _loss(bent, truth)))
    # one unit of log likelihood for each parameter (Akaike's criterion)
    return _knots(logits, reliable) if gain > 2.0 else ()


def _loss(logits: NDArray[np.float64], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.logaddexp(0.0, np.where(truth, -logits, logits))


def _knots(
    logits: NDArray[np.float64], reliable: NDArray[np.bool_]
) -> tuple[tuple[float, float], ...]:
    from scipy.special import logit
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(logits, kind="stable")
    steps = np.array_split(order, len(order) // _STEP)
    before = np.array([logits[step].mean() for step in steps])
    hits = np.array([reliable[step].sum() for step in steps])
    counts = np.array([len(step) for step in steps])
    share = IsotonicRegression().fit_transform(
        before, (hits + 0.5) / (counts + 1), sample_weight=counts
    )
    # a flat step would give different scores the same probability
    after = logit(share) + 1e-3 * (before - before[0])
    keep = np.concatenate([[True], np.diff(before) > 1e-9])
    return tuple(zip(before[keep].tolist(), after[keep].tolist(), strict=True))


@lru_cache(maxsize=64)
def _on(
    knots: tuple[tuple[float, float], ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    with torch.inference_mode(mode=False):
        before, after = torch.tensor(knots, device=device, dtype=dtype).unbind(dim=1)
    return before.contiguous(), after.contiguous()


def interpolate(
    values: torch.Tensor, knots: tuple[tuple[float, float], ...]
) -> torch.Tensor:
    """Return the piecewise linear interpolation of ``knots``; NaN stays NaN."""
    import torch

    before, after = _on(knots, values.device, values.dtype)
    right = torch.searchsorted(before, values.detach()).clamp(1, len(knots) - 1)
    left = right - 1
    slope = (after[right] - after[left]) / (before[right] - before[left])
    inside = values.clamp(before[0], before[-1])
    return after[left] + slope * (inside - before[left]) + (values - inside)


def _bent(
    logits: NDArray[np.float64], knots: tuple[tuple[float, float], ...]
) -> NDArray[np.float64]:
    """Return `interpolate` of an array."""
    import torch

    bent: NDArray[np.float64] = interpolate(torch.from_numpy(logits), knots).numpy()
    return bent


def platt(margin: ArrayLike, reliable: ArrayLike) -> tuple[float, float]:
    """Return (slope, intercept) of Platt's sigmoid on held-out labels.

    Fits ``P(reliable) = sigmoid(slope * margin + intercept)`` by maximum likelihood.
    Platt's targets (N+ + 1)/(N+ + 2) and 1/(N- + 2) replace 1 and 0. They keep the
    slope finite when a few labels are separable (Platt 1999; Lin, Lin & Weng 2007,
    doi:10.1007/s10994-007-5018-6). An intercept is needed because the share of reliable
    structures may differ from the training labels; a temperature cannot correct that.

    Parameters
    ----------
    margin : array (structures,)
        Logit of reliable minus logit of unreliable.
    reliable : boolean array (structures,)

    Raises
    ------
    LabelError
        If only one class is present, or if the slope is not positive.
    """
    margins = np.asarray(margin, dtype=float)
    truth = np.asarray(reliable, dtype=bool)
    if truth.all() or not truth.any():
        msg = (
            "calibration labels must have reliable and unreliable structures, got "
            f"{int(truth.sum())} reliable of {truth.size}; use other frames or "
            "another boundary"
        )
        raise LabelError(msg)
    hits, misses = int(truth.sum()), int((~truth).sum())
    target = np.where(truth, (hits + 1) / (hits + 2), 1 / (misses + 2))
    from sklearn.linear_model import LogisticRegression

    # scikit-learn takes no soft targets: enter each row once per class, with weights
    scale = float(margins.std()) or 1.0
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(
        np.tile(margins / scale, 2)[:, None],
        np.repeat([1, 0], truth.size),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, intercept = float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
    if slope <= 0:
        msg = (
            "the probe must rank held-out structures better than chance, got a "
            f"calibration slope of {slope:.3g}; add labels like the structures that "
            "it will judge"
        )
        raise LabelError(msg)
    return slope, intercept
