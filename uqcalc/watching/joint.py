"""Whether a log and the structure that goes on are of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uqcalc.errors import RecordError


# eV an atom: positions that were written with three decimals or more, and read again.
_ROUNDED = 1e-4
# Of the whole energy: what single precision leaves of it.
_RELATIVE = 5e-7


class Joint:
    """Checks that the structure that goes on has the energy with which a log ended.

    Two geometries of one run have energies that differ by far more than what rounding
    of positions and single precision do: at 300 K by some 10 meV an atom. Of a band of
    images the energy of each image is compared.

    Parameters
    ----------
    energies : callable
        Returns the energy of the structure that goes on, or of each image, in eV.
    atoms : int
        How many there are in the structure, or in an image.
    step : int, optional
        At which step of the log it goes on; by default at the last one.
    """

    def __init__(
        self, energies: Callable[[], list[float]], atoms: int, step: int | None = None
    ) -> None:
        self._energies, self._atoms, self._step = energies, atoms, step

    def check(self, path: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Compare with the step records of a log; one without steps fits any structure.

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
            'mode="append" where this run truly continues that one'
        )
        raise RecordError(msg)

    def _same(self, theirs: list[float | None], ours: list[float | None]) -> bool:
        """Say whether all energies agree; an end of a band may have none."""
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
    """Return a finite number; None for anything else, as logs have null for NaN."""
    if isinstance(value, float | int) and math.isfinite(value):
        return float(value)
    return None


def _words(energies: object) -> str:
    listed = energies if isinstance(energies, list) else [energies]
    return ", ".join(repr(energy) for energy in listed)
