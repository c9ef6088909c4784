"""Plain sanity: checks for impossible geometries, energies and forces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.chargespin import ignored_charge_spin, impossible
from uqcalc.geometry.bonds import named_atoms
from uqcalc.geometry.surroundings import Geometry, SamePairs, Surroundings, surroundings
from uqcalc.policy import NO_FORCES
from uqcalc.records import SANITY
from uqcalc.signals.base import TensorReading
from uqcalc.signals.symmetry import forces_vanish


# benchmarks/sanity.py shows how each limit was found and what lies on both sides.
FUSED = 0.30  # distance / (sum of covalent radii)
CROWDED = 0.40  # the same, for two contacts of one atom
ABSURD_CONTACT = 0.15
LOOSE = 1.36  # the closest contact of a labelled frame reaches 1.351
FORCE, ABSURD_FORCE = 1e3, 1e4  # eV/Å on one atom
ABSURD_ENERGY = 1e3  # eV/atom; positive energies above this are impossible
EXTENT = 1e4  # Å
# Å; coordinates. A carbon atom moved by 1e3 and 1e5 Å along a cell vector of diamond
# changes forces of a potential in single precision by 0.003 and 0.3 eV/Å.
ROUNDED, LOST_DIGITS = 1e4, 1e5
VANISHING = 1e-3  # eV/Å; below this the symmetry is checked

# Å; for models whose cutoff is not known.
USUAL_CUTOFF = 5.0
# Ground-state energies of atoms in eV: the Thomas-Fermi, Scott and Schwinger terms
# (doi:10.1103/PhysRevA.24.2353) agree with Hartree-Fock within 1 %, 8 % for Z < 3.
# 1 + (Z / 137)^2 / 4 covers relativity for the heaviest atoms; 10 % allow for all else.
_HARTREE = 27.2114
_CHARGES = np.arange(len(chemical_symbols), dtype=float)
_LOWEST = (
    -1.1
    * _HARTREE
    * (0.768745 * _CHARGES ** (7 / 3) - _CHARGES**2 / 2 + 0.2699 * _CHARGES ** (5 / 3))
    * (1 + (_CHARGES / 137) ** 2 / 4)
)
_BINDING = 100.0  # eV/atom; ten times the energy of bonds
# Decimals of a contact; the last digits of a float depend on the order of the pairs.
_DIGITS = 12
_NOBLE = (2, 10, 18, 36, 54, 86)  # noble gases: no bonds in liquid or crystal


@dataclass(slots=True)
class _Findings:
    """Reasons found so far, by severity, and the largest quantity / limit."""

    doubts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    absurd: list[str] = field(default_factory=list)
    excess: float = 0.0

    def passed(self, excess: float) -> bool:
        """Record a quantity of ``excess`` times its limit; return excess > 1."""
        if not (excess <= self.excess or np.isnan(self.excess)):
            self.excess = excess
        return excess > 1.0

    def note(self, why: str, *, absurd: bool) -> None:
        """Record a reason."""
        (self.absurd if absurd else self.faults).append(why)


@final
class Sanity:
    """Checks whether geometry, energy and forces are physically possible.

    It needs no labels and no extra pass. It costs 0.1 ms, or 0.3 ms for 1 000 atoms in
    a run. It affects every verdict, also without a threshold for it:

    - UNRELIABLE: two atoms are closer than 0.30 of the sum of their covalent radii; an
      atom has two neighbours closer than 0.40 of that sum; a force is above 1 000 eV/Å;
      the structure is larger than 10 000 Å; a coordinate is above 100 000 Å and the
      model is in single precision.
    - UNRELIABLE, and a `uqcalc.Monitor` stops in the same step: atoms are closer than
      0.15 of that sum; a force is above 10 000 eV/Å; the energy is above 1 000 eV/atom,
      or below the all-electron energy of the free atoms by more than 10 % plus
      100 eV/atom.
    - SUSPECT: an atom has no neighbour within the cutoff, so that the model gives it a
      constant energy and no force, and cannot judge it (`uqcalc.Monitor` calls an atom
      that leaves the others during a run UNRELIABLE); no two atoms are bonded, apart
      from noble gases: the closest contact is above 1.36 of the sum of the covalent
      radii, as in an expanded crystal; all forces vanish by symmetry; a coordinate is
      above 10 000 Å, and the model is in single precision; the model treats an
      open direction as periodic, and images are within its cutoff; ``atoms.info``
      has a charge or a spin that the model does not read, or a multiplicity that is
      impossible for the number of electrons.

    The risk is the largest ratio quantity / limit (limit / contact for contacts), minus
    1. It is 0 if no limit is passed, and NaN if the energy or a force is NaN.
    ``sanity_contact`` is the closest contact of two
    atoms, in units of the sum of their covalent radii; NaN if no two atoms are within
    the cutoff. ``sanity_unseen`` is the number of atoms without a neighbour there.

    Contacts do not detect compression: in labelled crystals under pressure the closest
    contact goes down to 0.32 and the second contact of an atom to 0.48. They also do
    not detect a broken bond before an atom is beyond the cutoff.

    Parameters
    ----------
    cutoff : float, optional
        Cutoff of the model in Å; 5 if it is not known.
    reads : frozenset of str, optional
        `uqcalc.types.Backbone.reads`. With None (not known) charge and spin are not
        checked.
    forces : bool
        Whether forces are judged. Only then is the symmetry checked, as an energy does
        not vanish by symmetry.
    periodic : bool
        `uqcalc.types.Backbone.always_periodic`.
    """

    name = SANITY
    requires = frozenset({"energy"})

    def __init__(
        self,
        cutoff: float | None = None,
        reads: frozenset[str] | None = None,
        *,
        forces: bool = True,
        periodic: bool = False,
    ) -> None:
        if cutoff is not None and not 0 < cutoff < np.inf:
            msg = f"cutoff must be a positive distance in Å, got {cutoff}"
            raise ValueError(msg)
        self.cutoff = USUAL_CUTOFF if cutoff is None else float(cutoff)
        self.reads = reads
        self.forces = forces
        self.periodic = periodic
        self._pairs = SamePairs()

    @classmethod
    def of(cls, backbone: Backbone, *, forces: bool = True) -> Sanity:
        """Return the signal with the cutoff and the inputs of this model."""
        periodic = backbone.always_periodic
        return cls(backbone.cutoff, backbone.reads, forces=forces, periodic=periodic)

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Check the geometry, the energy and the forces of one pass."""
        found = _Findings()
        unseen, around = 0, None
        contact = self._usual_contact(prediction)
        if contact is None:
            around = self._look(prediction)
            contact = _check_contacts(around, prediction.numbers, found)
            unseen = self._check_neighbours(around, prediction.numbers, found)
            _check_bonds(around, prediction.numbers, found)
        # without forces their verdict is SUSPECT anyway (`uqcalc.uses.without_forces`)
        largest = np.inf
        if prediction.has_forces:
            largest = _check_forces(prediction, found)
        _check_energy(prediction, found)
        _check_extent(prediction, found)
        _check_digits(prediction, found)
        if self.periodic and not prediction.pbc.all():
            _check_images(prediction, self.cutoff, found)
        if self.forces and largest < VANISHING and not (found.faults or found.absurd):
            around = around or self._look(prediction)
            _check_symmetry(prediction, around, largest, found)
        if self.reads is not None:
            found.doubts.extend(ignored_charge_spin(prediction.charge_spin, self.reads))
            found.doubts.extend(
                impossible(prediction.charge_spin, prediction.numbers, self.reads)
            )
        return TensorReading(
            signal=self.name,
            risk=0.0 if found.excess <= 1.0 else found.excess - 1.0,
            results={
                "sanity_contact": round(contact, _DIGITS),
                "sanity_unseen": float(unseen),
            },
            doubts=tuple(found.doubts),
            faults=tuple(found.faults),
            absurd=tuple(found.absurd),
            always=True,
        )

    def _look(self, prediction: Prediction) -> Surroundings:
        """Return the neighbours of every atom, and store them for the next step."""
        geometry = _geometry(prediction)
        around = surroundings(*geometry, self.cutoff)
        self._pairs.remember(geometry, around)
        return around

    def _usual_contact(self, prediction: Prediction) -> float | None:
        """Return the closest contact from the stored pairs; None for a full search.

        A full search is due if the pairs no longer hold, or if the contact is unusual.
        """
        known = self._pairs.closest(_geometry(prediction), self.cutoff)
        if known is None:
            return None
        contact, atom = known
        odd = not CROWDED <= contact <= LOOSE or prediction.numbers[atom] in _NOBLE
        return None if odd else contact

    def _check_neighbours(
        self, around: Surroundings, numbers: np.ndarray, found: _Findings
    ) -> int:
        """Record atoms without a neighbour, and return their number."""
        lone = np.flatnonzero(around.nearest == np.inf)
        if len(lone) == 0:
            return 0
        within = f"within {self.cutoff:.3g} Å (the cutoff of the model)"
        if len(lone) < len(numbers):
            verb = "has" if len(lone) == 1 else "have"
            which = f"{named_atoms(numbers, lone)} {verb} no"
            judged = "this atom was" if len(lone) == 1 else "these atoms were"
        elif len(lone) == 1:
            which, judged = "the only atom has no", "the structure was"
        else:
            which, judged = "no atom has a", "the structure was"
        found.doubts.append(f"{which} neighbour {within}: {judged} not judged")
        return len(lone)


