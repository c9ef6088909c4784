"""PROBE as a signal: P(reliable) from the features of the forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

import numpy as np
import torch
from ase.data import atomic_numbers

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.errors import ProbeError
from uqcalc.former import Former
from uqcalc.probe.card import RAW_ARCHITECTURE, Card
from uqcalc.probe.inputs import on_device
from uqcalc.probe.probe import Probe
from uqcalc.probe.reading import ProbeReading
from uqcalc.probe.regions import is_shareable, region_reliability
from uqcalc.probe.scope import (
    CHARGE_GAP,
    FAR,
    FAR_LOWEST,
    FARTHEST,
    LOWEST,
)
from uqcalc.probe.stacked import PATHS
from uqcalc.showing import in_words
from uqcalc.signals.base import TensorReading
from uqcalc.signals.region import Chosen, Region
from uqcalc.targets import TARGETS, voigt_stress


T = TypeVar("T")

# Pressure of a strongly strained crystal, in boundaries of a probe of the stress.
STRAINED = 10.0


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
    - ``probe_novelty``: the distance of the features from those of the labels, in units
      of the limit (`Scope.novelty`): the larger of two ratios, of the farthest atom and
      of the geometric mean over atoms of the squared distances. About 6 % of new
      right structures with a P of RELIABLE exceed 1. Above 1 the verdict is at least
      SUSPECT, above `scope.FAR` UNRELIABLE.
    - ``probe_worst_atom``: the log-odds by which the least reliable atom lies below the
      level that 99 % of the reliable structures of that size reach. Above 0 the verdict
      is at least SUSPECT, above `scope.FAR_LOWEST` UNRELIABLE.

    A probe with a guarantee (`uqcalc.certify`) adds

    - ``probe_promised``: whether the guarantee covers this geometry. It does if the
      geometry is inside the scope, has no doubtful atom, and has a probability of at
      least the guarantee's cutoff. False for an unseen element or a NaN probability.
    - ``probe_tolerance_reliability``: P(error <= tolerance), if the tolerance of the
      guarantee differs from the boundary.

    A further probe of the stress also counts where other quantities are judged: if the
    pressure exceeds ten times its boundary and its P(reliable) is NaN or below the
    cutoff for UNRELIABLE, every verdict is at least SUSPECT. In crystals unlike the
    training data of the potential, forces can be small by symmetry, so that P of the
    forces is high (`benchmarks/strained.py`).

    With ``atoms`` the risk, the limits and the worst atoms are those of these atoms,
    and the results above are still those of the whole structure. A guarantee does not
    cover chosen atoms: ``probe_promised`` is False. The probe then adds

    - ``probe_region_reliability``: P that the RMS force error over the chosen atoms is
      at most the boundary (`uqcalc.probe.regions`). The risk is one minus this.
    - ``probe_region_worst``: the smallest probability of a chosen atom. If fewer atoms
      are chosen than the smallest labelled structures allow (``scope.smallest``), the
      risk is one minus this.
    - ``probe_region_novelty``, ``probe_region_worst_atom``: as ``probe_novelty`` and
      ``probe_worst_atom``, with the same limits.

    The risk is NaN if an element of any atom was not in the labels, because features
    describe the surroundings, too.

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
    atoms : sequence of int or of bool, optional
        Indices or mask of the atoms that the verdict is about; by default all. A
        structure that does not fit is refused with ValueError.

    Raises
    ------
    ProbeError
        If ``atoms`` are given and the target of the probe is not an error of forces,
        or if the probe has the published architecture.
    ValueError
        If ``atoms`` are no indices, no mask, or empty.
    """

    promise = Former("guarantee")

    def __init__(
        self,
        probe: Probe,
        *,
        importance: bool = True,
        further: bool = False,
        atoms: Chosen | None = None,
    ) -> None:
        self._suffix = f"_{probe.card.target}" if further else ""
        self.name = f"probe{self._suffix}"
        self.probe = probe
        self.importance = importance
        self._importance = f"probe_importance{self._suffix}"
        card = probe.card
        self.region = None if atoms is None else Region(atoms)
        if self.region is not None:
            _check_region(card)
        self._atom_energies = card.element_energies()
        self.meaning = card.meaning
        self.judges = frozenset({TARGETS[card.target].of})
        self.guarantee = guarantee = card.guarantee
        self._tolerance: float | None = None
        if guarantee is not None and guarantee.boundary not in {None, card.boundary}:
            self._tolerance = guarantee.boundary
            # raises for an unusable tolerance
            card.calibration.shift(guarantee.boundary, card.unit)
        self._stress = probe.reads_stress
        self._strain_counts = further and self.judges == {"stress"}
        charges = {"charges"} if card.charges else set()
        # the published network reads only energy and features
        forces = set() if card.architecture == RAW_ARCHITECTURE else {"forces"}
        reads = self._stress or (self._strain_counts and bool(forces))
        stress = {"stress"} if reads else set()
        self.requires = frozenset({"features", "energy", *forces, *charges, *stress})
        judged = {"novelty": card.scope, "worst_atom": card.atom_floor}
        prefixes = ["probe"] if atoms is None else ["probe", "probe_region"]
        self.judged = tuple(
            f"{prefix}_{key}{self._suffix}"
            for prefix in prefixes
            for key, known in judged.items()
            if known is not None
        )

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that the probe was not fitted on (ProbeError)."""
        self.probe.check(backbone)

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Return P(reliable) and, if asked for, the attention on each atom."""
        return self._read(prediction, importance=self.importance)

    def read_each(self, predictions: Sequence[Prediction]) -> list[TensorReading]:
        """Return the reading of each prediction of a batch; the probe is read once."""
        if self.region is not None:
            return [self(prediction) for prediction in predictions]
        found = self.probe.read(
            predictions, importance=self.importance, other=self._tolerance
        ).on_host()
        ends = np.cumsum([len(p.numbers) for p in predictions]).tolist()
        return [
            self.reading_of(share(found, row, slice(start, end)), prediction)
            for row, (start, end, prediction) in enumerate(
                zip([0, *ends], ends, predictions, strict=False)
            )
        ]

    def explain(self, prediction: Prediction) -> TensorReading:
        """Return the reading with ``probe_importance``."""
        return self._read(prediction, importance=True)

    def unknown(self) -> dict[str, float | bool]:
        """Return the results (NaN, False) for a geometry that cannot be evaluated."""
        results: dict[str, float | bool] = {"probe_reliability": math.nan}
        if self.region is not None:
            results["probe_region_reliability"] = math.nan
        if self._tolerance is not None:
            results["probe_tolerance_reliability"] = math.nan
        if self.guarantee is not None:
            results["probe_promised"] = False
        return self._named(results)

    def _named(self, values: Mapping[str, T]) -> dict[str, T]:
        """Return the values under the keys of this signal."""
        return {f"{key}{self._suffix}": value for key, value in values.items()}

    def _read(self, prediction: Prediction, *, importance: bool) -> TensorReading:
        probe, numbers, region = self.probe, prediction.numbers, self.region
        asked = [prediction]
        if region is not None:  # in the same batch as the whole structure
            around = region.around(prediction)
            asked += [
                region.part(prediction, self._atom_energies, atoms)
                for atoms in (None, around)
            ]
        found = probe.read(asked, importance=importance, other=self._tolerance)
        reading = self.reading_of(
            share(found, 0, slice(None, len(numbers))), prediction
        )
        if region is None:
            return reading
        first = len(numbers) + len(region)
        chosen = share(found, 1, slice(len(numbers), first))
        if is_shareable(probe.card):
            rows = np.searchsorted(around, region.atoms)
            near = share(found, 2, slice(first, None))
            chosen = chosen._replace(reliability=_shared(probe.card, near, rows))
        return self._of_region(reading, region, chosen, prediction)

    @property
    def other_boundary(self) -> float | None:
        """Second boundary that the probe must be read at: that of the guarantee."""
        return self._tolerance

    def reading_of(self, whole: ProbeReading, prediction: Prediction) -> TensorReading:
        """Return the reading of a structure from the outputs of the probe (`share`).

        ``whole`` was read with `other_boundary`. Of ``prediction`` only the geometry,
        the names of its results and the stress count.
        """
        probe, numbers = self.probe, prediction.numbers
        unseen, periodic = probe.unseen_elements(numbers), bool(prediction.pbc.any())
        reliability = whole.reliability
        if unseen:  # the probe cannot judge an element without labels
            reliability = torch.full_like(reliability, torch.nan)
        results: dict[str, torch.Tensor | bool] = {"probe_reliability": reliability}
        if whole.importance is not None:
            results["probe_importance"] = whole.importance
        if whole.atoms is not None:
            results["probe_reliabilities"] = _known(whole.atoms, numbers, unseen)
        if whole.parts is not None:
            names = (f"probe_{path}" for path in PATHS)
            results |= dict(zip(names, whole.parts, strict=True))
        beside, limits, far_limits = _limited(whole, "probe")
        results |= beside
        doubts: tuple[str, ...] = ()
        if probe.card.scope is not None and not unseen:
            doubts = probe.card.scope.doubts(numbers, periodic=periodic)
        results |= self._of_guarantee(whole, reliability, doubts)
        return TensorReading(
            signal=self.name,
            risk=1.0 - reliability,
            results=self._named(results),
            per_atom_key=None if whole.importance is None else self._importance,
            note=self._note(prediction, unseen),
            limits=self._named(limits),
            far_limits=self._named(far_limits),
            doubts=doubts,
            meaning=self.meaning,
            concern=self._concern(prediction),
        )

    def _concern(self, prediction: Prediction) -> tuple[float, str] | None:
        """Return the limit on the risk of the stress of a strongly strained crystal."""
        stress = prediction.results.get("stress")
        if not self._strain_counts or stress is None or not prediction.pbc.all():
            return None
        card = self.probe.card
        pressure = -float(voigt_stress(stress)[:3].mean())
        if not abs(pressure) > STRAINED * card.boundary:
            return None
        shown = in_words(pressure, card.unit, digits=3)
        return 1 - card.unreliable, f"the pressure is {shown}"

    def _note(self, prediction: Prediction, unseen: Sequence[str]) -> str:
        """Return the reason for a NaN probability that the labels cannot give."""
        if unseen:
            return f"elements {unseen} were not in its labels"
        if self._stress and not prediction.pbc.all():
            return "only structures with three cell vectors have a stress"
        if self._stress and "stress" not in prediction.results:
            return "the prediction has no stress"
        return ""

    def _of_region(
        self,
        reading: TensorReading,
        region: Region,
        found: ProbeReading,
        prediction: Prediction,
    ) -> TensorReading:
        """Return the reading of the whole structure with the risk of the region."""
        card, count = self.probe.card, len(region)
        reliability, worst = found.reliability, None
        if found.atoms is not None:
            worst = found.atoms.amin()
        if reading.note:  # an unseen element: see `_read`
            reliability = torch.full_like(reliability, torch.nan)
            worst = None if worst is None else torch.full_like(worst, torch.nan)
        results: dict[str, torch.Tensor | bool] = {
            "probe_region_reliability": reliability
        }
        if worst is not None:
            results["probe_region_worst"] = worst
        beside, limits, far_limits = _limited(found, "probe_region")
        if "probe_charge_gap" in reading.limits:  # charges are those of the whole
            limits["probe_charge_gap"] = reading.limits["probe_charge_gap"]
        small = card.scope is not None and count < card.scope.smallest
        doubts: tuple[str, ...] = ()
        if card.scope is not None and not reading.note:
            numbers = prediction.numbers
            # the upper limit on the number of atoms is for the region
            lifted = replace(card.scope, largest=max(card.scope.largest, len(numbers)))
            periodic = bool(prediction.pbc.any())
            doubts = lifted.doubts(numbers, periodic=periodic)
            if not small or worst is None:
                own = replace(card.scope, elements=()).doubts(
                    np.zeros(count, int), periodic=periodic and not small
                )
                doubts += tuple(f"region of {why}" for why in own)
        of_worst = worst if small else None
        return replace(
            reading,
            risk=1.0 - (reliability if of_worst is None else of_worst),
            results={**reading.results, **results, **beside},
            limits=limits,
            far_limits=far_limits,
            doubts=doubts,
            meaning=card.region_meaning(count, worst=of_worst is not None),
            atoms=region.atoms,
        )

    def _of_guarantee(
        self, found: ProbeReading, reliability: torch.Tensor, doubts: Sequence[str]
    ) -> dict[str, torch.Tensor | bool]:
        """Return the results on the guarantee; empty for a probe without one.

        If ``reliability`` is NaN, ``probe_tolerance_reliability`` is NaN. A guarantee
        does not cover chosen atoms.
        """
        if self.guarantee is None:
            return {}
        asked = reliability
        results: dict[str, torch.Tensor | bool] = {"probe_promised": False}
        if found.other is not None:
            asked = found.other.where(~reliability.isnan(), torch.nan)
            results["probe_tolerance_reliability"] = asked
        # without a boundary it is not about this probability
        if doubts or self.guarantee.boundary is None or self.region is not None:
            return results
        covered = asked.double() >= self.guarantee.cutoff
        for value, limit in (
            (found.novelty, FARTHEST),
            (found.charge_gap, CHARGE_GAP),
            (found.worst_atom, LOWEST),
        ):
            if value is not None:
                covered &= value <= limit
        return results | {"probe_promised": covered}


