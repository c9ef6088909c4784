"""A guarantee about accepted structures, with a bound that holds for finite samples.

The statement: take one structure from each new group and accept it if its probability
reaches a cutoff. At most a share ``risk`` of the accepted structures has an error above
a tolerance. The method is selective risk control (Geifman & El-Yaniv 2017,
arXiv:1705.08500) by exact binomial tests over a fixed sequence of cutoffs with several
starts (Angelopoulos et al. 2021, arXiv:2110.01052, section 3). Unspent error budget
passes to the next test, as in the fallback procedure of Wiens & Dmitrienko 2005
(doi:10.1080/10543400500265660).

Why it holds. One structure is drawn from each group, so the units are independent. For
a cutoff c that is fixed beforehand, the number of wrong units among the n_c accepted
ones is binomial with the true risk R(c), for any probe and any population. The test
rejects "R(c) > risk" at level a if so few wrong units have probability a or less. The
error budget 1 - confidence is divided among the starts. From each start the cutoffs are
tested downwards, at the level of its part of the budget, until one is not rejected. If
all tests down to a later start reject, their level is added to the part of that start.
The probability of rejecting any cutoff whose risk is too large is at most the whole
budget, for any dependence between the tests. The guarantee is for the lowest rejected
cutoff.

The starts are the cutoffs at which 5, 15 and 40 % of the groups would be accepted. They
are computed from the held-out groups on the probe's card, so they are fixed before any
of these labels is used. The number of starts depends only on the number of groups
(`plan`). For a probe without this record, the starts are computed from a fifth of the
groups, whose labels are not used at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from uqcalc.errors import LabelError
from uqcalc.probe.card import Guarantee


# Fixed before any label is used: from 0.9999 down in steps of 0.1 in the log-odds; the
# last cutoff, 0, accepts every structure whose probability is not NaN.
CUTOFFS = (*special.expit(np.arange(92, -93, -1) / 10).round(6).tolist(), 0.0)
# Starts of the sequence: shares of the groups that would be accepted.
SHARES = (0.05, 0.15, 0.4)
_SPARE = 1.15  # reserve on the fewest units if even the last share accepts too few
_ASIDE = 0.2  # share of the groups to compute the starts if the card lacks them
_MANY = 1_000_000  # largest number of labels in the advice
# The advice on the number of groups uses an upper bound on the share of errors with the
# first confidence, and requires the guarantee with the second probability.
_CAUTION, _SURE = 0.6, 0.9

Starts = Callable[[Sequence[float]], ArrayLike]


def exceeds(errors: ArrayLike, tolerance: float) -> NDArray[np.bool_]:
    """Return which errors count as wrong: larger than ``tolerance``, or NaN."""
    return ~(np.asarray(errors, dtype=float) <= tolerance)


def risk_bound(wrong: int, accepted: int, confidence: float) -> float:
    """Return the one-sided upper bound of Clopper & Pearson on a binomial share."""
    if wrong >= accepted:
        return 1.0
    return float(special.betaincinv(wrong + 1, accepted - wrong, confidence))


def units_needed(risk: float, confidence: float, wrong: int = 0) -> int:
    """Return the fewest accepted units for the guarantee with ``wrong`` wrong ones.

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


def bound_at(
    cutoff: float,
    probability: ArrayLike,
    wrong: ArrayLike,
    groups: Sequence[Any],
    *,
    confidence: float,
) -> tuple[int, int, float | None, NDArray[np.int64]]:
    """Return accepted and wrong units at a cutoff, and the bound on their share.

    One random structure of each group counts. The bound (Clopper & Pearson 1934) holds
    with probability ``confidence`` if ``cutoff`` does not depend on these labels. It is
    None if no unit is accepted. The last value are the indices of the accepted
    structures.
    """
    chosen = one_of_each(groups)
    kept = chosen[np.asarray(probability, float)[chosen] >= cutoff]
    erring = int(np.asarray(wrong, bool)[kept].sum())
    bound = risk_bound(erring, len(kept), confidence) if len(kept) else None
    return len(kept), erring, bound, kept