def _geometry(prediction: Prediction) -> Geometry:
    return Geometry(
        prediction.numbers, prediction.positions, prediction.cell, prediction.pbc
    )


def _check_contacts(
    around: Surroundings, numbers: np.ndarray, found: _Findings
) -> float:
    """Record fused and crowded atoms, and return the closest contact."""
    atom = int(around.contacts.argmin())
    contact = float(around.contacts[atom])
    if contact == np.inf:
        return np.nan
    if found.passed(FUSED / max(contact, 1e-9)):
        fused = int((around.contacts < FUSED).sum())
        pair = named_atoms(numbers, [atom, int(around.partners[atom])])
        others = f" (and {fused - 2} other atoms)" if fused > 2 else ""
        found.note(
            f"{pair.replace(', ', ' and ')} are {around.distances[atom]:.3g} Å apart, "
            f"{contact:.2f} of the sum of their covalent radii < {FUSED:.2f}{others}",
            absurd=contact < ABSURD_CONTACT,
        )
        return contact
    second = float(around.seconds.min())
    if found.passed(CROWDED / max(second, 1e-9)):
        crowded = np.flatnonzero(around.seconds < CROWDED)
        found.note(
            f"{named_atoms(numbers, crowded)}: two neighbours at less than "
            f"{CROWDED:.2f} of the sum of the covalent radii ({second:.2f})",
            absurd=False,
        )
    return contact


