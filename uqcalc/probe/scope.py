"""Limits of the calibration set: on structures, and on their least reliable atom.

Outside the scope the probability of a probe is an extrapolation (`Scope`). Inside, P of
a structure is close to an average over the atoms: one broken bond among many intact
bonds hardly changes it. Each atom has its own probability, and the lowest one shows
what the average hides (`AtomFloor`). The lowest of many atoms is lower by chance alone,
and the error of one atom may be larger than that of the structure. So the lowest
log-odds are compared with those of right structures with as many atoms, not with a
fixed number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from uqcalc.errors import LabelError, ProbeError
from uqcalc.files.entries import checked
from uqcalc.statistics.quantiles import group_quantile
from uqcalc.targets import TARGETS


if TYPE_CHECKING:
    import torch

LEVEL = 0.99
# Shares of the well judged left-out structures that lie within the two limits on the
# distance: of the farthest atom, and of the mean over atoms.
LARGEST_LEVEL, MEAN_LEVEL = 0.99, 0.95
# Factor on the sizes for intensive quantities: their errors change little with size.
_INTENSIVE = 2.0
# Larger values are outside: distance in units of the scope's limit; charge gap in e,
# half the difference between neighbouring ions.
FARTHEST, CHARGE_GAP = 1.0, 0.5
FAR = 4.0  # distance in units of the limit above which a structure is far outside


@dataclass(frozen=True, slots=True)
class Scope:
    """Limits outside which a probability is an extrapolation.

    A structure is outside if its farthest atom is, or if its atoms are on average. A
    wrong lattice or wrong elements move all atoms a little; the largest distance in a
    cell of many atoms hides this.

    Attributes
    ----------
    distance : float
        Limit on the largest squared Mahalanobis distance of an atom.
    level : float
        Share of new structures like the well judged labels below ``distance``.
    smallest, largest : int
        Limits on the number of atoms in a structure.
    any_cell : bool
        Whether these limits are for molecules only: a supercell is like its cell.
    charges : tuple of int
        Total charges in e; empty if the backbone gives no atomic charges.
    outside : float
        Share of the well judged left-out structures beyond a limit on the distance; NaN
        if unknown.
    elements : tuple of int
        Atomic numbers of the system that the probe was adapted to; empty if any element
        of the labels is allowed.
    mean_distance : float or None
        Limit on the geometric mean over the atoms of their squared distances, for one
        element (see `novelty`). None in probes of earlier versions, which limit the
        largest distance only.
    mean_slope : float
        Slope of the logarithm of this limit in that of the number of elements of the
        structure; at most 0, and 0 in probes of earlier versions.
    element_counts : pair of int
        Smallest and largest number of elements of the structures that set the slope.
        Other structures have the limit of the nearer one.
    """

    distance: float
    level: float
    smallest: int
    largest: int
    charges: tuple[int, ...] = ()
    outside: float = math.nan
    elements: tuple[int, ...] = ()
    any_cell: bool = False
    mean_distance: float | None = None
    mean_slope: float = 0.0
    element_counts: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        fewest, most = self.element_counts
        if self.mean_slope > 0 or not 1 <= fewest <= most:
            msg = (
                "scope of a probe must have a mean_slope of at most 0 and "
                f"element_counts from 1 in ascending order, got {self.mean_slope} and "
                f"{fewest}, {most}; the file is damaged, fit the probe again"
            )
            raise ProbeError(msg)

    @property
    def sizes(self) -> str:
        """The range of the number of atoms as text: "3 to 18"."""
        return f"{self.smallest} to {self.largest}"

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        outside = None if math.isnan(self.outside) else self.outside
        names = ("charges", "elements", "element_counts")
        lists = {name: list(getattr(self, name)) for name in names}
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

    def novelty(
        self, largest: torch.Tensor, mean_log: torch.Tensor, elements: torch.Tensor
    ) -> torch.Tensor:
        """Return the distance in units of the limit, (structures,); above 1 is outside.

        It is the larger of two ratios: largest squared distance of an atom over
        ``distance``, and geometric mean over its limit. NaN stays NaN.

        Parameters
        ----------
        largest, mean_log, elements : tensors (structures,)
            As in `uqcalc.probe.stacked.StackedOutput`.
        """
        ratio = largest / self.distance
        if self.mean_distance is None:
            return ratio
        of_one = self.as_of_one_element(mean_log, elements)
        return ratio.maximum(of_one.exp() / self.mean_distance)

    def as_of_one_element(
        self, mean_log: torch.Tensor, elements: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean log distance minus the slope's part, (structures,).

        This number has one limit, ``log(mean_distance)``, for any number of elements.
        Parameters as for `novelty`.
        """
        return mean_log - self.mean_slope * elements.clamp(*self.element_counts).log()

    @property
    def mean_limits(self) -> tuple[float, float] | None:
        """Limits on the geometric mean distance for the two ``element_counts``.

        None without a limit.
        """
        if self.mean_distance is None:
            return None
        first, last = (float(n) ** self.mean_slope for n in self.element_counts)
        return self.mean_distance * first, self.mean_distance * last

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


