"""Limits for signals that are not calibrated: from a run you trust, or from labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from uqcalc.backbones.batching import batches, predict_each
from uqcalc.backbones.prediction import Prediction
from uqcalc.calculator import ReliableCalculator
from uqcalc.errors import LabelError
from uqcalc.policy import Threshold
from uqcalc.probe.labelling.labels import Labels
from uqcalc.progress import progress_bar


FEWEST_OF_A_KIND = 5


@dataclass(frozen=True, slots=True, eq=False)
class ErrorCurve:
    """P(force error > tolerance) as a function of one signal's risk.

    Isotonic regression on labelled frames (Zadrozny & Elkan 2002,
    doi:10.1145/775047.775151), never closer to 0 or 1 than 1/(n + 2), n the number of
    labels: so few cannot show more.

    Attributes
    ----------
    signal : str
    tolerance : float
        In eV/Å, of the RMS force error over a structure.
    risks, probabilities : arrays (knots,)
        Ascending; linear in between, constant beyond.
    labels : int
    """

    signal: str
    tolerance: float
    risks: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    labels: int

    def __call__(self, risk: float) -> float:
        """Return the probability at ``risk``; NaN gives 1."""
        if math.isnan(risk):
            return 1.0
        return float(np.interp(risk, self.risks, self.probabilities))

    def threshold(self, *, suspect: float = 0.2, unreliable: float = 0.5) -> Threshold:
        """Return the largest risks at which the probability is still below these.

        Raises
        ------
        LabelError
            If the curve does not reach them: the labels hold no such case.
        """
        limits = []
        for wanted in (suspect, unreliable):
            below = np.flatnonzero(self.probabilities < wanted)
            if len(below) == 0 or len(below) == len(self.risks):
                msg = (
                    f"probability must be one that the labels show on both sides, got "
                    f"{wanted} where they show {self.probabilities[0]:.2f} to "
                    f"{self.probabilities[-1]:.2f}; choose another, or label more"
                )
                raise LabelError(msg)
            limits.append(float(self.risks[below[-1]]))
        return Threshold(self.signal, suspect=limits[0], unreliable=limits[1])


def calibrate_threshold(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    *,
    signal: str = "force_delta",
    suspect: float = 0.95,
    unreliable: float = 0.99,
) -> Threshold:
    """Return limits at quantiles of a signal over a run that you call normal.

    Of further frames like these, a share of at most ``1 - suspect`` will be SUSPECT or
    worse, and ``1 - unreliable`` UNRELIABLE, on average over such runs (the quantiles
    are the conformal ones: Vovk et al. 2005). That says how unusual a frame is, not how
    wrong its forces are; for that, see `error_curve`.

    Parameters
    ----------
    frames : iterable of Atoms
        The normal run. Frames close in time repeat each other: they count as fewer.
    calculator : ReliableCalculator
        With the signal, under any policy.
    signal : str
        Its name.
    suspect, unreliable : float
        Quantiles.

    Raises
    ------
    ValueError
        If the quantiles are not in order, or there is no such signal.
    LabelError
        If there are too few frames for a quantile; it says how many are needed.
    """
    if not 0 < suspect <= unreliable < 1:
        msg = (
            "quantiles must be 0 < suspect <= unreliable < 1, got "
            f"{suspect} and {unreliable}"
        )
        raise ValueError(msg)
    risks = np.sort([risk for _, _, risk in _readings(frames, calculator, signal)])
    limits = []
    for quantile in (suspect, unreliable):
        rank = math.ceil((len(risks) + 1) * quantile)
        if rank > len(risks):
            needed = math.ceil(quantile / (1 - quantile) - 1e-9)
            msg = (
                f"a quantile of {quantile} must have at least {needed} frames, got "
                f"{len(risks)}; give more, or lower it"
            )
            raise LabelError(msg)
        limits.append(float(risks[rank - 1]))
    return Threshold(signal, suspect=limits[0], unreliable=limits[1])


def error_curve(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    *,
    tolerance: float,
    signal: str = "force_delta",
    forces_key: str = "REF_forces",
) -> ErrorCurve:
    """Return P(force error > tolerance) for a signal from a few labelled frames.

    Parameters
    ----------
    frames : iterable of Atoms
        With reference forces in eV/Å under ``forces_key``.
    calculator : ReliableCalculator
        With the signal, under any policy.
    tolerance : float
        In eV/Å: larger RMS errors over a structure are failures.
    signal, forces_key : str

    Raises
    ------
    LabelError
        If labels are missing, or all on one side of the tolerance but a few.
    """
    labels = Labels("forces", forces_key=forces_key)
    risks: list[float] = []
    failed: list[bool] = []
    for frame, prediction, risk in _readings(frames, calculator, signal):
        reference = labels.reference(frame)
        if reference is None or not np.all(np.isfinite(reference)):
            msg = (
                f"every frame must have finite reference forces under {forces_key!r}, "
                f"got none in frame {len(risks)}; leave it out, or name the key"
            )
            raise LabelError(msg)
        risks.append(risk)
        failed.append(labels.error(prediction, reference) > tolerance)
    failures = sum(failed)
    if min(failures, len(failed) - failures) < FEWEST_OF_A_KIND:
        msg = (
            f"at least {FEWEST_OF_A_KIND} labelled frames must lie on each side of "
            f"{tolerance} eV/Å, got {failures} of {len(failed)} above; choose another "
            "tolerance, or label more"
        )
        raise LabelError(msg)
    fit = IsotonicRegression(out_of_bounds="clip").fit(risks, np.array(failed, float))
    closest = 1 / (len(failed) + 2)
    probabilities = np.clip(fit.y_thresholds_, closest, 1 - closest)
    knots = np.asarray(fit.X_thresholds_, dtype=float)
    return ErrorCurve(signal, tolerance, knots, probabilities, len(failed))


def _readings(
    frames: Iterable[Atoms], calculator: ReliableCalculator, name: str
) -> list[tuple[Atoms, Prediction, float]]:
    """Evaluate all frames; (frame, prediction, risk) of each."""
    chosen = [signal for signal in calculator.signals if signal.name == name]
    if not chosen:
        names = [signal.name for signal in calculator.signals]
        msg = f"signal must be one of the calculator's {names}, got {name!r}"
        raise ValueError(msg)
    found: list[tuple[Atoms, Prediction, float]] = []
    with progress_bar() as progress:
        task = progress.add_task(name, total=None)
        for batch in batches(frames, len):
            outcomes = predict_each(
                calculator.backbone, batch, calculator.wanted(chosen)
            )
            for frame, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, str):
                    msg = (
                        f"every frame must be one that can be evaluated, got frame "
                        f"{len(found)}: {outcome}; leave it out"
                    )
                    raise LabelError(msg)
                reading = calculator.judge(outcome, chosen).readings[0]
                if math.isnan(reading.risk):
                    msg = (
                        f"every frame must have a risk, got none in frame {len(found)}"
                        f": {reading.note or 'it is not a number'}; leave it out"
                    )
                    raise LabelError(msg)
                found.append((frame, outcome, reading.risk))
            progress.advance(task, len(batch))
    return found