def _check_bonds(around: Surroundings, numbers: np.ndarray, found: _Findings) -> None:
    """Record a structure without any bond."""
    atom = int(around.contacts.argmin())
    if around.contacts[atom] <= LOOSE and numbers[atom] not in _NOBLE:
        return
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


def _check_forces(prediction: Prediction, found: _Findings) -> float:
    """Record forces above the limits, and return the largest in eV/Å."""
    forces = np.asarray(prediction.forces, dtype=float)
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.sqrt(np.einsum("ij,ij->i", forces, forces))
    atom = int(sizes.argmax())  # the first NaN, if any
    largest = float(sizes[atom])
    if found.passed(largest / FORCE):
        absurd = largest > ABSURD_FORCE
        limit = ABSURD_FORCE if absurd else FORCE
        found.note(
            f"the force on {named_atoms(prediction.numbers, [atom])} is {largest:.3g} "
            f"eV/Å > {limit:g} eV/Å",
            absurd=absurd,
        )
    return largest


def _check_energy(prediction: Prediction, found: _Findings) -> None:
    """Record an energy that is impossible for any choice of the energy zero."""
    energy, count = prediction.energy, len(prediction.numbers)
    lowest = float(_LOWEST[prediction.numbers].sum()) - _BINDING * count
    bound = ABSURD_ENERGY * count if energy > 0 else lowest
    if found.passed(energy / bound):
        found.note(
            f"the energy is {energy / count:.3g} eV/atom {'>' if energy > 0 else '<'} "
            f"{bound / count:.3g} eV/atom, the limit for these elements",
            absurd=True,
        )


def _check_extent(prediction: Prediction, found: _Findings) -> None:
    """Record a structure larger than ``EXTENT``."""
    positions, cell = prediction.positions, prediction.cell
    spans = positions.max(axis=0) - positions.min(axis=0)
    spans *= ~prediction.pbc  # atoms may drift along periodic axes
    edges = np.sqrt((cell * cell).sum(axis=1))
    extent = max(float(spans.max()), float(edges.max()))
    if found.passed(extent / EXTENT):
        found.note(f"the structure is {extent:.3g} Å > {EXTENT:g} Å long", absurd=False)


def _check_digits(prediction: Prediction, found: _Findings) -> None:
    """Record coordinates that are too large for a model in single precision."""
    if prediction.features.dtype.itemsize > 4:  # double precision
        return
    sizes = np.abs(prediction.positions).max(axis=1)
    atom = int(sizes.argmax())
    largest = float(sizes[atom])
    if largest <= ROUNDED:
        return
    lost = found.passed(largest / LOST_DIGITS)
    why = (
        f"{named_atoms(prediction.numbers, [atom])} has a coordinate of {largest:.3g} Å"
        f" > {LOST_DIGITS if lost else ROUNDED:g} Å: single precision rounds distances;"
        " wrap the atoms into the cell"
    )
    if lost:
        found.note(why, absurd=False)
    else:
        found.doubts.append(why)


def _check_images(prediction: Prediction, cutoff: float, found: _Findings) -> None:
    """Record images within the cutoff along directions that are open in ``pbc``."""
    inverse = np.linalg.inv(prediction.cell)
    places = np.sort((prediction.positions @ inverse) % 1.0, axis=0)
    gaps = np.diff(places, axis=0, append=places[:1] + 1.0).max(axis=0)
    gaps /= np.linalg.norm(inverse, axis=0)
    close = np.flatnonzero(~prediction.pbc & (gaps < cutoff))
    if len(close):
        axes, least = ", ".join("abc"[i] for i in close), gaps[close].min()
        found.doubts.append(
            "this model treats each structure as periodic, and images along open "
            f"directions ({axes}) are {least:.3g} Å apart, within its cutoff of "
            f"{cutoff:g} Å: set pbc=True for a bulk crystal, or add vacuum to the cell"
        )


def _check_symmetry(
    prediction: Prediction, around: Surroundings, largest: float, found: _Findings
) -> None:
    """Record forces that vanish by symmetry, for any potential."""
    if np.isinf(around.nearest).all():
        return  # recorded already: no atom has a neighbour
    if forces_vanish(
        prediction.numbers,
        prediction.positions,
        prediction.cell,
        prediction.pbc,
        around.nearest,
    ):
        found.doubts.append(
            f"{NO_FORCES} (the largest is {largest:.1g} eV/Å): the "
            "structure was not judged"
        )
