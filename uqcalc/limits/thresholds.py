"""Limits for uncalibrated signals, from trusted runs or from labelled frames."""

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

from uqcalc.agreement import same_result, vanishing
from uqcalc.backbones.batching import evaluate_each
from uqcalc.backbones.prediction import Prediction
from uqcalc.calculator import ReliableCalculator
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.labels.defects import warn_of_no_information
from uqcalc.labels.labels import Labels
from uqcalc.labels.ownresults import refuse_own_results
from uqcalc.labels.setchecks import find_series
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

    Isotonic regression on n labelled frames (Zadrozny & Elkan 2002,
    doi:10.1145/775047.775151). The probability stays 1/(n + 2) away from 0 and 1, as n
    labels cannot show more.

    Attributes
    ----------
    signal : str
        Name of the signal.
    tolerance : float
        Largest acceptable RMS force error over a structure, in eV/Å.
    risks, probabilities : arrays (knots,)
        Knots of the curve, ascending; linear in between, constant beyond.
    labels : int
        Number of labelled frames.
    seen, failed : arrays (labels,)
        Risks of the labelled frames, ascending, and whether the error of each exceeds
        the tolerance.
    """

    signal: str
    tolerance: float
    risks: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    labels: int
    seen: NDArray[np.float64]
    failed: NDArray[np.bool_]

    def __call__(self, risk: float) -> float:
        """Return the probability at ``risk``; it is 1 for a NaN risk."""
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
        """Return the largest risks with P below these probabilities, with confidence.

        The function does not use the crossing of the curve, which is far too high with
        few labels. It tests windows of successive labels, from the lowest risk up. A
        window passes if its number of failures or fewer has a probability of at most
        1 - ``confidence`` for P equal to the requested probability. The limit is the
        first risk of the last window before a window fails. If P never falls with the
        risk, the true P at the limit exceeds the requested one in at most a share
        1 - ``confidence`` of all draws of labels (a fixed sequence of exact binomial
        tests).

        Parameters
        ----------
        suspect, unreliable : float
            Requested probabilities P(force error > tolerance).
        confidence : float
            In (0, 1).

        Raises
        ------
        LabelError
            If the labels are too few, or fail too often, for such a limit.
        ValueError
            Unless 0 < suspect <= unreliable < 1 and 0 < confidence < 1.
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
        among = failures[width:] - failures[:-width]  # failures in each window
        passed = special.bdtr(among, width, wanted) <= 1 - confidence
        first = int(np.argmin(np.append(passed, False)))
        if first == 0:
            lowest = int(among[0]) if len(among) else int(failures[-1])
            msg = (
                f"a limit for P(error > {self.tolerance:g} eV/Å) below {wanted:g} "
                f"must have few failures among the {width} labels of lowest risk, got "
                f"{lowest} failures of {min(width, len(self.seen))}; label more "
                "frames of low risk, or choose a larger probability"
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
def calibrate_threshold(  # noqa: PLR0913  (runs or frames)
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
    """Return limits on a signal from normal runs or frames.

    For a run under a `Monitor` pass several normal ``runs``, made without halting. The
    score of a run is the largest limit on which the trigger would act. Of further runs
    with the same length, time step and thermostat, at most a share ``alpha`` is halted;
    for runs k times as long, at most ``k * alpha``. This holds on average over draws of
    the runs (9 runs for alpha = 0.1), or with ``confidence`` (at 95 %, 29 runs for 0.1
    and 59 for 0.05). A single run is cut into blocks; the guarantee is then
    approximate.

    For single structures pass ``frames``. Of further structures like these, on average
    at most a share ``1 - suspect`` is SUSPECT or worse, and at most ``1 - unreliable``
    is UNRELIABLE (`uqcalc.statistics.quantiles.group_quantile`). Do not use this limit
    in a monitor: successive frames are correlated, so that one unusual structure can
    fill the window and halt a normal run.

    Both limits measure how unusual a structure is, not the error of its forces. For the
    error, see `error_curve`.

    Parameters
    ----------
    frames : iterable of Atoms
        Normal structures.
    calculator : ReliableCalculator
        Has the signal; its policy does not matter.
    signal : str or mapping
        Name of the signal. With ``runs`` also a mapping of several names to scales,
        chosen without these runs: the largest risk / scale decides.
    suspect, unreliable : float
        Quantiles over ``frames``.
    groups : sequence, optional
        Group of each of ``frames``.
    runs : sequence of iterables of Atoms
        The frames of each run, at equal time intervals.
    timestep_fs : float
        Time between the frames of ``runs`` in fs.
    alpha, confidence : float
        Largest share of normal runs that may be halted, and confidence; both in (0, 1).
    failing : sequence of iterables of Atoms
        Runs that should be halted; the result counts how many the limits halt.
    trigger : Trigger, optional
        The trigger of the monitor; by default that of `Monitor` at this time step.

    Returns
    -------
    Threshold
        For ``frames``.
    RunLimits
        For ``runs``. Use ``limits.policy()`` or ``limits.thresholds``; its text states
        the guarantee.

    Raises
    ------
    ValueError
        If the quantiles are not in order, or the calculator lacks the signal.
    LabelError
        If there are too few frames or runs (the message gives the number needed), or if
        a frame has no risk.

    Warns
    -----
    LabelWarning
        If ``frames`` are successive frames of a run, or if there is only one run.
    """
    if calculator is None or (frames is None) == (runs is None):
        msg = (
            "calculator= and either frames= or runs= must be given, got "
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
            "frames= must have one signal, and quantiles must be 0 < suspect <= "
            f"unreliable < 1, got {signal!r}, {suspect} and {unreliable}"
        )
        raise ValueError(msg)
    return _limits_of_frames(
        list(frames or ()), calculator, signal, (suspect, unreliable), groups
    )


def _limits_of_frames(
    frames: Sequence[Atoms],
    calculator: ReliableCalculator,
    signal: str,
    levels: tuple[float, float],
    groups: Sequence[Hashable] | None,
) -> Threshold:
    """Return these two quantiles of a signal over ``frames``, as limits."""
    if groups is None and (series := find_series(frames)):
        text = (
            "limits for a run should come from several runs, got consecutive frames "
            f"of {series[0]}: a limit from single frames halts many normal runs; pass "
            "runs=[...] with timestep_fs="
        )
        warnings.warn(text, LabelWarning, stacklevel=3)
    risks = [risk for _, _, risk in _readings(frames, calculator, signal)]
    names: Any = range(len(frames)) if groups is None else list(groups)
    limits = [group_quantile(risks, names, level) for level in levels]
    return Threshold(signal, suspect=limits[0], unreliable=limits[1])


def error_curve(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    *,
    tolerance: float,
    signal: str = "force_delta",
    forces_key: str = "REF_forces",
) -> ErrorCurve:
    """Return P(force error > tolerance) of a signal from a few labelled frames.

    Parameters
    ----------
    frames : iterable of Atoms
        Structures with reference forces in eV/Å under ``forces_key``.
    calculator : ReliableCalculator
        Has the signal; its policy does not matter.
    tolerance : float
        In eV/Å; a larger RMS error over a structure is a failure.
    signal, forces_key : str
        Name of the signal, and key of the reference forces.

    Raises
    ------
    LabelError
        If labels are missing, or fewer than 5 errors lie on one side of the tolerance.

    Warns
    -----
    LabelWarning
        If frames are left out because their forces vanish by symmetry; the message
        names them.
    """
    labels = Labels("forces", forces_key=forces_key)
    risks, errors = _labelled(_readings(frames, calculator, signal), labels)
    failed = errors > tolerance
    failures, count = int(failed.sum()), len(failed)
    if min(failures, count - failures) < FEWEST_OF_A_KIND:
        msg = (
            f"at least {FEWEST_OF_A_KIND} labelled frames must lie on each side of "
            f"{tolerance} eV/Å, got {failures} of {count} above; choose another "
            "tolerance, or label more"
        )
        raise LabelError(msg)
    fit = IsotonicRegression(out_of_bounds="clip").fit(risks, failed.astype(float))
    closest = 1 / (count + 2)
    order = np.argsort(risks, kind="stable")
    return ErrorCurve(
        signal,
        tolerance,
        np.asarray(fit.X_thresholds_, dtype=float),
        np.clip(fit.y_thresholds_, closest, 1 - closest),
        count,
        risks[order],
        failed[order],
    )


def _labelled(
    readings: Sequence[tuple[Atoms, Prediction, float]], labels: Labels
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the risk of each frame and its error in eV/Å, both (frames,).

    Frames whose forces vanish by symmetry are left out, with a warning. Forces of the
    potential itself are refused.
    """
    risks: list[float] = []
    errors: list[float] = []
    blank: list[int] = []
    own: list[int] = []
    for row, (frame, prediction, risk) in enumerate(readings):
        reference = labels.reference(frame)
        if reference is None or not np.all(np.isfinite(reference)):
            msg = (
                "every frame must have finite reference forces under "
                f"{labels.forces_key!r}, got none in frame {row}; leave it out, or "
                "name the key"
            )
            raise LabelError(msg)
        if vanishing(prediction.results["forces"], reference).all():
            blank.append(row)
            continue
        if same_result("forces", prediction.results["forces"], reference):
            own.append(row)
        risks.append(risk)
        errors.append(labels.error(prediction, reference))
    warn_of_no_information(blank, len(readings))
    refuse_own_results(own, len(risks), labels)
    return np.array(risks, dtype=float), np.array(errors, dtype=float)


def _series(
    run: Iterable[Atoms], calculator: ReliableCalculator, scales: Mapping[str, float]
) -> list[float | None]:
    """Return the largest risk / scale of each frame.

    It is infinite for a NaN risk, for a frame that cannot be evaluated, and where a
    signal is UNRELIABLE without a limit; None if no signal was read.
    """
    _chosen(calculator, scales)
    found: list[float | None] = []
    for _, outcome in evaluate_each(calculator.backbone, run, calculator.wanted()):
        if isinstance(outcome, str):  # not evaluated: a run would end here
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
    """Evaluate all frames and return (frame, prediction, risk) of each."""
    _chosen(calculator, [name])
    chosen = [signal for signal in calculator.signals if signal.name == name]
    found: list[tuple[Atoms, Prediction, float]] = []
    with progress_bar() as progress:
        task = progress.add_task(name, total=None)
        wanted = calculator.wanted(chosen)
        for frame, outcome in evaluate_each(calculator.backbone, frames, wanted):
            if isinstance(outcome, str):
                msg = (
                    "the potential must be able to evaluate every frame, got frame "
                    f"{len(found)}: {outcome}; leave it out"
                )
                raise LabelError(msg)
            reading = calculator.judge(outcome, chosen).readings[0]
            if math.isnan(reading.risk):
                msg = (
                    "every frame must have a finite risk, got NaN in frame "
                    f"{len(found)} ({reading.note or 'without a reason'}); leave it out"
                )
                raise LabelError(msg)
            found.append((frame, outcome, reading.risk))
            progress.advance(task)
    return found
