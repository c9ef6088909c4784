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
    of positions and single precision do: at 300 K by some 10 meV an atom.

    Parameters
    ----------
    energy : callable
        Returns the energy of the structure that goes on, in eV.
    atoms : int
        How many there are.
    step : int, optional
        At which step of the log it goes on; by default at the last one.
    """

    def __init__(
        self, energy: Callable[[], float], atoms: int, step: int | None = None
    ) -> None:
        self._energy, self._atoms, self._step = energy, atoms, step

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
        logged, ours = last.get("energy_eV"), self._energy()
        theirs = float(logged) if isinstance(logged, float | int) else math.nan
        allowed = _ROUNDED * self._atoms + _RELATIVE * abs(ours)
        if abs(theirs - ours) <= allowed:  # NaN is not
            return
        msg = (
            f"log must be continued from the geometry at which it ended, got {path} "
            f"with {logged!r} eV at step {last['step']} and a structure with {ours!r} "
            "eV; choose another file name for a new run, or pass "
            'mode="append" where this run truly continues that one'
        )
        raise RecordError(msg)
