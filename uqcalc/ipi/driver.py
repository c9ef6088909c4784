"""`ReliableDriver`: a judged potential as a Python driver of i-PI.

``i-pi-driver-py -m custom -P FILE``, or ``ffdirect`` with ``pes`` custom, takes this
file, or a file of your own with a subclass and the two names in capitals.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.calculator import ReliableCalculator
from uqcalc.errors import MissingExtraError
from uqcalc.ipi.client import IpiReplica, fresh_exit_file
from uqcalc.ipi.extras import Extras
from uqcalc.models.named import open_model
from uqcalc.watching.aserun import reliable_calculator
from uqcalc.watching.enginerun import virial_of
from uqcalc.watching.monitor import Monitor


try:
    from ipi.pes._ase import ASEDriver
    from ipi.utils.units import unit_to_internal
except ModuleNotFoundError as error:
    raise MissingExtraError("uqcalc.ipi.driver", "ipi", "ipi") from error


__DRIVER_NAME__ = "uqcalc"
__DRIVER_CLASS__ = "ReliableDriver"


class ReliableDriver(ASEDriver):  # type: ignore[misc]  # ipi has no types
    """i-PI's driver for ASE calculators, with the verdict in the extras.

    i-PI does not tell a driver which replica a geometry belongs to: each driver process
    has one log. For a log of each replica use `uqcalc.ipi.IpiClient`.

    Parameters
    ----------
    template : path
        A structure with the atoms of i-PI in their order.
    model : str
        As for `uqcalc.open_model`.
    probe : path, optional
        By default the probe that ships with the package for this model.
    device : str
        As for `uqcalc.open_model`.
    log, flagged : path, optional
        As for `uqcalc.Monitor`.
    timestep_fs : float, optional
        Time step in fs, for the times in the log.
    exit_file : path, optional
        i-PI's file ``EXIT``: made when the monitor halts. With None, i-PI is not
        stopped.
    """

    def __init__(  # noqa: PLR0913  (the options of the command)
        self,
        template: str,
        model: str = "default",
        probe: str | None = None,
        device: str = "cpu",
        log: str | None = None,
        flagged: str | None = None,
        timestep_fs: float | None = None,
        exit_file: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self.model, self.probe, self.device = model, probe, device
        self._outputs: dict[str, Any] = {"log": log, "flagged": flagged}
        self._timestep_fs = None if timestep_fs is None else float(timestep_fs)
        self._exit = None if exit_file is None else fresh_exit_file(exit_file)
        self._run: IpiReplica | None = None
        self._extras = Extras()
        super().__init__(template, **options)

    def check_parameters(self) -> None:
        """Read the template and open the calculator."""
        super().check_parameters()
        self.ase_calculator = self.calculator()
        self.template_ase.arrays.pop("momenta", None)  # not those of i-PI
        reliable_calculator(Atoms(calculator=self.ase_calculator))

    def calculator(self) -> ReliableCalculator:
        """Return the calculator; a subclass may make another one."""
        model = open_model(self.model, device=self.device)
        return ReliableCalculator(model, "auto" if self.probe is None else self.probe)

    def compute_structure(
        self, cell: NDArray[np.float64], pos: NDArray[np.float64]
    ) -> tuple[Any, ...]:
        """Return energy, forces, virial and extras of a geometry, in i-PI's units."""
        vectors, positions = self.convert_units(cell, pos)
        structure = self.template_ase.copy()
        structure.positions = positions
        if structure.pbc.any():
            structure.set_cell(vectors)
        calculator = structure.calc = self.ase_calculator
        forces = calculator.get_property("forces", structure)
        results, judged = calculator.results, calculator.assessment
        readings = {} if judged is None else judged.results()
        extras = self._extras(readings, results, len(structure))
        self._record(structure)
        energy, virial = (
            unit_to_internal("energy", "electronvolt", value)
            for value in (results["energy"], virial_of(structure, results))
        )
        answer = energy, unit_to_internal("force", "ev/ang", forces), virial
        # i-PI sends the bytes as they are and reads them as double precision
        return *(np.asarray(value, np.float64) for value in answer), extras

    def _record(self, structure: Atoms) -> None:
        """Pass a geometry to the monitor; stop i-PI if the monitor halts."""
        if self._run is None:
            self._run = IpiReplica(structure, self._timestep_fs)
            monitor = Monitor(self._run, **self._outputs)
            atexit.register(monitor.close)  # i-PI does not announce the end to a driver
            step = self._run.nsteps
        else:
            self._run.atoms = structure
            step = self._run.nsteps + 1
        if self._run.arrived(step) and self._exit is not None:
            self._exit.touch()
