"""Annotation by the workers of a Ray cluster, in the order of the trajectory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ase import Atoms

from uqcalc.annotating.copies import cleared_copy
from uqcalc.annotating.trajectory import Cells, checked_frame, judged_batch
from uqcalc.backbones.batching import batches
from uqcalc.calculator import ReliableCalculator
from uqcalc.cluster import RayWorkers, running
from uqcalc.uses import Use


# Frames of one batch, their uses, and the quantities to compute.
_Batch = tuple[Sequence[Atoms], Sequence[Use | None], Sequence[str]]


def annotated_on_ray(
    frames: Iterable[Atoms],
    workers: RayWorkers,
    batch_atoms: int,
    cells: Cells,
    wanted: Sequence[str],
) -> Iterator[Atoms]:
    """Yield annotated frames in order, as `uqcalc.annotating.trajectory.annotated`.

    The batches are those of a serial run, so that the results are equal on machines of
    the same kind. A batch whose worker dies is evaluated again. Only the batches that
    the workers have are in memory.

    Raises
    ------
    MissingExtraError
        If Ray is absent.
    RecordError
        If a worker dies again and again.
    """
    copies = (cleared_copy(checked_frame(frame)) for frame in frames)
    jobs = (
        (batch, [cells.use(frame) for frame in batch], wanted)
        for batch in batches(copies, len, batch_atoms)
    )
    with running(workers) as pool:
        for answer in pool.each(_judged, jobs):
            yield from answer


def _judged(calculator: ReliableCalculator, batch: _Batch) -> list[Atoms]:
    """Return the annotated copies of one batch."""
    frames, uses, wanted = batch
    return judged_batch(frames, uses, calculator, wanted)
