"""Spearman's r_s of each signal with the true error, by block and pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uqcalc.statistics import scores


SIGNALS = ("force_delta", "committee", "latent distance", "largest force")
RESAMPLES = 200
NO_FORCE = 1e-3  # eV/Å: any potential is right if forces vanish by symmetry
Readings = Mapping[str, np.ndarray]


def rows(
    potential: str,
    blocks: Mapping[str, Readings],
    groups: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Return a row for each block, for all pooled, and for the mean over blocks.

    Structures with elements that are not in the fit of the head (NaN), and those in
    which the forces of the potential vanish, are counted apart. All signals are
    compared on the others. ``unseen as worst`` ranks structures with unseen elements as
    the worst.
    """
    lines = [_row(potential, name, block) for name, block in blocks.items()]
    pooled = {
        key: np.concatenate([block[key] for block in blocks.values()])
        for key in next(iter(blocks.values()))
    }
    mean: dict[str, Any] = {
        "potential": potential,
        "block": "mean over blocks",
        "structures": sum(line["structures"] for line in lines),
    }
    for name in (*SIGNALS, "unseen as worst"):
        if name in lines[0]:
            mean[name] = float(np.mean([line[name] for line in lines]))
    for other in SIGNALS[1:]:
        if other in lines[0]:
            low, high = _interval(blocks, groups, other)
            mean[f"force_delta minus {other}, 95 %"] = [low, high]
    return [*lines, _row(potential, "all pooled", pooled), mean]


def mean_rank(blocks: Mapping[str, Readings], signal: str) -> float:
    """Return the mean over blocks of Spearman's r_s of one signal."""
    some = [known(block) for block in blocks.values()]
    return float(np.mean([scores.spearman(b["error"], b[signal]) for b in some]))


def known(block: Readings) -> dict[str, np.ndarray]:
    """Return the readings of the structures of the comparison."""
    return _only(block, compared(block))


def compared(block: Readings) -> np.ndarray:
    """Return which structures have forces and no unseen element."""
    return np.isfinite(block["force_delta"]) & _pushed(block)


def _pushed(block: Readings) -> np.ndarray:
    pushed: np.ndarray = block["largest force"] > NO_FORCE
    return pushed


def _only(block: Readings, chosen: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[chosen] for name, values in block.items()}


def _row(potential: str, name: str, block: Readings) -> dict[str, Any]:
    some = known(block)
    line: dict[str, Any] = {
        "potential": potential,
        "block": name,
        "structures": len(some["error"]),
        "unseen elements": int(np.isnan(block["force_delta"]).sum()),
        "no force": int((~_pushed(block)).sum()),
        "median error": float(np.median(some["error"])),
        "median force_delta": float(np.median(some["force_delta"])),
        "median of U over own force": float(
            np.median(some["force_delta"] / some["own force"])
        ),
    }
    for signal in SIGNALS:
        if signal in some:
            line[signal] = scores.spearman(some["error"], some[signal])
    pushed = _only(block, _pushed(block))
    worst = np.nan_to_num(pushed["force_delta"], nan=1e9)
    line["unseen as worst"] = scores.spearman(pushed["error"], worst)
    return line


def _interval(
    blocks: Mapping[str, Readings], groups: Mapping[str, Sequence[str]], other: str
) -> tuple[float, float]:
    """Return the central 95 % of the mean difference, groups drawn with repetition."""
    rng = np.random.default_rng(0)
    differences = np.zeros((RESAMPLES, len(blocks)))
    for column, (name, block) in enumerate(blocks.items()):
        some = known(block)
        own = np.asarray(groups[name])[compared(block)]
        members = [np.flatnonzero(own == group) for group in np.unique(own)]
        for row in range(RESAMPLES):
            drawn = rng.integers(len(members), size=len(members))
            chosen = np.concatenate([members[i] for i in drawn])
            error = some["error"][chosen]
            first, second = (some[key][chosen] for key in ("force_delta", other))
            ranks = scores.spearman(error, first), scores.spearman(error, second)
            differences[row, column] = ranks[0] - ranks[1]
    low, high = np.nanquantile(differences.mean(axis=1), (0.025, 0.975))
    return float(low), float(high)
