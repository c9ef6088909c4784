"""Calculators that compute only the requested properties."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

from ase import Atoms

from uqcalc.backbones.base import Backbone, Capture


class LazyBackbone(Backbone, ABC):
    """A backbone whose calculator runs again for each requested property.

    Such a calculator keeps old results of properties that are not requested: a molecule
    would have the stress of the crystal before it. So its results are cleared first.
    A sum requests one property after the other from its parts. So the tapped part
    computes all properties before the sum starts, and the sum uses its cache.
    """

    def _evaluate(self, atoms: Atoms, wanted: Sequence[str]) -> Capture:
        owner = self.model_calculator
        owner.results = {}
        if self.calculator is owner:
            return super()._evaluate(atoms, wanted)
        known = set(self.calculator.implemented_properties)
        properties = [name for name in wanted if name in known]
        with self.armed_for(self.on_demand & {*wanted}) as captured:
            owner.calculate(atoms, properties, owner.check_state(atoms))
            self.calculator.calculate(
                atoms, properties, self.calculator.check_state(atoms)
            )
        self.passes += len(captured.features)
        return captured
