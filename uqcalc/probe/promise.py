"""A promise about what a probe accepts, with a bound that holds for finite samples.

Among the structures whose probability reaches a cutoff, at most a share ``risk`` errs
by more than a tolerance: selective risk control (Geifman & El-Yaniv 2017,
arXiv:1705.08500) by exact binomial bounds over a fixed sequence of cutoffs (fixed
sequence testing; Angelopoulos et al. 2021, arXiv:2110.01052).

What is guaranteed, and why. One structure is drawn from each group, so the units are
independent. At a cutoff c fixed beforehand the wrong ones among the n_c accepted units
are binomial with the true risk R(c), whatever the probe and the population are;
"R(c) > risk" is rejected where so few would be wrong with probability 1 - confidence at
most. The cutoffs are tried from the highest down, each at the full level, until one is
not rejected. For the promise to break, the first cutoff in the row whose risk is too
large must be rejected, and that happens with probability 1 - confidence at most.

Cutoffs that accept too few units to be rejected with any labels are passed over. That
looks at how many are accepted and never at a label, but it lets the draw decide which
too risky cutoff is met first. The guarantee stays exact where, below such a cutoff, the
structures next in line err no less often than ``risk``: where the probability does not
rank them upside down. (Cutoffs at quantiles of the probabilities that were drawn would
need as much, and probabilities without ties besides; with a single cutoff nothing is
assumed.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from uqcalc.errors import LabelError, ProbeError


# Fixed before any label is seen: from 0.9999 down, a step of 0.1 in the log-odds, and
# at last everything that has a probability at all.
CUTOFFS = (*special.expit(np.arange(92, -93, -1) / 10).round(6).tolist(), 0.0)
_MANY = 1_000_000  # more labels than anyone will draw


@dataclass(frozen=True, slots=True)
class Promise:
    """At most a share ``risk`` of what is accepted errs by more than ``tolerance``.

    With probability ``confidence`` over the draw of the calibration set, it is true of
    one structure of each of further groups drawn like those of that set. It says
    nothing of a run that leaves them.

    Attributes
    ----------
    cutoff : float
        Structures are accepted whose probability is at least this.
    risk, confidence : float
    groups : int
        Groups of the calibration set; one structure of each was used.
    accepted, wrong : int
        How many of those structures were accepted, and erred all the same.
    bound : float
        Upper bound on the risk at ``confidence`` (Clopper & Pearson 1934); no larger
        than ``risk``.
    tolerance : float or None
        Larger errors are wrong, in ``unit``; None where only right and wrong are known.
    unit : str
    boundary : float or None
        The probability is P(error <= boundary), and of structures outside the probe's
        scope it does not count; None where it is any other number.
    """

    cutoff: float
    risk: float
    confidence: float
    groups: int
    accepted: int
    wrong: int
    bound: float
    tolerance: float | None = None
    unit: str = ""
    boundary: float | None = None

    @property
    def coverage(self) -> float:
        """Share of the groups whose structure was accepted."""
        return self.accepted / self.groups

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, the statement in words included."""
        return asdict(self) | {"coverage": self.coverage, "statement": str(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Promise:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            For missing or unknown entries.
        """
        entries = {k: v for k, v in data.items() if k not in {"coverage", "statement"}}
        known = [f.name for f in fields(cls)]
        if sorted(entries) != sorted(known):
            msg = (
                f"promise of a probe must have the entries {known}, got "
                f"{sorted(entries)}; calibrate the probe again"
            )
            raise ProbeError(msg)
        return cls(**entries)

    def __str__(self) -> str:
        how = "are wrong"
        if self.tolerance is not None:
            how = f"err by more than {self.tolerance:.4g} {self.unit}".rstrip()
        which = f"probability at least {self.cutoff:.4g}"
        if self.boundary is not None:
            which = (
                f"P(error <= {self.boundary:.4g} {self.unit}) at least "
                f"{self.cutoff:.4g}, within the scope of the probe"
            )
        return (
            f"of the structures accepted ({which}), at "
            f"most {self.risk:.3g} {how}, with confidence {self.confidence:.3g}; seen: "
            f"{self.wrong} wrong of {self.accepted} accepted, one structure of each of "
            f"{self.groups} groups (coverage {self.coverage:.3g}, upper bound "
            f"{self.bound:.3g}); it holds for structures of new groups drawn like the "
            "calibration set, not along a run that leaves it"
        )


def exceeds(errors: ArrayLike, tolerance: float) -> NDArray[np.bool_]:
    """Return which errors are wrong: larger than ``tolerance``, or not a number."""
    return ~(np.asarray(errors, dtype=float) <= tolerance)


def risk_bound(wrong: int, accepted: int, confidence: float) -> float:
    """Return the one-sided upper bound of Clopper & Pearson on a binomial share."""
    if wrong >= accepted:
        return 1.0
    return float(special.betaincinv(wrong + 1, accepted - wrong, confidence))


def units_needed(risk: float, confidence: float, wrong: int = 0) -> int:
    """Return the fewest accepted units that allow the promise with ``wrong`` errors.

    Without errors it is the smallest n with ``(1 - risk)**n <= 1 - confidence``: 59
    for 5 % at 95 %.

    Raises
    ------
    ValueError
        If risk or confidence is not between 0 and 1.
    """
    _check_shares(risk, confidence)

    def too_few(units: int) -> bool:
        return bool(special.bdtr(wrong, units, risk) > 1 - confidence)

    low, high = wrong, wrong + 1
    while too_few(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_few(middle) else (low, middle)
    return high


def one_of_each(groups: Sequence[Any], seed: int = 0) -> NDArray[np.int64]:
    """Return the index of one member of each group, each as likely as the others."""
    order = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(np.asarray(groups)[order], return_index=True)
    return np.sort(order[first])


def control_risk(
    probability: ArrayLike,
    wrong: ArrayLike,
    groups: Sequence[Any],
    *,
    risk: float = 0.05,
    confidence: float = 0.95,
    cutoffs: Sequence[float] = CUTOFFS,
    seed: int = 0,
) -> Promise:
    """Return the lowest cutoff at which the risk among the accepted is under control.

    With probability ``confidence`` over the draw of the groups, the true risk at that
    cutoff is at most ``risk``; the module says why.

    Parameters
    ----------
    probability : array (structures,)
        NaN is never accepted.
    wrong : boolean array (structures,)
        See `exceeds`.
    groups : sequence (structures,)
        Structures of one group are not independent of each other.
    cutoffs : sequence of float
        Falling, and chosen without a look at these labels.
    seed : int
        Of the draw from each group; to try several and keep the best voids it.

    Raises
    ------
    LabelError
        If the data cannot support the promise; it says how many groups would.
    ValueError
        For shares outside (0, 1), unequal lengths, or cutoffs that do not fall.
    """
    belief, failed = np.asarray(probability, float), np.asarray(wrong, bool)
    tried = np.asarray(cutoffs, float)
    _check(belief, failed, len(groups), tried)
    chosen = one_of_each(groups, seed)
    kept = belief[chosen] >= tried[:, None]
    accepted = kept.sum(axis=1)
    erring = (kept & failed[chosen]).sum(axis=1)
    testable = np.flatnonzero(accepted >= units_needed(risk, confidence))
    if len(testable) == 0:
        _refuse_few(int(accepted[-1]), len(chosen), risk, confidence)
    n, k = accepted[testable], erring[testable]
    rejected = special.bdtr(k, n, risk) <= 1 - confidence
    last = int(np.argmin(np.append(rejected, False))) - 1
    if last < 0:
        _refuse_errors(int(k[0]), int(n[0]), len(chosen), risk, confidence)
    return Promise(
        cutoff=float(tried[testable[last]]),
        risk=risk,
        confidence=confidence,
        groups=len(chosen),
        accepted=int(n[last]),
        wrong=int(k[last]),
        bound=risk_bound(int(k[last]), int(n[last]), confidence),
    )


def _check_shares(risk: float, confidence: float) -> None:
    if not (0 < risk < 1 and 0 < confidence < 1):
        msg = (
            "risk and confidence must lie between 0 and 1, got "
            f"{risk} and {confidence}; 0.05 and 0.95 are usual"
        )
        raise ValueError(msg)


def _check(
    belief: NDArray[np.float64],
    failed: NDArray[np.bool_],
    groups: int,
    cutoffs: NDArray[np.float64],
) -> None:
    if not belief.shape == failed.shape == (groups,):
        msg = (
            "probability, wrong and groups must be 1-D and of one length, got shapes "
            f"{belief.shape}, {failed.shape} and ({groups},)"
        )
        raise ValueError(msg)
    if cutoffs.ndim != 1 or len(cutoffs) == 0 or np.any(np.diff(cutoffs) >= 0):
        msg = "cutoffs must fall strictly, got others; sort them from high to low"
        raise ValueError(msg)


def _refuse_few(accepted: int, groups: int, risk: float, confidence: float) -> NoReturn:
    """Say how many groups the promise needs if none of the accepted errs."""
    fewest = units_needed(risk, confidence)
    seen = f"{accepted} of {groups} groups"
    remedy = (
        "none of these structures has a probability (elements that the probe's labels "
        "lacked, or outside its scope): calibrate on structures like its labels, or "
        "fit a probe to labels like these"
    )
    if accepted > 0:
        needed = math.ceil(fewest * groups / accepted)
        remedy = f"label structures of about {needed} groups"
    msg = (
        f"a promise of at most {risk:.3g} wrong at confidence {confidence:.3g} must "
        f"rest on at least {fewest} accepted groups even if none of them errs, got "
        f"{seen} at the lowest cutoff; {remedy}"
    )
    raise LabelError(msg)


def _refuse_errors(
    wrong: int, accepted: int, groups: int, risk: float, confidence: float
) -> NoReturn:
    """Say how many groups the promise needs at the share of errors that was seen."""
    sizes = np.unique(np.geomspace(accepted, _MANY, 2000).astype(int))
    failed = np.ceil(wrong / accepted * sizes - 1e-9)
    enough = sizes[special.bdtr(failed, sizes, risk) <= 1 - confidence]
    remedy = (
        "no number of labels would do at this share of errors: raise the tolerance or "
        "the risk, or fit a better probe"
    )
    if len(enough):
        needed = math.ceil(float(enough[0]) * groups / accepted)
        remedy = (
            f"at this share of errors, label structures of about {needed} groups, or "
            "raise the tolerance or the risk"
        )
    msg = (
        f"a promise of at most {risk:.3g} wrong at confidence {confidence:.3g} must "
        f"hold for the structures that the probe is surest of, got {wrong} wrong of "
        f"the first {accepted} (of {groups} groups); {remedy}"
    )
    raise LabelError(msg)
