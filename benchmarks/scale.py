"""Measure the time, memory and disk space of a fit with many labels.

Structures of 30 atoms with 256 features are generated and written to shards in float32.
A default probe is trained on them in a new process, whose peak memory is measured. This
is repeated for several numbers of structures; a straight line gives the memory for a
million. Then the default ``fit`` on 4 000 structures with features on disk is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from common import print_table, target, write_result

from uqcalc.backbones import Backbone, Prediction
from uqcalc.fitting.recipe import Recipe
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.labels import Labels
from uqcalc.labels.shardfile import ShardWriter
from uqcalc.labels.shards import Shards


ATOMS, WIDTH = 30, 256
COLUMNS = {
    "structures": "structures",
    "width": "width",
    "gigabytes": "on disk (GB)",
    "write_s": "writing (s)",
    "open_s": "opening (s)",
    "fit_s": "fit (s)",
    "cpu_s": "CPU time (s)",
    "peak_gb": "peak memory (GB)",
    "auroc": "AUROC",
}
FINGERPRINT = "generated:0"


def generated(index: int, atoms: int, width: int) -> Prediction:
    """Return a structure whose features contain its error, with noise."""
    rng = np.random.default_rng(index)
    strange = rng.gamma(2.0, 0.3)
    features = rng.normal(size=(atoms, width)).astype(np.float32)
    features[:, :8] *= 1 + strange
    return Prediction(
        numbers=rng.choice([1, 6, 7, 8], atoms),
        positions=np.zeros((atoms, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, bool),
        results={"energy": -5.0 * atoms, "forces": np.zeros((atoms, 3))},
        energy=-5.0 * atoms + rng.normal(),
        forces=rng.normal(scale=0.5 + strange, size=(atoms, 3)),
        features=torch.from_numpy(features),
    )


def errors_of(structures: int) -> np.ndarray:
    """Return generated force errors in eV/Å, in part a function of the features."""
    found = np.empty(structures)
    for index in range(structures):
        rng = np.random.default_rng(index)
        found[index] = 0.05 * (0.2 + rng.gamma(2.0, 0.3))
    return found * np.exp(np.random.default_rng(0).normal(scale=0.3, size=structures))


def write(folder: Path, structures: int, width: int) -> float:
    """Write the shards and return the time in s."""
    started = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    with ShardWriter(folder, FINGERPRINT) as writer:
        for index in range(structures):
            writer.add(generated(index, ATOMS, width))
    return time.perf_counter() - started


def train(folder: Path, steps: int) -> dict[str, Any]:
    """Fit in this process; return time and peak memory."""
    started = time.perf_counter()
    shards = Shards.open(folder)  # every byte is checked
    opening = time.perf_counter() - started
    count = len(shards)
    names = [str(i) for i in range(count)]
    data = Dataset(shards, errors_of(count), names, {})
    backbone = cast(
        "Backbone",
        SimpleNamespace(fingerprint=FINGERPRINT, provides=frozenset({"features"})),
    )
    cut = count - min(1000, count // 5)
    before = _peak()
    started, used = time.perf_counter(), time.process_time()
    result = fit_datasets(
        data.subset(np.arange(cut)),
        None,
        data.subset(np.arange(cut, count)),
        backbone,
        Labels("forces", percentile=50),
        Recipe(most_steps=steps),
    )
    return {
        "open_s": opening,
        "fit_s": time.perf_counter() - started,
        "cpu_s": time.process_time() - used,
        "epochs": len(result.curve),
        "peak_gb": _peak(),
        "before_gb": before,
        "auroc": result.report["auroc"],
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(folder: Path, structures: int, width: int, steps: int) -> dict[str, Any]:
    """Write the shards, then train in a new process."""
    seconds = write(folder, structures, width)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    command = [sys.executable, __file__, "--train", str(folder), "--steps", str(steps)]
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=quiet
    )
    row = json.loads(done.stdout.strip().splitlines()[-1])
    shutil.rmtree(folder)
    head = {"structures": structures, "width": width, "write_s": seconds}
    return head | {"gigabytes": size, "steps_at_most": steps} | row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="a folder; by default a temporary")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[25_000, 50_000, 100_000]
    )
    parser.add_argument("--steps", type=int, default=200, help="of each attention fit")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        print(json.dumps(train(options.train, options.steps)))
        return
    cache = options.cache or Path(tempfile.mkdtemp())
    folder = cache / f"shards_{os.getpid()}"
    rows = [measured(folder, size, WIDTH, options.steps) for size in options.sizes]
    slope = np.polyfit([r["structures"] for r in rows], [r["peak_gb"] for r in rows], 1)
    million = float(np.polyval(slope, 1_000_000))
    all_steps = Recipe().most_steps or 30_000
    rows += [measured(folder, 4000, width, all_steps) for width in (WIDTH, WIDTH // 2)]
    print_table("many labels", rows, COLUMNS)
    write_result(
        "scale",
        seeds=[0],
        rows=rows,
        targets=[
            target(
                f"fit of 4 000 structures on disk, width {row['width']}, seconds",
                row["fit_s"],
                180.0,
            )
            for row in rows[-2:]
        ],
        notes=[
            f"peak memory at a million structures, by the straight line through the "
            f"measured ones: {million:.2f} GB, of which {rows[0]['before_gb']:.2f} GB "
            "are the imported packages",
            f"steps of each of four attention fits: {options.steps} at most, for time",
        ],
        more={"peak_gb_at_a_million": million},
    )


if __name__ == "__main__":
    main()
