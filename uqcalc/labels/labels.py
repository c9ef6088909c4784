"""Labels: where the reference is stored, and up to which error it is reliable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelError
from uqcalc.quantities import parse_quantity
from uqcalc.targets import QUANTITIES, TARGETS, check_target, voigt_stress


if TYPE_CHECKING:
    from uqcalc.backbones.base import Prediction

# Boundary in medians of the errors. This is a choice; its effect on runs has not been
# measured. Errors of good runs of ethanol at 300 K were 20 to 57 meV/Å. Labels at 300
# to 1500 K had a median of 51 and a 90th percentile of 94; here the latter is used.
_USUAL = 3.0
# Smallest share of the labels above the boundary: the first, or the share of `_ENOUGH`
# labels if larger, but at most the last.
_RARE, _ENOUGH, _MOST = 0.1, 31, 0.25


class _Boundary:
    """A field that is set to a number, or a text with a unit, and stores a number."""

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
    """Where the reference is stored, and which errors count as reliable.

    Attributes
    ----------
    target : {"forces", "energy", "energy_per_atom", "atom_forces", "stress", \
"relative_energy"}
        Error of a structure: RMS over its force components [eV/Å], absolute error of
        its total energy [eV] (as in the PROBE paper) or of its energy per atom
        [eV/atom], largest |ΔF_i| among its atoms [eV/Å], RMS over the nine components
        of its stress [eV/Å³], or absolute error of its total energy after the median of
        the signed errors of all frames of its composition is subtracted [eV].
    energy_key, forces_key, stress_key : str
        Keys of ``atoms.info``, ``atoms.arrays`` and ``atoms.info``, values in eV, eV/Å
        and eV/Å³. A stress has six components in Voigt order (xx, yy, zz, yz, xz, xy)
        or is a 3 x 3 matrix; a compressed cell has a negative stress, as in ASE.
        "energy", "forces" and "stress" also find results that ASE's readers put on the
        frame's calculator.
    group_key : str, optional
        Key of ``atoms.info`` that names the group of a frame (one molecule, one run);
        splits never divide a group. "formula" needs no such entry.
    percentile : float, optional
        Percentile of the training errors to use as boundary; the published recipe uses
        the median, 50. Such a probe can rank structures. To monitor runs, choose a
        boundary above the errors of good frames; with 50, half of them are wrong.
    boundary : float or str, optional
        Boundary instead of a percentile: a number in the unit of the target, or a text
        with unit, such as "1 kcal/mol", "50 meV/Å" or "1 meV/atom"
        (`uqcalc.quantities.parse_quantity`). It is stored as a number. Without boundary
        and percentile, the rule of `chosen_boundary` is used.
    offsets : bool
        Whether to fit an energy for each element and subtract it before energies are
        compared. For labels whose level of theory differs from the potential's.

    Raises
    ------
    LabelError
        For an unknown target, a percentile outside (0, 100), a boundary of the wrong
        kind, or offsets of another target than "energy" and "energy_per_atom".
    """

    target: str = "forces"
    energy_key: str = "REF_energy"
    forces_key: str = "REF_forces"
    group_key: str | None = None
    percentile: float | None = None
    boundary: _Boundary = _Boundary()
    offsets: bool = False
    stress_key: str = "REF_stress"

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.percentile is not None:  # store whole numbers as floats too
            object.__setattr__(self, "percentile", float(self.percentile))
        if self.percentile is not None and not 0 < self.percentile < 100:
            msg = f"percentile must lie in (0, 100), got {self.percentile}"
            raise LabelError(msg)
        if self.offsets and not self.of_energy:
            msg = (
                "offsets=True must have an energy target, got the target "
                f"{self.target!r}; pass offsets=False, because only energies have "
                "an offset"
            )
            raise LabelError(msg)
        if self.offsets and self.relative:
            msg = (
                f"offsets=True must have the target 'energy' or 'energy_per_atom', got "
                f"{self.target!r}, in which offsets of elements cancel; pass "
                "offsets=False"
            )
            raise LabelError(msg)

    @property
    def of(self) -> str:
        """Name of the result that is compared with the reference."""
        return TARGETS[self.target].of

    @property
    def reference_key(self) -> str:
        """Key of the reference in ``atoms.info`` or ``atoms.arrays``."""
        return self._key(self.of)

    @property
    def of_energy(self) -> bool:
        """Whether the errors are errors of energies."""
        return self.of == "energy"

    @property
    def relative(self) -> bool:
        """Whether the error of a frame depends on other frames of its composition."""
        return TARGETS[self.target].relative

    @property
    def info_keys(self) -> frozenset[str]:
        """Entries of ``atoms.info`` that are labels, for any target."""
        return frozenset({self.energy_key, self.stress_key})

    def chosen_boundary(self, errors: ArrayLike) -> float:
        """Return the largest error of a reliable prediction, in the target's unit.

        It is ``boundary``, or the ``percentile`` of ``errors``. Without both it is
        three times their median, but at most their 90th percentile (down to the 75th
        with few labels).

        Parameters
        ----------
        errors : array (structures,)
            Errors of the training labels; NaN is ignored.
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
        """Rule for the boundary, in words; empty if the boundary is given."""
        if self.boundary is not None:
            return ""
        if self.percentile is not None:
            return f"percentile {self.percentile:g} of its training errors"
        return (
            f"{_USUAL:g} times the median of its training errors, at most what one in "
            "ten exceeds"
        )

    def reference(self, frame: Atoms) -> NDArray[np.float64] | None:
        """Return the label, shape (), (atoms, 3) or (6,); None if missing or invalid.

        A frame that is not periodic in three directions has no stress (None).
        """
        return self._stored(frame, self.of)

    def reference_of(self, frame: Atoms, quantity: str) -> NDArray[np.float64] | None:
        """Return the reference of "energy", "forces" or "stress", for any target.

        As `reference`.
        """
        return self._stored(frame, quantity)

    def error(self, prediction: Prediction, reference: NDArray[np.float64]) -> float:
        """Return the error of the target in its unit: eV, eV/atom, eV/Å or eV/Å³.

        Raises
        ------
        LabelError
            For "relative_energy", which is not the error of one frame alone, or if the
            prediction lacks the quantity, as those of molecules lack the stress.
        """
        if self.of not in prediction.results:
            msg = (
                f"prediction must hold {self.of} for the target {self.target!r}, got "
                f"{sorted(prediction.results)}; choose another target or calculator"
            )
            raise LabelError(msg)
        if self.relative:
            msg = (
                f"target must be the error of one frame, got {self.target!r}, which "
                "compares frames of one composition; pass a Dataset "
                "(uqcalc.labels.dataset.build_dataset)"
            )
            raise LabelError(msg)
        predicted, atoms = prediction.results[self.of], len(prediction.numbers)
        return float(TARGETS[self.target].error(predicted, reference, atoms))

    def _key(self, quantity: str) -> str:
        return str(getattr(self, f"{quantity}_key"))

    def _stored(self, frame: Atoms, quantity: str) -> NDArray[np.float64] | None:
        kind, key = QUANTITIES[quantity], self._key(quantity)
        results = frame.calc.results if frame.calc is not None else {}
        place = frame.arrays if kind.per_atom else frame.info
        value = place.get(key, results.get(key))
        if quantity == "stress":
            return _stress(value) if has_stress(frame) else None
        return _numbers(value, kind.shape_for(len(frame)))


