"""Limits for signals that are not calibrated: from a run you trust, or from labels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from scipy import special
from sklearn.isotonic import IsotonicRegression

from uqcalc.backbones.batching import evaluate_each
from uqcalc.backbones.prediction import Prediction
from uqcalc.calculator import ReliableCalculator
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.labels.defects import vanishing, warn_of_no_information
from uqcalc.labels.labels import Labels
from uqcalc.labels.prospects import find_series
from uqcalc.limits.runlimits import RunLimits, limits_of_runs
from uqcalc.policy import Threshold
from uqcalc.progress import progress_bar
from uqcalc.records import Level
from uqcalc.statistics.quantiles import group_quantile
from uqcalc.watching.trigger import Trigger


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
    seen, failed : arrays (labels,)
        Risks of the labelled frames, ascending, and which of them failed.
    """

    signal: str
    tolerance: float
    risks: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    labels: int
    seen: NDArray[np.float64]
    failed: NDArray[np.bool_]

    def __call__(self, risk: float) -> float:
        """Return the probability at ``risk``; NaN gives 1."""
        if math.isnan(risk):
            return 1.0
        return float(np.interp(risk, self.risks, self.probabilities))

    def threshold(
        self,
        *,
        suspect: float = 0.2,
        unreliable: float = 0.5,
        confidence: float = 0.9,
    ) -> Threshold:
        """Return the largest risks at which the probability is surely below these.

        Not where the curve crosses them, which with few labels is far too high: from
        the lowest risk up, labels are passed as long as among the next so many so few
        failed as would with probability 1 - ``confidence`` were P as large as asked.
        The true P at the limit then exceeds it in at most that share of draws, if P
        never falls with the risk (a fixed sequence of exact binomial tests).

        Raises
        ------
        LabelError
            If the labels are too few, or fail too often, for any such limit.
        ValueError
            If the probabilities are not 0 < suspect <= unreliable < 1.
        """
        if not (0 < suspect <= unreliable < 1 and 0 < confidence < 1):
            msg = (
                "probabilities must be 0 < suspect <= unreliable < 1 and confidence be "
                f"between 0 and 1, got {suspect}, {unreliable} and {confidence}"
            )
            raise ValueError(msg)
        limits = [self._surely_below(p, confidence) for p in (suspect, unreliable)]
        return Threshold(self.signal, suspect=limits[0], unreliable=max(limits))

    def _surely_below(self, wanted: float, confidence: float) -> float:
        fewest = math.ceil(math.log(1 - confidence) / math.log(1 - wanted) - 1e-9)
        width = max(fewest, len(self.seen) // 5)
        failures = np.concatenate([[0], np.cumsum(self.failed)])
        among = failures[width:] - failures[:-width]  # of each and those that follow
        passed = special.bdtr(among, width, wanted) <= 1 - confidence
        first = int(np.argmin(np.append(passed, False)))
        if first == 0:
            lowest = int(among[0]) if len(among) else int(failures[-1])
            msg = (
                f"a limit below which P(error > {self.tolerance:g} eV/Å) is under "
                f"{wanted:g} must rest on {width} labels of the lowest risks, of which "
                f"few fail, got {lowest} failures of {min(width, len(self.seen))}; "
                "label more frames of low risk, or ask for a larger probability"
            )
            raise LabelError(msg)
        return float(self.seen[first - 1])


@overload
def calibrate_threshold(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    *,
    signal: str = ...,
    suspect: float = ...,
    unreliable: float = ...,
    groups: Sequence[Hashable] | None = ...,
) -> Threshold: ...
@overload
def calibrate_threshold(
    frames: None = ...,
    calculator: ReliableCalculator | None = ...,
    *,
    signal: str | Mapping[str, float] = ...,
    runs: Sequence[Iterable[Atoms]],
    timestep_fs: float | None = ...,
    alpha: float = ...,
    confidence: float | None = ...,
    failing: Sequence[Iterable[Atoms]] = ...,
    trigger: Trigger | None = ...,
) -> RunLimits: ...
def calibrate_threshold(  # noqa: PLR0913  (two ways to say what is normal)
    frames: Iterable[Atoms] | None = None,
    calculator: ReliableCalculator | None = None,
    *,
    signal: str | Mapping[str, float] = "force_delta",
    suspect: float = 0.95,
    unreliable: float = 0.99,
    groups: Sequence[Hashable] | None = None,
    runs: Sequence[Iterable[Atoms]] | None = None,
    timestep_fs: float | None = None,
    alpha: float = 0.1,
    confidence: float | None = None,
    failing: Sequence[Iterable[Atoms]] = (),
    trigger: Trigger | None = None,
) -> Threshold | RunLimits:
    """Return limits on a signal from what you call normal.

    For a run under a `Monitor` pass several normal ``runs``, made without halting. A
    run's score is the largest limit that the very trigger would act on; of further runs
    of that length, time step and thermostat at most ``alpha`` will be halted, on
    average over draws of the runs (9 of them for 0.1), or with ``confidence`` (at 95 %
    29 for 0.1, 59 for 0.05), and of runs k times as long k times as many. One run is
    cut into blocks: what holds is approximate then.

    For single structures pass ``frames``: of further ones like these a share of at most
    ``1 - suspect`` will be SUSPECT or worse and ``1 - unreliable`` UNRELIABLE, on
    average (`uqcalc.statistics.quantiles.group_quantile`). A monitor whose window is
    full of neighbours of such a frame halts many a normal run.

    Either says how unusual something is, not how wrong its forces are; for that, see
    `error_curve`.

    Parameters
    ----------
    frames : iterable of Atoms
    calculator : ReliableCalculator
        With the signal, under any policy.
    signal : str or mapping
        Its name. With ``runs`` also several, with a scale each that is fixed
        beforehand: the largest risk / scale decides.
    suspect, unreliable : float
        Quantiles over ``frames``.
    groups : sequence, optional
        Of ``frames``: which belong together.
    runs : sequence of iterables of Atoms
        Each the frames of one run at equal times.
    timestep_fs : float
        Between the frames of ``runs``.
    alpha, confidence : float
    failing : sequence of iterables of Atoms
        Runs that ought to be halted: the result says how many would be.
    trigger : Trigger, optional
        Of the monitor; by default that of `Monitor` at this time step.

    Returns
    -------
    Threshold
        For ``frames``.
    RunLimits
        For ``runs``; ``limits.policy()`` and ``limits.thresholds`` go on from there,
        and its text says what holds.

    Raises
    ------
    ValueError
        If the quantiles are not in order, or there is no such signal.
    LabelError
        If there are too few frames or runs; it says how many are needed.

    Warns
    -----
    LabelWarning
        If ``frames`` follow each other as those of a run do, or there is one run only.
    """
    if calculator is None or (frames is None) == (runs is None):
        msg = (
            "frames or runs, and a calculator, must be given, got "
            f"{'both' if frames is not None and runs is not None else 'none'}; pass "
            "calculator= and runs=[...] for molecular dynamics"
        )
        raise ValueError(msg)
    if runs is not None:
        if timestep_fs is None:
            msg = "timestep_fs between the frames of runs must be given, got None"
            raise ValueError(msg)
        scales = {signal: 1.0} if isinstance(signal, str) else dict(signal)
        return limits_of_runs(
            [_series(run, calculator, scales) for run in runs],
            scales,
            timestep_fs=timestep_fs,
            alpha=alpha,
            confidence=confidence,
            failing=[_series(run, calculator, scales) for run in failing],
            trigger=trigger,
        )
    if not isinstance(signal, str) or not 0 < suspect <= unreliable < 1:
        msg = (
            "frames take one signal, and quantiles must be 0 < suspect <= unreliable "
            f"< 1, got {signal!r}, {suspect} and {unreliable}"
        )
        raise ValueError(msg)
    given = list(frames or ())
    if groups is None and (series := find_series(given)):
        text = (
            "limits for a run should come from several runs, got frames of "
            f"{series[0]} that follow each other: a quantile of frames halts many a "
            "normal run; pass runs=[...] with timestep_fs="
        )
        warnings.warn(text, LabelWarning, stacklevel=2)
    risks = [risk for _, _, risk in _readings(given, calculator, signal)]
    names: Any = range(len(given)) if groups is None else list(groups)
    limits = [group_quantile(risks, names, level) for level in (suspect, unreliable)]
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

    Warns
    -----
    LabelWarning
        Naming the frames that are left out because their forces vanish by symmetry.
    """
    labels = Labels("forces", forces_key=forces_key)
    risks: list[float] = []
    failed: list[bool] = []
    blank: list[int] = []
    found = _readings(frames, calculator, signal)
    for row, (frame, prediction, risk) in enumerate(found):
        reference = labels.reference(frame)
        if reference is None or not np.all(np.isfinite(reference)):
            msg = (
                f"every frame must have finite reference forces under {forces_key!r}, "
                f"got none in frame {row}; leave it out, or name the key"
            )
            raise LabelError(msg)
        if vanishing(prediction.results["forces"], reference).all():
            blank.append(row)
            continue
        risks.append(risk)
        failed.append(labels.error(prediction, reference) > tolerance)
    warn_of_no_information(blank, len(found))
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
    order = np.argsort(risks, kind="stable")
    return ErrorCurve(
        signal,
        tolerance,
        knots,
        probabilities,
        len(failed),
        np.asarray(risks, dtype=float)[order],
        np.asarray(failed, dtype=bool)[order],
    )


def _series(
    run: Iterable[Atoms], calculator: ReliableCalculator, scales: Mapping[str, float]
) -> list[float | None]:
    """Return the largest risk / scale of each frame, as a policy would act on it."""
    _chosen(calculator, scales)
    found: list[float | None] = []
    for _, outcome in evaluate_each(calculator.backbone, run, calculator.wanted()):
        if isinstance(outcome, str):  # a run would not go on from it
            found.append(math.inf)
            continue
        readings = calculator.judge(outcome).readings
        ours = [r for r in readings if r.signal in scales]
        bad = any(
            r.floor is Level.UNRELIABLE for r in readings if r.always or r in ours
        )
        risks = [r.risk / scales[r.signal] for r in ours]
        if any(map(math.isnan, risks)) or bad:
            found.append(math.inf)
        else:
            found.append(max(risks) if risks else None)
    return found


def _chosen(calculator: ReliableCalculator, names: Iterable[str]) -> None:
    present = [signal.name for signal in calculator.signals]
    if missing := [name for name in names if name not in present]:
        msg = f"signal must be one of the calculator's {present}, got {missing[0]!r}"
        raise ValueError(msg)


def _readings(
    frames: Iterable[Atoms], calculator: ReliableCalculator, name: str
) -> list[tuple[Atoms, Prediction, float]]:
    """Evaluate all frames; (frame, prediction, risk) of each."""
    _chosen(calculator, [name])
    chosen = [signal for signal in calculator.signals if signal.name == name]
    found: list[tuple[Atoms, Prediction, float]] = []
    with progress_bar() as progress:
        task = progress.add_task(name, total=None)
        wanted = calculator.wanted(chosen)
        for frame, outcome in evaluate_each(calculator.backbone, frames, wanted):
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
            progress.advance(task)
    return found
