"""Flags of physics: bonds that break, unusual coordination, charge and spin."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

import numpy as np
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.chargespin import CHARGES
from uqcalc.geometry.bonds import BondFinder, Bonds, named_atoms
from uqcalc.geometry.broken import Findings, broken_bonds
from uqcalc.geometry.environments import Coordination, Environments
from uqcalc.geometry.regimes import regime_of
from uqcalc.labels.regimes import geometry_of
from uqcalc.probe.card import Card
from uqcalc.probe.validity import regime_states
from uqcalc.signals.base import TensorReading


# Partners of N and O in ammonium, oxonium and N-oxides.
_ONIUM = np.full(len(chemical_symbols), 99)
_ONIUM[[7, 8]] = 4, 3


@final
class Flags:
    """Flags, without labels, what potentials for whole molecules rarely learn.

    Each finding makes the verdict at least SUSPECT, in every policy, and names its
    atoms. It needs no extra pass.

    - A bond between whole and broken: two atoms at 1.15 (with H 1.2) to 1.8 of the
      length of a single bond that both lack valence, or one that lacks half a bond or
      more and has left its nearest partner. The valence that an atom uses is the sum
      of Pauling's bond orders, exp((d_1 - d) / 0.31 Å) with d_1 the length of a single
      bond
      (Pauling 1947, doi:10.1021/ja01195a024).
    - H, C, N or O without any partner; H between two partners.
    - Two or more atoms of a molecule that each lack a bond: fragments, or radicals.
    - Five partners of C; four of N or three of O in a molecule whose charge the model
      does not read.
    - An odd number of electrons in a molecule of non-metals: a radical or an ion. With
      ``info["charge"] = 0`` it is a radical and not flagged.

    With the labels of a probe (`uqcalc.types.Card`) also:

    - Atoms with fewer or more partners, or a closer or farther nearest neighbour, than
      the element has in any label.
    - A structure in a regime without labels (`uqcalc.geometry.regimes.regime_of`).

    Metals, atoms next to a metal and noble gases have no bonds here that could break.
    In crystals only H, C, N, O and F have, and neither charges nor radicals are
    checked.

    The reading states the regime, and whether the probes are validated there
    (`uqcalc.types.Reading`, ``regime``).

    The risk is the number of findings; ``flags_atoms`` is the number of flagged atoms.

    Parameters
    ----------
    reads : frozenset of str, optional
        `uqcalc.types.Backbone.reads`. For a model that reads the charge, and with None
        (not known), charges are not checked.
    environments : Environments, optional
        Coordination in the labels; without it, coordination is not compared.
    regimes : collection of str
        Regimes of the labels; if empty, regimes are not compared.
    hottest : float, optional
        Highest temperature of the labels in K; `uqcalc.Monitor` compares it with the
        temperature of the run.
    states : mapping, optional
        Regime -> text on whether the probes are validated there.

    Attributes
    ----------
    bonds : uqcalc.geometry.bonds.BondFinder
        Returns the bonds of a geometry; those of the last one are cached.
    """

    name = "flags"
    requires: frozenset[str] = frozenset()

    def __init__(
        self,
        reads: frozenset[str] | None = None,
        environments: Environments | None = None,
        regimes: Collection[str] = (),
        hottest: float | None = None,
        states: Mapping[str, str] | None = None,
    ) -> None:
        self.reads = reads
        self.environments = environments
        self.regimes = frozenset(regimes)
        self.hottest = hottest
        self.states = dict(states or {})
        self.bonds = BondFinder()
        self._coordination = Coordination()

    @classmethod
    def of(cls, backbone: Backbone, cards: Sequence[Card] = ()) -> Flags:
        """Return the signal with the inputs of this model and the probes' labels.

        Structures are compared with the labels of the first card.
        """
        seen = cards[0].training if cards else {}
        found = seen.get("environments")
        return cls(
            backbone.reads,
            None if found is None else Environments.from_dict(found),
            seen.get("regimes_by_rule", ()),
            seen.get("temperature_K"),
            regime_states(cards),
        )

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Look at bonds, charge and spin of one structure."""
        geometry = geometry_of(prediction)
        found = Findings()
        bonds = self.bonds(geometry)
        if bonds is not None:
            found = broken_bonds(bonds)
        around = None
        regime = ""
        unlabelled: tuple[str, ...] = ()
        if self.regimes or self.environments is not None:
            around = self._coordination(geometry)
        if self.regimes and not prediction.has_forces:
            unlabelled = ("no forces were computed, so the regime is not known",)
        elif self.regimes and around is not None:
            regime = _regime(prediction, around[1], bonds, found)
            unlabelled = self._unlabelled(regime)
        if bonds is not None and not bonds.periodic:
            self._check_charge(bonds, prediction.charge_spin, found)
        if self.environments is not None and around is not None:
            for why, atoms in self.environments.unseen(geometry.numbers, *around):
                found.note(why, atoms)
        return TensorReading(
            signal=self.name,
            risk=float(len(found.reasons) + len(unlabelled)),
            results={"flags_atoms": float(len(found.atoms))},
            doubts=tuple(found.reasons),
            unlabelled=unlabelled,
            always=True,
            regime=self.states.get(regime, regime),
        )

    def _unlabelled(self, regime: str) -> tuple[str, ...]:
        """Return the reason if the labels lack the regime; else nothing."""
        if regime in self.regimes:
            return ()
        return (
            f"the regime is {regime!r}, and the labels have only "
            f"{', '.join(sorted(self.regimes))}: P was not compared with true errors "
            "in this regime",
        )

    def _check_charge(
        self, bonds: Bonds, said: Mapping[str, Any], found: Findings
    ) -> None:
        """Record charged atoms and odd electrons of a molecule of non-metals."""
        if self.reads is None or self.reads & {*CHARGES} or not bonds.of_nonmetals:
            return
        numbers = bonds.numbers
        onium = np.flatnonzero(bonds.counts & (bonds.partners >= _ONIUM[numbers]))
        if len(onium):
            verb = "has" if len(onium) == 1 else "have"
            found.note(
                f"{named_atoms(numbers, onium)} {verb} one bond more than a neutral "
                "atom, as in an ion: this model does not read the charge",
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


def _regime(
    prediction: Prediction,
    contacts: np.ndarray,
    bonds: Bonds | None,
    found: Findings,
) -> str:
    return regime_of(
        geometry_of(prediction),
        np.asarray(prediction.forces),
        contacts,
        breaking=bool(found.reasons),
        fragments=0 if bonds is None else bonds.fragments,
        stress=prediction.results.get("stress"),
    )