def one_of_each(groups: Sequence[Any], seed: int = 0) -> NDArray[np.int64]:
    """Return the index of one random member of each group, sorted."""
    order = np.random.default_rng(seed).permutation(len(groups))
    _, first = np.unique(np.asarray(groups)[order], return_index=True)
    return np.sort(order[first])


@lru_cache(maxsize=4096)
def plan(
    groups: int, risk: float, confidence: float
) -> tuple[tuple[float, float], ...]:
    """Return the starts of the sequence: (share of groups accepted, part of budget).

    A share of `SHARES` is used if it accepts enough groups for the guarantee without
    errors; the budget is divided evenly. If no share accepts enough, there is one
    start, at the smallest sufficient share and a reserve of 15 %.
    """
    budget, shares = 1 - confidence, list(SHARES)
    while shares:
        fewest = units_needed(risk, 1 - budget / len(shares))
        if shares[0] * groups >= fewest:
            return tuple((share, budget / len(shares)) for share in shares)
        del shares[0]  # drop the smallest: the others get more of the budget
    return ((min(1.0, _SPARE * units_needed(risk, confidence) / groups), budget),)


def control_risk(
    probability: ArrayLike,
    wrong: ArrayLike,
    groups: Sequence[Any],
    *,
    risk: float = 0.05,
    confidence: float = 0.95,
    starts: Starts | None = None,
    seed: int = 0,
) -> Guarantee:
    """Return the guarantee with the lowest cutoff at which the risk is controlled.

    With probability ``confidence`` over the draw of the groups, the true risk at that
    cutoff is at most ``risk``; see the module `uqcalc.evaluation.riskcontrol`.

    Parameters
    ----------
    probability : array (structures,)
        Structures with NaN are never accepted.
    wrong : boolean array (structures,)
        See `exceeds`.
    groups : sequence (structures,)
        Structures of one group are not independent of each other.
    starts : callable, optional
        Maps shares of groups to the cutoffs that would accept them. It must not depend
        on these structures (`starting_cutoffs`). Without it, a fifth of the groups is
        set aside to compute the cutoffs.
    seed : int
        Seed of the draw from each group. To try several seeds and keep the best result
        makes the guarantee invalid.

    Raises
    ------
    LabelError
        If the data do not suffice; the message gives the number of groups needed.
    ValueError
        If ``risk`` or ``confidence`` is outside (0, 1), or lengths differ.
    """
    belief, failed = np.asarray(probability, float), np.asarray(wrong, bool)
    _check(belief, failed, len(groups))
    chosen = one_of_each(groups, seed)
    if starts is None:
        starts, chosen = _set_aside(belief, chosen, units_needed(risk, confidence))
    planned = plan(len(chosen), risk, confidence)
    tried, budgets = _ladder(planned, starts)
    kept = belief[chosen] >= tried[:, None]
    accepted = kept.sum(axis=1)
    erring = (kept & failed[chosen]).sum(axis=1)
    found, level, carried = -1, 0.0, 0.0
    chance = np.where(accepted > 0, special.bdtr(erring, accepted, risk), 1.0)
    for rung, (p, own) in enumerate(zip(chance.tolist(), budgets, strict=True)):
        carried += own
        if p <= carried * (1 + 1e-12):
            found, level = rung, carried
        else:
            carried = 0.0
    if found < 0:
        _refuse(belief[chosen], failed[chosen], starts, risk, confidence)
    n, k = int(accepted[found]), int(erring[found])
    return Guarantee(
        cutoff=float(tried[found]),
        risk=risk,
        confidence=confidence,
        groups=len(chosen),
        accepted=n,
        wrong=k,
        bound=risk_bound(k, n, 1 - level),
    )


def _ladder(
    planned: Sequence[tuple[float, float]], starts: Starts
) -> tuple[NDArray[np.float64], list[float]]:
    """Return the cutoffs from the highest start down, and the budget of each."""
    shares = [share for share, _ in planned]
    given = np.asarray(starts(shares), float)
    budget: dict[float, float] = {}
    for (share, part), cutoff in zip(planned, given.tolist(), strict=True):
        lowest = 0.0 if share >= 1 else cutoff
        budget[lowest] = budget.get(lowest, 0.0) + part
    below = [cutoff for cutoff in CUTOFFS if cutoff < max(budget)]
    tried = sorted({*budget, *below}, reverse=True)
    return np.array(tried), [budget.get(cutoff, 0.0) for cutoff in tried]


