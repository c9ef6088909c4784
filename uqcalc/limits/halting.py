"""A guarantee that failing runs are halted in time, for finite numbers of runs.

The statement: of further runs drawn like the given ones, at most a share ``alpha``
fails without a halt in time. A run fails if its true error (of the forces, or of the
stress) stays above a tolerance for some time. A halt is in time up to ``grace_fs``
after the failure begins; a halt before the failure prevents it.

Why it holds. The runs are exchangeable units. For limits that are fixed beforehand, the
number of bad runs among n is binomial with the true share. The limits of the policy are
multiplied by a factor from a fixed sequence, from strict to the policy's own. If
limits get stricter, a halt can only come earlier, so the share of bad runs cannot grow.

- With a confidence: the exact binomial test of "the share is above alpha" is made for
  each factor from the strictest on, at level 1 - confidence, until one is not rejected
  (fixed-sequence testing; Angelopoulos et al. 2021, arXiv:2110.01052).
- On average over draws of the runs: the largest factor with (k + 1) / (n + 1) <= alpha
  for k bad runs (conformal risk control; Angelopoulos et al. 2022, arXiv:2208.02814).

| symbol | variable |
| --- | --- |
| n, k | ``runs``, ``bad`` |
| alpha | ``alpha`` |
| lambda | ``factor`` |
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from uqcalc.errors import LabelError
from uqcalc.files.entries import checked
from uqcalc.files.writing import replaceable, whole
from uqcalc.labels.labels import Labels
from uqcalc.limits.judgedruns import JudgedRun, read_runs
from uqcalc.limits.runlimits import runs_needed
from uqcalc.policy import Policy, Threshold
from uqcalc.quantities import parse_quantity
from uqcalc.targets import TARGETS
from uqcalc.watching.trigger import Trigger


# Fixed before any run is read: from the strictest to the policy's own limits.
FACTORS = (*np.geomspace(0.02, 0.95, 39).round(4).tolist(), 1.0)
LASTING_FS, GRACE_FS = 25.0, 100.0
_TARGETS = ("forces", "stress")
_SIDES = 0.025  # error probability of an interval on each side


@dataclass(frozen=True, slots=True)
class HaltingGuarantee:
    """Upper bound on the share of runs that fail without a halt in time.

    Attributes
    ----------
    thresholds : tuple of Threshold
        Limits of the guarantee: those of the policy, times ``factor``.
    factor : float
    needed_fs, window_fs : float
        The monitor acts when UNRELIABLE frames cover ``needed_fs`` of the last
        ``window_fs``.
    tolerance, lasting_fs, grace_fs : float
        A run fails if its error stays above ``tolerance`` (eV/Å, for the stress eV/Å³)
        for ``lasting_fs``. A halt is in time up to ``grace_fs`` after this begins.
    alpha : float
        Largest share of further runs that fail without a halt in time.
    confidence : float or None
        None: the guarantee holds on average over draws of the runs.
    only_failing : bool
        Whether ``alpha`` is a share of the failing runs, not of all runs.
    runs, failing, bad : int
        Number of runs, of those that fail, and of those that fail without a halt in
        time.
    sound, sound_halted : int
        Number of runs that do not fail, and how many of them are halted.
    cut : int
        Runs that their monitor halted before any failure. They are in ``runs``, but
        are not known to be sound.
    length_fs : (shortest, longest)
        Lengths of the runs.
    moving_cell : tuple of Threshold
        Further limits of the policy for a moving cell. With the target "stress" they
        belong to the guarantee, and are those of the policy times ``factor``; otherwise
        they are those of the policy.
    target : {"forces", "stress"}
        Which error makes a run fail.
    """

    thresholds: tuple[Threshold, ...]
    factor: float
    needed_fs: float
    window_fs: float
    tolerance: float
    lasting_fs: float
    grace_fs: float
    alpha: float
    confidence: float | None
    only_failing: bool
    runs: int
    failing: int
    bad: int
    sound: int
    sound_halted: int
    cut: int
    length_fs: tuple[float, float]
    moving_cell: tuple[Threshold, ...] = ()
    target: str = "forces"

    def policy(self) -> Policy:
        """Return a policy with these limits."""
        return Policy(self.thresholds, self.moving_cell)

    def check(self, policy: Policy, trigger: Trigger, timestep_fs: float) -> None:
        """Check that a monitor halts under the conditions of the guarantee.

        Raises
        ------
        ValueError
            If a limit or the trigger differs.
        """
        given = {t.signal: t.unreliable for t in _judging(policy, self.target)}
        for threshold in _judging(self.policy(), self.target):
            limit = given.get(threshold.signal)
            if limit is None or not math.isclose(limit, threshold.unreliable):
                msg = (
                    f"limit on {threshold.signal} must be {threshold.unreliable:.4g} "
                    f"for this guarantee, got {limit}; give the calculator "
                    "policy=guarantee.policy()"
                )
                raise ValueError(msg)
        needed, window = _spans(trigger, timestep_fs)
        if (
            abs(needed - self.needed_fs) > timestep_fs
            or abs(window - self.window_fs) > timestep_fs
        ):
            msg = (
                f"trigger must act after {self.needed_fs:g} of {self.window_fs:g} fs "
                f"for this guarantee, got {needed:g} of {window:g} fs; leave out "
                "patience, window and fraction, or certify with this trigger"
            )
            raise ValueError(msg)

    def __str__(self) -> str:
        low, high = (f"{length:.4g}" for length in self.length_fs)
        lengths = f"{low} fs" if low == high else f"{low} to {high} fs"
        how = (
            "on average over draws of the runs"
            if self.confidence is None
            else f"with {self.confidence:.0%} confidence"
        )
        whose = "failing runs" if self.only_failing else "runs"
        verb = "are not halted" if self.only_failing else "fail without a halt"
        limits = ", ".join(
            f"{t.signal} risk above {t.unreliable:.3g}"
            for t in _judging(self.policy(), self.target)
        )
        of = TARGETS[self.target]
        text = (
            f"Of further {whose} like these, at most {self.alpha:.3g} {verb} in time, "
            f"{how}. A run fails if its {of.meaning} stays above {self.tolerance:.3g} "
            f"{of.unit} for {self.lasting_fs:.3g} fs; a halt is in time up to "
            f"{self.grace_fs:.3g} fs after this begins. Measured on {self.runs} runs "
            f"of {lengths}: {self.bad} fail without a halt in time "
            f"({_share(self.bad, self.runs)} of all runs, "
            f"{_share(self.bad, self.failing)} of the {self.failing} that fail); "
            f"{self.sound_halted} of {self.sound} sound runs are halted "
            f"({_share(self.sound_halted, self.sound)})."
        )
        if self.cut:
            text += f" {self.cut} runs were halted before any failure."
        return (
            f"{text} Intervals are at 95 %. A frame is UNRELIABLE with {limits}; the "
            f"monitor acts after {self.needed_fs:.3g} of {self.window_fs:.3g} fs."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with the statement in words."""
        return asdict(self) | {"statement": str(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HaltingGuarantee:
        """Rebuild from `to_dict`.

        Raises
        ------
        LabelError
            If an entry is missing, unknown or of another type; the message names it.
        """
        entries = {key: value for key, value in data.items() if key != "statement"}
        return cls(**checked(cls, entries, "halting guarantee", LabelError))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the guarantee as JSON, and return the path.

        Raises
        ------
        RecordError
            If the folder does not exist, or the file is something else, such as the log
            of a run.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        beginning = text[: text.index(":") + 1]
        with whole(replaceable(path, beginning, "a halting guarantee")) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HaltingGuarantee:
        """Read what `save` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            msg = (
                f"halting guarantee must be a JSON file, got {path}; write one with "
                "uqcalc certify-halting -o"
            )
            raise LabelError(msg) from error
        return cls.from_dict(data)


def certify_halting(  # noqa: PLR0913  (definition of a failure, and of the guarantee)
    runs: Sequence[JudgedRun | str | os.PathLike[str]],
    *,
    tolerance: float | str,
    alpha: float = 0.1,
    confidence: float | None = 0.95,
    only_failing: bool = False,
    policy: Policy | None = None,
    trigger: Trigger | None = None,
    timestep_fs: float | None = None,
    lasting_fs: float = LASTING_FS,
    grace_fs: float = GRACE_FS,
    target: str = "forces",
    forces_key: str = "REF_forces",
    stress_key: str = "REF_stress",
) -> HaltingGuarantee:
    """Return limits with which at most ``alpha`` of runs fails without a halt in time.

    Each run is one unit: use runs from different starts, made like those that you will
    watch, and not used to fit the potential or the probe, or to choose limits. Make
    them with ``Monitor(on_unreliable="warn")``, so that they continue. The limits are
    the policy's own if these suffice, and otherwise the loosest stricter ones that do.
    All signals with a threshold count together. `uqcalc.limits.halting` has the method.

    Parameters
    ----------
    runs : sequence of JudgedRun or path
        Files as in `uqcalc.limits.judgedruns.read_runs`: annotated frames with
        reference forces, or event logs with a file of errors.
    tolerance : float or str
        A run fails if its RMS error stays above this, in eV/Å (stress: eV/Å³) or with a
        unit: "200 meV/angstrom", "1 GPa".
    alpha : float
        Largest share of further runs that fails without a halt in time, in (0, 1).
    confidence : float or None
        Probability that the guarantee holds, in (0, 1). None: it holds on average over
        draws of the runs, which needs fewer runs.
    only_failing : bool
        ``alpha`` is the share of the failing runs; only these count as runs.
    policy : Policy, optional
        By default that of the event logs; needed for annotated frames.
    trigger : Trigger, optional
        The trigger of the monitor at the time between frames of the first run; by
        default that of `uqcalc.Monitor`.
    timestep_fs : float, optional
        Time between annotated frames in fs, if they do not have ``info["time_fs"]``.
    lasting_fs, grace_fs : float
        How long the error of a failing run stays above the tolerance, and how long
        after this begins a halt is still in time.
    target : {"forces", "stress"}
        Which error makes a run fail. "stress" is for runs whose cell moves: the limits
        for a moving cell count, too.
    forces_key, stress_key : str
        Keys of the references of annotated frames, in eV/Å and eV/Å³.

    Raises
    ------
    LabelError
        If there are too few runs, or too many fail without a halt even at the
        strictest limits. The message gives the number of runs needed. Also if times
        between frames differ.
    RecordError
        If a file cannot be used.
    ValueError
        If alpha, confidence or a time is out of range, if there is no such target, or
        if the policy is not known or is that of a probe's guarantee.
    """
    _check_range(alpha, confidence, lasting_fs, grace_fs)
    _check_target(target)
    allowed = parse_quantity(tolerance, target, "tolerance")
    found = [run for run in runs if isinstance(run, JudgedRun)]
    paths = [run for run in runs if not isinstance(run, JudgedRun)]
    labels = Labels(target, forces_key=forces_key, stress_key=stress_key)
    found += read_runs(paths, timestep_fs=timestep_fs, labels=labels)
    _refuse_few(len(found), alpha, confidence, "runs")
    chosen = _policy_of(found, policy)
    spacing = _spacing(found)
    acts = Trigger.usual(spacing) if trigger is None else trigger
    judging = Policy(_judging(chosen, target))
    tried = [_Tried.of(r, judging, acts, allowed, lasting_fs, grace_fs) for r in found]
    failing = [run for run in tried if run.failed_fs is not None]
    counted = failing if only_failing else tried
    _refuse_few(len(counted), alpha, confidence, "failing runs")
    factor = _loosest(counted, alpha, confidence)
    sound = [run for run in tried if run.sound]
    lengths = [float(r.time_fs[-1] - r.time_fs[0] + r.interval_fs) for r in found]
    needed, window = _spans(acts, spacing)
    return HaltingGuarantee(
        thresholds=tuple(_scaled(t, factor) for t in chosen.thresholds),
        factor=factor,
        needed_fs=needed,
        window_fs=window,
        tolerance=allowed,
        lasting_fs=lasting_fs,
        grace_fs=grace_fs,
        alpha=alpha,
        confidence=confidence,
        only_failing=only_failing,
        runs=len(found),
        failing=len(failing),
        bad=sum(run.bad(factor) for run in tried),
        sound=len(sound),
        sound_halted=sum(run.halted_fs(factor) is not None for run in sound),
        cut=sum(run.failed_fs is None and not run.sound for run in tried),
        length_fs=(min(lengths), max(lengths)),
        moving_cell=tuple(
            _scaled(t, factor) if target == "stress" else t for t in chosen.moving_cell
        ),
        target=target,
    )


@dataclass(frozen=True, slots=True)
class _Tried:
    """Times of failure and halt of a run, for all factors."""

    failed_fs: float | None
    acts_fs: list[tuple[float, float]]
    grace_fs: float
    sound: bool

    @classmethod
    def of(
        cls,
        run: JudgedRun,
        policy: Policy,
        trigger: Trigger,
        tolerance: float,
        lasting_fs: float,
        grace_fs: float,
    ) -> _Tried:
        failed = run.failed_fs(tolerance, lasting_fs)
        cut = run.acted_fs is not None and run.acted_fs >= run.time_fs[-1]
        return cls(
            failed,
            run.acts_fs(policy, trigger),
            grace_fs,
            failed is None and not cut,
        )

    def halted_fs(self, factor: float) -> float | None:
        """Return the time of the halt with limits times ``factor``; None without."""
        times = (time for time, peak in self.acts_fs if peak > factor)
        return next(times, None)

    def bad(self, factor: float) -> bool:
        """Return whether the run fails without a halt in time."""
        if self.failed_fs is None:
            return False
        halted = self.halted_fs(factor)
        return halted is None or halted > self.failed_fs + self.grace_fs


def _loosest(runs: Sequence[_Tried], alpha: float, confidence: float | None) -> float:
    """Return the loosest factor of the fixed sequence that is certified."""
    found = 0.0
    for factor in FACTORS:
        bad = sum(run.bad(factor) for run in runs)
        if not _suffices(len(runs), bad, alpha, confidence):
            break
        found = factor
    if found == 0.0:
        bad = sum(run.bad(FACTORS[0]) for run in runs)
        msg = (
            f"runs that fail without a halt in time must be few enough for alpha="
            f"{alpha:g}, got {bad} of {len(runs)} at the strictest limits; "
            f"{_advice(len(runs), bad, alpha, confidence)}"
        )
        raise LabelError(msg)
    return found


def _suffices(runs: int, bad: int, alpha: float, confidence: float | None) -> bool:
    """Return whether ``bad`` of ``runs`` certify a share of at most ``alpha``."""
    if confidence is None:
        return (bad + 1) / (runs + 1) <= alpha * (1 + 1e-12)
    chance = float(special.bdtr(bad, runs, alpha))
    return bad < runs and chance <= (1 - confidence) * (1 + 1e-9)


def _advice(runs: int, bad: int, alpha: float, confidence: float | None) -> str:
    """Return how many runs suffice if as large a share of them is bad."""
    share = bad / runs
    other = "fit a better probe, add a signal, or raise alpha or the tolerance"
    for more in range(runs, 20 * runs + 1):
        if _suffices(more, math.ceil(share * more), alpha, confidence):
            return f"{more} runs would suffice at the same share; or {other}"
    return other


def _refuse_few(count: int, alpha: float, confidence: float | None, what: str) -> None:
    fewest = runs_needed(alpha, confidence)
    if count >= fewest:
        return
    how = "on average" if confidence is None else f"at confidence {confidence:g}"
    average = runs_needed(alpha)
    other = f" (on average, confidence=None: {average})" if confidence else ""
    msg = (
        f"{what} must be at least {fewest} for alpha={alpha:g} {how}{other}, even if "
        f"none of them fails without a halt, got {count}; add {what}, or raise alpha"
    )
    raise LabelError(msg)


def _check_target(target: str) -> None:
    if target not in _TARGETS:
        msg = f"target must be one of {', '.join(_TARGETS)}, got {target!r}"
        raise ValueError(msg)


def _judging(policy: Policy, target: str) -> tuple[Threshold, ...]:
    """Return the thresholds that a guarantee about this target scales and checks."""
    further = policy.moving_cell if target == "stress" else ()
    return (*policy.thresholds, *further)


def _policy_of(runs: Sequence[JudgedRun], policy: Policy | None) -> Policy:
    known = [run.policy for run in runs if run.policy is not None]
    known += [policy] if policy is not None else []
    if not known or any(one != known[0] for one in known):
        msg = (
            "policy must be one and the same for all runs, got "
            f"{'none' if not known else 'different ones'}; pass policy= for annotated "
            "frames, and leave out runs with other limits"
        )
        raise ValueError(msg)
    if promised := [t.guarantee for t in known[0].all_thresholds if t.guarantee]:
        msg = (
            "policy must not be that of a probe's guarantee, got "
            f"{promised[0]}; use the cutoffs of the probe"
        )
        raise ValueError(msg)
    return known[0]


def _spacing(runs: Sequence[JudgedRun]) -> float:
    """Return the time between frames in fs, which must be that of all runs."""
    spacings = [run.interval_fs for run in runs]
    if not math.isclose(min(spacings), max(spacings), rel_tol=0.01):
        msg = (
            "runs must have equal times between frames, got "
            f"{min(spacings):g} to {max(spacings):g} fs: the window of the trigger "
            "would differ; leave out frames of the denser runs"
        )
        raise LabelError(msg)
    return spacings[0]


def _scaled(threshold: Threshold, factor: float) -> Threshold:
    if threshold.unreliable <= 0:
        return threshold
    limit = threshold.unreliable * factor
    return replace(threshold, suspect=min(threshold.suspect, limit), unreliable=limit)


def _spans(trigger: Trigger, timestep_fs: float) -> tuple[float, float]:
    """Return the time of UNRELIABLE frames needed, and of the window, in fs."""
    window = trigger.needed if trigger.window is None else trigger.window
    return trigger.needed * timestep_fs, window * timestep_fs


def _share(count: int, total: int) -> str:
    """Return a share with its 95 % interval (Clopper & Pearson 1934)."""
    if total == 0:
        return "no share"
    low = special.betaincinv(count, total - count + 1, _SIDES) if count else 0.0
    high = (
        special.betaincinv(count + 1, total - count, 1 - _SIDES)
        if count < total
        else 1.0
    )
    return f"{count / total:.2f}, {low:.2f} to {high:.2f}"


def _check_range(
    alpha: float, confidence: float | None, lasting_fs: float, grace_fs: float
) -> None:
    sure = confidence is None or 0 < confidence < 1
    if not (0 < alpha < 1 and sure and lasting_fs >= 0 and grace_fs >= 0):
        msg = (
            "alpha and confidence must lie between 0 and 1, and times not be negative, "
            f"got {alpha}, {confidence}, {lasting_fs} and {grace_fs}"
        )
        raise ValueError(msg)