def tail_limit(
    values: NDArray[np.float64], groups: Sequence[str], level: float
) -> float:
    """Return a limit that about a share ``level`` of new groups does not exceed.

    A quantile of 0.95 or 0.99 of few groups is the value of the last one or two, and
    another draw of the groups gives another limit. So the limit is extrapolated, as for
    normal values, from the median and from the quantile q that ten groups exceed:

        median + (quantile(q) - median) z(level) / z(q)

    with the normal quantile z. With fewer than 40 groups q is 0.75, the quartile. With
    200 groups and the level 0.95, q is the level and the limit a plain quantile.

    Parameters
    ----------
    values : array (structures,)
        Finite; logarithms of distances are close to normal.
    groups : sequence of str
        Each group has the same weight, divided equally among its members.
    level : float
        Above 0.75 and below 1.
    """
    _, inverse, counts = np.unique(
        np.asarray(groups), return_inverse=True, return_counts=True
    )
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(1.0 / counts[inverse][order]) / len(counts)
    anchor = _anchor(len(counts), level)
    middle, upper = values[order][np.searchsorted(mass, (0.5, anchor - 1e-9))]
    z = NormalDist().inv_cdf
    return float(middle + (upper - middle) * z(level) / z(anchor))


def _anchor(groups: int, level: float) -> float:
    """Return the quantile that ten of the groups exceed, from the quartile to level."""
    return float(np.clip(1 - _BEYOND / (groups + 1), _QUARTILE, level))


def element_slope(
    mean_log: NDArray[np.float64],
    elements: NDArray[np.float64],
    groups: Sequence[str],
) -> float:
    """Return the slope of the limit on ``mean_log`` in the log number of elements.

    Structures of few elements lie farther from the mean of all structures with these
    elements, and scatter more. The slope is that of a quantile regression at the
    quantile q of `tail_limit`. The labels determine it with a standard error e, from a
    jackknife that leaves out tenths of the groups (Miller 1974,
    doi:10.1093/biomet/61.1.1). The slope is multiplied by

        max(0, 1 - e^2 / slope^2)

    (positive-part shrinkage, James & Stein 1961). It is 0 if it would be positive, with
    fewer than 20 groups, or if all structures have as many elements.

    Parameters
    ----------
    mean_log, elements : arrays (structures,)
        As for `learn_scope`; finite.
    groups : sequence of str
        Each group has the same weight, divided equally among its members.
    """
    logs = np.log(elements)
    _, place, counts = np.unique(
        np.asarray(groups), return_inverse=True, return_counts=True
    )
    if len(counts) < _FEWEST or np.ptp(logs) == 0:
        return 0.0
    weights, quantile = 1 / counts[place], _anchor(len(counts), MEAN_LEVEL)
    some = np.random.default_rng(0).permutation(len(logs))[:_MOST]
    tenth = np.random.default_rng(0).permutation(len(counts))[place] % _TENTHS

    def slope(rows: NDArray[np.int64]) -> float:
        return quantile_slope(logs[rows], mean_log[rows], weights[rows], quantile)

    found = slope(some)
    parts = [slope(some[tenth[some] != k]) for k in range(_TENTHS)]
    if found >= 0:
        return 0.0
    error = (_TENTHS - 1) * float(np.var(parts))
    return found * max(0.0, 1 - error / found**2)


def quantile_slope(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    weights: NDArray[np.float64],
    quantile: float,
) -> float:
    """Return the slope of a quantile of ``y`` in ``x``; 0 if all ``x`` are equal.

    Quantile regression (Koenker & Bassett 1978, doi:10.2307/1913643). All arrays are
    (structures,).
    """
    if np.ptp(x) == 0:
        return 0.0
    from sklearn.linear_model import QuantileRegressor

    line = QuantileRegressor(quantile=quantile, alpha=0.0)
    return float(line.fit(x[:, None], y, sample_weight=weights).coef_[0])


