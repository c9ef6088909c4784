"""Time that a distilled head adds to a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.spacegroup import crystal
from common import water_box

from uqcalc import ForceDelta, Policy, ReliableCalculator, Threshold
from uqcalc.types import DistilledHead


POLICY = Policy([Threshold("force_delta", suspect=1.0, unreliable=2.0)])
ROUNDS = {20: 15, 200: 5}


def water() -> dict[int, Atoms]:
    """Return periodic water of about 20 and 200 atoms."""
    return {atoms: water_box(atoms) for atoms in ROUNDS}


def titanates() -> dict[int, Atoms]:
    """Return strontium titanate of 20 and 200 atoms."""
    cell = crystal(
        ["Sr", "Ti", "O"],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[3.94, 3.94, 3.94, 90, 90, 90],
    )
    return {20: cell * (2, 2, 1), 200: cell * (2, 4, 5)}


def added_time(
    bare: BaseCalculator,
    watched_calculator: BaseCalculator,
    head: DistilledHead,
    boxes: Mapping[int, Atoms],
) -> list[dict[str, Any]]:
    """Time the bare and the wrapped potential in turns; ratios are medians of pairs.

    Processor time of one thread depends little on other work of the machine.
    """
    watched = ReliableCalculator(
        watched_calculator, signals=[ForceDelta(head=head)], policy=POLICY
    )
    runs: dict[str, Callable[[Atoms], object]] = {
        "bare": lambda atoms: bare.calculate(atoms, ["energy", "forces"]),
        "watched": lambda atoms: watched.get_property("forces", atoms),
    }
    return [_row(runs, ROUNDS[size], box.copy()) for size, box in boxes.items()]


def _row(
    runs: Mapping[str, Callable[[Atoms], object]], rounds: int, box: Atoms
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            box.positions += rng.normal(0, 1e-3, box.positions.shape)
            start = time.process_time()
            run(box)
            if turn:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    bare, watched = (np.array(seconds[name]) for name in ("bare", "watched"))
    low, high = np.quantile(watched / bare, (0.25, 0.75))
    return {
        "atoms": len(box),
        "bare ms": 1000 * float(np.median(bare)),
        "watched / bare": float(np.median(watched / bare)),
        "quartiles": f"{low:.3f} to {high:.3f}",
        "rounds": rounds,
    }
