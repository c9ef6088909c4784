"""Measure how many frames a second `uqcalc annotate` judges.

It is compared with (a) the loop of ASE with the bare calculator, and (b) the batched
passes of the backbone without a signal, in turns on the same frames. The batched passes
give the same quantities as annotate: with the probes of CHGNet the stress, too.

    python benchmarks/annotate.py
    python benchmarks/annotate.py --batches      # size of a batch, bundled MACE
    python benchmarks/annotate.py --memory       # peak memory, 1 000 to 100 000 frames
    OMP_NUM_THREADS=1 python benchmarks/annotate.py --ray  # two workers, one process
    python benchmarks/annotate.py --tiny         # few frames; also with the others

MACE has the size of MACE-OFF small and random weights; CHGNet has its own.

Memory is that of one process with the bundled potential and probe and one molecule of
water a frame, so that 100 000 frames take minutes: the peak is that of reading,
judging, writing and counting. The rates with Ray are those of the frames after the
first ones: they are the difference of a long and a short run, so that the start of the
workers does not count. The seconds of the short run, which include the start, are
given, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
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
from uqcalc.backbones.batching import batches
from uqcalc.cluster import RayWorkers


# frames by number of atoms: a second or more for each method
SIZES = {10: 60, 21: 48, 100: 8, 500: 2}
ROUNDS = 3
BATCHES = (1, 64, 128, 192, 256, 512)  # atoms
MEMORY = (1_000, 10_000, 100_000)
ON_RAY = (400, 4_800)  # frames of the short and of the long run
TINY_SIZES, TINY_MEMORY, TINY_ON_RAY = {10: 2, 21: 2}, (20, 40), (20, 60)
_PIECE = 1_000  # frames written at once
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
        start = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(cells_for(atoms))
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        frame = start.copy()
        frame.positions += rng.normal(0, 0.05, frame.positions.shape)
        made.append(frame)
    return made


def cells_for(atoms: int) -> tuple[int, int, int]:
    """Return the repeats of a cell of 8 atoms for a size nearest to ``atoms``."""
    steps = range(1, 6)
    every = [(a, b, c) for a in steps for b in steps for c in steps if a >= b >= c]
    return min(every, key=lambda abc: (abs(8 * np.prod(abc) - atoms), abc[0]))


def calculators(model: str) -> tuple[Any, uqcalc.ReliableCalculator]:
    """Return the bare calculator, and one with the signals of a default run."""
    if model == "mace":
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from builders import tiny_probe

        bare = mace_calculator(random_mace("96x0e", 4.5))
        return bare, uqcalc.ReliableCalculator(bare, tiny_probe(tap(bare)))
    bare = uqcalc.open_model("chgnet")
    return bare, uqcalc.ReliableCalculator(bare, "auto")


def timed(model: str, sizes: dict[int, int], rounds: int) -> list[dict[str, Any]]:
    """Return one row for each number of atoms; the methods take turns."""
    bare, reliable = calculators(model)
    backbone, wanted = tap(bare), reliable.wanted()
    rows = []
    for atoms, count in sizes.items():
        frames = frames_of(model, atoms, count)
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "md.xyz", Path(folder) / "judged.xyz"
            write(source, frames)

            def loop(frames: Sequence[Atoms] = frames) -> None:
                for frame in frames:
                    bare.calculate(frame, ["energy", "forces"], ["positions"])

            def batched(frames: Sequence[Atoms] = frames) -> None:
                for batch in batches(frames, len, backbone.batch_atoms):
                    backbone.predict_many(batch, wanted)

            def whole(source: Path = source, output: Path = output) -> None:
                output.unlink(missing_ok=True)
                annotate_file(source, output, reliable)

            runs = {"loop": loop, "batched": batched, "annotate": whole}
            seconds = turns(runs, rounds)
        own = {name: count / float(np.median(s)) for name, s in seconds.items()}
        ratio = np.array(seconds["batched"]) / seconds["annotate"]
        over = np.array(seconds["loop"]) / seconds["annotate"]
        row = {"model": model, "atoms": len(frames[0]), "frames": count, **own}
        row |= {"over_batched": float(np.median(ratio))}
        rows.append(row | {"over_loop": float(np.median(over))})
        print(rows[-1], flush=True)
    return rows


def by_batch() -> list[dict[str, Any]]:
    """Return frames a second of the bundled potential by the atoms of a batch."""
    backbone = uqcalc.default_calculator().backbone
    rows = []
    start = molecule("CH3CH2OH")
    for copies, count in ((1, 224), (2, 112), (10, 24)):  # 9, 18 and 90 atoms
        frame = start.copy()
        for number in range(1, copies):
            other = start.copy()
            other.positions[:, 0] += 9.0 * number
            frame += other
        frames = [frame.copy() for _ in range(count)]
        for seed, rattled in enumerate(frames):
            rattled.rattle(0.03, seed=seed)

        def run(most: int, frames: Sequence[Atoms] = frames) -> None:
            for batch in batches(frames, len, most):
                backbone.predict_many(batch)

        seconds = turns({str(most): partial(run, most) for most in BATCHES}, ROUNDS)
        row = {most: count / float(np.median(s)) for most, s in seconds.items()}
        rows.append({"atoms": len(frames[0]), "frames": count} | row)
    return rows


def turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run in each round after the first."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def small_frames(path: Path, count: int) -> None:
    """Write ``count`` rattled frames of one molecule of water."""
    frames = [molecule("H2O") for _ in range(min(count, _PIECE))]
    for seed, frame in enumerate(frames):
        frame.rattle(0.05, seed=seed)
    write(path, frames)
    text = path.read_text(encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        for _ in range(count // len(frames) - 1):
            file.write(text)


def peak_mb(count: int) -> float:
    """Return the peak memory of a process that annotates ``count`` frames, in MB."""
    command = [sys.executable, __file__, "--memory-of", str(count)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(found.stdout.splitlines()[-1]))


def annotate_small(count: int) -> float:
    """Annotate ``count`` frames of water; return the peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "md.xyz", Path(folder) / "judged.xyz"
        small_frames(source, count)
        annotate_file(source, output, uqcalc.default_calculator())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def on_ray(counts: tuple[int, int]) -> dict[str, float]:
    """Return frames a second in this process and with two workers of one thread."""
    found: dict[str, float] = {}
    calculator = uqcalc.default_calculator()
    for name, workers in (
        ("serial", None),
        ("two_workers", RayWorkers(uqcalc.default_calculator, workers=2)),
    ):
        short, long = (seconds_of(count, calculator, workers) for count in counts)
        found[name] = (counts[1] - counts[0]) / (long - short)
        found[f"{name}_short_run_s"] = short
    found["ratio"] = found["two_workers"] / found["serial"]
    return found | {"frames_short": counts[0], "frames_long": counts[1]}


