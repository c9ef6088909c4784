"""Measure how many frames a second `uqcalc annotate` judges.

It is compared with (a) the loop of ASE with the bare calculator, and (b) the batched
passes of the backbone without a signal, in turns on the same frames.

    python benchmarks/annotate.py
    python benchmarks/annotate.py --memory       # peak memory, 1 000 to 100 000 frames
    python benchmarks/annotate.py --ray          # two workers against one process

MACE has the size of MACE-OFF small and random weights; CHGNet has its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from common import (
    RESULTS,
    mace_calculator,
    print_table,
    print_targets,
    random_mace,
    read_result,
    target,
    water_box,
    write_result,
)

import uqcalc
from uqcalc import annotate_file, tap
from uqcalc.cluster import RayWorkers
from uqcalc.backbones.batching import batches


# frames by number of atoms: a second or more for each method
SIZES = {10: 60, 21: 48, 100: 8, 500: 2}
ROUNDS = 3
MEMORY = (1_000, 10_000, 100_000)
COLUMNS = {
    "model": "model",
    "atoms": "atoms",
    "frames": "frames",
    "loop": "ASE loop, frames/s",
    "batched": "batched passes, frames/s",
    "annotate": "annotate, frames/s",
    "over_batched": "annotate / batched",
    "over_loop": "annotate / loop",
}


def frames_of(model: str, atoms: int, count: int) -> list[Atoms]:
    """Return rattled structures of about ``atoms`` atoms."""
    if model == "mace":
        start = water_box(atoms)
    else:
        cells = max(1, round((atoms / 8) ** (1 / 3)))
        start = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(cells)
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        frame = start.copy()
        frame.positions += rng.normal(0, 0.05, frame.positions.shape)
        made.append(frame)
    return made


def calculators(model: str) -> tuple[Any, uqcalc.ReliableCalculator]:
    """Return the bare calculator, and one with the signals of a default run."""
    if model == "mace":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from builders import tiny_probe

        bare = mace_calculator(random_mace("96x0e", 4.5))
        return bare, uqcalc.ReliableCalculator(bare, tiny_probe(tap(bare)))
    bare = uqcalc.open_model("chgnet")
    return bare, uqcalc.ReliableCalculator(bare, "auto")


def timed(model: str) -> list[dict[str, Any]]:
    """Return one row for each number of atoms; the methods take turns."""
    bare, reliable = calculators(model)
    backbone = tap(bare)
    rows = []
    for atoms, count in SIZES.items():
        frames = frames_of(model, atoms, count)
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "md.xyz", Path(folder) / "judged.xyz"
            write(source, frames)

            def loop(frames: Sequence[Atoms] = frames) -> None:
                for frame in frames:
                    bare.calculate(frame, ["energy", "forces"], ["positions"])

            def batched(frames: Sequence[Atoms] = frames) -> None:
                for batch in batches(frames, len):
                    backbone.predict_many(batch)

            def whole(source: Path = source, output: Path = output) -> None:
                output.unlink(missing_ok=True)
                annotate_file(source, output, reliable)

            seconds = turns({"loop": loop, "batched": batched, "annotate": whole})
        own = {name: count / float(np.median(s)) for name, s in seconds.items()}
        ratio = np.array(seconds["batched"]) / seconds["annotate"]
        over = np.array(seconds["loop"]) / seconds["annotate"]
        row = {"model": model, "atoms": len(frames[0]), "frames": count, **own}
        row |= {"over_batched": float(np.median(ratio))}
        rows.append(row | {"over_loop": float(np.median(over))})
        print(rows[-1], flush=True)
    return rows


def turns(runs: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Return the seconds of each run in each round after the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def small_frames(path: Path, count: int) -> None:
    """Write ``count`` frames of one atom of copper in a cell, for EMT."""
    atoms = bulk("Cu")
    atoms.write(path)
    path.write_text(path.read_text(encoding="utf-8") * count, encoding="utf-8")


def peak_mb(count: int) -> float:
    """Return the peak memory of a process that annotates ``count`` frames, in MB."""
    command = [sys.executable, __file__, "--memory-of", str(count)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(found.stdout.splitlines()[-1]))


def annotate_small(count: int) -> float:
    """Annotate ``count`` frames with EMT; return the peak memory in MB."""
    from ase.calculators.emt import EMT

    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "md.xyz", Path(folder) / "judged.xyz"
        small_frames(source, count)
        annotate_file(source, output, uqcalc.ReliableCalculator(EMT()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def on_ray(count: int = 600) -> dict[str, float]:
    """Return frames a second in this process and with two workers of one thread."""
    frames = [molecule("C6H6") for _ in range(count)]
    for seed, frame in enumerate(frames):
        frame.rattle(0.05, seed=seed)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "md.xyz"
        write(source, frames)
        calculator = uqcalc.default_calculator()
        for name, workers in (
            ("serial", None),
            ("two_workers", RayWorkers(uqcalc.default_calculator, workers=2)),
        ):
            output = Path(folder) / f"{name}.xyz"
            start = time.perf_counter()
            annotate_file(source, output, calculator, workers=workers)
            found[name] = count / (time.perf_counter() - start)
    return found | {"ratio": found["two_workers"] / found["serial"], "frames": count}


def main() -> None:
    """Measure what is asked for; the other parts of an earlier result are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=["mace", "chgnet"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ray", action="store_true", help="set OMP_NUM_THREADS=1")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.memory_of:
        print(json.dumps(annotate_small(given.memory_of)))
        return
    known = read_result("annotate") if (RESULTS / "annotate.json").is_file() else {}
    rows = known.get("rows", [])
    more = {key: known[key] for key in ("memory_mb", "ray") if key in known}
    if given.memory:
        more["memory_mb"] = {str(count): peak_mb(count) for count in MEMORY}
    elif given.ray:
        more["ray"] = on_ray()
    else:
        rows = [row for model in given.models for row in timed(model)]
    targets = [
        target(
            f"{row['model']}, {row['atoms']} atoms: annotate / batched passes",
            row["over_batched"],
            0.9,
            at_most=False,
        )
        for row in rows
    ]
    if "ray" in more:
        title = "two workers / one process"
        targets.append(target(title, more["ray"]["ratio"], 1.8, at_most=False))
    print_table("frames a second", rows, COLUMNS)
    print(more)
    print_targets(targets)
    write_result("annotate", seeds=[0], rows=rows, targets=targets, more=more)


if __name__ == "__main__":
    main()
