"""Check that a log and the current structure belong to one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uqcalc.errors import RecordError


# eV/atom: error from positions that were written with three decimals or more.
_ROUNDED = 1e-4
# Relative error of the total energy in single precision.
_RELATIVE = 5e-7


class Joint:
    """Checks that the current structure has the energy with which a log ended.

    Energies of different geometries of a run differ by about 10 meV/atom at 300 K. This
    is much more than the errors from rounded positions and single precision. For a band
    the energies of all images are compared.

    Parameters
    ----------
    energies : callable
        Returns the current energies in eV: one, or one per image of a band.
    atoms : int
        Number of atoms in the structure, or in one image.
    step : int, optional
        Step of the log with which to compare; by default the last one.
    """

    def __init__(
        self, energies: Callable[[], list[float]], atoms: int, step: int | None = None
    ) -> None:
        self._energies, self._atoms, self._step = energies, atoms, step

    def check(self, path: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Compare with the step records of a log; a log without steps passes.

        Raises
        ------
        RecordError
            If the energies differ, or the log lacks the step or its energy.
        """
        if not records:
            return
        last = records[-1]
        if self._step is not None:
            found = [r for r in records if r.get("step") == self._step]
            last = found[-1] if found else {"step": self._step}
        logged = last.get("energies_eV", [last.get("energy_eV")])
        ours: list[float | None] = [*map(_number, self._energies())]
        if isinstance(logged, list) and self._same([*map(_number, logged)], ours):
            return
        msg = (
            f"log must be continued from the geometry at which it ended, got {path} "
            f"with {_words(logged)} eV at step {last['step']} and a structure with "
            f"{_words(ours)} eV; choose another file name for a new run, or pass "
            'mode="append" if this run continues the logged run'
        )
        raise RecordError(msg)

    def _same(self, theirs: list[float | None], ours: list[float | None]) -> bool:
        """Return whether all energies agree; the ends of a band may lack energies."""
        if len(theirs) != len(ours) or all(energy is None for energy in theirs):
            return False
        return all(
            one is other is None
            or (one is not None and other is not None and self._close(one, other))
            for one, other in zip(theirs, ours, strict=True)
        )

    def _close(self, one: float, other: float) -> bool:
        allowed = _ROUNDED * self._atoms + _RELATIVE * abs(other)
        return abs(one - other) <= allowed


def _number(value: object) -> float | None:
    """Return a finite number as float; None for anything else (NaN is null in logs)."""
    if isinstance(value, float | int) and math.isfinite(value):
        return float(value)
    return None


def _words(energies: object) -> str:
    listed = energies if isinstance(energies, list) else [energies]
    return ", ".join(repr(energy) for energy in listed)
