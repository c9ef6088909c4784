"""When a condition halts each run, and the scores of these halts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from halting.judging import AFTER_FS, BEFORE_FS
from scipy.stats import binomtest

from workflow.dynamics import FRAME_FS, RAMP, Run
from workflow.triggers import Condition
from workflow.verdicts import BOUNDARY, Verdicts


BEFORE_HALT_FS = 50.0
LOW_ERROR = 0.7  # of the boundary: a halt at a lower error was too cautious
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7)  # limits on P
STEADY = ("300 K", "600 K")
PAUSE_FS = 1000.0  # after a halt of a long run, which then continues


@dataclass(frozen=True)
class Watched:
    """A run of a system with the verdicts of one probe and the committee's spread."""

    system: str
    run: Run
    verdicts: Verdicts
    spread: np.ndarray | None = None

    @property
    def risk(self) -> np.ndarray:
        """1 - P; NaN where the frame is UNRELIABLE for another reason than P."""
        risk = 1 - self.verdicts.p
        return np.where((self.verdicts.level == 2) & (risk <= 0.5), np.nan, risk)

    def signal(self, name: str) -> np.ndarray:
        """Return a signal along the run: ``spread``, or a field of the verdicts."""
        found = self.spread if name == "spread" else getattr(self.verdicts, name)
        if found is None:
            message = f"{self.system} must have a committee; run the stage `committee`"
            raise ValueError(message)
        return np.asarray(found)


Halts = Callable[[Watched], np.ndarray]


def by_p(condition: Condition, level: float) -> Halts:
    """Return when a condition on P acts."""
    return lambda one: condition.acts(one.risk, 1 - level)


def by_signal(condition: Condition, name: str, limit: float) -> Halts:
    """Return when a condition on another signal acts."""
    return lambda one: condition.acts(one.signal(name), limit)


def by_error(condition: Condition, limit: float) -> Halts:
    """Return when a condition on the true error acts, as for a perfect probe."""
    return lambda one: condition.acts(np.nan_to_num(one.run.error, nan=0.0), limit)


def event(persists_fs: float, confirm_fs: float, level: float) -> Halts:
    """Return when a changed bond that persists acts.

    ``confirm_fs`` is for how long P must also be below ``level``; with 0, P has no
    effect.
    """

    def acts(one: Watched) -> np.ndarray:
        changed = streak(one.verdicts.changed) * FRAME_FS >= persists_fs
        low = streak(~(one.risk <= 1 - level)) * FRAME_FS >= confirm_fs
        return changed & low

    return acts


def either(*conditions: Halts) -> Halts:
    """Return when the first of several conditions acts."""
    return lambda one: np.any([acts(one) for acts in conditions], axis=0)


def streak(true: np.ndarray) -> np.ndarray:
    """Return for each frame how many frames up to it are true in a row."""
    index = np.arange(1, len(true) + 1)
    last = np.maximum.accumulate(np.where(true, 0, index))
    return index - last


@dataclass(frozen=True)
class Halted:
    """Onset of the failure and halt of one run, in fs, None without; and the error.

    ``error`` is the mean true error over the 50 fs before the halt, in eV/Å.
    """

    one: Watched
    onset_fs: float | None
    halt_fs: float | None
    error: float


def halted(one: Watched, halts: Halts) -> Halted:
    """Return when the run fails and when it is halted."""
    acts = np.flatnonzero(halts(one))
    onset = one.run.onset
    return Halted(
        one,
        None if onset is None else onset * FRAME_FS,
        acts[0] * FRAME_FS if len(acts) else None,
        error_before(one.run, acts[0]) if len(acts) else np.nan,
    )


def error_before(run: Run, index: int) -> float:
    """Return the mean true error over the 50 fs up to a frame; NaN if unknown."""
    seen = run.error[max(0, index + 1 - round(BEFORE_HALT_FS / FRAME_FS)) : index + 1]
    return float(np.nanmean(seen)) if np.isfinite(seen).any() else np.nan


def bond_events(runs: Sequence[Watched], halts: Halts) -> dict[str, Any]:
    """Return when bonds first changed for 25 fs, against failure and halt."""
    found = {"runs": len(runs), "changed": 0, "changed_without_failure": 0,
             "changed_before_failure": 0, "changed_before_halt": 0}  # fmt: skip
    errors = []
    for one in runs:
        first = np.flatnonzero(streak(one.verdicts.changed) * FRAME_FS >= 25.0)
        if not len(first):
            continue
        time, when = first[0] * FRAME_FS, halted(one, halts)
        found["changed"] += 1
        found["changed_without_failure"] += when.onset_fs is None
        found["changed_before_failure"] += (
            when.onset_fs is not None and time < when.onset_fs
        )
        found["changed_before_halt"] += when.halt_fs is None or time < when.halt_fs
        errors.append(float(one.run.error[first[0]]))
    known = [error for error in errors if np.isfinite(error)]
    median = float(np.median(known)) if known else None
    return found | {"median_error_at_change": median}


