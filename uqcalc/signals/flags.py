"""Flags of physics: bonds that break, unusual coordination, charge and spin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.chargespin import CHARGES
from uqcalc.geometry.bonds import BondFinder, Bonds, named_atoms
from uqcalc.geometry.broken import Findings, broken_bonds
from uqcalc.geometry.surroundings import Geometry
from uqcalc.signals.base import TensorReading


# Partners of N and O in ammonium, oxonium and N-oxides.
_ONIUM = np.full(len(chemical_symbols), 99)
_ONIUM[[7, 8]] = 4, 3


@final
class Flags:
    """Flags, without labels, what potentials for whole molecules rarely learn.

    Each finding makes the verdict at least SUSPECT, in every policy, and names its
    atoms. It needs no extra pass.

    - A bond between whole and broken: two atoms at 1.15 to 1.8 of the length of a
      single bond that both lack valence, or one that lacks half a bond or more and has
      left its nearest partner. The valence that an atom uses is the sum of Pauling's
      bond orders, exp((d_1 - d) / 0.31 Å) with d_1 the length of a single bond
      (Pauling 1947, doi:10.1021/ja01195a024).
    - H, C, N or O without any partner; H between two partners.
    - Two or more atoms of a molecule that each lack a bond: fragments, or radicals.
    - Five partners of C; four of N or three of O in a molecule whose charge the model
      does not read.
    - An odd number of electrons in a molecule of non-metals: a radical or an ion. With
      ``info["charge"] = 0`` it is a radical and not flagged.

    Left out are atoms next to a metal, metals, and noble gases. In crystals only H, C,
    N, O and F are checked, and neither charges nor radicals.

    The risk is the number of flagged atoms, also as ``flags_atoms``.

    Parameters
    ----------
    reads : frozenset of str, optional
        `uqcalc.types.Backbone.reads`: a model that reads the charge may judge ions.
    """

    name = "flags"
    requires: frozenset[str] = frozenset()

    def __init__(self, reads: frozenset[str] | None = None) -> None:
        self.reads = frozenset() if reads is None else reads
        self._find = BondFinder()

    @classmethod
    def of(cls, backbone: Backbone) -> Flags:
        """Return the signal with the inputs of this model."""
        return cls(backbone.reads)

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Look at bonds, charge and spin of one structure."""
        geometry = Geometry(
            prediction.numbers, prediction.positions, prediction.cell, prediction.pbc
        )
        found = Findings()
        bonds = self._find(geometry)
        if bonds is not None:
            found = broken_bonds(bonds)
            if not bonds.periodic:
                self._check_charge(bonds, prediction.charge_spin, found)
        return TensorReading(
            signal=self.name,
            risk=float(len(found.atoms)),
            results={"flags_atoms": float(len(found.atoms))},
            doubts=tuple(found.reasons),
            always=True,
        )

    def _check_charge(
        self, bonds: Bonds, said: Mapping[str, Any], found: Findings
    ) -> None:
        """Record charged atoms and odd electrons of a molecule of non-metals."""
        if self.reads & {*CHARGES} or not bonds.of_nonmetals:
            return
        numbers = bonds.numbers
        onium = np.flatnonzero(bonds.counts & (bonds.partners >= _ONIUM[numbers]))
        if len(onium):
            verb = "has" if len(onium) == 1 else "have"
            found.note(
                f"{named_atoms(numbers, onium)} {verb} a bond more than a neutral atom,"
                " as in an ion: this model does not read the charge",
                onium,
            )
        stated = any(said.get(name) is not None for name in CHARGES)
        electrons = int(numbers.sum())
        if electrons % 2 and not stated:
            found.note(
                f"{electrons} electrons if neutral, an odd number: a radical or an ion,"
                " and this model does not read the charge; a neutral radical has "
                'info["charge"] = 0',
                (),
            )