def has_stress(frame: Atoms) -> bool:
    """Return whether a frame has a stress: three cell vectors, all periodic."""
    return bool(frame.pbc.all()) and frame.cell.rank == 3


def _stress(value: object) -> NDArray[np.float64] | None:
    """Return a stress (6,) from six or nine numbers; None if there are others."""
    for shape in ((6,), (3, 3), (9,)):
        found = _numbers(value, shape)
        if found is not None:
            return voigt_stress(found)
    return None


def _numbers(value: object, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    if value is None:
        return None
    array = np.asarray(value)
    # extxyz writes None and reads it back as True: refuse bool
    if shape == () and array.size == 1:  # one number in an array of any shape
        array = array.reshape(())
    if array.dtype.kind not in "fiu" or array.shape != shape:
        return None
    return array.astype(float)


def geometry_key(
    numbers: NDArray[np.int64], positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike
) -> bytes:
    """Return a digest of a geometry, with positions and cell rounded to 1e-6 Å."""
    digest = hashlib.sha256(np.asarray(numbers, dtype=np.int64).tobytes())
    for array in (positions, cell, pbc):
        # + 0.0 turns -0.0 into 0.0
        rounded = np.round(np.asarray(array, dtype=float), 6) + 0.0
        digest.update(rounded.tobytes())
    return digest.digest()
