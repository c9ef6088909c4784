"""Regimes of labelled structures, stated in ``info`` or by the rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.backbones.base import Prediction
from uqcalc.geometry.bonds import BondFinder
from uqcalc.geometry.broken import broken_bonds
from uqcalc.geometry.environments import Coordination, Environments
from uqcalc.geometry.regimes import regime_of, stated_regime, stated_temperature
from uqcalc.geometry.surroundings import Geometry


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """Regime and temperature of each structure, from ``info``.

    Attributes
    ----------
    regimes : list of str or None
        ``info["regime"]``; None where it is missing.
    temperatures : array (structures,)
        In K; NaN where it is missing.
    """

    regimes: list[str | None]
    temperatures: NDArray[np.float64]

    @classmethod
    def of(cls, frames: Sequence[Atoms], rows: Iterable[int]) -> Conditions:
        """Return what the frames of these rows say.

        Raises
        ------
        LabelError
            If a stated regime is not a text.
        """
        infos = [frames[row].info for row in rows]
        found = [stated_temperature(info) for info in infos]
        return cls(
            [stated_regime(info) for info in infos],
            np.array([np.nan if t is None else t for t in found], dtype=float),
        )

    def take(self, rows: NDArray[np.int64]) -> Conditions:
        """Return the conditions of these structures."""
        return Conditions([self.regimes[i] for i in rows], self.temperatures[rows])


def regimes_of(
    predictions: Iterable[Prediction], conditions: Conditions | None
) -> list[str]:
    """Return the regime of each structure: the stated one, or that of the rule.

    The rule takes the forces and the stress that the potential predicts, as when it
    judges a structure without labels.
    """
    find, around, found = BondFinder(), Coordination(), []
    for row, prediction in enumerate(predictions):
        stated = None if conditions is None else conditions.regimes[row]
        if stated is not None:
            found.append(stated)
            continue
        temperature = np.nan if conditions is None else conditions.temperatures[row]
        geometry = geometry_of(prediction)
        bonds = find(geometry)
        found.append(
            regime_of(
                geometry,
                np.asarray(prediction.forces),
                around(geometry)[1],
                breaking=bonds is not None and bool(broken_bonds(bonds).reasons),
                fragments=0 if bonds is None else bonds.fragments,
                stress=prediction.results.get("stress"),
                temperature=None if np.isnan(temperature) else float(temperature),
            )
        )
    return found


def limits_of_labels(
    predictions: Sequence[Prediction], conditions: Conditions | None
) -> dict[str, Any]:
    """Return what a card stores: environments, regimes, the highest temperature.

    ``regimes`` counts the labels by regime. ``regimes_by_rule`` are those that the rule
    gives without ``info``: a structure to judge has neither a stated regime nor a
    temperature, so that only these can be compared with its own.
    ``temperature_K`` is None if at most half of the structures state a temperature.
    """
    by_rule = sorted(set(regimes_of(predictions, None)))
    names, counts = np.unique(regimes_of(predictions, conditions), return_counts=True)
    hottest = None
    if conditions is not None and np.isfinite(conditions.temperatures).mean() > 0.5:
        hottest = float(np.nanmax(conditions.temperatures))
    return {
        "environments": Environments.of(map(geometry_of, predictions)).to_dict(),
        "regimes": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "regimes_by_rule": by_rule,
        "temperature_K": hottest,
    }


def geometry_of(prediction: Prediction) -> Geometry:
    """Return the geometry of a prediction."""
    return Geometry(
        prediction.numbers, prediction.positions, prediction.cell, prediction.pbc
    )
