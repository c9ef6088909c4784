"""Test `certify_halting`: certify on half of the heated runs, score the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from halting.judging import TOLERANCE

from uqcalc import Level, Policy, Threshold, certify_halting
from uqcalc.errors import LabelError
from uqcalc.types import JudgedRun
from uqcalc.watching.trigger import Trigger
from workflow.dynamics import FRAME_FS, RAMP
from workflow.scoring import Watched


POLICY = Policy([Threshold("probe", suspect=0.2, unreliable=0.5)])
GRACE_FS = 100.0


def judged_run(one: Watched) -> JudgedRun:
    """Return the run in the form of `certify_halting`."""
    error = one.run.error
    return JudgedRun(
        name=f"{one.system}, {one.run.kind}",
        time_fs=FRAME_FS * np.arange(len(error)),
        risks=tuple({"probe": float(1 - p)} for p in one.verdicts.p),
        levels=tuple(Level(int(level)) for level in one.verdicts.level),
        error=error,
    )


def bad(run: JudgedRun, limits: Policy) -> bool:
    """Return whether a run fails without a halt in time, with these limits."""
    failed = run.failed_fs(TOLERANCE, 25.0)
    trigger = Trigger.usual(FRAME_FS)
    halts = [time for time, peak in run.acts_fs(limits, trigger) if peak > 1]
    return failed is not None and not (halts and halts[0] <= failed + GRACE_FS)


def halves(
    runs: Sequence[Watched], alpha: float, draws: int = 40, seed: int = 0
) -> dict[str, Any]:
    """Return how many further runs fail without a halt, over random halves."""
    heated = [judged_run(one) for one in runs if one.run.kind == RAMP]
    rng, shares, factors, refused = np.random.default_rng(seed), [], [], 0
    for _ in range(draws):
        order = rng.permutation(len(heated))
        given = [heated[i] for i in order[: len(heated) // 2]]
        rest = [heated[i] for i in order[len(heated) // 2 :]]
        try:
            found = certify_halting(
                given, tolerance=TOLERANCE, alpha=alpha, confidence=None, policy=POLICY
            )
        except LabelError:
            refused += 1
            continue
        factors.append(found.factor)
        shares.append(np.mean([bad(run, found.policy()) for run in rest]))
    return {
        "alpha": alpha,
        "runs": len(heated),
        "draws": draws,
        "refused": refused,
        "bad_of_further_runs": float(np.mean(shares)) if shares else None,
        "median_factor": float(np.median(factors)) if factors else None,
    }
