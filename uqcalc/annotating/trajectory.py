"""Annotation of finished trajectories, frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from uqcalc.annotating.copies import annotated_copy, cleared_copy, refused_copy
from uqcalc.backbones.base import Prediction
from uqcalc.backbones.batching import batches, predict_each
from uqcalc.calculator import ReliableCalculator
from uqcalc.records import Assessment
from uqcalc.uses import Use, checked_use, judged_for, without_forces


# Å; precision of cells in file formats
_SAME_CELL = 1e-5
# Largest strain in one step of a relaxation, and largest move of an atom in Å besides
# the strain, which is the largest step of ASE's optimisers.
_MOST_STRAIN, _FARTHEST = 0.01, 0.2


def annotate(
    frames: Iterable[Atoms],
    calculator: ReliableCalculator,
    *,
    batch_atoms: int | None = None,
    use: Use | None = None,
    forces: bool = True,
) -> Iterator[Atoms]:
    """Yield an annotated copy of every frame, in order, with one batch in memory.

    Frames are evaluated in native batches if the backbone has them, and judged as by
    ``calculator.assess``. Batches and single evaluations agree to the precision of the
    model. Each frame is judged: the ``interval`` of the calculator has no effect.

    The copies have energy and forces (native batches give no stress) and the
    assessment; `uqcalc.read_assessment` reads it back. Energy, forces and so on that a
    frame has stored are kept as ``original_energy``, ``original_forces``.

    A frame that cannot be evaluated (no atoms, NaN positions, unknown elements, an
    exception of the model, NaN results) is UNRELIABLE with NaN risks. It has no energy
    or forces, and ``info["uqcalc_error"]`` has the reason.

    A frame is at least SUSPECT if the policy does not judge every quantity of its use
    (`uqcalc.uses`): the energy, the forces, or forces and stress of a moving cell, as
    in `uqcalc.Monitor`. The different cells of a data set do not count as moving.

    Parameters
    ----------
    frames : iterable of Atoms
        A generator is read up to the next batch. The frames do not change.
    calculator : ReliableCalculator
    batch_atoms : int, optional
        Number of atoms evaluated together, by default the potential's: 128 on a CPU and
        512 on a GPU for most. A larger frame is evaluated alone.
    use : {"fixed_cell", "moving_cell", "energy"}, optional
        What the frames are used for. "energy" gives the verdict on the energy, as for a
        screening; "moving_cell" is for an equation of state, too. By default the cell
        moves if the frames look like one run, and else the verdict is on what the first
        probe predicts. Two successive frames look like one run if they have the same
        atoms in the same order, their cells differ, and either both have velocities, or
        the strain is at most 1 % and no atom moves by more than 0.2 Å besides it, as in
        one step of a relaxation. From the second of these frames on the cell moves.
    forces : bool
        With False only energy and features are computed, where the potential can
        (MACE, CHGNet) and no signal reads forces. A frame is then at least SUSPECT,
        unless the verdict is on the energy.

    Raises
    ------
    TypeError
        If ``frames`` is a single structure or a path, or if ``calculator`` is not a
        `ReliableCalculator`.
    ValueError
        If ``batch_atoms`` is not positive, ``use`` is unknown, the calculator is not
        enabled, or it needs the forces that are left out.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from uqcalc import annotate, default_calculator
    >>> [water] = annotate([molecule("H2O")], default_calculator())
    >>> {"reliability_level", "probe_reliability"} <= set(water.info)
    True
    """
    refused: object = frames
    if isinstance(refused, (Atoms, str, os.PathLike)):
        msg = (
            f"frames must be an iterable of Atoms, got {type(frames).__name__}; pass "
            "[atoms] for one structure, and use uqcalc.annotate_file for files"
        )
        raise TypeError(msg)
    check_calculator(calculator, batch_atoms)
    wanted = quantities(calculator, forces=forces)
    return annotated(frames, calculator, batch_atoms, Cells(use), wanted)


class Cells:
    """Decides for each frame what it is used for.

    Parameters
    ----------
    use : {"fixed_cell", "moving_cell", "energy"} or None
        The answer for all frames (for "moving_cell" all periodic ones); None to decide
        from the frames whether the cell moves.
    """

    def __init__(self, use: Use | None = None) -> None:
        self._given = checked_use(use)
        self._before: Atoms | None = None
        self._moving = False

    def use(self, frame: Atoms) -> Use | None:
        """Take the next frame; return its use, None if that is not known."""
        before, self._before = self._before, frame
        if self._given == "moving_cell" and not frame.pbc.any():
            return "fixed_cell"
        if self._given is not None:
            return self._given
        same = before is not None and np.array_equal(before.numbers, frame.numbers)
        if before is None or not same or not frame.pbc.any():
            self._moving = False
        elif not np.allclose(before.cell, frame.cell, rtol=0.0, atol=_SAME_CELL):
            self._moving = _of_one_run(before, frame)
        return "moving_cell" if self._moving else None


def _of_one_run(before: Atoms, frame: Atoms) -> bool:
    """Return whether two frames with different cells are successive ones of a run."""
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
    batch_atoms: int | None,
    cells: Cells,
    wanted: Sequence[str],
) -> Iterator[Atoms]:
    """Yield annotated frames as `annotate`; ``cells`` has all earlier frames.

    ``wanted`` are the `quantities` to compute.
    """
    # copied at once: a generator may move and yield the same Atoms object repeatedly
    copies = (cleared_copy(checked_frame(frame)) for frame in frames)
    most = calculator.backbone.batch_atoms if batch_atoms is None else batch_atoms
    for batch in batches(copies, len, most):
        uses = [cells.use(frame) for frame in batch]
        yield from judged_batch(batch, uses, calculator, wanted)


def judged_batch(
    frames: Sequence[Atoms],
    uses: Sequence[Use | None],
    calculator: ReliableCalculator,
    wanted: Sequence[str],
) -> list[Atoms]:
    """Evaluate and judge one batch; return the annotated copies of its frames."""
    outcomes = predict_each(calculator.backbone, frames, wanted)
    sound = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    judged = iter(calculator.judge_each(sound))
    return [
        refused_copy(frame, calculator.refusal(outcome), outcome)
        if isinstance(outcome, str)
        else _annotated(frame, outcome, next(judged), calculator, use)
        for frame, outcome, use in zip(frames, outcomes, uses, strict=True)
    ]


def _annotated(
    frame: Atoms,
    outcome: Prediction,
    judged: Assessment,
    calculator: ReliableCalculator,
    use: Use | None,
) -> Atoms:
    """Return the annotated copy of a frame for its prediction."""
    results: dict[str, Any] = {
        key: outcome.results[key]
        for key in ("energy", "forces")
        if key in outcome.results
    }
    assessment = judged_for(judged, use, calculator.policy, calculator.signals)
    if not outcome.has_forces:
        assessment = without_forces(assessment, use, calculator.signals)
    return annotated_copy(frame, assessment, results)


_WITHOUT_FORCES = {"energy", "features", "charges"}


def quantities(calculator: ReliableCalculator, *, forces: bool) -> list[str]:
    """Return the quantities to compute for each frame.

    Raises
    ------
    ValueError
        If ``forces`` is False, and the potential always computes them, or a signal
        reads them.
    """
    wanted = calculator.wanted()
    if forces:
        return wanted
    if not calculator.backbone.skips_forces:
        msg = (
            "potential must be one that can leave out the forces (MACE or CHGNet, alone"
            f" and not compiled), got {calculator.backbone.name}; compute the forces"
        )
        raise ValueError(msg)
    for signal in calculator.signals:
        if needed := sorted(signal.requires - _WITHOUT_FORCES):
            msg = (
                f"signal {signal.name!r} must not read forces when they are left out, "
                f"got {needed} among its inputs; compute the forces, or take a probe "
                "that reads only energy and features (uqcalc fit --published)"
            )
            raise ValueError(msg)
    return [name for name in wanted if name != "forces"]


def check_calculator(calculator: object, batch_atoms: int | None) -> None:
    """Check the calculator and ``batch_atoms`` before the first frame.

    Raises
    ------
    TypeError, ValueError
        As `annotate`.
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
    if batch_atoms is not None and batch_atoms < 1:
        msg = f"batch_atoms must be at least 1, got {batch_atoms}; 128 is usual"
        raise ValueError(msg)


def checked_frame(frame: object) -> Atoms:
    """Return a frame that is a structure.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if not isinstance(frame, Atoms):
        msg = f"each frame must be Atoms, got {type(frame).__name__}"
        raise TypeError(msg)
    return frame
