"""Measure the time and the memory of Force Delta.

Other methods are the direct model alone, the conservative model and an ensemble.

    python benchmarks/force_delta_cost.py

The Orb v3 has the released size (25.6 M parameters) and random weights, on which the
time does not depend. All four methods take turns on the same structures. The script
needs orb-models 0.5 (Python 3.11), where the model has the settings of the graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import (
    print_table,
    print_targets,
    read_result,
    target,
    water_box,
    write_result,
)

from uqcalc import ForceDelta, Policy, ReliableCalculator, Threshold


NAME = "force_delta_cost"
MEMBERS = 5
DIRECT, DELTA, GRADIENT, ENSEMBLE = (
    "direct only",
    "direct + Force Delta",
    "conservative only",
    "ensemble of five",
)
LIMITS = {"direct": 2.1, "conservative": 1.05}
POLICY = Policy([Threshold("force_delta", suspect=1.0, unreliable=2.0)])
# rounds by number of atoms: more for small structures
ROUNDS = {20: 15, 200: 5, 1000: 2}
CUDA_ROUNDS = {100: 15, 1000: 9, 10000: 5}
Run = Callable[[Atoms], object]


def main() -> None:
    """Time all methods in turns, then measure the memory of each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument(
        "--memory-only", action="store_true", help="measure the memory of a result anew"
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if given.memory:
        print(json.dumps(peak_gb(given.memory[0], int(given.memory[1]), device)))
        return
    if given.memory_only:
        rows = read_result(NAME)["rows"]
    else:
        runs = make_runs(device)
        sizes = CUDA_ROUNDS if device == "cuda" else ROUNDS
        rows = [
            row for n, rounds in sizes.items() for row in timed(runs, n, rounds, device)
        ]
        del runs
    for row in rows:
        row["peak_gb"] = in_own_process(row["what"], row["atoms"])
    targets = [
        target(f"{atoms} atoms: {what}", row[f"over {kind}"], LIMITS[kind])
        for kind, what in (
            ("direct", "direct + Force Delta over direct"),
            ("conservative", "direct + Force Delta over conservative"),
        )
        for row in rows
        if row["what"] == DELTA
        for atoms in (row["atoms"],)
    ]
    columns = {"atoms": "atoms", "what": "what", "ms": "median ms"}
    columns |= {"over direct": "over direct", "quartiles": "quartiles"}
    columns |= {"over conservative": "over conservative", "peak_gb": "peak GB"}
    print_table("one geometry, energy and forces", rows, columns)
    print_targets(targets)
    write_result(NAME, seeds=[0], rows=rows, targets=targets)


def make_runs(device: str) -> dict[str, Run]:
    """Return the timed functions by name."""
    from orb_models.forcefield.calculator import ORBCalculator

    models = [_orb(direct=True, seed=seed) for seed in range(MEMBERS)]
    direct = ORBCalculator(models[0], device=device)
    gradient = ORBCalculator(_orb(direct=False, seed=0), device=device)
    members = [ORBCalculator(model, device=device) for model in models]
    watched = ReliableCalculator(
        ORBCalculator(models[0], device=device), signals=[ForceDelta()], policy=POLICY
    )
    return {
        DIRECT: direct.calculate,
        DELTA: lambda atoms: watched.get_property("forces", atoms),
        GRADIENT: gradient.calculate,
        ENSEMBLE: lambda atoms: [member.calculate(atoms) for member in members],
    }


def timed(
    runs: dict[str, Run], atoms: int, rounds: int, device: str
) -> list[dict[str, Any]]:
    """Return a row for each; ratios are medians over rounds of pairs."""
    box = water_box(atoms)
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            box.positions += rng.normal(0, 1e-3, box.positions.shape)
            start = time.perf_counter()
            run(box)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in runs:
        own = np.array(seconds[name])
        over = own / seconds[DIRECT]
        low, high = np.quantile(over, (0.25, 0.75))
        rows.append(
            {
                "device": device,
                "atoms": len(box),
                "what": name,
                "ms": 1000 * float(np.median(own)),
                "over direct": float(np.median(over)),
                "quartiles": f"{low:.3f} to {high:.3f}",
                "over conservative": float(np.median(own / seconds[GRADIENT])),
                "rounds": rounds,
            }
        )
    return rows


def in_own_process(name: str, atoms: int) -> float:
    """Return the peak memory of an evaluation in a new process, in GB."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory", name, str(atoms)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def peak_gb(name: str, atoms: int, device: str) -> float:
    """Return the memory that an evaluation adds to the peak, in GB."""
    run = make_runs(device)[name]
    box = water_box(atoms)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        run(box)
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    # the peak from here on, without that of loading the models
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak()
    run(box)
    return _peak() - before


def _peak() -> float:
    """Return the peak memory in GB; that of getrusage includes the parent process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (entry for entry in status.splitlines() if entry.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def _orb(*, direct: bool, seed: int) -> Any:
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.atomic_system import SystemConfig

    torch.manual_seed(seed)
    # twenty neighbours an atom, as orb-v3-*-20
    config = SystemConfig(radius=6.0, max_num_neighbors=20)
    build = (
        pretrained.orb_v3_direct_architecture
        if direct
        else pretrained.orb_v3_conservative_architecture
    )
    model = build(device="cpu", system_config=config)
    return model.eval().requires_grad_(requires_grad=False)


if __name__ == "__main__":
    main()
