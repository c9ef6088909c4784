"""What a probe was calibrated on: limits on structures, and on their worst atom.

Outside its scope the probability of a probe is an extrapolation (`Scope`). Within it, P
of a structure is close to an average over the atoms: one broken bond among many sound
ones hardly moves it. The atoms have probabilities of their own, and the lowest of them
shows what the average hides (`AtomFloor`). The lowest of many atoms is lower by chance
alone, and an atom may err more than the structure as a whole. So the lowest one is
compared with the lowest one of right structures with as many atoms, and not with a
fixed number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelWarning, ProbeError
from uqcalc.files.entries import checked
from uqcalc.statistics.quantiles import group_quantile
from uqcalc.targets import TARGETS


LEVEL = 0.99
# Errors of intensive quantities change little with the size; those of totals do.
_INTENSIVE = 2.0
# Readings above these are outside: a distance in units of the scope's own limit, and a
# charge in e, half of what sets ions apart.
FARTHEST, CHARGE_GAP = 1.0, 0.5
FAR = 4.0  # the distance above which a structure is far outside
# Squared distances of labelled sets without a broken frame reach up to this many times
# their median (80 to 154 on the crystal sets of `universal_probes.py`), and a reserve.
_WIDE = 1000.0


@dataclass(frozen=True, slots=True)
class Scope:
    """Limits outside which a probability is an extrapolation.

    Attributes
    ----------
    distance : float
        Largest Mahalanobis distance of an atom that ``level`` of new structures like
        the labelled ones stay within: a conformal quantile over groups that the
        distance was not fitted to (Vovk et al. 2005).
    level : float
    smallest, largest : int
        Atoms in a structure.
    charges : tuple of int
        Total charges, where the backbone gives atomic ones; empty where it does not.
    outside : float
        Share of held-out labelled structures beyond ``distance``.
    """

    distance: float
    level: float
    smallest: int
    largest: int
    charges: tuple[int, ...] = ()
    outside: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        outside = None if math.isnan(self.outside) else self.outside
        return asdict(self) | {"charges": list(self.charges), "outside": outside}

    @classmethod
    def from_dict(cls, data: object) -> Scope:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            Naming an entry that is missing, unknown or of another type.
        """
        if isinstance(data, Mapping) and data.get("outside", math.nan) is None:
            data = dict(data) | {"outside": math.nan}
        return cls(**checked(cls, data, "scope of a probe", ProbeError))

    def doubts(self, numbers: np.ndarray) -> tuple[str, ...]:
        """Say what of a structure's size lies outside."""
        atoms = len(numbers)
        noun = "atom" if atoms == 1 else "atoms"
        if self.smallest <= atoms <= self.largest:
            return ()
        return (f"{atoms} {noun}, calibrated for {self.smallest} to {self.largest}",)


def held_out_limit(
    values: NDArray[np.float64], groups: Sequence[str], level: float = LEVEL
) -> tuple[float, float]:
    """Return what ``level`` of new structures stay below, and the level it has.

    The conformal quantile over groups (`uqcalc.statistics.quantiles.group_quantile`).
    With few groups the largest value is the best there is, and of a lower level.
    """
    count = len(set(groups))
    level = min(level, count / (count + 1))
    return group_quantile(values, list(groups), level), level


def learn_scope(
    target: str,
    distance: ArrayLike,
    sizes: Sequence[int],
    groups: Sequence[str],
    charges: Sequence[float],
    level: float = LEVEL,
) -> Scope:
    """Return the limits of labelled structures.

    Parameters
    ----------
    target : str
        For total energies the sizes are taken as they are, else within a factor of 2.
    distance : array (structures,)
        Of each structure from what was fitted without its group.
    sizes : sequence of int
    groups : sequence of str
        One structure of each, drawn at random, enters the quantile.
    charges : sequence of float
        Sums of the atomic charges; empty without such.
    """
    away = np.asarray(distance, dtype=float)
    limit, level = held_out_limit(away, groups, level)
    stretch = 1.0 if TARGETS[target].grows else _INTENSIVE
    return Scope(
        distance=limit,
        level=level,
        smallest=math.ceil(min(sizes) / stretch),
        largest=math.floor(max(sizes) * stretch),
        charges=tuple(sorted({round(q) for q in charges})),
        outside=float(np.mean(away > limit)),
    )


