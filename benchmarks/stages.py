"""Time of each stage of a wrapped step, for `benchmarks/overhead.py`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import uqcalc.calculator
from uqcalc import ReliableCalculator
from uqcalc.signals.probe import ProbeSignal


class Stages:
    """Times functions and methods of one calculator inside a step, in seconds.

    Attributes
    ----------
    seconds : dict
        Name of the stage -> time in each step. Stages contain each other; the name
        starts with two spaces for each level.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._undo: list[Callable[[], None]] = []

    def time(self, owner: Any, name: str, stage: str) -> None:
        """Time ``owner.name`` as a stage, until `restore`."""
        original, own = getattr(owner, name), name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[stage].append(time.perf_counter() - start)

        setattr(owner, name, timed)
        undo = (
            (lambda: setattr(owner, name, original))
            if own
            else lambda: delattr(owner, name)
        )
        self._undo.append(undo)

    def restore(self) -> None:
        """Put back all functions."""
        while self._undo:
            self._undo.pop()()

    def rows(self, steps: int) -> list[dict[str, Any]]:
        """Return the median time of each stage in ms; several calls of a step add."""
        return [
            {"stage": stage, "ms": 1e3 * float(np.median(_per_step(times, steps)))}
            for stage, times in self.seconds.items()
        ]


def _per_step(times: list[float], steps: int) -> np.ndarray:
    """Return the time in each step, (steps,); each step has equally many calls."""
    calls = max(1, len(times) // steps)
    whole = np.array(times[-calls * steps :])
    return np.add.reduce(whole.reshape(-1, calls), axis=1)


@contextmanager
def staged(wrapped: ReliableCalculator, base: Any) -> Iterator[Stages]:
    """Time the stages of a wrapped step inside the context."""
    stages, backbone = Stages(), wrapped.backbone
    stages.time(wrapped, "check_state", "compare the atoms with the last geometry")
    stages.time(wrapped, "_recall", "look for the geometry among the last ones")
    stages.time(backbone, "check_structure", "check the structure")
    stages.time(base, "check_state", "ASE's comparison for the base calculator")
    stages.time(base, "calculate", "pass of the model")
    stages.time(backbone, "_prediction", "collect the results of the pass")
    for signal in wrapped.signals:
        stages.time(type(signal), "__call__", f"signal {signal.name}")
        if isinstance(signal, ProbeSignal):
            _time_probe(stages, signal.probe)
    stages.time(uqcalc.calculator, "to_host_asking", "check and copy to the host")
    stages.time(uqcalc.calculator, "judged", "policy")
    stages.time(wrapped, "_evaluate", "all of these")
    try:
        yield stages
    finally:
        stages.restore()


def _time_probe(stages: Stages, probe: Any) -> None:
    stages.time(probe, "_batch", "  inputs")
    stages.time(probe.network, "forward", "  attention")
    if probe.stacked is not None:
        stages.time(probe.stacked.numbers, "forward", "  plain numbers")
        stages.time(probe.stacked.linear, "forward", "  linear path")
        stages.time(probe.stacked.structure, "forward", "  kernels of the structure")
        stages.time(probe.stacked.atoms, "forward", "  kernels of the atoms")
