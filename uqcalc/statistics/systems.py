"""How far a system's errors lie from those that a probe expects, from a few labels.

A calibrated probe gives P(error <= b) = sigmoid(l + s(b)): l is its logit at its own
boundary, s(b) the shift of another boundary (`uqcalc.probe.calibration`). Then the
residual r = l + s(error) of a labelled structure has a standard logistic distribution.
On a new system it has another place and width:

    r = a + u + c ε,    ε ~ logistic(0, 1)

===========  ====================  =====================================================
symbol       variable              meaning
===========  ====================  =====================================================
a            place                 shift of the system; larger errors make it larger
u            -                     shift of a run within the system, integrated over
c            width                 1 for a system like those of the calibration
τ_system     ``spread.system``     scale of a over systems, Student t with 4 degrees
τ_run        ``spread.run``        standard deviation of u over runs
===========  ====================  =====================================================

A label uses the size of its error, not only whether it is right. So a few labels
suffice, also if all are right or all are wrong. Errors beyond the boundaries that the
calibration covers are censored. The posterior of (a, c) is computed on a grid. The
adapted probability is the mean of sigmoid((l + s(b) - a - u) / c) over the posterior,
a monotone function of l + s(b): probabilities keep their order and grow with the
boundary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp
from scipy.stats import norm, t


_STEP = 0.1
# Shifts on the grid. A shift of 15 turns a probability of 0.999 into 3e-4.
GRID = np.arange(-15.0, 15.0 + _STEP / 2, _STEP)
_FREEDOM = 4.0  # Student t: one system in a hundred is far from the others
# Widths and their prior weights: log c ~ N(0, 0.5²), at the nodes of Gauss-Hermite.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
WIDTHS = np.exp(0.5 * _NODES)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
SYSTEMS = np.geomspace(0.1, 5.0, 40)  # scales over systems that are tried
# Spreads over runs that are tried, and fewest runs from which one is learnt.
RUNS = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.2])
_FEWEST_RUNS = 4
KNOTS = np.linspace(-12.0, 12.0, 97)  # logits at which the adapted logit is stored


@dataclass(frozen=True, slots=True)
class Spread:
    """How far systems and runs lie from each other, in log-odds.

    Attributes
    ----------
    system, run : float
        Scale over systems, standard deviation over runs of one system.
    systems : int
        Number of left-out systems that they were learnt from; 0 for assumed values.
    """

    system: float
    run: float
    systems: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        return asdict(self)

    @classmethod
    def of_card(cls, training: Mapping[str, Any]) -> Spread:
        """Return the spreads on the card of a probe; `ASSUMED` if it has none."""
        found = training.get("spread")
        return ASSUMED if found is None else cls(**found)


# Measured over nine DFT systems with CHGNet: 2.0 to 2.5; over molecules with the
# bundled potential: 0.4 to 0.5.
ASSUMED = Spread(system=1.5, run=0.3)


@dataclass(frozen=True, slots=True, eq=False)
class Residuals:
    """Residuals of labelled structures, some of them censored.

    Attributes
    ----------
    value : array (structures,)
        Residual in log-odds, or the bound if it is censored.
    side : array of int (structures,)
        0: known; -1: the residual is at most the value; 1: it is larger.
    """

    value: NDArray[np.float64]
    side: NDArray[np.int64]

    def log_likelihood(self) -> NDArray[np.float64]:
        """Return log p(residual | place, width), (structures, places, widths)."""
        z = (self.value[:, None, None] - GRID[:, None]) / WIDTHS
        below, above = -np.logaddexp(0.0, -z), -np.logaddexp(0.0, z)
        inside = below + above - np.log(WIDTHS)
        side = self.side[:, None, None]
        return np.where(side == 0, inside, np.where(side < 0, below, above))


def residuals(
    logits: NDArray[np.float64],
    errors: NDArray[np.float64],
    boundaries: Sequence[float],
    shifts: Sequence[float],
) -> Residuals:
    """Return the residuals of structures.

    Parameters
    ----------
    logits : array (structures,)
        Log-odds of P(error <= the probe's boundary).
    errors : array (structures,)
        True errors, in the unit of ``boundaries``.
    boundaries, shifts : sequences of float
        Of the calibration. Errors outside ``boundaries`` are censored.
    """
    known = np.asarray(boundaries, float)
    inside = np.clip(errors, known[0], known[-1])
    shift = np.interp(np.log(inside), np.log(known), np.asarray(shifts, float))
    side = np.where(errors < known[0], -1, np.where(errors > known[-1], 1, 0))
    return Residuals(logits + shift, side)


def run_likelihoods(
    found: Residuals, runs: Sequence[str], spread_of_runs: float
) -> NDArray[np.float64]:
    """Return the log-likelihood of the system's place, (places, widths).

    The shift of each run is integrated over N(0, ``spread_of_runs``²).
    """
    return _integrated(_of_runs(found, runs), spread_of_runs)


def _of_runs(found: Residuals, runs: Sequence[str]) -> list[NDArray[np.float64]]:
    """Return the log-likelihood of each run, (places, widths)."""
    table = found.log_likelihood()
    names, which = np.unique(np.asarray(runs), return_inverse=True)
    return [table[which == number].sum(axis=0) for number in range(len(names))]


def _integrated(
    tables: Sequence[NDArray[np.float64]], spread_of_runs: float
) -> NDArray[np.float64]:
    kernel = _kernel(spread_of_runs)
    total = np.zeros(tables[0].shape)
    for table in tables:
        total += _smooth(table, kernel)
    return total


def _kernel(deviation: float) -> NDArray[np.float64]:
    """Return log N(v - a), (places a, places v); the identity for a tiny deviation."""
    away = GRID[None, :] - GRID[:, None]
    log = norm.logpdf(away, scale=max(deviation, _STEP / 4))
    return np.asarray(log - logsumexp(log, axis=1, keepdims=True))


def _smooth(
    table: NDArray[np.float64], kernel: NDArray[np.float64]
) -> NDArray[np.float64]:
    top = table.max(axis=0)
    weights = np.exp(kernel)
    return np.asarray(np.log(weights @ np.exp(table - top) + 1e-300) + top)


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Posterior of (place, width) of a system, on the grid."""

    weights: NDArray[np.float64]
    spread: Spread

    @property
    def place(self) -> tuple[float, float]:
        """Mean and standard deviation of the system's place, in log-odds."""
        over = self.weights.sum(axis=1)
        mean = float(over @ GRID)
        return mean, float(np.sqrt(over @ (GRID - mean) ** 2))

    def logit(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the adapted log-odds of a new run; increasing in ``logits``."""
        weights = np.exp(_kernel(self.spread.run)).T @ self.weights
        z = (logits[:, None, None] - GRID[:, None]) / WIDTHS
        mean = (expit(z) * weights).sum(axis=(1, 2))
        rest = (expit(-z) * weights).sum(axis=(1, 2))
        return np.asarray(np.log(mean) - np.log(rest))

    def knots(self) -> tuple[tuple[float, float], ...]:
        """Return (logit before, logit after), increasing in both."""
        after = self.logit(KNOTS)
        return tuple(zip(KNOTS.tolist(), after.tolist(), strict=True))


def posterior(
    found: Residuals, runs: Sequence[str], spread: Spread, mean: float = 0.0
) -> Posterior:
    """Return the posterior of a system's place and width.

    Parameters
    ----------
    found : Residuals
        Of the labelled structures; may be empty, which gives the prior.
    runs : sequence of str
        Name of the run of each; errors of one run are correlated.
    spread : Spread
    mean : float
        Prior mean of the place.
    """
    log = run_likelihoods(found, runs, spread.run) if len(runs) else 0.0
    prior = t.logpdf(GRID - mean, _FREEDOM, scale=spread.system)
    log = log + prior[:, None] + _LOG_WEIGHTS
    return Posterior(np.exp(log - logsumexp(log)), spread)


def learn_system_spread(tables: Sequence[Residuals]) -> float:
    """Return the scale over systems with the largest marginal likelihood.

    Parameters
    ----------
    tables : sequence of Residuals
        One for each system that the probe's fit left out.
    """
    logs = [found.log_likelihood().sum(axis=0) + _LOG_WEIGHTS for found in tables]
    values = []
    for scale in SYSTEMS:
        prior = t.logpdf(GRID, _FREEDOM, scale=scale)
        prior = (prior - logsumexp(prior))[:, None]
        values.append(sum(float(logsumexp(log + prior)) for log in logs))
    return float(SYSTEMS[int(np.argmax(values))])


def learn_runs(found: Residuals, runs: Sequence[str], spread: Spread) -> float:
    """Return the spread over runs with the largest marginal likelihood of one system.

    With fewer than four runs of several labels it is that of ``spread``: one label of
    a run does not show how far runs lie from each other.
    """
    _, counts = np.unique(np.asarray(runs), return_counts=True)
    if np.count_nonzero(counts > 1) < _FEWEST_RUNS:
        return spread.run
    prior = t.logpdf(GRID, _FREEDOM, scale=spread.system)[:, None] + _LOG_WEIGHTS
    tables = _of_runs(found, runs)
    values = [float(logsumexp(_integrated(tables, run) + prior)) for run in RUNS]
    return float(RUNS[int(np.argmax(values))])


def compare_places(
    found: Residuals, runs: Sequence[str], parts: Sequence[str], spread: Spread
) -> float:
    """Return log p(residuals | a place for each part) - log p(... | one place).

    Positive values favour parts that differ, as do compositions of a mixture.
    """
    prior = t.logpdf(GRID, _FREEDOM, scale=spread.system)
    prior = (prior - logsumexp(prior))[:, None] + _LOG_WEIGHTS

    def evidence(rows: NDArray[np.int64]) -> float:
        some = Residuals(found.value[rows], found.side[rows])
        log = run_likelihoods(some, [runs[i] for i in rows], spread.run)
        return float(logsumexp(log + prior))

    which = np.asarray(parts)
    apart = sum(evidence(np.flatnonzero(which == name)) for name in np.unique(which))
    return apart - evidence(np.arange(len(which)))


_LEAST_GAP = 0.05  # smaller gaps of mean P and frequency do not matter in practice


def holds(
    probability: NDArray[np.float64],
    reliable: NDArray[np.bool_],
    spread_of_systems: float,
) -> dict[str, Any]:
    """Return whether the mean probability agrees with the share of reliable structures.

    Parameters
    ----------
    probability : array (structures,)
    reliable : boolean array (structures,)
    spread_of_systems : float
        `Spread.system` of the probe, in log-odds.

    Returns
    -------
    dict
        ``holds``: the gap is below 0.05, or below twice the standard deviation that
        the probabilities give for as many independent structures. ``shift``: the gap
        in log-odds. ``beyond_systems``: the shift is above twice the spread.
    """
    count = len(probability)
    share, mean = float(np.mean(reliable)), float(np.mean(probability))
    deviation = float(np.sqrt(np.sum(probability * (1 - probability)))) / count
    gap = abs(share - mean)
    hits = share * count
    shift = np.log((hits + 0.5) / (count - hits + 0.5)) - np.log(
        (mean * count + 0.5) / ((1 - mean) * count + 0.5)
    )
    return {
        "holds": bool(gap <= max(_LEAST_GAP, 2 * deviation)),
        "shift": float(shift),
        "beyond_systems": bool(abs(shift) > 2 * spread_of_systems),
    }
