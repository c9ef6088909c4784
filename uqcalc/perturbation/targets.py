"""The references that a perturbation is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone
from uqcalc.errors import BackboneError, LabelError
from uqcalc.labels.labels import Labels


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Labels of some frames, and the scale of each error."""

    energies: torch.Tensor | None  # (frames,), eV
    forces: list[torch.Tensor]  # (atoms, 3) each, eV/Å
    stresses: torch.Tensor | None  # (frames, 3, 3), eV/Å³


def check_structures(backbone: Backbone, frames: Sequence[Atoms]) -> None:
    """Refuse a frame that the potential cannot evaluate.

    Raises
    ------
    LabelError
        With the index of the frame and the reason.
    """
    for index, frame in enumerate(frames):
        try:
            backbone.check_structure(frame)
        except BackboneError as error:
            msg = f"frame {index} cannot be evaluated: {error}"
            raise LabelError(msg) from error


def targets_of(frames: Sequence[Atoms], labels: Labels) -> Targets:
    """Return the references of all frames.

    Raises
    ------
    LabelError
        If a frame has no finite reference for the forces, or some frames have one for
        the energy and others have none.
    """
    given = {
        kind: [replace(labels, target=kind, offsets=False).reference(f) for f in frames]
        for kind in ("energy", "forces", "stress")
    }
    without = all(value is None for value in given["energy"])
    for kind in ("forces",) if without else ("energy", "forces"):
        bad = [
            index
            for index, value in enumerate(given[kind])
            if value is None or not np.all(np.isfinite(value))
        ]
        if bad:
            key = labels.energy_key if kind == "energy" else labels.forces_key
            msg = (
                f"every frame must have a finite reference for {kind} under {key!r}, "
                f"got none in {len(bad)} of {len(frames)} (the first: frame {bad[0]}); "
                "leave them out, or name the key in labels"
            )
            raise LabelError(msg)
    stresses = [value for value in given["stress"] if value is not None]
    whole = (
        bool(stresses) and len(stresses) == len(frames) and np.isfinite(stresses).all()
    )
    return Targets(
        None if without else torch.tensor(np.array(given["energy"], dtype=float)),
        [torch.as_tensor(value) for value in given["forces"]],
        _full(np.array(stresses)) if whole else None,
    )


def _full(stresses: np.ndarray) -> torch.Tensor:
    """Return (frames, 3, 3) from Voigt components (frames, 6)."""
    order = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    return torch.as_tensor(stresses[:, order])
