"""`IpiClient`: a judged potential for i-PI over a socket, one log for each replica."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.socketio import IPIProtocol, SocketClient, SocketClosed
from numpy.typing import NDArray

from uqcalc.errors import RecordError
from uqcalc.files.writing import writable
from uqcalc.ipi.extras import Extras
from uqcalc.watching.aserun import reliable_calculator
from uqcalc.watching.enginerun import EngineRun, virial_of
from uqcalc.watching.monitor import Monitor


class IpiReplica(EngineRun):
    """One replica (bead) of i-PI, as a `Monitor` sees it.

    i-PI sends positions only: there are no velocities, and a step is one geometry of
    this replica.
    """


class IpiClient:
    """Answers the requests of i-PI, or of any program with its protocol, over a socket.

    The client asks the server before each geometry which replica it is. So the log of
    each replica is right with any number of clients and replicas. The signals of each
    geometry go back as ``extras``: i-PI writes them with
    ``<trajectory filename="p" extra_type="probe_reliability"> extras </trajectory>``.

    When a monitor halts, the client makes the file ``EXIT``: i-PI then stops at the end
    of the step and writes a restart file. An error in the calculator does the same, and
    `run` raises it.

    Parameters
    ----------
    atoms : Atoms
        A structure with the atoms of i-PI in their order, and a `ReliableCalculator`.
        It does not change.
    unixsocket : str, optional
        Name of a UNIX socket, the ``address`` in i-PI's input. Without it ``host`` and
        ``port`` are used.
    host, port : str, int
        Address of the server.
    exit_file : path, optional
        The file ``EXIT`` in the folder in which i-PI runs. With None, i-PI is not
        stopped.
    timestep_fs : float, optional
        Time step of the simulation in fs, for the times in the logs and the default
        trigger of the monitors.
    log, flagged : str, optional
        As for `uqcalc.Monitor`, with ``{replica}`` in place of the number of the
        replica: ``"replica-{replica}.jsonl"``.
    timeout : float, optional
        Largest time to wait for the server in s; by default there is no limit.
    **monitor_options
        Passed to each `uqcalc.Monitor`.

    Attributes
    ----------
    monitors : dict of int -> Monitor
        The monitor of each replica seen so far. Its number is that of i-PI's request,
        from 0 on if i-PI has one force component.

    Raises
    ------
    ValueError
        If the atoms have no `ReliableCalculator`, or if a name for a file of each
        replica lacks ``{replica}``.
    RecordError
        If ``exit_file`` exists (i-PI would stop at once) or has no folder.
    """

    def __init__(  # noqa: PLR0913  (what a user writes in one line of a script)
        self,
        atoms: Atoms,
        *,
        unixsocket: str | None = None,
        host: str = "localhost",
        port: int | None = None,
        exit_file: str | os.PathLike[str] | None = None,
        timestep_fs: float | None = None,
        log: str | None = None,
        flagged: str | None = None,
        timeout: float | None = None,
        **monitor_options: Any,
    ) -> None:
        reliable_calculator(atoms)
        self._start = atoms
        self._address: dict[str, Any] = {
            "unixsocket": unixsocket,
            "host": host,
            "port": port,
        }
        self._timeout = timeout
        self._exit = None if exit_file is None else fresh_exit_file(exit_file)
        self._timestep_fs = timestep_fs
        self._paths = {"log": log, "flagged": flagged}
        for name, path in self._paths.items():
            if path is not None and "{replica}" not in path:
                msg = (
                    f"{name} must have {{replica}} in its name, one file for each, got "
                    f"{path!r}; write for example 'replica-{{replica}}.jsonl'"
                )
                raise ValueError(msg)
        self._options = monitor_options
        self._extras = Extras()
        self._replicas: dict[int, IpiReplica] = {}
        self.monitors: dict[int, Monitor] = {}

    def run(self) -> None:
        """Answer requests until the server closes the connection.

        Raises
        ------
        OSError
            If there is no server, or if it does not answer within ``timeout``.
        Exception
            Any error of the calculator or a monitor at a geometry.
        """
        client = SocketClient(timeout=self._timeout, **self._address)
        ended = False
        try:
            self._serve(client.protocol)
            ended = True
        finally:
            if not ended:
                self._stop()
            client.close()
            for monitor in self.monitors.values():
                monitor.close()

    def _serve(self, protocol: IPIProtocol) -> None:
        replica: int | None = None
        answer: Callable[[], None] | None = None
        while (message := _received(protocol)) != "EXIT":
            if message == "STATUS":
                free = "NEEDINIT" if replica is None else "READY"
                protocol.sendmsg(free if answer is None else "HAVEDATA")
            elif message == "INIT":
                replica = int(protocol.recvinit()[0][0])
            elif message == "POSDATA" and replica is not None:
                cell, _, positions = protocol.recvposdata()
                answer = self._answer(protocol, replica, cell, positions)
            elif message == "GETFORCE" and answer is not None:
                answer()
                replica = answer = None
            else:
                msg = (
                    "the server must send INIT, POSDATA and GETFORCE in this order, "
                    f"got {message}; use i-PI 3 or another server with its protocol"
                )
                raise RecordError(msg)

    def _answer(
        self,
        protocol: IPIProtocol,
        number: int,
        cell: NDArray[np.float64],
        positions: NDArray[np.float64],
    ) -> Callable[[], None]:
        """Evaluate a geometry; return the function that sends the answer."""
        run = self._replica(number)
        if positions.shape != run.atoms.positions.shape:
            msg = (
                f"the server must send the {len(run.atoms)} atoms of this client, got "
                f"{len(positions)}; pass the structure of i-PI's input as atoms"
            )
            raise ValueError(msg)
        run.atoms.positions = positions
        if run.atoms.pbc.any():
            run.atoms.set_cell(cell)
        forces = run.atoms.calc.get_property("forces", run.atoms)
        results = run.atoms.calc.results
        judged = run.atoms.calc.assessment
        readings = {} if judged is None else judged.results()
        extras = self._extras(readings, results, len(run.atoms))
        virial = virial_of(run.atoms, results)
        if number not in self.monitors:
            self.monitors[number] = self._monitor(number, run)
            step = run.nsteps
        else:
            step = run.nsteps + 1
        if run.arrived(step):
            self._stop()
        coded = np.frombuffer(extras.encode(), np.byte)
        return lambda: protocol.sendforce(results["energy"], forces, virial, coded)

    def _replica(self, number: int) -> IpiReplica:
        if number not in self._replicas:
            atoms = self._start.copy()
            atoms.arrays.pop("momenta", None)  # the velocities of i-PI are not known
            atoms.calc = self._start.calc
            self._replicas[number] = IpiReplica(atoms, self._timestep_fs)
        return self._replicas[number]

    def _monitor(self, number: int, run: IpiReplica) -> Monitor:
        paths: dict[str, Any] = {
            name: None if path is None else path.replace("{replica}", str(number))
            for name, path in self._paths.items()
        }
        about = {"replica": number}
        return Monitor(run, **paths, about=about, **self._options)

    def _stop(self) -> None:
        if self._exit is not None:
            self._exit.touch()


def fresh_exit_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of i-PI's file ``EXIT``, which does not exist yet.

    Raises
    ------
    RecordError
        If it exists, or its folder does not.
    """
    target = writable(path, "exit_file")
    if target.exists():
        msg = (
            f"exit_file must not exist before a run, which it would stop, got {target};"
            " remove it"
        )
        raise RecordError(msg)
    return target


def _received(protocol: IPIProtocol) -> str:
    """Return the next message; EXIT if the server has closed the connection."""
    try:
        return str(protocol.recvmsg())
    except (SocketClosed, ConnectionResetError):
        return "EXIT"
