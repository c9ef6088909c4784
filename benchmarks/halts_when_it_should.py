"""Does it halt when it should, and not when it should not? Run `all`."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from functools import partial
from pathlib import Path

from halting.runs import make_chunk, missing_chunks


def make_runs(folder: Path, workers: int) -> None:
    """Make the runs that are not cached yet."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = list(missing_chunks(folder))
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        job = partial(make_chunk, folder=folder)
        for done, _ in enumerate(pool.imap(job, chunks), 1):
            elapsed = (time.monotonic() - start) / 60
            print(f"{done}/{len(chunks)} chunks, {elapsed:.0f} min", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["runs"])
    parser.add_argument("--cache", type=Path, default=Path("halting_cache"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    make_runs(options.cache, options.workers)


if __name__ == "__main__":
    main()
