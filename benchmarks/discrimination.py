"""Compare signals: how well each separates wrong predictions, with how many labels.

The table has the default probe, the published probe, regressions on pooled features,
and the other signals. The splits are at random, by composition and by molecule; further
test sets are of kinds that are not among the labels.

    python benchmarks/discriminating/blocks.py --cache DIR   # potentials and labels
    python benchmarks/discrimination.py --cache DIR          # fits; resumes
    python benchmarks/discrimination.py --cache DIR --kind uqcalc  # the probe alone
    python benchmarks/discrimination.py --cache DIR --kind networks
    python benchmarks/discrimination.py --cache DIR --kind published  # minutes a fit
    python benchmarks/discrimination.py --cache DIR --kind committee
    python benchmarks/discrimination.py --cache DIR --report # table, figures, JSON

The blocks of SevenNet-0 are in developers' data; the first command makes the others.
The report keeps those cells of the last result that DIR does not have.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from discriminating.labelled import Labelled
from discriminating.report import report
from discriminating.rows import KINDS
from discriminating.tasks import Task, all_tasks, opened, run


@lru_cache(maxsize=4)
def _data(block: str, cache: Path) -> Labelled:
    shared = {"random", "composition", "transfer"}
    return opened("sevennet" if block in shared else block, cache)


def _done(task: Task, cache: Path, kind: str) -> tuple[Task, list[dict[str, Any]]]:
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    found = run(task, _data(task.block, cache), kind)
    print(task.key, f"{time.perf_counter() - started:.0f} s", flush=True)
    return task, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--blocks", default="", help="only these, comma-separated")
    parser.add_argument("--labels", default="", help="only these numbers of labels")
    parser.add_argument("--targets", default="", help="only these")
    parser.add_argument("--kind", choices=sorted(KINDS), default="rows")
    parser.add_argument("--report", action="store_true", help="what has been fitted")
    options = parser.parse_args()
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
    job = partial(_done, cache=options.cache, kind=options.kind)
    with (
        multiprocessing.get_context("spawn").Pool(options.workers) as pool,
        log.open("a", encoding="utf-8") as file,
    ):
        for task, rows in pool.imap_unordered(job, wanted):
            file.write(json.dumps({"task": task.key, "rows": rows}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
