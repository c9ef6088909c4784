"""Compare ways to choose the frames that are labelled next.

    python benchmarks/strategies.py make     # repeat until nothing is left
    python benchmarks/strategies.py report

A small MACE of one molecule, trained on GFN2-xTB frames at 300 K, is heated from 300 to
1500 K until and beyond the first alarm. Each strategy chooses 30 frames. The potential
is fine-tuned with their labels, and heated again in 12 new runs. The scores are the
share of frames with a force error above 0.2 eV/Å, and the number of runs that explode.
Each case writes a file into the cache, so a stopped benchmark continues. `report
--before` adds the cases of an earlier report that the cache lacks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uqcalc.models.bundled import import_mace


SEEDS = (0, 1, 2)


def cases() -> list[tuple[int, str, str]]:
    """Return seed, system and strategy of each case, seed by seed."""
    from choosing.runs import STRATEGIES
    from choosing.systems import SYSTEMS

    names = ["none", *STRATEGIES]
    return [(seed, s, name) for seed in SEEDS for s in SYSTEMS for name in names]


def make(
    cache: Path, minutes: float, only: list[str] | None, seeds: Sequence[int]
) -> None:
    """Make the cases that are missing, until the time is spent."""
    from choosing.runs import harvest_of, runs_of
    from choosing.scoring import case
    from choosing.systems import system_of

    begun = time.monotonic()
    for seed, name, strategy in cases():
        if (only and name not in only) or seed not in seeds:
            continue
        folder = cache / name / str(seed)
        path = folder / f"{strategy.replace(' ', '_')}.json"
        if path.is_file():
            continue
        if time.monotonic() - begun > 60 * minutes:
            print("time is spent: repeat the command")
            return
        busy = time.process_time()
        system = system_of(name, cache / name)
        if strategy != "none" and not (folder / "runs.json").is_file():
            _write(folder / "runs.json", runs_of(system, seed, folder))
        found = case(system, seed, strategy, folder)
        if strategy == "harvest":
            found["harvest"] = harvest_of(folder)
        _write(path, found | {"cpu_s": round(time.process_time() - busy, 1)})
        print(json.dumps(found), f"{time.process_time() - busy:.0f} s", flush=True)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial_{path.name}")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("stage", choices=["make", "report"])
    parser.add_argument("--cache", type=Path, default=Path("strategies_cache"))
    parser.add_argument("--minutes", type=float, default=14.0, help="wall-clock time")
    parser.add_argument("--systems", nargs="+", help="only these molecules")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--before", type=Path, help="JSON of an earlier report")
    given = parser.parse_args()
    torch.set_num_threads(1)
    import_mace()
    if given.stage == "make":
        make(given.cache, given.minutes, given.systems, given.seeds)
    else:
        from choosing.report import report

        report(given.cache, given.before)


if __name__ == "__main__":
    main()