def score(runs: Sequence[Watched], halts: Halts) -> dict[str, Any]:
    """Return counts and shares over all runs."""
    found = [halted(one, halts) for one in runs]
    failing = [h for h in found if h.onset_fs is not None]
    sound = [h for h in found if h.onset_fs is None]
    leads = [float(h.onset_fs - h.halt_fs) for h in failing if h.halt_fs is not None]
    wrecks = [h for h in found if h.one.run.wrecked]
    low = [h for h in found if h.halt_fs is not None and h.error < LOW_ERROR * BOUNDARY]
    return {
        "failing": len(failing),
        "in_time": sum(lead >= -AFTER_FS for lead in leads),
        "early": sum(lead > BEFORE_FS for lead in leads),
        "late": sum(lead < -AFTER_FS for lead in leads),
        "missed": sum(h.halt_fs is None for h in failing),
        "median_lead_fs": float(np.median(leads)) if leads else None,
        "wrecks": len(wrecks),
        "wrecks_halted": sum(h.halt_fs is not None for h in wrecks),
        "sound": sum(h.one.run.kind in STEADY for h in sound),
        "sound_halted": sum(
            h.halt_fs is not None for h in sound if h.one.run.kind in STEADY
        ),
        "ramps_without_failure": sum(h.one.run.kind == RAMP for h in sound),
        "of_these_halted": sum(
            h.halt_fs is not None for h in sound if h.one.run.kind == RAMP
        ),
        "halts": sum(h.halt_fs is not None for h in found),
        "halts_at_low_error": len(low),
    }


def long_runs(runs: Sequence[Watched], halts: Halts) -> dict[str, Any]:
    """Return how often long runs are halted, if each continues after a pause of 1 ps.

    A halt is needless if the mean true error over the 50 fs before it is below the
    boundary.
    """
    count, errors = 0, []
    for one in runs:
        free, found = 0, []
        for index in np.flatnonzero(halts(one)):
            if index >= free:
                found.append(error_before(one.run, index))
                free = index + round(PAUSE_FS / FRAME_FS)
        count += bool(found)
        errors += found
    truth = np.concatenate([one.run.error for one in runs])
    known = truth[np.isfinite(truth)]
    return {
        "runs": len(runs),
        "ps": len(truth) * FRAME_FS / 1000,
        "failing": sum(one.run.onset is not None for one in runs),
        "right": float((known <= BOUNDARY).mean()),
        "largest_error": float(known.max()),
        "runs_halted": count,
        "halts": len(errors),
        "needless": sum(error < BOUNDARY for error in errors),
    }


def tuned(
    runs: Sequence[Watched],
    candidates: Sequence[tuple[Any, Halts]],
    sound_halts: int = 0,
) -> tuple[Any, Halts]:
    """Return the candidate with most halts in time and few sound and early halts.

    At most ``sound_halts`` steady runs without a failure and 10 % of the failing runs
    (more than 500 fs early) may be halted wrongly. Of equally good candidates it is the
    one with the fewest early halts, then the middle one. If no candidate keeps a rule,
    the rule is dropped.
    """
    scores = [(score(runs, halts), name, halts) for name, halts in candidates]
    quiet = [s for s in scores if s[0]["sound_halted"] <= sound_halts] or scores
    few = [s for s in quiet if s[0]["early"] <= 0.1 * s[0]["failing"]] or quiet
    best = max((s[0]["in_time"], -s[0]["early"]) for s in few)
    top = [s for s in few if (s[0]["in_time"], -s[0]["early"]) == best]
    _, name, halts = top[len(top) // 2]
    return name, halts


def calibration(runs: Sequence[Watched], kind: str) -> dict[str, Any]:
    """Return mean P, and the share of frames within the boundary, of one kind."""
    p = np.concatenate([one.verdicts.p for one in runs if one.run.kind == kind])
    error = np.concatenate([one.run.error for one in runs if one.run.kind == kind])
    known = ~np.isnan(error)
    said = float(np.nan_to_num(p[known]).mean())
    right = float((error[known] <= BOUNDARY).mean())
    return {"kind": kind, "frames": int(known.sum()), "mean_p": said, "right": right,
            "gap": abs(said - right)}  # fmt: skip


def quantiles(runs: Sequence[Watched], signal: str, count: int = 100) -> list[float]:
    """Return candidate limits on a signal: quantiles over all frames."""
    values = np.concatenate([one.signal(signal) for one in runs])
    found = np.unique(np.nanquantile(values, np.linspace(0.5, 1, count)))
    return [float(value) for value in found]


def interval(count: int, total: int) -> list[float | None]:
    """Return the exact 95 % interval of a share (Clopper & Pearson 1934)."""
    if not total:
        return [None, None]
    found = binomtest(count, total).proportion_ci(method="exact")
    return [float(found.low), float(found.high)]


def flicker(runs: Sequence[Watched], lags_fs: Sequence[float]) -> list[dict[str, Any]]:
    """Return the autocorrelation of the logit of P and of the log error.

    Only runs at one temperature count: a trend would add a correlation.
    """
    rows = []
    for lag in lags_fs:
        step = round(lag / FRAME_FS)
        found: dict[str, list[float]] = {"p": [], "error": []}
        for one in (one for one in runs if one.run.kind in STEADY):
            p = np.clip(np.nan_to_num(one.verdicts.p), 1e-6, 1 - 1e-6)
            error = np.log(np.clip(one.run.error, 1e-4, None))
            for key, series in (("p", np.log(p / (1 - p))), ("error", error)):
                known = series[np.isfinite(series)]
                if len(known) > step + 10 and known.std() > 0:
                    found[key].append(
                        float(np.corrcoef(known[step:], known[:-step])[0, 1])
                    )
        rows.append(
            {
                "lag_fs": lag,
                **{f"of_{k}": float(np.mean(v)) for k, v in found.items() if v},
            }
        )
    return rows
