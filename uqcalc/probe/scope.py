"""Limits of the calibration set: on structures, and on their least reliable atom.

Outside the scope the probability of a probe is an extrapolation (`Scope`). Inside, P of
a structure is close to an average over the atoms: one broken bond among many intact
bonds hardly changes it. Each atom has its own probability, and the lowest one shows
what the average hides (`AtomFloor`). The lowest of many atoms is lower by chance alone,
and an atom may err more than the structure as a whole. So the lowest log-odds are
compared with those of right structures with as many atoms, not with a fixed number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelWarning, ProbeError
from uqcalc.files.entries import checked
from uqcalc.statistics.quantiles import group_quantile
from uqcalc.targets import TARGETS


LEVEL = 0.99
# Factor on the sizes for intensive quantities: their errors change little with size.
_INTENSIVE = 2.0
# Larger values are outside: distance in units of the scope's limit; charge gap in e,
# half the difference between neighbouring ions.
FARTHEST, CHARGE_GAP = 1.0, 0.5
FAR = 4.0  # distance in units of the limit above which a structure is far outside
# Largest squared distance over the median: 80 to 154 in crystal sets without broken
# frames (`provenance/universal`); this limit includes a reserve.
_WIDE = 1000.0


@dataclass(frozen=True, slots=True)
class Scope:
    """Limits outside which a probability is an extrapolation.

    Attributes
    ----------
    distance : float
        Limit on the largest squared Mahalanobis distance of an atom. A share ``level``
        of new structures like the labelled ones is below it: a conformal quantile over
        held-out groups (Vovk et al. 2005).
    level : float
    smallest, largest : int
        Limits on the number of atoms in a structure.
    any_cell : bool
        Whether these limits are for molecules only: a supercell is like its cell.
    charges : tuple of int
        Total charges in e; empty if the backbone gives no atomic charges.
    outside : float
        Share of held-out labelled structures beyond ``distance``; NaN if unknown.
    elements : tuple of int
        Atomic numbers of the system that the probe was adapted to; empty if any element
        of the labels is allowed.
    """

    distance: float
    level: float
    smallest: int
    largest: int
    charges: tuple[int, ...] = ()
    outside: float = math.nan
    elements: tuple[int, ...] = ()
    any_cell: bool = False

    @property
    def sizes(self) -> str:
        """The range of the number of atoms as text: "3 to 18"."""
        return f"{self.smallest} to {self.largest}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        outside = None if math.isnan(self.outside) else self.outside
        lists = {"charges": list(self.charges), "elements": list(self.elements)}
        return asdict(self) | lists | {"outside": outside}

    @classmethod
    def from_dict(cls, data: object) -> Scope:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            If an entry is missing, unknown or of another type; the message names it.
        """
        if isinstance(data, Mapping) and data.get("outside", math.nan) is None:
            data = dict(data) | {"outside": math.nan}
        return cls(**checked(cls, data, "scope of a probe", ProbeError))

    def doubts(self, numbers: np.ndarray, *, periodic: bool) -> tuple[str, ...]:
        """Return messages: the number of atoms, or an element, is outside the limits.

        Empty if none is.
        """
        found = []
        atoms = len(numbers)
        noun = "atom" if atoms == 1 else "atoms"
        limited = not (self.any_cell and periodic)
        if limited and not self.smallest <= atoms <= self.largest:
            found.append(f"{atoms} {noun}, calibrated for {self.sizes}")
        if self.elements and (others := set(numbers.tolist()) - set(self.elements)):
            symbols = [chemical_symbols[z] for z in sorted(others)]
            found.append(f"adapted to a system without {' '.join(symbols)}")
        return tuple(found)


def held_out_limit(
    values: NDArray[np.float64], groups: Sequence[str], level: float = LEVEL
) -> tuple[float, float]:
    """Return a limit that holds for a share of new structures, and this share.

    The limit is the conformal quantile over groups
    (`uqcalc.statistics.quantiles.group_quantile`). The share is ``level``, or
    groups / (groups + 1) if that is lower.
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
        If its errors grow with size, as those of total energies do, the sizes are those
        of the labels. Otherwise molecules may differ from these by a factor of 2, and
        periodic cells have no limit.
    distance : array (structures,)
        Largest squared distance of an atom, from statistics fitted without its group.
    sizes : sequence of int
        Atoms of each structure.
    groups : sequence of str
        One structure of each group, drawn at random, enters the quantile.
    charges : sequence of float
        Sums of the atomic charges in e; empty without charges.
    """
    away = np.asarray(distance, dtype=float)
    limit, level = held_out_limit(away, groups, level)
    grows = TARGETS[target].grows
    stretch = 1.0 if grows else _INTENSIVE
    return Scope(
        distance=limit,
        level=level,
        smallest=math.ceil(min(sizes) / stretch),
        largest=math.floor(max(sizes) * stretch),
        charges=tuple(sorted({round(q) for q in charges})),
        outside=float(np.mean(away > limit)),
        any_cell=not grows,
    )


def warn_of_wide_scope(
    scope: Scope, distance: ArrayLike, groups: Sequence[str]
) -> None:
    """Warn if the limit is far above the median distance: it then excludes little.

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
        "distances of labelled structures should be similar, but the limit of the "
        f"scope is {scope.distance:.3g} and the median {middle:.3g}, so that the "
        f"scope excludes little; look at the farthest structures (groups {far}), "
        "which may be broken frames"
    )
    warnings.warn(msg, LabelWarning, stacklevel=2)


# Log-odds below the `AtomFloor` above which a structure is SUSPECT, UNRELIABLE.
LOWEST, FAR_LOWEST = 0.0, 2.0
_FEWEST = 20  # smallest number of right structures
_MOST = 5_000  # largest number of structures in the fit of the slope
_SLOPE_AT = 0.1  # quantile of the slope: enough structures lie below it


@dataclass(frozen=True, slots=True)
class AtomFloor:
    """Lower limit on the log-odds of the least reliable atom of right structures.

    It is ``intercept + slope * log(atoms)`` and holds for a share ``level`` of them.

    Attributes
    ----------
    level : float
        Share of new right structures like the labelled ones whose least reliable atom
        lies above: a conformal quantile over held-out groups.
    intercept, slope : float
        The slope is at most 0: the lowest of more atoms is lower.
    smallest : int
        Atoms of the smallest right structure; it is used for smaller structures too.
    structures : int
        Number of right structures that it was fitted to.
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
        """Return the floor in log-odds for a structure of ``atoms`` atoms."""
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
            If an entry is missing, unknown or of another type; the message names it.
        """
        return cls(**checked(cls, data, "atom floor of a probe", ProbeError))


def learn_floor(
    lowest: NDArray[np.float64],
    sizes: NDArray[np.int64],
    groups: Sequence[str],
    level: float = LEVEL,
) -> AtomFloor | None:
    """Return the atom floor; None if there are fewer than 20 right structures.

    The slope is that of a quantile regression (Koenker & Bassett 1978,
    doi:10.2307/1913643) in which each group has the same weight.

    Parameters
    ----------
    lowest : array (structures,)
        Log-odds of the least reliable atom of each right structure.
    sizes : array (structures,)
        Atoms of each structure.
    groups : sequence of str
        One structure of each group, drawn at random, enters the quantile.
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
