"""What a probe was calibrated on, so that it can say when a structure lies outside."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uqcalc.entries import checked
from uqcalc.errors import LabelWarning, ProbeError
from uqcalc.quantiles import group_quantile


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

    The conformal quantile over groups (`uqcalc.quantiles.group_quantile`); with few
    groups the largest value is the best there is, and of a lower level.
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
    stretch = 1.0 if target == "energy" else _INTENSIVE
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