def warn_of_wide_scope(
    scope: Scope, distance: ArrayLike, groups: Sequence[str]
) -> None:
    """Say where the limit is so far beyond the typical distance that it limits little.

    Warns
    -----
    LabelWarning
        With the limit, the median and the groups that lie farthest.
    """
    away = np.asarray(distance, dtype=float)
    middle = float(np.median(away))
    if scope.distance <= _WIDE * middle:
        return
    far = np.unique([groups[i] for i in np.argsort(-away, kind="stable")[:5]]).tolist()
    msg = (
        "distances of labelled structures should be of like size, or the scope limits "
        f"little, but its limit is {scope.distance:.3g} where the median is "
        f"{middle:.3g}; look at the farthest (of the groups {far}), which may be "
        "broken frames"
    )
    warnings.warn(msg, LabelWarning, stacklevel=2)


# Readings above these are at least SUSPECT, and UNRELIABLE (`AtomFloor`), in log-odds.
LOWEST, FAR_LOWEST = 0.0, 2.0
_FEWEST = 20  # right structures
_MOST = 5_000  # structures that a slope is taken from
_SLOPE_AT = 0.1  # quantile whose slope is taken: enough lie below it


@dataclass(frozen=True, slots=True)
class AtomFloor:
    """Log-odds that the least reliable atom of right structures has at least.

    ``intercept + slope * log(atoms)``, for as many of them as ``level`` says.

    Attributes
    ----------
    level : float
        Share of new right structures like the labelled ones whose least reliable atom
        lies above: a conformal quantile over groups that no path was fitted to.
    intercept, slope : float
        The slope is not positive: more atoms have a lower lowest one.
    smallest : int
        Atoms of the smallest right structure; smaller ones count as of this size.
    structures : int
        Right structures that it rests on.
    """

    level: float
    intercept: float
    slope: float
    smallest: int
    structures: int

    def __post_init__(self) -> None:
        numbers = (self.level, self.intercept, self.slope)
        if not (all(map(math.isfinite, numbers)) and self.smallest >= 1):
            msg = (
                "atom floor of a probe must have finite numbers and at least one atom, "
                f"got {self}; the file is damaged, fit the probe again"
            )
            raise ProbeError(msg)

    def at(self, atoms: int) -> float:
        """Return it for a structure of so many atoms."""
        return self.intercept + self.slope * math.log(max(atoms, self.smallest))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> AtomFloor:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            Naming an entry that is missing, unknown or of another type.
        """
        return cls(**checked(cls, data, "atom floor of a probe", ProbeError))


def learn_floor(
    lowest: NDArray[np.float64],
    sizes: NDArray[np.int64],
    groups: Sequence[str],
    level: float = LEVEL,
) -> AtomFloor | None:
    """Return the floor of right structures; None where they are too few.

    The slope is that of a quantile regression (Koenker & Bassett 1978,
    doi:10.2307/1913643) in which each group has the same weight.

    Parameters
    ----------
    lowest : array (structures,)
        Log-odds of the least reliable atom of each.
    sizes : array (structures,)
        Atoms of each.
    groups : sequence of str
        One structure of each, drawn at random, enters the quantile.
    """
    if len(lowest) < _FEWEST:
        return None
    from sklearn.linear_model import QuantileRegressor

    logs = np.log(sizes)
    _, inverse, counts = np.unique(
        np.asarray(groups), return_inverse=True, return_counts=True
    )
    weights = 1 / counts[inverse]
    slope = 0.0
    if np.ptp(logs) > 0:
        some = np.random.default_rng(0).permutation(len(lowest))[:_MOST]
        line = QuantileRegressor(quantile=_SLOPE_AT, alpha=0.0)
        line.fit(logs[some, None], lowest[some], sample_weight=weights[some])
        slope = min(0.0, float(line.coef_[0]))
    below, reached = held_out_limit(slope * logs - lowest, groups, level)
    return AtomFloor(reached, -below, slope, int(sizes.min()), len(lowest))
