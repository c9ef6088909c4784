"""The least reliable atom of a structure, against what right structures have.

The probability of a structure is an average over its atoms in all but name: one broken
bond among many sound ones hardly moves it. The atoms have probabilities of their own,
and the lowest of them says what the average hides. It falls with the number of atoms by
chance alone, and an atom may err more than the structure as a whole: so it is compared
with the lowest one of right structures of as many atoms, not with a fixed number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.entries import checked
from uqcalc.errors import ProbeError
from uqcalc.probe.scope import held_out_limit


LEVEL = 0.99
# Readings above these are at least SUSPECT, and UNRELIABLE (`AtomFloor`), in log-odds.
LOWEST, FAR_LOWEST = 0.0, 2.0
_FEWEST = 20  # right structures
_MOST = 5_000  # that a slope is taken from
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
