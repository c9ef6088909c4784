"""Test whether the monitor halts failing runs in time, and does not halt sound runs.

The molecules are in the labels of neither the bundled potential nor its probe. In some
runs they are heated until the potential fails; other runs stay at 300 K. The reference
is GFN2-xTB. The stages are `runs`, `signals`, `committee` and `report`; each continues
from the files in the cache.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import BUNDLED
from halting.report import report
from halting.runs import SEEDS, RunSpec, all_specs, make_chunk, missing_chunks
from halting.signals import write_training_features
from halting.stages import TRAINING, make_committee, make_signals


def in_parallel(job: Callable[..., Any], tasks: Sequence[Any], workers: int) -> None:
    """Do all tasks, reporting progress."""
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap(job, tasks), 1):
            elapsed = (time.monotonic() - start) / 60
            print(f"{done}/{len(tasks)}, {elapsed:.1f} min", flush=True)


def without(folder: Path, ending: str, seeds: int) -> list[list[RunSpec]]:
    """Return the runs without a cached file, in groups of twelve."""
    missing = [
        s for s in all_specs(seeds) if not (folder / f"{s.name}{ending}").is_file()
    ]
    return [missing[start : start + 12] for start in range(0, len(missing), 12)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["runs", "signals", "committee", "report"])
    parser.add_argument("--cache", type=Path, default=Path("halting_cache"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of each molecule")
    parser.add_argument(
        "--backbone-frames",
        type=Path,
        default=BUNDLED / "bundled_data" / "backbone.xyz",
        help="training frames of the bundled potential, from its sample.py; without "
        "them there is no latent distance",
    )
    parser.add_argument(
        "--members",
        type=Path,
        nargs=3,
        help="folders of three more potentials, from its train_backbone.py",
    )
    options = parser.parse_args()
    cache: Path = options.cache
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.stage == "runs":
        job = partial(make_chunk, folder=cache)
        in_parallel(job, list(missing_chunks(cache, options.seeds)), options.workers)
    elif options.stage == "signals":
        known = options.backbone_frames.is_file()
        if known and not (cache / TRAINING).is_file():
            write_training_features(options.backbone_frames, cache / TRAINING)
        job = partial(make_signals, folder=cache)
        in_parallel(job, without(cache, ".signals.npz", options.seeds), options.workers)
    elif options.stage == "committee":
        if options.members is None:
            parser.error("committee needs --members DIR DIR DIR")
        job = partial(make_committee, folder=cache, members=options.members)
        in_parallel(
            job, without(cache, ".committee.npz", options.seeds), options.workers
        )
    else:
        report(cache, options.members or [], options.seeds)


if __name__ == "__main__":
    main()
