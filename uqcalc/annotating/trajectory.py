"""Trajectories after the fact: every frame judged, and yielded annotated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from uqcalc.annotating.copies import annotated_copy, cleared_copy, refused_copy
from uqcalc.backbones.base import Prediction
from uqcalc.backbones.batching import BATCH_ATOMS, evaluate_each
from uqcalc.calculator import ReliableCalculator
from uqcalc.policy import CELL_MOVES, RUN, extended, stress_judged
from uqcalc.records import Assessment, Reading


# Å; what formats keep of a cell
_SAME_CELL = 1e-5
# From one step of a relaxation to the next: the strain, and how far an atom moves in Å
# beside it. The second is the largest step of ASE's optimisers.
_MOST_STRAIN, _FARTHEST = 0.01, 0.2


def annotate(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    *,
    batch_atoms: int = BATCH_ATOMS,
    moving_cell: bool | None = None,
) -> Iterator[Atoms]:
    """Yield an annotated copy of every frame, in order, holding one batch at a time.

    Frames are evaluated in native batches where the backbone has them, and judged as
    by ``calculator.assess``; a batch and a single evaluation agree to the model's
    precision. The copies carry energy and forces (native batches give no stress) and
    the assessment; `uqcalc.read_assessment` reads it back. What a frame itself stored
    as energy, forces and so on is kept as ``original_energy``, ``original_forces``.

    A frame that cannot be evaluated (no atoms, NaN positions, unknown elements, an
    exception of the model, NaN results) is UNRELIABLE with NaN risks, has neither
    energy nor forces, and carries the reason in ``info["uqcalc_error"]``.

    Where the cell moves, as in NPT or a cell relaxation, and the policy has no
    threshold for a signal with ``judges_stress``, a frame is at least SUSPECT, as in
    `uqcalc.Monitor`. Structures of a data set do not move, whatever their cells are.

    Parameters
    ----------
    frames : iterable of Atoms
        A generator is read as far as the next batch; the frames are not changed.
    calculator : ReliableCalculator
    batch_atoms : int
        Atoms evaluated together; one larger frame is evaluated by itself.
    moving_cell : bool, optional
        Whether the cell moves. By default it does where the frames look like one run:
        from the first frame on whose cell is not that of the frame before, of the same
        atoms in the same order, where both frames have velocities, or where the strain
        is at most 1 % and no atom moves by more than 0.2 Å beside it, as from one step
        of a relaxation to the next. Other frames with the same atoms in other cells
        count as structures of a data set. Pass True for an equation of state.

    Raises
    ------
    TypeError
        If ``frames`` is a single structure or a path, or ``calculator`` is a bare one.
    ValueError
        If ``batch_atoms`` is not positive, or the calculator is not enabled. Its
        ``interval`` does not matter here: each frame is judged.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from uqcalc import annotate, default_calculator
    >>> [water] = annotate([molecule("H2O")], default_calculator())
    >>> sorted(key for key in water.info if not key.startswith("sanity"))
    ['probe_reliability', 'reliability_level', 'uqcalc']
    """
    refused: object = frames
    if isinstance(refused, (Atoms, str, os.PathLike)):
        msg = (
            f"frames must be an iterable of Atoms, got {type(frames).__name__}; pass "
            "[atoms] for one structure, and use uqcalc.annotate_file for files"
        )
        raise TypeError(msg)
    check_calculator(calculator, batch_atoms)
    return annotated(frames, calculator, batch_atoms, Cells(moving_cell))


class Cells:
    """Whether the cell moves, from frame to frame.

    Parameters
    ----------
    moving : bool or None
        Whether it does; None where the frames are to tell.
    """

    def __init__(self, moving: bool | None = None) -> None:  # noqa: FBT001
        self._given = moving
        self._before: Atoms | None = None
        self._moving = False

    def moving(self, frame: Atoms) -> bool:
        """Take the next frame, and say whether the cell moves in it."""
        before, self._before = self._before, frame
        if self._given is not None:
            return self._given and bool(frame.pbc.any())
        same = before is not None and np.array_equal(before.numbers, frame.numbers)
        if before is None or not same or not frame.pbc.any():
            self._moving = False
        elif not np.allclose(before.cell, frame.cell, rtol=0.0, atol=_SAME_CELL):
            self._moving = _of_one_run(before, frame)
        return self._moving


def _of_one_run(before: Atoms, frame: Atoms) -> bool:
    """Say whether two frames with the same atoms in two cells follow each other."""
    if all(
        atoms.has("momenta") and atoms.get_momenta().any() for atoms in (before, frame)
    ):
        return True
    old, new = before.cell.complete(), frame.cell.complete()
    if abs(old.volume) < _SAME_CELL:
        return False
    strain = np.linalg.solve(old.array, new.array) - np.eye(3)
    if not np.abs(strain).max() <= _MOST_STRAIN:
        return False
    beside = frame.positions - before.positions @ (np.eye(3) + strain)
    return bool(find_mic(beside, new, frame.pbc)[1].max() <= _FARTHEST)


def annotated(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    batch_atoms: int,
    cells: Cells,
) -> Iterator[Atoms]:
    """Yield what `annotate` does; ``cells`` has seen the frames before."""
    # copied as they come: a generator may yield the same atoms, moved, again and again
    copies = (cleared_copy(_checked(frame)) for frame in frames)
    evaluated = evaluate_each(
        calculator.backbone, copies, calculator.wanted(), limit=batch_atoms
    )
    for frame, outcome in evaluated:
        moving = cells.moving(frame)
        yield _with_outcome(frame, outcome, calculator, moving_cell=moving)


def _with_outcome(
    frame: Atoms,
    outcome: Prediction | str,
    calculator: ReliableCalculator,
    *,
    moving_cell: bool,
) -> Atoms:
    if isinstance(outcome, str):
        return refused_copy(frame, calculator.refusal(outcome), outcome)
    results = {key: outcome.results[key] for key in ("energy", "forces")}
    assessment = calculator.judge(outcome)
    if moving_cell and not stress_judged(calculator.signals, calculator.policy.signals):
        assessment = _of_a_moving_cell(assessment)
    return annotated_copy(frame, assessment, results)


def _of_a_moving_cell(assessment: Assessment) -> Assessment:
    return extended(assessment, Reading(RUN, 0.0, doubts=(CELL_MOVES,), always=True))


def check_calculator(calculator: object, batch_atoms: int) -> None:
    """Refuse, before the first frame, what cannot judge one.

    Raises
    ------
    TypeError, ValueError
        As `annotate` does.
    """
    if not isinstance(calculator, ReliableCalculator):
        msg = (
            f"calculator must be a ReliableCalculator, got {type(calculator).__name__};"
            ' wrap it: ReliableCalculator(calculator, probe="my.probe")'
        )
        raise TypeError(msg)
    if not calculator.enabled:
        msg = (
            "calculator must be enabled to judge frames, got enabled=False; set "
            "calculator.enabled = True"
        )
        raise ValueError(msg)
    if batch_atoms < 1:
        msg = f"batch_atoms must be at least 1, got {batch_atoms}; 512 is usual"
        raise ValueError(msg)


def _checked(frame: object) -> Atoms:
    if not isinstance(frame, Atoms):
        msg = f"frames must be Atoms, got {type(frame).__name__} among them"
        raise TypeError(msg)
    return frame
