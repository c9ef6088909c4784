"""Outputs of a probe for many structures, and which of them are outside its scope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from uqcalc.backbones.prediction import Prediction
from uqcalc.labels.shards import like_sized, sizes_of
from uqcalc.probe.probe import Probe
from uqcalc.probe.reading import ProbeReading
from uqcalc.probe.scope import CHARGE_GAP, FARTHEST, LOWEST


_BATCH = 256  # structures in a batch, of similar size


class StructureReadings(NamedTuple):
    """Outputs of a probe for structures, on the host.

    Attributes
    ----------
    probability : array (structures,)
        P(reliable), inside and outside the scope; NaN where ``unseen``.
    unseen : boolean array (structures,)
        Whether the structure has an element that the probe's labels lack.
    outside : boolean array (structures,)
        Outside the scope: ``unseen``, farther from the labels than the scope's limit,
        or of another size or charge. For a probe without a scope: ``unseen``.
    weak : boolean array (structures,)
        Whether the least reliable atom is below the atom floor.
    novelty : array (structures,) or None
        Distance from the labels in units of the scope's limit (`Scope.novelty`).
    atoms : list of arrays (atoms,) or None
        P(|ΔF_i| <= the card's ``atom_boundary``) of each structure.
    """

    probability: NDArray[np.float64]
    unseen: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    weak: NDArray[np.bool_]
    novelty: NDArray[np.float64] | None
    atoms: list[NDArray[np.float64]] | None


def read_structures(
    probe: Probe, predictions: Sequence[Prediction], boundary: float | None = None
) -> StructureReadings:
    """Return the outputs of a probe for structures, evaluated in batches.

    ``boundary`` is in the unit of the card; by default it is the card's.

    Raises
    ------
    ProbeError
        If the boundary lies outside the errors of the labels.
    """
    everything = np.arange(len(predictions))
    batches = like_sized(everything, sizes_of(predictions), _BATCH)
    parts = [_read(probe, [predictions[i] for i in rows], boundary) for rows in batches]
    back = np.argsort(np.concatenate(batches), kind="stable")
    probability, unseen, outside, weak = (
        np.concatenate([getattr(part, name) for part in parts])[back]
        for name in ("probability", "unseen", "outside", "weak")
    )
    novelty = [part.novelty for part in parts if part.novelty is not None]
    atoms = [of for part in parts for of in part.atoms or ()]
    return StructureReadings(
        probability,
        unseen,
        outside,
        weak,
        np.concatenate(novelty)[back] if novelty else None,
        [atoms[i] for i in back] if atoms else None,
    )


def _read(
    probe: Probe, predictions: Sequence[Prediction], boundary: float | None
) -> StructureReadings:
    found = probe.read(predictions, boundary=boundary)
    unseen = np.array([bool(probe.unseen_elements(p.numbers)) for p in predictions])
    probability = found.reliability.double().cpu().numpy()
    atoms = None
    if found.atoms is not None:
        pieces = found.atoms.split([len(p.numbers) for p in predictions])
        atoms = [piece.double().cpu().numpy() for piece in pieces]
    novelty = None
    if found.novelty is not None:
        novelty = found.novelty.double().cpu().numpy()
    weak = np.zeros_like(unseen)
    if found.worst_atom is not None:
        weak = ~(found.worst_atom.cpu().numpy() <= LOWEST)
    return StructureReadings(
        np.where(unseen, np.nan, probability),
        unseen,
        unseen | _outside(probe, predictions, found),
        weak,
        novelty,
        atoms,
    )


def _outside(
    probe: Probe, predictions: Sequence[Prediction], found: ProbeReading
) -> NDArray[np.bool_]:
    """Return which structures are outside the scope's limits, (structures,) of bool."""
    away = np.zeros(len(predictions), dtype=bool)
    scope = probe.card.scope
    if scope is None:
        return away
    for value, limit in (
        (found.novelty, FARTHEST),
        (found.charge_gap, CHARGE_GAP),
    ):
        if value is not None:  # NaN is outside
            away |= ~(value.cpu().numpy() <= limit)
    odd = [
        bool(scope.doubts(p.numbers, periodic=bool(p.pbc.any()))) for p in predictions
    ]
    return np.asarray(away | np.array(odd))
