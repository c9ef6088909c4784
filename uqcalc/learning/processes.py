"""Evaluate frames in processes; if a process dies, only its frame fails."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ase import Atoms

from uqcalc.cluster import RayWorkers, running
from uqcalc.errors import LabelError, RecordError
from uqcalc.learning.worker import Evaluator, compute, first_look, start
from uqcalc.references.evaluating import Computed
from uqcalc.references.named import Reference


DIED = "the process of the reference ended without an answer: it crashed or was killed"
_LOOKS = 3  # frames on which the units check is tried


@dataclass(frozen=True, slots=True)
class Job:
    """One frame to evaluate: its row, and the folder for files of the reference."""

    row: int
    atoms: Atoms
    folder: Path | None


def computed(
    jobs: Iterable[Job], reference: Reference, workers: int
) -> Iterator[tuple[Job, Computed]]:
    """Yield each job with its results, in the order in which they are finished.

    Parameters
    ----------
    workers : int
        Number of processes; 0 evaluates in this process.
    """
    left = iter(jobs)
    if workers == 0:
        here = Evaluator(reference)
        for job in left:
            yield job, here.compute(job.atoms, job.folder)
        return
    for first in left:
        lost: list[Job] = []
        yield from _until_one_dies(first, left, reference, workers, lost)
        for job in lost:  # one by one, to find the frame that kills its process
            yield job, _alone(job, reference)


def computed_on_ray(
    jobs: Sequence[Job], reference: Reference, workers: int, address: str
) -> Iterator[tuple[Job, Computed]]:
    """Yield each job with its results, in order, from workers of a Ray cluster.

    A frame whose worker dies is evaluated again. If this happens again and again, the
    frame has failed.
    """
    cluster = RayWorkers(partial(Evaluator, reference), workers, address)
    with running(cluster) as pool:
        answers = pool.each(_computed, jobs, ahead=1, lost=_died)
        yield from zip(jobs, answers, strict=True)


def _computed(evaluator: Evaluator, job: Job) -> Computed:
    return evaluator.compute(job.atoms, job.folder)


def _died(_: Job) -> Computed:
    return Computed(error=DIED)


def _until_one_dies(
    first: Job,
    left: Iterator[Job],
    reference: Reference,
    workers: int,
    lost: list[Job],
) -> Iterator[tuple[Job, Computed]]:
    """Evaluate jobs until all are done or a process dies; ``lost`` gets the rest."""
    with _processes(workers, reference) as pool:
        running: dict[Future[Computed], Job] = {}

        def submit(job: Job) -> None:
            try:
                future = pool.submit(compute, job.atoms, job.folder)
            except BrokenProcessPool:
                lost.append(job)
            else:
                running[future] = job

        submit(first)
        for job in islice(left, workers - 1):
            submit(job)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: running[future].row):
                job = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(job)
                else:
                    yield job, future.result()
            if not lost:
                for job in islice(left, workers - len(running)):
                    submit(job)


def _alone(job: Job, reference: Reference) -> Computed:
    with _processes(1, reference) as pool:
        future = pool.submit(compute, job.atoms, job.folder)
        if isinstance(future.exception(), BrokenProcessPool):
            return Computed(error=DIED)
        return future.result()


def check_reference(
    reference: Reference, jobs: Iterable[Job], workers: int, *, units: bool
) -> str:
    """Make a calculator and check its units on the first frame that it can evaluate.

    Returns
    -------
    str
        What was compared, in words.

    Raises
    ------
    RecordError
        If no calculator can be made, or no process started.
    LabelError
        If the units are wrong.
    """
    looks = list(islice(jobs, _LOOKS))
    words = "not compared: the reference failed on the first frames"
    for job in looks:
        outcome, words = _looked(reference, job, workers, units=units)
        if outcome == "not made":
            msg = f"reference must return an ASE calculator, got {words}"
            raise RecordError(msg)
        if outcome == "wrong":
            raise LabelError(words)
        if outcome == "made":
            return words
    return f"not compared: the reference failed on {len(looks)} frames ({words})"


def _looked(
    reference: Reference, job: Job, workers: int, *, units: bool
) -> tuple[str, str]:
    atoms = job.atoms if units else None
    if workers == 0:
        return Evaluator(reference).first_look(atoms, job.folder)
    with _processes(1, reference) as pool:
        future = pool.submit(first_look, atoms, job.folder)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            msg = (
                "processes must start and answer, got one that ended; put the call "
                'into `if __name__ == "__main__":` in a script, or pass workers=0 '
                "to see the error of the reference"
            )
            raise RecordError(msg) from error
        return future.result()


def _processes(workers: int, reference: Reference) -> ProcessPoolExecutor:
    # spawn: a fork would copy locks of torch and of threads in any state
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, start, (reference,))
