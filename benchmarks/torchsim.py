"""Measure the time that verdicts on all systems of a batch add to a step of TorchSim.

A step of velocity Verlet of many systems is timed, bare and wrapped: judged at every
step, at every tenth, and without `Sanity` and `Flags`. There are 1, 100 and 1 000
systems of 50 atoms on a GPU, and 1, 4 and 16 on a CPU. The systems are RELIABLE: a
guard takes other systems out of the batch, and their steps take no time. The ratio to
the bare steps is the median over rounds, in each of which all kinds take turns.

Usage: python benchmarks/torchsim.py [--steps 10] [--rounds 6]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import import_mace, print_table, write_result


import_mace()

import torch_sim as ts  # noqa: E402
from torch_sim.integrators.md import MDState  # noqa: E402
from torch_sim.models.mace import MaceModel  # noqa: E402

from uqcalc.models.bundled import load_model  # noqa: E402
from uqcalc.torchsim import ReliableModel, guard, numbered  # noqa: E402


DT = 0.0005 * ts.units.UnitSystem.metal.time
KT = 300 * ts.units.UnitSystem.metal.temperature


def paraffin(carbons: int, seed: int) -> Atoms:
    """Return a periodic crystal of one alkane chain, as dense as solid paraffin."""
    half = np.radians(56.0)  # of the angle C-C-C
    along, aside = 1.53 * np.sin(half), 1.53 * np.cos(half) / 2
    symbols, positions = [], []
    for k in range(carbons):
        side = 1 if k % 2 else -1
        centre = np.array([k * along, side * aside, 0.0])
        hydrogens = [[0, side * 0.63, 0.89], [0, side * 0.63, -0.89]]
        for end, last in ((-1, 0), (1, carbons - 1)):
            if k == last:
                hydrogens.append([end * 1.09 * np.sin(half), -side * 0.61, 0])
        symbols += ["C"] + ["H"] * len(hydrogens)
        positions += [centre, *(centre + hydrogens)]
    cell = [(carbons - 1) * along + 4.5, 5.0, 5.0]
    chain = Atoms(symbols, positions, cell=cell, pbc=True)
    chain.rattle(0.02, seed=seed)
    return chain


def seconds(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the time of one step; without a GPU that of the processor alone.

    Other programs on the machine do not change the time of the processor.
    """
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(count):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - start) / count


class Run:
    """A run of one batch, step by step."""

    def __init__(self, frames: list[Any], model: Any, numbers: ReliableModel) -> None:
        pair = ts.integrators.INTEGRATOR_REGISTRY[ts.Integrator.nve]
        self.guard = guard(pair) if isinstance(model, ReliableModel) else None
        init, self._step = pair if self.guard is None else self.guard
        self._model = model
        state = numbered(frames, numbers)
        kT = torch.tensor(KT, dtype=model.dtype, device=model.device)
        self._dt = torch.tensor(DT, dtype=model.dtype, device=model.device)
        self.state: MDState = init(state=state, model=model, kT=kT, dt=self._dt)

    def __call__(self) -> None:
        """Make one step."""
        self.state = self._step(state=self.state, model=self._model, dt=self._dt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)  # tens: every tenth is judged
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--systems", type=int, nargs="+")
    asked = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    inner = MaceModel(load_model(), device=device, dtype=torch.float32)
    kinds = {
        "bare": inner,
        "every step": ReliableModel(inner, "auto"),
        "every tenth step": ReliableModel(inner, "auto", interval=10),
        "probe only": ReliableModel(inner, "auto", sanity=False),
    }
    reliable = kinds["every step"]
    rows = []
    for count in asked.systems or ([1, 100, 1000] if on_gpu else [1, 4, 16]):
        frames = [paraffin(16, seed=k) for k in range(count)]
        runs = {name: Run(frames, model, reliable) for name, model in kinds.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(asked.rounds + 1):  # in turns; the first round warms up
            for name, run in runs.items():
                times[name].append(seconds(run, asked.steps, device))
        if any(run.guard is not None and run.guard.left for run in runs.values()):
            msg = "systems left the batch, and their steps were not timed"
            raise RuntimeError(msg)
        bare = np.array(times["bare"][1:])
        for name, found in times.items():
            taken = np.array(found[1:])
            low, ratio, high = np.quantile(taken / bare, [0.25, 0.5, 0.75])
            rows.append(
                {
                    "systems": count,
                    "atoms": len(frames[0]),
                    "judged": name,
                    "ms_per_step": 1e3 * float(np.median(taken)),
                    "ratio": float(ratio),
                    "quartiles": f"{low:.3f} to {high:.3f}",
                    "added_ms_per_system": 1e3 * float(np.median(taken - bare)) / count,
                }
            )
    columns = {
        "systems": "systems",
        "atoms": "atoms of each",
        "judged": "judged",
        "ms_per_step": "ms a step",
        "ratio": "times bare",
        "quartiles": "quartiles",
        "added_ms_per_system": "ms added for each system",
    }
    print_table("steps of TorchSim", rows, columns)
    device_name = torch.cuda.get_device_name() if on_gpu else "CPU"
    write_result("torchsim", seeds=[0], rows=rows, more={"device": device_name})


if __name__ == "__main__":
    main()