def seconds_of(count: int, calculator: Any, workers: RayWorkers | None) -> float:
    """Return the seconds of the annotation of ``count`` frames of benzene."""
    frames = [molecule("C6H6") for _ in range(count)]
    for seed, frame in enumerate(frames):
        frame.rattle(0.05, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "md.xyz", Path(folder) / "judged.xyz"
        write(source, frames)
        start = time.perf_counter()
        annotate_file(source, output, calculator, workers=workers)
        return time.perf_counter() - start


def main() -> None:
    """Measure the requested parts; the other parts of an earlier result are kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=["mace", "chgnet"])
    parser.add_argument("--batches", action="store_true", help="set OMP_NUM_THREADS=1")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ray", action="store_true", help="set OMP_NUM_THREADS=1")
    parser.add_argument("--tiny", action="store_true", help="writes no result")
    given = parser.parse_args()
    if given.ray and os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("--ray compares runs of one thread: set OMP_NUM_THREADS=1")
    warnings.simplefilter("ignore")
    if given.memory_of:
        print(json.dumps(annotate_small(given.memory_of)))
        return
    there = (RESULTS / "annotate.json").is_file() and not given.tiny
    known = read_result("annotate") if there else {}
    rows = known.get("rows", [])
    more: dict[str, Any] = {
        key: known[key] for key in ("batches", "memory_mb", "ray") if key in known
    }
    memory = TINY_MEMORY if given.tiny else MEMORY
    if given.batches:
        more["batches"] = by_batch()
    elif given.memory:
        more["memory_mb"] = {str(count): peak_mb(count) for count in memory}
    elif given.ray:
        more["ray"] = on_ray(TINY_ON_RAY if given.tiny else ON_RAY)
    else:
        sizes, rounds = (TINY_SIZES, 1) if given.tiny else (SIZES, ROUNDS)
        new = [row for model in given.models for row in timed(model, sizes, rounds)]
        rows = [row for row in rows if row["model"] not in given.models] + new
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
    if "memory_mb" in more:
        peaks = [more["memory_mb"][str(count)] for count in (min(memory), max(memory))]
        title = f"peak memory, {max(memory)} / {min(memory)} frames"
        targets.append(target(title, peaks[1] / peaks[0], 1.1, at_most=True))
    print_table("frames a second", rows, COLUMNS)
    print(more)
    print_targets(targets)
    if not given.tiny:
        write_result("annotate", seeds=[0], rows=rows, targets=targets, more=more)


if __name__ == "__main__":
    main()
