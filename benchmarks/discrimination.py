"""Ask which signal tells reliable predictions from others, and with how few labels.

One table: our default probe, the published one, regressions on pooled features, and
the other signals, on splits at random, by composition and by molecule, and on sets that
the labels did not hold.

    python benchmarks/discriminating/blocks.py --cache DIR   # potentials and labels
    python benchmarks/discrimination.py --cache DIR          # fits; resumes
    python benchmarks/discrimination.py --cache DIR --kind networks
    python benchmarks/discrimination.py --cache DIR --kind published  # minutes a fit
        # (of both, with --device cuda the seeds of a cell are trained in step)
    python benchmarks/discrimination.py --cache DIR --kind committee
    python benchmarks/discrimination.py --cache DIR --report # table, figures, JSON

Blocks of SevenNet-0 are in developers' data; the others are made by the first command.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from discriminating.labelled import Labelled
from discriminating.report import report
from discriminating.rows import KINDS, NETWORKS
from discriminating.tasks import Task, all_tasks, opened, run


@lru_cache(maxsize=4)
def _data(block: str, cache: Path) -> Labelled:
    shared = {"random", "composition", "transfer"}
    return opened("sevennet" if block in shared else block, cache)


Done = list[tuple[Task, list[dict[str, Any]]]]


def _done(tasks: list[Task], cache: Path, kind: str, device: str | None) -> Done:
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    data = _data(tasks[0].block, cache)
    if device is None:
        found = [(task, run(task, data, kind)) for task in tasks]
    else:
        from discriminating.stacked import run_together

        found = list(run_together(tasks, data, kind, device))
    names = ", ".join(task.key for task in tasks)
    print(names, f"{time.perf_counter() - started:.0f} s", flush=True)
    return found


def _by_cell(tasks: list[Task]) -> list[list[Task]]:
    """Return tasks that differ in their seed alone together, the largest first."""
    cells: dict[Task, list[Task]] = {}
    for task in tasks:
        cells.setdefault(replace(task, seed=0), []).append(task)
    return sorted(cells.values(), key=lambda cell: -cell[0].labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--blocks", default="", help="only these, comma-separated")
    parser.add_argument("--labels", default="", help="only these numbers of labels")
    parser.add_argument("--targets", default="", help="only these")
    parser.add_argument("--kind", choices=sorted(KINDS), default="rows")
    parser.add_argument("--device", help="train networks here, seeds of a cell in step")
    parser.add_argument("--report", action="store_true", help="what has been fitted")
    options = parser.parse_args()
    if options.device and options.kind not in NETWORKS:
        parser.error(f"--device is for the networks: --kind {' or '.join(NETWORKS)}")
    if options.report:
        report(options.cache)
        return
    log = options.cache / f"{options.kind}.jsonl"
    known = set()
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines()
        known = {json.loads(line)["task"] for line in lines}
    wanted = [
        task
        for task in all_tasks(options.seeds, options.cache, options.kind)
        if task.key not in known
        and (not options.blocks or task.block in options.blocks.split(","))
        and (not options.labels or str(task.labels) in options.labels.split(","))
        and (not options.targets or task.target in options.targets.split(","))
    ]
    print(f"{len(wanted)} tasks, {len(known)} done before", flush=True)
    jobs = _by_cell(wanted) if options.device else [[task] for task in wanted]
    job = partial(_done, cache=options.cache, kind=options.kind, device=options.device)
    with (
        multiprocessing.get_context("spawn").Pool(options.workers) as pool,
        log.open("a", encoding="utf-8") as file,
    ):
        for found in pool.imap_unordered(job, jobs):
            for task, rows in found:
                file.write(json.dumps({"task": task.key, "rows": rows}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
