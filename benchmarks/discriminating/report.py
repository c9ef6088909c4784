"""Table, targets and figures from the fitted rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, print_table, target, write_result

from discriminating.figures import draw
from discriminating.rows import KINDS
from discriminating.tasks import MOVING, SHIFTED


Rows = list[dict[str, Any]]
CELL = ("block", "part", "target", "labels", "row")
SCORES = (
    "auroc", "spearman", "aurc", "accuracy", "majority_accuracy", "mcc", "ece",
    "ece_noise_floor", "brier", "outside_scope", "false_trust_outside",
)  # fmt: skip
OURS = "uqcalc"
# Means over seeds of earlier runs fill the cells that this run leaves out.
EARLIER = RESULTS / "discrimination.json"
WANTED = {
    "energy": {250: 0.80, 1000: 0.85, 3900: 0.89},
    "forces": {250: 0.94, 1000: 0.965, 3900: 0.98},
}
COLUMNS = {
    "block": "block",
    "part": "part",
    "target": "label",
    "labels": "labels",
    "row": "row",
    "seeds": "seeds",
    "auroc": "AUROC",
    "auroc_spread": "±",
    "spearman": "Spearman",
    "accuracy": "accuracy",
    "mcc": "MCC",
    "ece": "ECE",
    "ece_noise_floor": "its floor",
    "brier": "Brier",
    "aurc": "AURC",
}


def report(cache: Path) -> None:
    """Print the table and write ``results/discrimination.json`` and its figures."""
    rows = with_earlier(averaged(read(cache)))
    print_table("Discrimination", rows, COLUMNS)
    write_result(
        "discrimination",
        seeds=sorted({seed for row in rows for seed in row.pop("which")}),
        rows=rows,
        targets=targets(rows),
        notes=[
            "AUROC at the median error of the labels; in the blocks transfer, hot, "
            "acac and sio2 at each test set's own median",
            "aurc: area under the risk-coverage curve of the error over that of a "
            "random order",
            "from 1 000 labels on, networks are calibrated on the tenth of the groups "
            "that chose their epoch, not by refits",
            "the committee is three seeds of one training for acac and sio2, the "
            "bundled backbone and two that were trained half as long for molecules and "
            "hot, and SevenNet-0 with CHGNet 0.3.0",
            "the noise floor of the ECE assumes independent structures; frames of one "
            "composition are not, which raises the ECE",
        ],
        more={"shifted": shifted(rows)},
    )
    draw(rows, cache)


def read(cache: Path) -> Rows:
    """Return the rows of all kinds; if two are of one fit, that of the later kind."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for kind in KINDS:
        path = cache / f"{kind}.jsonl"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                for row in json.loads(line)["rows"]:
                    found[(*_cell(row), row["seed"])] = row
    if not found:
        msg = f"no rows in {cache} yet: run the benchmark without --report first"
        raise SystemExit(msg)
    return [*found.values()]


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in CELL)


def averaged(rows: Rows) -> Rows:
    """Return the mean over seeds of each cell, with the spread of the AUROC."""
    cells: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        cells[_cell(row)].append(row)
    done = []
    for key, members in sorted(cells.items(), key=str):
        entry: dict[str, Any] = dict(zip(CELL, key, strict=True))
        entry["seeds"] = len(members)
        entry["which"] = sorted({row["seed"] for row in members})
        for score in SCORES:
            values = [m[score] for m in members if m.get(score) is not None]
            if values and np.isfinite(values).any():
                entry[score] = float(np.nanmean(values))
        spread = [m["auroc"] for m in members]
        entry["auroc_spread"] = (
            float(np.std(spread, ddof=1)) if len(spread) > 1 else None
        )
        done.append(entry)
    return done


def with_earlier(rows: Rows) -> Rows:
    """Add cells of the last result that this run lacks or has with fewer seeds."""
    if not EARLIER.is_file():
        return rows
    cells = {_cell(row): row for row in rows}
    for row in json.loads(EARLIER.read_text(encoding="utf-8"))["rows"]:
        known = cells.get(_cell(row))
        if known is None or known["seeds"] < row["seeds"]:
            cells[_cell(row)] = row | {"which": [], "earlier": True}
    return [cells[key] for key in sorted(cells, key=str)]


def shifted(rows: Rows) -> Rows:
    """Return the mean of each row over the shifted blocks."""
    cells: dict[str, Rows] = defaultdict(list)
    for row in rows:
        if row["block"] in SHIFTED and row["target"] != "atoms":
            cells[row["row"]].append(row)
    most = max((len(members) for members in cells.values()), default=0)
    return [
        {
            "row": name,
            "cells": len(members),
            "seeds": min(member["seeds"] for member in members),
        }
        | {
            score: float(np.nanmean([m.get(score, np.nan) for m in members]))
            for score in ("auroc", "spearman", "aurc")
        }
        for name, members in sorted(cells.items())
        if len(members) == most
    ]


def targets(rows: Rows) -> list[dict[str, Any]]:
    """Return the targets of the project, and whether they are met."""
    found = []
    groups: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        if row["block"] not in SHIFTED and row["part"] != MOVING:
            key = (row["block"], row["target"], row["labels"])
            groups[key].append(row)
    for (block, kind, labels), members in groups.items():
        ours = _ours(members)
        if ours is None:
            continue
        best = max(m["auroc"] for m in members if m["row"] != OURS)
        name = f"{block}, {kind}, {labels} labels"
        found.append(
            target(f"AUROC, {name}, against the best other row + 0.01",
                   ours["auroc"], best + 0.01, at_most=False)
        )  # fmt: skip
        if block == "random" and labels in WANTED.get(kind, {}):
            wanted = WANTED[kind][labels]
            found.append(target(f"AUROC, {name}", ours["auroc"], wanted, at_most=False))
        if "ece" in ours:
            found.append(
                target(f"ECE above its floor, {name}",
                       ours["ece"] - ours["ece_noise_floor"], 0.01)
            )  # fmt: skip
    found += _shifted_targets(shifted(rows))
    return found


def _shifted_targets(means: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ours = next((m for m in means if m["row"] == OURS), None)
    if ours is None:
        return []
    others = [m for m in means if m["row"] != OURS]
    return [
        target(f"mean {score} over shifted blocks, against the best other row",
               ours[score], max(m[score] for m in others), at_most=False)
        for score in ("auroc", "spearman")
    ] + [
        target("mean AURC over shifted blocks, against the best other row",
               ours["aurc"], min(m["aurc"] for m in others))
    ]  # fmt: skip


def _ours(members: Rows) -> dict[str, Any] | None:
    return next((m for m in members if m["row"] == OURS), None)