def _set_aside(
    belief: NDArray[np.float64], chosen: NDArray[np.int64], fewest: int
) -> tuple[Starts, NDArray[np.int64]]:
    """Compute the starts from a fifth of the groups; return them and the other groups.

    If too few groups would remain, none is set aside, and the only cutoff is 0: every
    structure whose probability is not NaN is accepted.
    """
    aside = int(_ASIDE * len(chosen))
    if len(chosen) - aside < fewest:
        return (lambda shares: np.zeros(len(shares))), chosen
    order = np.random.default_rng(len(chosen)).permutation(len(chosen))
    said = np.nan_to_num(belief[chosen[order[:aside]]], nan=0.0)

    def starts(shares: Sequence[float]) -> NDArray[np.float64]:
        return np.asarray(np.quantile(said, 1 - np.asarray(shares)))

    return starts, np.sort(chosen[order[aside:]])


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
) -> None:
    if not belief.shape == failed.shape == (groups,):
        msg = (
            "probability, wrong and groups must be 1-D and of one length, got shapes "
            f"{belief.shape}, {failed.shape} and ({groups},)"
        )
        raise ValueError(msg)


def _refuse(
    belief: NDArray[np.float64],
    failed: NDArray[np.bool_],
    starts: Starts,
    risk: float,
    confidence: float,
) -> NoReturn:
    """Raise LabelError with the results at the starts and the groups needed."""
    groups = len(belief)
    known = int(np.sum(belief >= 0))
    fewest = units_needed(risk, confidence)
    claim = (
        f"a guarantee of at most {risk:.3g} wrong at confidence {confidence:.3g} must "
    )
    if known < fewest:
        remedy = (
            "none of these structures has a probability (elements that the probe's "
            "labels lacked, or outside its scope): calibrate on structures like its "
            "labels, or fit a probe to labels like these"
        )
        if known > 0:
            needed = math.ceil(fewest * groups / known)
            remedy = f"label structures of more than {needed} groups"
        msg = (
            f"{claim}rest on at least {fewest} accepted groups even if none of them "
            f"is wrong, got {known} of {groups} groups at the lowest cutoff; {remedy}"
        )
        raise LabelError(msg)
    shares = sorted({share for share, _ in plan(groups, risk, confidence)} | {*SHARES})
    cutoffs = np.asarray(starts(shares), float)
    rows = [(int(np.sum(k)), int(np.sum(k & failed)))
            for k in (belief >= cutoff for cutoff in cutoffs)]  # fmt: skip
    seen = ", ".join(
        f"{wrong} wrong of the {n} with the largest P" for n, wrong in rows if n
    )
    msg = (
        f"{claim}hold at one of the starting cutoffs, got {seen or 'no structure'} "
        f"(of {groups} groups); {_advice(shares, rows, groups, risk, confidence)}"
    )
    raise LabelError(msg)


def _advice(
    shares: Sequence[float],
    rows: Sequence[tuple[int, int]],
    groups: int,
    risk: float,
    confidence: float,
) -> str:
    """Return advice: groups needed at a cautious, or at the observed error rate."""
    other = "or raise the tolerance or the risk"
    used = [(s, n, k) for s, (n, k) in zip(shares, rows, strict=True) if n and s < 1]
    cautious = {s: (n / groups, risk_bound(k, n, _CAUTION)) for s, n, k in used}
    needed = groups_enough(cautious, risk, confidence, groups)
    if needed is not None:
        return f"label structures of about {needed} groups, {other}"
    guess = {s: (n / groups, k / n) for s, n, k in used}
    needed = groups_enough(guess, risk, confidence, groups)
    if needed is not None:
        return (
            f"about {needed} groups suffice if further groups are wrong as often as "
            f"these, which is not sure; label more, {other}"
        )
    lows = [float(special.betaincinv(k, n - k + 1, 0.05)) if k else 0.0
            for _, n, k in used]  # fmt: skip
    if lows and min(lows) < risk:
        return (
            "more labels would help only if these are an unlucky draw (the true share "
            f"of wrong ones could be as low as {min(lows):.2g}); raise the tolerance "
            "or the risk, or fit a better probe"
        )
    return (
        "no number of labels suffices at such shares of wrong structures: raise the "
        "tolerance or the risk, or fit a better probe"
    )


