"""`label`: reference energy, forces and stress of frames, in processes, resumable."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from uqcalc.files.writing import OneWriter
from uqcalc.learning.labelfile import ERROR_KEY, LabelFiles
from uqcalc.learning.processes import (
    Job,
    check_reference,
    computed,
    computed_on_ray,
)
from uqcalc.progress import progress_bar
from uqcalc.references.evaluating import Computed
from uqcalc.references.named import FromText, Reference, reference_name


_MOST_ROWS = 10


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """Summary of the files of `label`.

    Attributes
    ----------
    target : Path
        File of the labelled frames, in the order of the given frames.
    reference : str
        Name of the reference.
    labelled : int
        Number of frames in ``target``.
    resumed_from : int
        Number of frames, labelled or failed, that were on disk before.
    failed : tuple of (int, str)
        Row and reason of every frame without labels.
    failed_file : Path or None
        File of these frames; None without failures.
    units : str
        What was compared to check the units.
    left_out : mapping
        Entry that the file cannot hold -> number of frames.
    """

    target: Path
    reference: str
    labelled: int
    resumed_from: int
    failed: tuple[tuple[int, str], ...]
    failed_file: Path | None
    units: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def failures(self) -> dict[str, list[int]]:
        """Return the rows of failed frames for each reason."""
        grouped: dict[str, list[int]] = {}
        for row, reason in self.failed:
            grouped.setdefault(reason, []).append(row)
        return grouped

    def __str__(self) -> str:
        lines = [
            f"Labelled by {self.reference}: {self.labelled} frames in {self.target} "
            f"(units: {self.units})."
        ]
        if self.resumed_from:
            lines.append(f"On disk before: {self.resumed_from} frames.")
        if self.failed:
            lines.append(f"Failed: {len(self.failed)} frames, in {self.failed_file}.")
        for reason, rows in self.failures().items():
            shown = ", ".join(map(str, rows[:_MOST_ROWS]))
            more = len(rows) - _MOST_ROWS
            shown += f" and {more} more" if more > 0 else ""
            lines.append(f"  {shown}: {reason}")
        for entry, count in self.left_out.items():
            lines.append(f"Left out of {count} frames, as XYZ cannot hold it: {entry}.")
        return "\n".join(lines)


def label(  # noqa: PLR0913  (same options as the command)
    frames: Sequence[Atoms],
    reference: str | Callable[..., Any],
    target: str | os.PathLike[str],
    *,
    workers: int = 1,
    ray: str | None = None,
    check: bool = True,
    retry: bool = False,
    observer: Callable[[int, str], object] | None = None,
) -> LabelSummary:
    """Compute reference values of frames with any ASE calculator, in processes.

    Each frame is on disk as soon as it is finished, so that the same call continues
    after a kill. ``target`` gets ``info["REF_energy"]`` (eV), ``arrays["REF_forces"]``
    (eV/Å) and, for structures that are periodic in three directions and a reference
    with stress, ``info["REF_stress"]`` (eV/Å³, Voigt order, ASE's sign). Charge and
    spin in ``info`` are given to the reference as initial charges and initial magnetic
    moments, which not all calculators read. Other entries of the frames are kept, older
    ``REF_...`` are replaced. A frame on which the reference fails goes to
    ``NAME_failed.xyz`` with its reason.

    A script that uses processes needs ``if __name__ == "__main__":``.

    Parameters
    ----------
    frames : sequence of Atoms
    reference : str or callable
        A function that returns an ASE calculator; each process calls it once. It must
        be importable, not a lambda. As text: "gfn2-xtb" (needs the extra ``xtb``),
        "file.py:function" or "module:function". A function with a parameter
        ``directory`` is called for each frame, with the folder ``NAME_work/ROW``.
    target : path
        Ends in .xyz or .extxyz.
    workers : int
        Number of processes; 0 evaluates in this process. Programs that use several
        threads need fewer (``OMP_NUM_THREADS``).
    ray : str, optional
        Address of a Ray cluster whose ``workers`` evaluate the frames: "auto",
        "ray://host:10001", or "local", which starts one here. ``target`` and the file
        of the reference must have the same path on each machine.
    check : bool
        Compare forces and stress of the first frame with differences of the energy,
        which detects wrong units and signs (two to four more evaluations).
    retry : bool
        Evaluate again the frames that have failed before.
    observer : callable, optional
        Called with the row and the reason ("" for a success) after each frame.

    Returns
    -------
    LabelSummary

    Raises
    ------
    ValueError
        If ``workers`` is negative, or 0 with ``ray``, or the reference cannot be sent
        to a process.
    RecordError
        If no calculator can be made, or ``target`` holds something else: other frames,
        or labels of another reference.
    LabelError
        If the units or signs of the reference are wrong.
    """
    given: object = workers
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        msg = f"workers must be a number of processes from 0, got {workers!r}"
        raise ValueError(msg)
    if ray is not None and workers == 0:
        msg = f"workers must be at least 1 with ray={ray!r}, got 0"
        raise ValueError(msg)
    made: Reference
    made = FromText(reference) if isinstance(reference, str) else reference
    if workers:
        _check_sendable(made)
    files = LabelFiles(target, reference_name(made))
    with OneWriter(files.target), OneWriter(files.failed):
        known = files.standing(frames, retry=retry)
        jobs = [
            Job(row, _plain(frame), files.folder(row))
            for row, frame in enumerate(frames)
            if row not in known
        ]
        units = "compared when the file was begun"
        if jobs and not any(not reason for reason in known.values()):
            units = check_reference(made, jobs, workers, units=check)
        evaluated = (
            computed(jobs, made, workers)
            if ray is None
            else computed_on_ray(jobs, made, workers, ray)
        )
        if jobs:
            _write(evaluated, len(jobs), files, frames, observer)
        files.put_in_order()
        return _summary(files, frames, len(known), units)


def _write(
    evaluated: Iterable[tuple[Job, Computed]],
    total: int,
    files: LabelFiles,
    frames: Sequence[Atoms],
    observer: Callable[[int, str], object] | None,
) -> None:
    """Write each frame as soon as it is finished."""
    with progress_bar() as bar:
        task = bar.add_task("label", total=total)
        for job, values in evaluated:
            files.write(frames[job.row], job.row, values)
            bar.advance(task)
            if observer is not None:
                observer(job.row, values.error)


def _summary(
    files: LabelFiles, frames: Sequence[Atoms], before: int, units: str
) -> LabelSummary:
    known = files.standing(frames, retry=False)
    failed = tuple((row, why) for row, why in sorted(known.items()) if why)
    return LabelSummary(
        files.target,
        files.reference,
        len(known) - len(failed),
        before,
        failed,
        files.failed if failed else None,
        units,
        dict(Counter(files.left_out)),
    )


def _plain(frame: Atoms) -> Atoms:
    """Return the frame as the reference gets it: without constraints and labels."""
    copy: Atoms = frame.copy()
    copy.calc = None
    copy.set_constraint()
    copy.info = {
        key: value
        for key, value in copy.info.items()
        if isinstance(value, (str, int, float, np.generic)) and key != ERROR_KEY
    }
    return copy


def _check_sendable(reference: Reference) -> None:
    """Refuse a function that another process cannot import.

    Raises
    ------
    ValueError
        If it is a lambda or a function inside a function.
    """
    try:
        pickle.dumps(reference)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        msg = (
            "reference must be a function that other processes can import, got "
            f"{reference!r} ({error}); define it at the top level of a module, or pass "
            "workers=0"
        )
        raise ValueError(msg) from error
