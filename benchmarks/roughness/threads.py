"""Threads that share one model must give the results of one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ase import Atoms

from roughness.outcomes import Tally, attempt
from uqcalc.calculator import ReliableCalculator


def in_threads(
    tally: Tally,
    kind: str,
    make: Callable[[], ReliableCalculator],
    frames: Sequence[Atoms],
    *,
    workers: int,
) -> None:
    """Judge ``frames`` in a pool of threads and one by one; compare the results."""
    serial = make()
    expected = [_answer(serial, frame) for frame in frames]
    wrappers = [make() for _ in range(workers)]

    def work(row: int) -> list[tuple[str, str]]:
        mine = range(row, len(frames), workers)
        return [_compare(wrappers[row], frames[i], expected[i]) for i in mine]

    with ThreadPoolExecutor(workers) as pool:
        for outcomes in pool.map(work, range(workers)):
            for outcome, raised in outcomes:
                tally.add(kind, outcome, raised)


def _answer(calculator: ReliableCalculator, atoms: Atoms) -> dict[str, Any]:
    calculator.assess(atoms)
    kept = ("energy", "forces", "probe_reliability", "reliability_level")
    return {key: np.array(calculator.results[key]) for key in kept}


def _compare(
    calculator: ReliableCalculator, atoms: Atoms, expected: dict[str, Any]
) -> tuple[str, str]:
    def same(found: dict[str, Any]) -> bool:
        return all(
            found[key].shape == value.shape
            and np.allclose(found[key], value, rtol=1e-4, atol=1e-5, equal_nan=True)
            for key, value in expected.items()
        )

    return attempt(lambda: _answer(calculator, atoms), same, seconds=0)
