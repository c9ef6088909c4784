"""Annotation by the workers of a Ray cluster, in the order of the trajectory."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ase import Atoms

from uqcalc.annotating.copies import cleared_copy
from uqcalc.annotating.trajectory import Cells, checked_frame, with_outcome
from uqcalc.backbones.batching import batches, evaluate_each
from uqcalc.calculator import ReliableCalculator
from uqcalc.errors import MissingExtraError, RecordError
from uqcalc.uses import Use


LOCAL = "local"
_RESTARTS = 3  # of a worker, and of a batch whose worker has died
_PATIENCE_S = 10.0  # for a connection to a cluster
_AHEAD = 2  # batches that wait for each worker


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """Workers of a Ray cluster, each with a calculator of its own.

    Attributes
    ----------
    make : callable
        Returns the calculator of a worker. It is called once in each worker, so it must
        be a function of an installed module, or a `functools.partial` of one.
    workers : int
        Number of workers.
    address : str
        Address of a running cluster (``"auto"``, ``"ray://host:10001"``); ``"local"``
        starts one on this machine and ends it at the end.
    gpus : float
        GPUs for each worker; 0.5 lets two workers share one.

    Raises
    ------
    RecordError
        If a number is impossible.
    """

    make: Callable[[], ReliableCalculator]
    workers: int = 1
    address: str = LOCAL
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            msg = f"workers must be at least 1, got {self.workers}"
            raise RecordError(msg)
        if not self.gpus >= 0:
            msg = f"GPUs for each worker must be at least 0, got {self.gpus}"
            raise RecordError(msg)


def annotated_on_ray(
    frames: Iterable[Atoms], workers: RayWorkers, batch_atoms: int, cells: Cells
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
    ray = _ray()
    copies = (cleared_copy(checked_frame(frame)) for frame in frames)
    waiting: deque[Any] = deque()
    with _connected(ray, workers):
        options = {
            "num_cpus": 1,
            "num_gpus": workers.gpus,
            "max_restarts": _RESTARTS,
            "max_task_retries": _RESTARTS,
        }
        remote = ray.remote(_Worker).options(**options)
        actors = [remote.remote(workers.make) for _ in range(workers.workers)]
        for number, batch in enumerate(batches(copies, len, batch_atoms)):
            if len(waiting) == _AHEAD * len(actors):
                yield from _answer(ray, waiting.popleft())
            uses = [cells.use(frame) for frame in batch]
            waiting.append(actors[number % len(actors)].judge.remote(batch, uses))
        while waiting:
            yield from _answer(ray, waiting.popleft())


class _Worker:
    """A process with one calculator."""

    def __init__(self, make: Callable[[], ReliableCalculator]) -> None:
        self.calculator = make()

    def judge(self, frames: Sequence[Atoms], uses: Sequence[Use | None]) -> list[Atoms]:
        """Return the annotated copies of one batch."""
        calculator = self.calculator
        size = max(1, sum(map(len, frames)))
        evaluated = evaluate_each(
            calculator.backbone, frames, calculator.wanted(), limit=size
        )
        return [
            with_outcome(frame, outcome, calculator, use)
            for (frame, outcome), use in zip(evaluated, uses, strict=True)
        ]


def _answer(ray: Any, future: Any) -> list[Atoms]:
    try:
        found: list[Atoms] = ray.get(future)
    except ray.exceptions.RayActorError as error:
        msg = (
            f"a worker must survive a batch, got {_RESTARTS + 1} deaths "
            f"({' '.join(str(error).split())[:300]}); give each worker more memory, or "
            "smaller batches"
        )
        raise RecordError(msg) from error
    return found


@contextmanager
def _connected(ray: Any, workers: RayWorkers) -> Iterator[None]:
    """Connect to the cluster, or start one here with as many cores as workers."""
    if ray.is_initialized():  # by the user's own program
        yield
        return
    kept = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = (
        "0"  # Ray would report its use to its makers
    )
    _reach(workers.address)
    own: dict[str, Any] = {"address": workers.address}
    if workers.address == LOCAL:
        own |= {"num_cpus": workers.workers, "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **own)
    except ConnectionError as error:
        msg = f"address must be that of a running Ray cluster, got {workers.address!r}"
        raise RecordError(msg) from error
    finally:
        if kept is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]
        else:
            os.environ["RAY_USAGE_STATS_ENABLED"] = kept
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Refuse an address of which nothing answers: Ray itself tries for minutes.

    Raises
    ------
    RecordError
        If no connection is made within `_PATIENCE_S`.
    """
    host, found, port = address.removeprefix("ray://").rpartition(":")
    if not found or not port.isdigit():
        return  # "local", "auto"
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        msg = (
            f"address must be that of a running Ray cluster, got {address!r} ({error})"
            "; start one with ray start --head, or use 'local'"
        )
        raise RecordError(msg) from error


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "annotation on several machines", "ray", "ray"
        ) from error
    return ray
