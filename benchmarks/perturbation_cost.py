"""Measure the time of the members of a perturbation, as one batch, over one pass.

    python benchmarks/perturbation_cost.py

MACE of the size of MACE-OFF small with random weights, on which the time does not
depend. One pass and the passes of K members take turns on the same structures.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch
from common import (
    mace_calculator,
    print_table,
    random_mace,
    water_box,
    write_result,
)

from uqcalc import tap
from uqcalc.perturbation.card import PerturbationCard
from uqcalc.perturbation.layers import find_layers
from uqcalc.perturbation.members import PerturbedBackbone
from uqcalc.perturbation.noise import Noise
from uqcalc.perturbation.perturbation import Perturbation
from uqcalc.types import Backbone


MEMBERS = (4, 16, 32)
LARGE = 500  # atoms from which 32 members are left out on a CPU
# rounds by number of atoms: more for small structures
ROUNDS = {21: 9, 201: 3, 999: 1}
CUDA_ROUNDS = {50: 15, 500: 9, 5000: 5}
COLUMNS = {
    "device": "device",
    "atoms": "atoms",
    "members": "members",
    "pass_ms": "one pass, ms",
    "ratio": "members / one pass",
    "quartiles": "quartiles",
    "rounds": "rounds",
}


def untrained(backbone: Backbone) -> Perturbation:
    """Return a perturbation with small random weights."""
    layers = find_layers(backbone)
    torch.manual_seed(0)
    noise = Noise(32, [layer.width for layer in layers])
    for weight in noise.weights:
        torch.nn.init.normal_(weight, std=1e-3)
    card = PerturbationCard(
        fingerprint=backbone.fingerprint,
        elements=[1, 8],
        layers=[layer.name for layer in layers],
        widths=[layer.width for layer in layers],
        dimension=32,
        noise="structure",
        changes_model=False,
        training={},
        report={},
        uqcalc_version="benchmark",
    )
    return Perturbation(card, noise)


def timed(backbone: Backbone, atoms: int, rounds: int, device: str) -> list[dict]:
    """Return one row for each number of members."""
    box = water_box(atoms)
    members = [n for n in MEMBERS if device == "cuda" or atoms < LARGE or n < 32]
    rng = np.random.default_rng(0)
    found = untrained(backbone)
    runs: dict[int, Any] = {
        count: PerturbedBackbone(backbone, found, count, seed=0) for count in members
    }
    seconds: dict[int, list[float]] = {count: [] for count in (1, *members)}
    for turn in range(rounds + 1):
        for count in seconds:
            box.positions += rng.normal(0, 1e-3, box.positions.shape)
            start = time.perf_counter()
            if count == 1:
                backbone.predict_many([box])
            else:
                runs[count].evaluate_members(box)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                seconds[count].append(time.perf_counter() - start)
    single = np.array(seconds[1])
    rows = []
    for count in members:
        ratios = np.array(seconds[count]) / single
        low, high = np.quantile(ratios, (0.25, 0.75))
        rows.append(
            {
                "device": device,
                "atoms": len(box),
                "members": count,
                "pass_ms": 1e3 * float(np.median(single)),
                "ratio": float(np.median(ratios)),
                "quartiles": f"{low:.2f} to {high:.2f}",
                "rounds": rounds,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Time all sizes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--atoms", type=int, nargs="*", help="only these sizes")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_mace("96x0e", 4.5)
    backbone = tap(mace_calculator(model, device=device))
    sizes = CUDA_ROUNDS if device == "cuda" else ROUNDS
    name = "perturbation_cost_cuda" if device == "cuda" else "perturbation_cost"
    rows: list[dict] = []
    for atoms in given.atoms or sizes:
        rows += timed(backbone, atoms, sizes.get(atoms, 1), device)
        write_result(name, seeds=[0], rows=rows)
    print_table("members as one batch", rows, COLUMNS)


if __name__ == "__main__":
    main()