def _check_region(card: Card) -> None:
    """Refuse a probe that cannot be read for chosen atoms."""
    if TARGETS[card.target].of != "forces":
        msg = (
            "probe for chosen atoms must have a target of forces, got the target "
            f"{card.target!r}: an energy is that of the whole structure; leave atoms "
            'out, or fit a probe with Labels(target="forces")'
        )
        raise ProbeError(msg)
    if card.architecture == RAW_ARCHITECTURE:
        msg = (
            "probe for chosen atoms must have the architecture 'joined' or 'standard', "
            f"got {card.architecture!r}, which reads the total energy; leave atoms "
            "out, or fit a probe with uqcalc.fit"
        )
        raise ProbeError(msg)


def share(found: ProbeReading, index: int, atoms: slice) -> ProbeReading:
    """Return the outputs of one structure of a batch, without the batch's axis.

    ``index`` is its place in the batch, ``atoms`` are the rows of its atoms.
    """
    rows = {"importance": atoms, "atoms": atoms}
    own: dict[str, Any] = {
        name: value if value is None else value[rows.get(name, index)]
        for name, value in found._asdict().items()
    }
    return ProbeReading(**own)


def _shared(card: Card, around: ProbeReading, rows: np.ndarray) -> torch.Tensor:
    """Return P of a region, which are these rows of its surroundings."""
    if around.atoms is None or len(rows) == len(around.atoms):
        return around.reliability
    chosen = on_device(around.atoms.device, rows)
    given = (around.reliability, around.atoms, chosen)
    with torch.inference_mode():
        prior = region_reliability(card, *given)
        if card.added is None or around.added is None:
            return prior
        own = replace(
            card,
            calibration=card.added.calibration,
            atom_calibration=card.added.atom_calibration or card.atom_calibration,
        )
        return prior.lerp(region_reliability(own, *given), around.added)