def learn_scope(
    target: str,
    distances: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    sizes: Sequence[int],
    groups: Sequence[str],
    charges: Sequence[float],
    judged: NDArray[np.bool_] | None = None,
) -> Scope:
    """Return the limits of labelled structures.

    The limits on the distance are those of structures of left-out groups that are well
    judged: right, and with a P of RELIABLE. Only there does the scope change a verdict,
    so labels with a low P, such as random cells, must not widen it. If fewer than 20
    structures are well judged, all of them set the limits.

    Parameters
    ----------
    target : str
        If its errors grow with size, as those of total energies do, the sizes are those
        of the labels. Otherwise molecules may differ from these by a factor of 2, and
        periodic cells have no limit.
    distances : three arrays (structures,)
        Largest squared distance of an atom, mean over atoms of the logarithm of squared
        distances, and number of elements; from statistics without the structure's
        group (`uqcalc.fitting.leftout`). NaN is left out.
    sizes : sequence of int
        Atoms of each structure.
    groups : sequence of str
    charges : sequence of float
        Sums of the atomic charges in e; empty without charges.
    judged : array (structures,) of bool, optional
        Which structures are well judged; by default all.

    Raises
    ------
    LabelError
        If no structure has a distance.
    """
    largest, mean_log, elements = distances
    known = np.isfinite(largest) & np.isfinite(mean_log)
    if not known.any():
        msg = (
            "each element of some structures must occur in two groups, got none: the "
            "scope is learned from groups that are left out; add groups"
        )
        raise LabelError(msg)
    chosen = known if judged is None else known & judged
    if chosen.sum() < _FEWEST:
        chosen = known
    rows = np.flatnonzero(chosen)
    of = [groups[i] for i in rows.tolist()]
    limit = tail_limit(np.log(largest[rows]), of, LARGEST_LEVEL)
    slope = element_slope(mean_log[rows], elements[rows], of)
    of_one = mean_log[rows] - slope * np.log(elements[rows])
    mean_limit = tail_limit(of_one, of, MEAN_LEVEL)
    beyond = (np.log(largest[rows]) > limit) | (of_one > mean_limit)
    grows = TARGETS[target].grows
    stretch = 1.0 if grows else _INTENSIVE
    return Scope(
        distance=math.exp(limit),
        level=LARGEST_LEVEL,
        smallest=math.ceil(min(sizes) / stretch),
        largest=math.floor(max(sizes) * stretch),
        charges=tuple(sorted({round(q) for q in charges})),
        outside=float(beyond.mean()),
        any_cell=not grows,
        mean_distance=math.exp(mean_limit),
        mean_slope=slope,
        element_counts=(int(elements[rows].min()), int(elements[rows].max())),
    )


# Log-odds below the `AtomFloor` above which a structure is SUSPECT, UNRELIABLE.
LOWEST, FAR_LOWEST = 0.0, 2.0
_FEWEST = 20  # smallest number of right structures
_BEYOND, _QUARTILE = 10, 0.75  # of `tail_limit`
_MOST = 5_000  # largest number of structures in the fit of a slope
_TENTHS = 10  # parts of the groups that `element_slope` leaves out
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

    def of_batch(self, atoms: torch.Tensor) -> torch.Tensor:
        """Return the floors, (structures,), for structures of ``atoms`` atoms each."""
        logs = atoms.double().clamp(min=self.smallest).log()
        return (self.intercept + self.slope * logs).float()

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

    The slope is that of a quantile regression (`quantile_slope`) in which each group
    has the same weight.

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
    logs = np.log(sizes)
    _, inverse, counts = np.unique(
        np.asarray(groups), return_inverse=True, return_counts=True
    )
    weights = 1 / counts[inverse]
    some = np.random.default_rng(0).permutation(len(lowest))[:_MOST]
    slope = quantile_slope(logs[some], lowest[some], weights[some], _SLOPE_AT)
    slope = min(0.0, slope)
    below, reached = held_out_limit(slope * logs - lowest, groups, level)
    return AtomFloor(reached, -below, slope, int(sizes.min()), len(lowest))
