"""Workers of a Ray cluster: the answers come in the order of the jobs.

Annotation, the features of a fit and reference labels share this path.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from uqcalc.errors import MissingExtraError, RecordError


Made = TypeVar("Made")
Job = TypeVar("Job")
Answer = TypeVar("Answer")

LOCAL = "local"
_RETRIES = 3  # of a job whose worker has died
_PATIENCE_S = 10.0  # for a connection to a cluster


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """Workers of a Ray cluster, each with a calculator of its own.

    Attributes
    ----------
    make : callable
        Returns the calculator of a worker. It is called once in each worker, so it must
        be a function of an installed module, or a `functools.partial` of one. For
        `uqcalc.annotate_file` it is a `ReliableCalculator`, for `uqcalc.fit` a
        calculator or backbone of the same potential.
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

    make: Callable[[], Any]
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


class Pool:
    """The running workers of a cluster."""

    def __init__(self, ray: Any, workers: RayWorkers) -> None:
        self._ray = ray
        options = {
            "num_cpus": 1,
            "num_gpus": workers.gpus,
            "max_restarts": -1,  # limited by the retries of a job
            "max_task_retries": _RETRIES,
        }
        remote = ray.remote(_Worker).options(**options)
        self._actors = [remote.remote(workers.make) for _ in range(workers.workers)]

    def each(
        self,
        task: Callable[[Any, Job], Answer],
        jobs: Iterable[Job],
        *,
        ahead: int = 2,
        lost: Callable[[Job], Answer] | None = None,
    ) -> Iterator[Answer]:
        """Yield ``task(made, job)`` for each job, in the order of the jobs.

        A job whose worker dies is done again. Only the jobs that the workers have are
        in memory.

        Parameters
        ----------
        task : callable
            A function of an installed module. Its errors are raised here.
        jobs : iterable
        ahead : int
            Jobs that a worker has at the same time; with 1, a job that kills its worker
            does not affect other jobs.
        lost : callable, optional
            Gives the answer for a job whose worker dies again and again; without it
            this is an error.

        Raises
        ------
        RecordError
            If a worker dies again and again, or its calculator cannot be made.
        """
        left = iter(jobs)
        free = deque(self._actors * ahead)
        busy: dict[Any, Any] = {}
        waiting: deque[tuple[Any, Job]] = deque()
        most = len(free) + len(self._actors)  # some wait for a slow earlier one
        while True:
            while free and len(waiting) < most and (given := [*islice(left, 1)]):
                job, actor = given[0], free.popleft()
                future = actor.do.remote(task, job)
                busy[future] = actor
                waiting.append((future, job))
            if not waiting:
                return
            if waiting[0][0] not in busy:
                yield self._answer(*waiting.popleft(), lost)
                continue
            done, _ = self._ray.wait([*busy], num_returns=1)
            free.extend(busy.pop(future) for future in done)

    def _answer(
        self, future: Any, job: Job, lost: Callable[[Job], Answer] | None
    ) -> Answer:
        try:
            found: Answer = self._ray.get(future)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayActorError as error:
            if _never_began(error):
                reason = str(error).strip().splitlines()[-1].strip()
                msg = f"a worker must get its calculator without error, got {reason}"
                raise RecordError(msg) from error
            if lost is not None:
                return lost(job)
            msg = (
                f"a worker must survive a job, got {_RETRIES + 1} deaths "
                f"({' '.join(str(error).split())[:300]}); give each worker more memory,"
                " or smaller batches"
            )
            raise RecordError(msg) from error
        return found


class _Worker:
    """A process with one calculator."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.made = make()

    def do(self, task: Callable[[Any, Job], Answer], job: Job) -> Answer:
        """Return the answer to one job."""
        return task(self.made, job)


def _never_began(error: BaseException) -> bool:
    """Return whether no worker could be made at all."""
    return "__init__" in str(error) or "creation task" in str(error)


@contextmanager
def running(workers: RayWorkers) -> Iterator[Pool]:
    """Connect to the cluster, or start one here, and give its workers.

    Raises
    ------
    MissingExtraError
        If Ray is absent.
    RecordError
        If there is no cluster at the address.
    """
    ray = _ray()
    with _connected(ray, workers):
        yield Pool(ray, workers)


@contextmanager
def _connected(ray: Any, workers: RayWorkers) -> Iterator[None]:
    """Connect to the cluster, or start one here with as many cores as workers."""
    if ray.is_initialized():  # the user's program has connected
        yield
        return
    kept = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no usage report to Ray's developers
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
    """Refuse an address that does not answer: Ray itself tries for minutes.

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
        raise MissingExtraError("work on several machines", "ray", "ray") from error
    return ray