def _limited(
    found: ProbeReading, prefix: str
) -> tuple[dict[str, torch.Tensor], dict[str, float], dict[str, float]]:
    """Return the results with limits, the limits, and the limits of far outside.

    The charge gap is that of a whole structure only.
    """
    results, limits, far_limits = {}, {}, {}
    if found.novelty is not None:
        results[key := f"{prefix}_novelty"] = found.novelty
        limits[key], far_limits[key] = FARTHEST, FAR
    if found.worst_atom is not None:
        results[key := f"{prefix}_worst_atom"] = found.worst_atom
        limits[key], far_limits[key] = LOWEST, FAR_LOWEST
    if found.charge_gap is not None and prefix == "probe":
        results[key := f"{prefix}_charge_gap"] = found.charge_gap
        limits[key] = CHARGE_GAP
    return results, limits, far_limits


def _known(
    atoms: torch.Tensor, numbers: np.ndarray, unseen: Sequence[str]
) -> torch.Tensor:
    """Return ``atoms`` (reliabilities per atom) with NaN for unseen elements."""
    if not unseen:
        return atoms
    new = torch.from_numpy(np.isin(numbers, [atomic_numbers[x] for x in unseen]))
    new = new.to(atoms.device, non_blocking=atoms.is_cuda)
    return atoms.masked_fill(new, torch.nan)
