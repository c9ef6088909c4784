"""Inputs of a probe from predictions, or from one pass of many systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import ProbeError
from uqcalc.probe.batch import (
    Batch,
    BatchPass,
    distinct_atoms_of_batch,
    numbers_of_batch,
    raw_scalars_of_batch,
)
from uqcalc.probe.card import Card
from uqcalc.probe.inputs import (
    HOST_SCALARS,
    Statistics,
    distinct_atoms,
    on_device,
    raw_scalars,
    scalars_of,
)
from uqcalc.probe.numbers import FromHost
from uqcalc.probe.stacked import StackedPaths


class Inputs(NamedTuple):
    """Standardised inputs of the network and of the other paths.

    The first four are the arguments of `ProbeNetwork`. ``distances`` and ``host`` are
    None for architectures without them.
    """

    features: torch.Tensor
    sizes: Sequence[int]
    scalars: torch.Tensor
    charges: torch.Tensor | None
    distances: torch.Tensor | None
    host: FromHost | None


class InputMaker:
    """Makes the inputs of one probe.

    Parameters
    ----------
    card : Card
    statistics : Statistics or None
    stacked : StackedPaths or None
        As for `Probe`.
    """

    def __init__(
        self,
        card: Card,
        statistics: Statistics | None,
        stacked: StackedPaths | None,
    ) -> None:
        self.card, self.statistics, self.stacked = card, statistics, stacked
        self._of_cells: float | None = None
        if statistics is not None and not card.sized:
            self._of_cells = statistics.of_cells()
        if stacked is not None:
            stacked.numbers.of_cells = self._of_cells
        self._atom_energies = card.element_energies()
        self._energies_on: dict[torch.device, torch.Tensor] = {}

    def of_predictions(self, predictions: Sequence[Prediction]) -> Batch:
        """Return the inputs from predictions, whose forces are on the host."""
        sizes = [len(p.numbers) for p in predictions]
        features = _cat([p.features for p in predictions])
        device = features.device
        numbers = on_device(device, np.concatenate([p.numbers for p in predictions]))
        charges = None
        if self.card.charges or predictions[0].charges is not None:
            charges = _cat([_charges(p) for p in predictions])
        host, energies = None, self._atom_energies
        if self.statistics is None:
            first = _tensor([raw_scalars(p, energies) for p in predictions], device)
        elif self.stacked is not None:
            host = self.stacked.numbers.host(predictions, energies)
            first = host.numbers[:, :HOST_SCALARS]
        else:
            rows = [scalars_of(p, energies, self._of_cells) for p in predictions]
            first = _tensor(rows, device)
        floors = self._floors(predictions, device)
        return Batch(features, numbers, sizes, first, host, charges, floors)

    def of_pass(self, given: BatchPass) -> Batch:
        """Return the inputs of many systems; nothing waits for the device."""
        energies = self._energies(given.features.device)
        if self.statistics is None:
            host, first = None, raw_scalars_of_batch(given, energies)
        else:
            numbers = None if self.stacked is None else self.stacked.numbers
            host = numbers_of_batch(
                given,
                energies,
                None if numbers is None else numbers.element_counts,
                self._of_cells,
                stress=numbers is not None and numbers.stress,
            )
            first = host.numbers[:, :HOST_SCALARS]
        floors = None
        if self.card.atom_floor is not None:
            alike = not self.card.sized and given.periodic
            atoms = distinct_atoms_of_batch(given) if alike else given.counts
            floors = self.card.atom_floor.of_batch(atoms)
        return Batch(
            given.features.to(torch.float32),
            given.numbers,
            given.sizes,
            first,
            None if self.stacked is None else host,
            None,
            floors,
        )

    def standard(self, batch: Batch) -> Inputs:
        """Return the standardised inputs of a batch."""
        features, numbers, sizes, first, host, charges, _ = batch
        given = charges if self.card.charges else None
        if self.statistics is None:
            return Inputs(features, sizes, first, given, None, None)
        standard = self.statistics.features(features)
        distances = self.statistics.distances(standard, numbers)
        scalars = self.statistics.scalars(first, distances, sizes)
        return Inputs(standard, sizes, scalars, given, distances, host)

    def _energies(self, device: torch.device) -> torch.Tensor:
        """Return the atomic energies on the device, (119,)."""
        if device not in self._energies_on:
            with torch.inference_mode(mode=False):
                energies = torch.from_numpy(self._atom_energies)
                self._energies_on[device] = energies.to(device)
        return self._energies_on[device]

    def _floors(
        self, predictions: Sequence[Prediction], device: torch.device
    ) -> torch.Tensor | None:
        """Return the floor of the atoms of each structure; None without one."""
        floor = self.card.atom_floor
        if floor is None:
            return None
        # copies of an atom in a supercell are not further draws
        counts = [
            distinct_atoms(p) if not self.card.sized and p.pbc.any() else len(p.numbers)
            for p in predictions
        ]
        return _tensor([np.array(floor.at(n), np.float32) for n in counts], device)


def _charges(prediction: Prediction) -> torch.Tensor:
    if prediction.charges is None:
        msg = (
            "prediction must carry charges for a probe with a charge layer, got none; "
            "wrap the calculator the probe was fitted on"
        )
        raise ProbeError(msg)
    return prediction.charges


def _cat(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    merged = rows[0] if len(rows) == 1 else torch.cat(list(rows))
    return merged.to(torch.float32)


def _tensor(rows: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    return on_device(device, np.stack(rows))
