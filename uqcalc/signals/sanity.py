"""Plain sanity: what no simulation holds, seen without labels and without a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.told import unread
from uqcalc.signals.base import TensorReading
from uqcalc.surroundings import Surroundings, surroundings
from uqcalc.symmetry import forces_vanish


# How each limit was found, and what lies on both sides of it: benchmarks/sanity.py.
FUSED = 0.30  # distance / (sum of covalent radii)
ABSURD_CONTACT = 0.15
LOOSE = 1.30  # the longest bonds of labelled crystals and metals reach 1.2
FORCE, ABSURD_FORCE = 1e3, 1e4  # eV/Å, on one atom
ABSURD_ENERGY = 1e3  # eV an atom, above every zero of energy
EXTENT = 1e4  # Å
VANISHING = 1e-3  # eV/Å; symmetry is asked for below

# Å; of models that do not say how far they see.
USUAL_CUTOFF = 5.0
# Thomas-Fermi energy of a neutral atom, -20.9 Z^(7/3) eV, is below every true one
# (doi:10.1103/RevModPhys.53.603). A fifth more covers relativity in the heaviest.
_THOMAS_FERMI = 1.2 * 20.9
_BINDING = 100.0  # eV an atom; bonds give a tenth of it
_MOST_NAMED = 5
_NOBLE = (2, 10, 18, 36, 54, 86)  # their liquids and crystals have no bonds


@dataclass(slots=True)
class _Findings:
    """What was found, by how bad it is, and by how far a limit was passed."""

    doubts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    absurd: list[str] = field(default_factory=list)
    excess: list[float] = field(default_factory=list)

    def note(self, excess: float, why: str, *, absurd: bool) -> None:
        """Take note of a quantity that is ``excess`` times its limit."""
        self.excess.append(excess)
        if excess > 1.0:
            (self.absurd if absurd else self.faults).append(why)


@final
class Sanity:
    """Whether a geometry, and what was computed for it, could be of any simulation.

    It needs no labels and no pass, and costs some hundred microseconds. It enters
    every verdict, also of a policy without a threshold for it, and says

    - UNRELIABLE: two atoms are fused, closer than 0.30 of the sum of their covalent
      radii; an atom has no neighbour within the cutoff while others have; a force is
      above 1 000 eV/Å; the structure reaches over more than 10 000 Å.
    - UNRELIABLE, and a `uqcalc.Monitor` stops in that very step: atoms closer than 0.15
      of that sum, a force above 10 000 eV/Å, an energy below that of all electrons in
      the fields of bare nuclei (Thomas-Fermi) or above 1 000 eV an atom.
    - SUSPECT: no atom has a neighbour within the cutoff, so that nothing was judged;
      no two atoms are bonded, noble gases apart: the closest contact is longer than
      1.3 of the sum of the covalent radii, as in a crystal that was blown up;
      all forces vanish by symmetry, likewise; ``atoms.info`` names a charge or a spin
      that the model does not read.

    The risk is by how much the largest quantity exceeds its limit, as a fraction of the
    limit; 0 where none does. ``sanity_contact`` is the closest contact of two atoms, in
    units of the sum of their covalent radii; NaN where no two are within the cutoff.

    A contact cannot tell compression: labelled crystals reach down to 0.32 under
    pressure. Nor does it see a broken bond, until an atom is out of sight.

    Parameters
    ----------
    cutoff : float, optional
        How far the model sees, Å; 5 where it is not known.
    reads : frozenset of str, optional
        `uqcalc.Backbone.reads`; None where it is not known, and then charge and spin
        are not asked for.
    forces : bool
        Whether forces are what is judged: an energy does not vanish by symmetry.
    """

    name = "sanity"
    requires = frozenset({"energy", "forces"})

    def __init__(
        self,
        cutoff: float | None = None,
        reads: frozenset[str] | None = None,
        *,
        forces: bool = True,
    ) -> None:
        if cutoff is not None and not 0 < cutoff < np.inf:
            msg = f"cutoff must be a positive distance in Å, got {cutoff}"
            raise ValueError(msg)
        self.cutoff = USUAL_CUTOFF if cutoff is None else float(cutoff)
        self.reads = reads
        self.forces = forces

    @classmethod
    def of(cls, backbone: Backbone, *, forces: bool = True) -> Sanity:
        """Return the signal for this model."""
        return cls(backbone.cutoff, backbone.reads, forces=forces)

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Look at the geometry, the energy and the forces of one pass."""
        found = _Findings()
        around = surroundings(
            prediction.numbers,
            prediction.positions,
            prediction.cell,
            prediction.pbc,
            self.cutoff,
        )
        contact = _judge_contacts(around, prediction.numbers, found)
        self._judge_neighbours(around, prediction.numbers, found)
        _judge_bonds(around, prediction.numbers, found)
        largest = _judge_forces(prediction, found)
        _judge_energy(prediction, found)
        _judge_extent(prediction, found)
        if self.forces and largest < VANISHING and not (found.faults or found.absurd):
            _judge_symmetry(prediction, around, largest, found)
        if self.reads is not None:
            found.doubts.extend(unread(prediction.told, self.reads))
        return TensorReading(
            signal=self.name,
            # NaN stays one
            risk=float(np.maximum(np.max(found.excess) - 1.0, 0.0)),
            results={"sanity_contact": contact},
            doubts=tuple(found.doubts),
            faults=tuple(found.faults),
            absurd=tuple(found.absurd),
            always=True,
        )

    def _judge_neighbours(
        self, around: Surroundings, numbers: np.ndarray, found: _Findings
    ) -> None:
        lone = np.flatnonzero(np.isinf(around.nearest))
        if not len(lone):
            return
        within = f"within {self.cutoff:.3g} Å, which is as far as the model sees"
        if len(lone) == len(numbers):
            which = "the only atom has" if len(lone) == 1 else "no atom has"
            any_ = "no" if len(lone) == 1 else "a"
            found.doubts.append(
                f"{which} {any_} neighbour {within}: nothing was judged"
            )
            return
        verb = "has" if len(lone) == 1 else "have"
        found.faults.append(
            f"{named_atoms(numbers, lone)} {verb} no neighbour {within}"
        )


