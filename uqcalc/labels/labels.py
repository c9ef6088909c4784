"""Labels: where the reference is, and which frames cannot serve as one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelError
from uqcalc.quantities import parse_quantity
from uqcalc.targets import QUANTITIES, TARGETS, check_target


if TYPE_CHECKING:
    from uqcalc.backbones.base import Prediction

# A choice, not a measurement: what runs do at it has not been counted yet. Errors of
# sound runs of ethanol at 300 K were 20 to 57 meV/Å; labels at 300 to 1500 K had 51 at
# the median and 94 at the 90th percentile, which this rule takes then.
_USUAL = 3.0
# Share of the labels that shall lie beyond it: this one, or more where that would be
# too few to learn from, but not above the last.
_RARE, _ENOUGH, _MOST = 0.1, 31, 0.25


class _Boundary:
    """A field that takes a number or a text with a unit, and is a number."""

    @overload
    def __get__(self, labels: None, owner: type) -> None: ...
    @overload
    def __get__(self, labels: Labels, owner: type) -> float | None: ...
    def __get__(self, labels: Labels | None, owner: type) -> float | None:
        return None if labels is None else labels.__dict__["boundary"]

    def __set__(self, labels: Labels, given: float | str | None) -> None:
        value = None if given is None else parse_quantity(given, labels.target)
        labels.__dict__["boundary"] = value


@dataclass(frozen=True)
class Labels:
    """Where the reference is, and which errors count as reliable.

    Attributes
    ----------
    target : {"forces", "energy", "energy_per_atom", "atom_forces"}
        What a structure's error is: the RMS over its force components [eV/Å], the
        absolute error of its total energy [eV] (the paper's) or of its energy per atom
        [eV/atom], or the largest |ΔF_i| among its atoms [eV/Å].
    energy_key, forces_key : str
        Keys of ``atoms.info`` and ``atoms.arrays``; "energy" and "forces" also find
        what ASE's readers put on the frame's calculator. Values in eV and eV/Å.
    group_key : str, optional
        Key of ``atoms.info`` that says which frames belong together (one molecule,
        one run); splits never divide a group. "formula" needs no such entry.
    percentile : float, optional
        Of the training errors, taken as boundary: the published recipe takes the
        median, 50. Such a probe ranks; one that watches runs needs a boundary that
        sound frames keep, or half of them are wrong by construction.
    boundary : float or str, optional
        The boundary itself instead of a percentile: a number in the unit of the
        target, or one with its unit, such as "1 kcal/mol", "50 meV/Å" or
        "1 meV/atom" (`uqcalc.quantities.parse_quantity`). It reads as a number.
        Without either, `chosen_boundary` says which error is taken.
    offsets : bool
        Whether an energy for each element is fitted and removed before energies are
        compared, for labels of another level of theory than the potential's.

    Raises
    ------
    LabelError
        For an unknown target, a percentile outside (0, 100), a boundary of the wrong
        kind, or offsets of forces.
    """

    target: str = "forces"
    energy_key: str = "REF_energy"
    forces_key: str = "REF_forces"
    group_key: str | None = None
    percentile: float | None = None
    boundary: _Boundary = _Boundary()
    offsets: bool = False

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.percentile is not None:  # whole numbers, too, are read back as floats
            object.__setattr__(self, "percentile", float(self.percentile))
        if self.percentile is not None and not 0 < self.percentile < 100:
            msg = f"percentile must lie in (0, 100), got {self.percentile}"
            raise LabelError(msg)
        if self.offsets and not self.of_energy:
            msg = (
                f"offsets must be of energies, got the target {self.target!r}; leave "
                "them out, forces have none"
            )
            raise LabelError(msg)

    @property
    def of(self) -> str:
        """Which result of the potential is compared with the reference."""
        return TARGETS[self.target].of

    @property
    def reference_key(self) -> str:
        """Where that reference is in ``atoms.info`` or ``atoms.arrays``."""
        return self._key(self.of)

    @property
    def of_energy(self) -> bool:
        """Whether the errors are those of energies."""
        return self.of == "energy"

    def chosen_boundary(self, errors: ArrayLike) -> float:
        """Return up to which error a prediction is reliable, in the target's unit.

        The boundary itself, or the percentile of ``errors``; without either three times
        the median of them, at the most what one in ten exceeds (one in four with few
        labels): what is wrong is rare where the labels are what a run visits, and much
        larger than usual where they reach further.

        Parameters
        ----------
        errors : array (structures,)
            Of the training labels; NaN does not count.
        """
        if self.boundary is not None:
            return self.boundary
        known = np.asarray(errors, dtype=float)
        known = known[~np.isnan(known)]
        if self.percentile is not None:
            return float(np.percentile(known, self.percentile))
        share = min(max(_RARE, _ENOUGH / len(known)), _MOST)
        usual, rare = np.percentile(known, (50, 100 * (1 - share)))
        return float(min(_USUAL * usual, rare))

    @property
    def boundary_rule(self) -> str:
        """How the boundary is chosen, in words; empty where it is given."""
        if self.boundary is not None:
            return ""
        if self.percentile is not None:
            return f"percentile {self.percentile:g} of its training errors"
        return (
            f"{_USUAL:g} times the median of its training errors, at most what one in "
            "ten exceeds"
        )

    def reference(self, frame: Atoms) -> NDArray[np.float64] | None:
        """Return the label, shape () or (atoms, 3); None where no such numbers are."""
        return self._stored(frame, self.of)

    def reference_forces(self, frame: Atoms) -> NDArray[np.float64] | None:
        """Return the forces in eV/Å, (atoms, 3), whatever the target; None if none."""
        return self._stored(frame, "forces")

    def error(self, prediction: Prediction, reference: NDArray[np.float64]) -> float:
        """Return the error whose size decides: eV, eV/atom or eV/Å."""
        predicted, atoms = prediction.results[self.of], len(prediction.numbers)
        return float(TARGETS[self.target].error(predicted, reference, atoms))

    def _key(self, quantity: str) -> str:
        return str(getattr(self, f"{quantity}_key"))

    def _stored(self, frame: Atoms, quantity: str) -> NDArray[np.float64] | None:
        kind, key = QUANTITIES[quantity], self._key(quantity)
        results = frame.calc.results if frame.calc is not None else {}
        place = frame.arrays if kind.per_atom else frame.info
        return _numbers(place.get(key, results.get(key)), kind.shape_for(len(frame)))


def _numbers(value: object, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    if value is None:
        return None
    array = np.asarray(value)
    # a None that went through extxyz comes back as True: that is no label
    if shape == () and array.size == 1:  # one number, however it is wrapped
        array = array.reshape(())
    if array.dtype.kind not in "fiu" or array.shape != shape:
        return None
    return array.astype(float)


def geometry_key(
    numbers: NDArray[np.int64], positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
) -> bytes:
    """Return a digest that two geometries share when equal to 1e-6 Å."""
    digest = hashlib.sha256(np.asarray(numbers, dtype=np.int64).tobytes())
    for array in (positions, cell, pbc):
        # + 0.0 makes one of the two zeros
        rounded = np.round(np.asarray(array, dtype=float), 6) + 0.0
        digest.update(rounded.tobytes())
    return digest.digest()
