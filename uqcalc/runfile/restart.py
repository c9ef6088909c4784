"""Save the state of a run every few steps, and continue from it after a kill."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from ase import Atoms

from uqcalc.errors import RecordError
from uqcalc.files.writing import whole
from uqcalc.watching.state import State


@dataclass(frozen=True, slots=True, eq=False)
class Restart:
    """The state of a run in a file.

    Molecular dynamics, noise included, continues as without the stop, up to the
    rounding of the potential. An optimiser starts again at the saved geometry, without
    its estimate of the curvature.

    Attributes
    ----------
    run : str
        Which run it belongs to.
    state : State
    """

    run: str
    state: State

    @property
    def step(self) -> int:
        """Step number of the state."""
        return self.state.step

    @classmethod
    def of(cls, step: int, run: str, atoms: Atoms, dynamics: Any) -> Restart:
        """Take the state of a run between two steps."""
        return cls(run, State.of(step, atoms, dynamics))

    def place(self, atoms: Atoms, *, moving: bool) -> None:
        """Restore positions, cell and momenta of ``atoms``."""
        self.state.place(atoms, moving=moving)

    def wind(self, dynamics: Any) -> None:
        """Restore the variables that the dynamics itself stores."""
        self.state.wind(dynamics)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        state = self.state
        arrays: dict[str, Any] = {
            "positions": state.positions,
            "momenta": state.momenta,
            "cell": state.cell,
            **state.carried,
        }
        rest = json.dumps(
            {"step": state.step, "run": self.run, "generator": state.generator}
        )
        with whole(path) as partial, partial.open("wb") as file:
            np.savez(file, rest=np.array(rest), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Restart:
        """Read what `save` wrote.

        Raises
        ------
        RecordError
            If the file is something else.
        """
        try:
            with Path(path).open("rb") as stream, np.load(stream) as file:
                arrays = dict(file)
            rest = json.loads(str(arrays.pop("rest")))
            state = State(
                rest["step"],
                arrays.pop("positions"),
                arrays.pop("momenta"),
                arrays.pop("cell"),
                rest["generator"],
                arrays,
            )
            return cls(rest["run"], state)
        except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
            msg = (
                f"restart file must be one that uqcalc saved, got {path} ({error}); "
                "to start anew, remove this file and the log beside it"
            )
            raise RecordError(msg) from error