def named_atoms(numbers: np.ndarray, indices: Sequence[int] | np.ndarray) -> str:
    """Return atoms by element and index, such as "H3, O0 and 2 more"."""
    shown = [f"{chemical_symbols[numbers[i]]}{i}" for i in indices[:_MOST_NAMED]]
    more = len(indices) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _judge_contacts(
    around: Surroundings, numbers: np.ndarray, found: _Findings
) -> float:
    """Take note of fused atoms, and return the closest contact."""
    atom = int(around.contacts.argmin())
    contact = float(around.contacts[atom])
    if np.isinf(contact):
        return np.nan
    absurd = contact < ABSURD_CONTACT
    fused = int((around.contacts < FUSED).sum())
    pair = named_atoms(numbers, [atom, int(around.partners[atom])])
    others = f" (and {fused - 2} other atoms)" if fused > 2 else ""
    found.note(
        FUSED / max(contact, 1e-9),
        f"{pair.replace(', ', ' and ')} are {around.distances[atom]:.3g} Å apart, "
        f"{contact:.2f} of the sum of their covalent radii < {FUSED:.2f}{others}",
        absurd=absurd,
    )
    return contact


def _judge_bonds(around: Surroundings, numbers: np.ndarray, found: _Findings) -> None:
    """Take note of atoms none of which is bonded to another."""
    contacts = np.where(np.isin(numbers, _NOBLE), np.inf, around.contacts)
    atom = int(contacts.argmin())
    contact = float(contacts[atom])
    if not LOOSE < contact < np.inf:
        return
    pair = named_atoms(numbers, [atom, int(around.partners[atom])])
    found.doubts.append(
        f"no two atoms are bonded: the closest, {pair.replace(', ', ' and ')}, are "
        f"{around.distances[atom]:.3g} Å apart, {contact:.2f} of the sum of their "
        f"covalent radii > {LOOSE:.2f}"
    )


def _judge_forces(prediction: Prediction, found: _Findings) -> float:
    """Take note of forces beyond anything labelled, and return the largest."""
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.linalg.norm(np.asarray(prediction.forces, dtype=float), axis=1)
    atom = int(sizes.argmax())  # of NaN the first
    largest = float(sizes[atom])
    absurd = not largest <= ABSURD_FORCE
    limit = ABSURD_FORCE if absurd else FORCE
    found.note(
        largest / FORCE,
        f"the force on {named_atoms(prediction.numbers, [atom])} is {largest:.3g} "
        f"eV/Å > {limit:g} eV/Å",
        absurd=absurd,
    )
    return largest


def _judge_energy(prediction: Prediction, found: _Findings) -> None:
    """Take note of an energy that no electrons have, whatever it is counted from."""
    numbers, energy = prediction.numbers, prediction.energy
    count = len(numbers)
    lowest = -_THOMAS_FERMI * float((numbers ** (7 / 3)).sum()) - _BINDING * count
    highest = ABSURD_ENERGY * count
    bound = highest if energy > 0 else lowest
    sign = ">" if energy > 0 else "<"
    found.note(
        energy / bound,
        f"the energy is {energy / count:.3g} eV/atom {sign} {bound / count:.3g} "
        "eV/atom, the limit for these elements",
        absurd=True,
    )


def _judge_extent(prediction: Prediction, found: _Findings) -> None:
    """Take note of a structure larger than any that is simulated."""
    spans = np.ptp(prediction.positions, axis=0)
    spans = np.where(prediction.pbc, 0.0, spans)  # there atoms may have drifted
    edges = np.linalg.norm(prediction.cell, axis=1)
    extent = float(max(spans.max(), edges.max()))
    found.note(
        extent / EXTENT,
        f"the structure reaches over {extent:.3g} Å > {EXTENT:g} Å",
        absurd=False,
    )


def _judge_symmetry(
    prediction: Prediction, around: Surroundings, largest: float, found: _Findings
) -> None:
    """Take note of forces that vanish whatever the potential is."""
    if np.isinf(around.nearest).all():
        return  # said already
    if forces_vanish(
        prediction.numbers,
        prediction.positions,
        prediction.cell,
        prediction.pbc,
        around.nearest,
    ):
        found.doubts.append(
            f"all forces vanish by symmetry (the largest is {largest:.1g} eV/Å): "
            "nothing was judged"
        )
