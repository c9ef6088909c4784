"""PROBE as a signal: P(reliable) from the features of the forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar, final

import numpy as np
import torch
from ase.data import atomic_numbers

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.former import Former
from uqcalc.probe.probe import Probe, ProbeReading
from uqcalc.probe.scope import CHARGE_GAP, FAR, FAR_LOWEST, FARTHEST, LOWEST
from uqcalc.probe.stacked import PATHS
from uqcalc.signals.base import TensorReading
from uqcalc.targets import TARGETS


T = TypeVar("T")


@final
class ProbeSignal:
    """Risk = 1 - P(reliable) after calibration (arXiv:2605.00640).

    The risk is NaN if an element was not in the labels. The results are

    - ``probe_reliability``: P(reliable).
    - ``probe_reliabilities`` (atoms,): the same per atom. This and the following
      results exist for the default architecture only.
    - ``probe_attention``, ``probe_linear``, ``probe_trend``, ``probe_local``: the
      contribution of each path (`uqcalc.probe.stacked`) to the log-odds, relative to
      the average labelled structure.
    - ``probe_novelty``: the largest squared feature distance of an atom, divided by the
      value that 99 % of structures like the labelled ones stay below. Above 1 the
      verdict is at least SUSPECT, above `scope.FAR` UNRELIABLE.
    - ``probe_worst_atom``: the log-odds by which the least reliable atom lies below the
      level that 99 % of the reliable structures of that size reach. Above 0 the verdict
      is at least SUSPECT, above `scope.FAR_LOWEST` UNRELIABLE.

    A probe with a guarantee (`uqcalc.certify`) adds

    - ``probe_promised``: whether the guarantee covers this geometry. It does if the
      geometry is inside the scope, has no doubtful atom, and has a probability of at
      least the guarantee's cutoff. False for an unseen element or a NaN probability.
    - ``probe_tolerance_reliability``: P(error <= tolerance), if the tolerance of the
      guarantee differs from the boundary.

    Parameters
    ----------
    probe : Probe
    importance : bool
        Whether every reading has ``probe_importance``. With False, `explain` gives it
        for single geometries.
    further : bool
        Whether the calculator has another, first probe. The signal is then named after
        its target, and so are the results: "probe_stress" gives
        ``probe_reliability_stress``, ``probe_novelty_stress`` and so on.
    """

    promise = Former("guarantee")

    def __init__(
        self, probe: Probe, *, importance: bool = True, further: bool = False
    ) -> None:
        self._suffix = f"_{probe.card.target}" if further else ""
        self.name = f"probe{self._suffix}"
        self.probe = probe
        self.importance = importance
        self._importance = f"probe_importance{self._suffix}"
        card = probe.card
        self.meaning = card.meaning
        self.judges_stress = TARGETS[card.target].of == "stress"
        self.guarantee = guarantee = card.guarantee
        self._tolerance: float | None = None
        if guarantee is not None and guarantee.boundary not in {None, card.boundary}:
            self._tolerance = guarantee.boundary
            card.calibration.shift(
                guarantee.boundary
            )  # raises for an unusable tolerance
        charges = {"charges"} if card.charges else set()
        self.requires = frozenset({"features", *charges})
        judged = {"probe_novelty": card.scope, "probe_worst_atom": card.atom_floor}
        self.judged = tuple(
            f"{key}{self._suffix}" for key, known in judged.items() if known is not None
        )

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that the probe was not fitted on (ProbeError)."""
        self.probe.check(backbone)

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return P(reliable) and, if asked for, the attention on each atom."""
        return self._read(prediction, importance=self.importance)

    def explain(self, prediction: Prediction) -> TensorReading:
        """Return the reading with ``probe_importance``."""
        return self._read(prediction, importance=True)

    def unknown(self) -> dict[str, float | bool]:
        """Return the results (NaN, False) for a geometry that cannot be evaluated."""
        results: dict[str, float | bool] = {"probe_reliability": math.nan}
        if self._tolerance is not None:
            results["probe_tolerance_reliability"] = math.nan
        if self.guarantee is not None:
            results["probe_promised"] = False
        return self._named(results)

    def _named(self, values: Mapping[str, T]) -> dict[str, T]:
        """Return the values under the keys of this signal."""
        return {f"{key}{self._suffix}": value for key, value in values.items()}

    def _read(self, prediction: Prediction, *, importance: bool) -> TensorReading:
        probe, numbers = self.probe, prediction.numbers
        unseen = probe.unseen_elements(numbers)
        found = probe.read([prediction], importance=importance, other=self._tolerance)
        reliability = found.reliability[0]
        if unseen:  # the probe cannot judge an element without labels
            reliability = torch.full_like(reliability, torch.nan)
        results: dict[str, torch.Tensor | bool] = {"probe_reliability": reliability}
        if found.importance is not None:
            results["probe_importance"] = found.importance
        if found.atoms is not None:
            results["probe_reliabilities"] = _known(found.atoms, numbers, unseen)
        if found.parts is not None:
            names = (f"probe_{path}" for path in PATHS)
            results |= dict(zip(names, found.parts[0], strict=True))
        limits, far_limits = {}, {}
        doubts: tuple[str, ...] = ()
        if found.novelty is not None:
            results["probe_novelty"] = found.novelty[0]
            limits["probe_novelty"], far_limits["probe_novelty"] = FARTHEST, FAR
        if found.worst_atom is not None:
            results["probe_worst_atom"] = found.worst_atom[0]
            limits["probe_worst_atom"] = LOWEST
            far_limits["probe_worst_atom"] = FAR_LOWEST
        if found.charge_gap is not None:
            results["probe_charge_gap"] = found.charge_gap[0]
            limits["probe_charge_gap"] = CHARGE_GAP
        if probe.card.scope is not None and not unseen:
            doubts = probe.card.scope.doubts(
                numbers, periodic=bool(prediction.pbc.any())
            )
        results |= self._of_guarantee(found, reliability, doubts)
        return TensorReading(
            signal=self.name,
            risk=1.0 - reliability,
            results=self._named(results),
            per_atom_key=None if found.importance is None else self._importance,
            note=f"elements {unseen} were not in its labels" if unseen else "",
            limits=self._named(limits),
            far_limits=self._named(far_limits),
            doubts=doubts,
            meaning=self.meaning,
        )

    def _of_guarantee(
        self, found: ProbeReading, reliability: torch.Tensor, doubts: Sequence[str]
    ) -> dict[str, torch.Tensor | bool]:
        """Return the results on the guarantee; empty for a probe without one.

        If ``reliability`` is NaN, ``probe_tolerance_reliability`` is NaN.
        """
        if self.guarantee is None:
            return {}
        asked = reliability
        results: dict[str, torch.Tensor | bool] = {"probe_promised": False}
        if found.other is not None:
            asked = found.other[0].where(~reliability.isnan(), torch.nan)
            results["probe_tolerance_reliability"] = asked
        if doubts or self.guarantee.boundary is None:  # not about this probability
            return results
        covered = asked.double() >= self.guarantee.cutoff
        for value, limit in (
            (found.novelty, FARTHEST),
            (found.charge_gap, CHARGE_GAP),
            (found.worst_atom, LOWEST),
        ):
            if value is not None:
                covered &= value[0] <= limit
        return results | {"probe_promised": covered}


def _known(
    atoms: torch.Tensor, numbers: np.ndarray, unseen: Sequence[str]
) -> torch.Tensor:
    """Return ``atoms`` (reliabilities per atom) with NaN for unseen elements."""
    if not unseen:
        return atoms
    new = torch.from_numpy(np.isin(numbers, [atomic_numbers[x] for x in unseen]))
    new = new.to(atoms.device, non_blocking=atoms.is_cuda)
    return atoms.masked_fill(new, torch.nan)
