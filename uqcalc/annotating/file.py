"""Annotation of a trajectory file into another file, which can be continued."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from uqcalc.annotating.copies import FRAME_KEY, MODEL_KEY, left_out_of
from uqcalc.annotating.frametext import held_numbers
from uqcalc.annotating.names import checked_target
from uqcalc.annotating.selecting import Condition, parse_index, resolved
from uqcalc.annotating.tally import AnnotationSummary, Tally
from uqcalc.annotating.targets import Target, target_of
from uqcalc.annotating.trajectory import (
    Cells,
    annotated,
    check_calculator,
    quantities,
)
from uqcalc.calculator import ReliableCalculator
from uqcalc.chargespin import stated_charge_spin
from uqcalc.errors import RecordError, SourceError, UqcalcError
from uqcalc.files.structures import UNREADABLE, count_frames, frames_of
from uqcalc.files.writing import OneWriter
from uqcalc.progress import progress_bar
from uqcalc.uses import Use


if TYPE_CHECKING:
    from uqcalc.cluster import RayWorkers


def annotate_file(  # noqa: PLR0913  (the options of the command)
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    calculator: ReliableCalculator,
    *,
    species: str | Sequence[str] | None = None,
    worst: int = 10,
    batch_atoms: int | None = None,
    use: Use | None = None,
    index: str | slice = ":",
    select: str | None = None,
    workers: RayWorkers | None = None,
    forces: bool = True,
) -> AnnotationSummary:
    """Annotate a trajectory into another file, in constant memory.

    Every frame is on disk before the next batch. An existing target is continued if it
    holds the first frames of the same source, annotated with the same potential, probe
    and policy. This serves after a kill (an incomplete last frame is cut) and for a
    source that has grown. Any other existing target is refused and does not change.

    Parameters
    ----------
    source : path
        Any trajectory that ASE reads.
    target : path
        Ends in .xyz or .extxyz, .traj (trajectory of ASE) or .db (database of ASE).
        In a ``.traj`` file the results of single atoms are in
        ``info["uqcalc_arrays"]``. In a database all is in ``data["uqcalc_info"]``, and
        numbers are in ``key_value_pairs``, too.
    calculator : ReliableCalculator
    species : str or list of str, optional
        Element of each atom type in order (``"Na,Cl"``). LAMMPS files with numbered
        types are refused without it.
    worst : int
        Number of worst frames in the summary.
    batch_atoms, use
        As for `annotate`.
    index : str or slice
        Which frames of the source are judged: ``"100:"``, ``"-50:"``, ``"::10"``. The
        number of each frame in the source, from 0, is ``info["uqcalc_frame"]``.
    select : str, optional
        Which judged frames are written, such as ``"reliability<0.2"`` or
        ``"level>=SUSPECT"`` (`uqcalc.annotating.selecting.Condition`). Frames that
        could not be evaluated are always written. By default all frames.
    workers : RayWorkers, optional
        Workers of a Ray cluster that evaluate the batches; their calculators must be
        like ``calculator``. By default the batches are evaluated here.
    forces : bool
        As for `annotate`.

    Returns
    -------
    AnnotationSummary

    Raises
    ------
    SourceError
        If a frame of the source cannot be read. All frames before it are annotated, and
        the error has the summary.
    RecordError
        If source or target cannot be used, if the source lacks the elements of its
        atoms, or if ``index`` or ``select`` cannot be used.
    """
    check_calculator(calculator, batch_atoms)
    wanted = quantities(calculator, forces=forces)
    output = _checked_target(Path(source), target)
    condition = None if select is None else Condition.parse(select)
    chosen = parse_index(index) if isinstance(index, str) else index
    writer = OneWriter(output)
    tally, cells, passed = Tally(worst), Cells(use), 0
    reading = Source(Path(source), species, chosen, cells)
    frames = iter(reading)
    identity = _identity(calculator, use, index, condition, forces=forces)
    with writer, target_of(output) as file, _frame_bar() as progress:
        total = None if progress.disable else count_frames(source)
        task = progress.add_task("", total=reading.length(total))
        for done in _standing(file, reading, frames, identity):
            tally.add(done, left_out_of(done), index=done.info[FRAME_KEY])
            progress.update(task, completed=reading.frames)
        resumed_from = tally.frames
        if workers is None:
            judged = annotated(frames, calculator, batch_atoms, cells, wanted)
        else:
            from uqcalc.annotating.onray import annotated_on_ray

            most = batch_atoms or calculator.backbone.batch_atoms
            judged = annotated_on_ray(frames, workers, most, cells, wanted)
        for number, frame in enumerate(judged, reading.frames):
            frame.info |= {MODEL_KEY: identity, FRAME_KEY: reading.number(number)}
            progress.advance(task)
            if condition is not None and not condition.holds(frame):
                passed += 1
                continue
            name = f"frame {frame.info[FRAME_KEY]}"
            left_out = file.append(frame, name)
            tally.add(frame, left_out, index=frame.info[FRAME_KEY])
    summary = tally.summary(output, resumed_from)
    if condition is not None:
        summary = replace(summary, select=str(condition), passed=passed)
    return _concluded(replace(summary, validity=calculator.validity), reading)


def _frame_bar() -> Progress:
    """Return a progress bar of frames, with the time left if their number is known."""
    return progress_bar(
        SpinnerColumn(),
        "frames",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _checked_target(source: Path, target: str | os.PathLike[str]) -> Path:
    output = checked_target(target)
    check_source(source)
    if output.exists() and output.samefile(source):
        msg = f"target must be another file than the source, got {target} for both"
        raise RecordError(msg)
    return output


def check_source(source: Path) -> None:
    """Refuse a source that does not exist (RecordError)."""
    if not source.exists():
        msg = f"source must be an existing trajectory, got {source}; check its path"
        raise RecordError(msg)


class Source:
    """The frames of a file up to the first unreadable one; ``error`` is the reason."""

    def __init__(
        self,
        path: Path,
        species: str | Sequence[str] | None,
        index: slice,
        cells: Cells,
    ) -> None:
        self.path, self.species = path, species
        self.index, self._first, self._step = resolved(index, path)
        self.cells = cells
        self.frames = 0
        self.error = ""

    def number(self, row: int) -> int:
        """Return the number in the file of the frame in this row."""
        return self._first + row * self._step

    def next_of(self, frames: Iterator[Atoms], number: int) -> Atoms | None:
        """Return the frame with this number, after those that were not written.

        All of them are used to decide whether the cell moves.
        """
        for frame in frames:
            self.cells.use(frame)
            if self.number(self.frames - 1) == number:
                return frame
            if self.number(self.frames - 1) > number:
                break
        return None

    def length(self, whole: int | None) -> int | None:
        """Return the number of chosen frames of a file with ``whole`` frames."""
        return None if whole is None else len(range(*self.index.indices(whole)))

    def __iter__(self) -> Iterator[Atoms]:
        try:
            for frame in frames_of(self.path, self.index, species=self.species):
                self.frames += 1
                yield frame
        except UqcalcError:
            raise
        except UNREADABLE as error:
            self.error = f"{type(error).__name__}: {error}"


def _standing(
    file: Target, reading: Source, frames: Iterator[Atoms], identity: str
) -> Iterator[Atoms]:
    """Yield the frames of the target after a check, then cut an incomplete last frame.

    Raises
    ------
    RecordError
        If a frame has another geometry, charge or spin than the source, or another
        annotation.
    """
    output = file.path
    for index, ours in enumerate(file.standing()):
        ours.info.setdefault(FRAME_KEY, index)  # files of versions before 0.3 lack it
        if ours.info.get(MODEL_KEY) != identity:
            msg = (
                "target must be annotated with the potential, probe, policy and choice "
                f"of frames of this run, {identity}, got {output} with "
                f"{ours.info.get(MODEL_KEY)} at frame {index}; choose another name"
            )
            raise RecordError(msg)
        if not same_geometry(ours, reading.next_of(frames, ours.info[FRAME_KEY])):
            msg = (
                f"target must hold the first frames of this source, got {output} "
                f"whose frame {index} differs from that of "
                f"{reading.path}{f' ({reading.error})' if reading.error else ''}; "
                "choose another name"
            )
            raise RecordError(msg)
        yield ours
    file.mend()


def same_geometry(ours: Atoms, theirs: Atoms | None) -> bool:
    """Return whether two frames are one structure, so that they have one verdict.

    Positions and cells agree within 1e-6 Å, and NaN equals NaN. Elements, periodic
    directions, charge and spin are the same. A charge or spin that the file of ``ours``
    cannot hold does not count.
    """
    return (
        theirs is not None
        and np.array_equal(held_numbers(ours.numbers), held_numbers(theirs.numbers))
        and np.array_equal(ours.pbc, theirs.pbc)
        and all(
            np.allclose(a, b, rtol=0, atol=1e-6, equal_nan=True)
            for a, b in (
                (ours.positions, theirs.positions),
                (ours.cell.array, theirs.cell.array),
            )
        )
        and _same_charge_spin(ours, theirs)
    )


def _same_charge_spin(ours: Atoms, theirs: Atoms) -> bool:
    here, there = stated_charge_spin(ours), stated_charge_spin(theirs)
    names = {*here, *there}
    if left_out_of(ours):
        names = {*here} & {*there}
    return all(
        name in here and name in there and _same_value(here[name], there[name])
        for name in names
    )


def _same_value(ours: Any, theirs: Any) -> bool:
    """Return whether two values are the same number, or have the same text."""
    try:
        a, b = float(ours), float(theirs)
    except (TypeError, ValueError):
        return str(ours) == str(theirs)
    return bool(np.isclose(a, b, rtol=0, atol=1e-6, equal_nan=True))


def _identity(
    calculator: ReliableCalculator,
    use: Use | None,
    index: str | slice,
    condition: Condition | None,
    *,
    forces: bool,
) -> str:
    """Return a hash of what determines the frames of a target and their verdicts.

    Options that are not given are not part of it, as in earlier versions.
    """
    stated: dict[str, str] = {} if use is None else {"use": use}
    if index not in (":", slice(None)):
        stated["index"] = str(index)
    if condition is not None:
        stated["select"] = str(condition)
    if not forces:
        stated["forces"] = "not computed"
    text = json.dumps(calculator.describe() | stated, sort_keys=True)
    # starts with a letter: ASE would read 12e4567 as the number infinity
    return f"m{hashlib.sha256(text.encode()).hexdigest()[:15]}"


def _concluded(summary: AnnotationSummary, reading: Source) -> AnnotationSummary:
    chosen = reading.index
    if reading.frames == 0 and not reading.error and chosen != slice(None):
        bounds = [chosen.start, chosen.stop, *([chosen.step] if chosen.step else [])]
        text = ":".join("" if bound is None else str(bound) for bound in bounds)
        msg = (
            f"index must choose at least one frame of the source, got {text} for "
            f"{reading.path}; the first frame has the number 0"
        )
        raise RecordError(msg)
    if reading.frames == 0:
        msg = (
            f"source must be a trajectory that ASE reads, with at least one frame, got "
            f"{reading.path}{f' ({reading.error})' if reading.error else ''}"
        )
        raise RecordError(msg)
    if reading.error:
        raise SourceError(str(reading.path), reading.error, summary)
    return summary
