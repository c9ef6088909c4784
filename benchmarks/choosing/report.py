"""Table, differences and JSON of `strategies.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, write_result
from scipy.stats import t as student

from .runs import LABELS, RUNS, STEPS
from .scoring import LIMIT, RUNS as TEST_RUNS


DEFAULT = "spread"  # the method of `uqcalc.select`
COLUMNS = {
    "system": "system",
    "strategy": "strategy",
    "cells": "repeats",
    "labels": "labels",
    "above": "frames above 200 meV/Å",
    "exploded": "runs that explode",
    "median_meV": "median error, meV/Å",
    "chosen_meV": "error on the labels, meV/Å",
}
AGAINST = {
    "strategy": "strategy",
    "cells": "repeats",
    "difference": "more frames above than " + DEFAULT,
    "low": "95 % from",
    "high": "to",
}
HARVESTS = {
    "system": "system",
    "seed": "seed",
    "alarms": "runs with an alarm",
    "kept": "frames kept",
    "full": "runs with a full budget",
    "impossible": "runs ended at an impossible frame",
    "far": "largest novelty, spreads",
    "rank": "Spearman of novelty and true error",
}


def report(cache: Path, before: Path | None = None) -> None:
    """Print the tables and write the JSON.

    With ``before`` (the JSON of an earlier report), its cases and runs are added if the
    cache lacks them.
    """
    cases = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(cache.glob("*/*/*.json"))
        if path.stem != "runs"
    ]
    runs = [
        {"system": path.parts[-3], "seed": int(path.parts[-2]), **run}
        for path in sorted(cache.glob("*/*/runs.json"))
        for run in json.loads(path.read_text(encoding="utf-8"))
    ]
    harvests = [
        {"system": case["system"], "seed": case["seed"], **case["harvest"]}
        for case in cases
        if "harvest" in case
    ]
    notes = []
    if before is not None:
        old = json.loads(before.read_text(encoding="utf-8"))
        earlier = _missing(cases, old["cases"], ("system", "seed", "strategy"))
        cases += earlier
        runs += _missing(runs, old["runs"], ("system", "seed"))
        harvests += _missing(harvests, old["harvests"], ("system", "seed"))
        made = sorted({f"{case['system']} {case['seed']}" for case in earlier})
        notes.append(f"made at {old['versions']['commit']}: {', '.join(made)}")
    names = list(dict.fromkeys(["none", *_strategies()]))
    complete = _complete(cases, names)
    rows = [_row(complete, system, name) for system, name in _pairs(complete, names)]
    print_table("frames above 200 meV/Å", rows, COLUMNS)
    against = [_against(complete, name) for name in names if name != DEFAULT]
    print_table("against the default", against, AGAINST)
    notes += [
        f"{RUNS} runs of {STEPS} fs give the frames, {LABELS} labels, {TEST_RUNS} new "
        f"runs test; a frame counts above {1000 * LIMIT:.0f} meV/Å or if an exploded "
        "run did not reach it",
        "differences are paired by molecule and seed; interval by Student's t",
    ]
    seeds = sorted({case["seed"] for case in complete})
    print_table("harvests", harvests, HARVESTS)
    more = {
        "harvests": harvests,
        "against_default": against,
        "cases": cases,
        "runs": runs,
    }
    write_result("strategies", seeds=seeds, rows=rows, notes=notes, more=more)


def _missing(
    known: list[dict[str, Any]], others: list[dict[str, Any]], keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the other entries with keys that no known entry has."""
    seen = {tuple(one[key] for key in keys) for one in known}
    return [one for one in others if tuple(one[key] for key in keys) not in seen]


def _strategies() -> list[str]:
    from .runs import STRATEGIES

    return list(STRATEGIES)


def _complete(cases: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Return the cases of molecules and seeds for which every strategy was made."""
    cells: dict[tuple[str, int], set[str]] = {}
    for case in cases:
        cells.setdefault((case["system"], case["seed"]), set()).add(case["strategy"])
    whole = {cell for cell, found in cells.items() if found >= set(names)}
    return [case for case in cases if (case["system"], case["seed"]) in whole]


def _pairs(cases: list[dict[str, Any]], names: list[str]) -> list[tuple[str, str]]:
    systems = list(dict.fromkeys(case["system"] for case in cases))
    return [(system, name) for system in [*systems, "all"] for name in names]


def _row(cases: list[dict[str, Any]], system: str, name: str) -> dict[str, Any]:
    mine = [
        case
        for case in cases
        if case["strategy"] == name and system in (case["system"], "all")
    ]
    chosen = [case["error_chosen"] for case in mine if "error_chosen" in case]
    exploded = sum(case["exploded"] for case in mine)
    return {
        "system": system,
        "strategy": name,
        "cells": len(mine),
        "labels": round(float(np.mean([case.get("labelled", 0) for case in mine]))),
        "above": float(np.mean([case["above"] for case in mine])),
        "exploded": f"{exploded} of {TEST_RUNS * len(mine)}",
        "median_meV": round(1000 * float(np.mean([case["median"] for case in mine]))),
        "chosen_meV": round(1000 * float(np.mean(chosen))) if chosen else None,
    }


def _against(cases: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the mean paired difference of the share above, with its interval."""
    shares = {
        which: {
            (case["system"], case["seed"]): case["above"]
            for case in cases
            if case["strategy"] == which
        }
        for which in (name, DEFAULT)
    }
    gaps = [shares[name][cell] - shares[DEFAULT][cell] for cell in shares[DEFAULT]]
    count = len(gaps)
    mean = float(np.mean(gaps))
    half = np.nan
    if count > 1:
        half = float(student.ppf(0.975, count - 1) * np.std(gaps, ddof=1) / count**0.5)
    return {
        "strategy": name,
        "cells": count,
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
    }