def groups_enough(
    rates: Mapping[float, tuple[float, float]],
    risk: float,
    confidence: float,
    at_least: int = 1,
) -> int | None:
    """Return how many groups make a guarantee likely; None if no number suffices.

    Parameters
    ----------
    rates : mapping
        Share of a start -> (share of groups that it accepts, share of wrong ones among
        these).
    """
    sizes, levels = _levels(risk, confidence)
    likely = np.zeros(len(sizes), dtype=bool)
    for share, level in levels.items():
        accepts, errs = rates.get(share, (0.0, 1.0))
        spread = 1.3 * np.sqrt(sizes * accepts * (1 - accepts))
        n = np.floor(sizes * accepts - spread)
        tested = (n >= 1) & (level > 0) & (errs < risk)
        n = np.where(tested, n, 1.0).astype(np.int64)
        level = np.where(tested, level, 0.5)
        from scipy.stats import binom  # slow to import, not needed for cards

        allowed = binom.ppf(level, n, risk)
        allowed -= special.bdtr(allowed, n, risk) > level
        chance = special.bdtr(np.maximum(allowed, 0), n, errs)
        likely |= tested & (allowed >= 0) & (chance >= _SURE)
    enough = sizes[likely & (sizes >= at_least)]
    return int(enough[0]) if len(enough) else None


@lru_cache(maxsize=16)
def _levels(
    risk: float, confidence: float
) -> tuple[NDArray[np.int64], dict[float, NDArray[np.float64]]]:
    """Return a grid of sizes, and the part of the budget of each start at each size."""
    sizes = np.unique(np.geomspace(10, _MANY, 160).astype(np.int64))
    planned = [dict(plan(int(size), risk, confidence)) for size in sizes]
    return sizes, {
        share: np.array([parts.get(share, 0.0) for parts in planned])
        for share in SHARES
    }


# Shares of groups that are stored; values between them are interpolated.
_SHARES = (
    0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8,
    0.9, 1.0,
)  # fmt: skip
_MOST = 15.0  # limit on log-odds: P still differs from 1 in single precision


def held_out_logits(
    logits: ArrayLike, outside: ArrayLike, groups: Sequence[str]
) -> list[list[float]]:
    """Return quantiles of the logits of held-out groups, as [share, logit] pairs.

    One structure is drawn at random from each group. A share ``share`` of them has at
    least this logit of P(error <= boundary).

    Parameters
    ----------
    logits : array (structures,)
        At the probe's own boundary.
    outside : boolean array (structures,)
        Structures outside the scope; they are never accepted.
    groups : sequence of str
    """
    said = np.where(np.asarray(outside, bool), -np.inf, np.asarray(logits, float))
    drawn = np.sort(said[one_of_each(groups)])[::-1]
    pairs = []
    for share in _SHARES:
        last = float(drawn[max(math.ceil(share * len(drawn)) - 1, 0)])
        if math.isfinite(last):
            pairs.append([share, round(float(np.clip(last, -_MOST, _MOST)), 4)])
    return pairs


def starting_cutoffs(
    pairs: Sequence[Sequence[float]], shares: Sequence[float], shift: float = 0.0
) -> NDArray[np.float64]:
    """Return the cutoffs on P that would accept these shares of groups, (shares,).

    Parameters
    ----------
    pairs : sequence of [share, logit]
        From `held_out_logits`.
    shares : sequence of float
        For a share above all stored shares, the cutoff of the largest stored share is
        used.
    shift : float
        Added to the logits, for a boundary that is not the probe's own
        (`Calibration.shift`).
    """
    known = np.asarray(pairs, dtype=float)
    logits = np.interp(shares, known[:, 0], known[:, 1]) + shift
    return np.asarray(special.expit(np.clip(logits, -_MOST, _MOST)))
