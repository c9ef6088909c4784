"""Calculators that compute only what they are asked for."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

from ase import Atoms

from uqcalc.backbones.base import Backbone, Capture


class LazyBackbone(Backbone, ABC):
    """A backbone whose calculator runs again for each property it is asked for.

    Such a calculator keeps the results that it was not asked for this time, which are
    of another geometry: a molecule would have the stress of the crystal before it.
    And a sum asks its parts for one property after the other; here the tapped part
    has computed all of them when the sum begins, and answers from its cache.
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
