"""What dooms a probe, said before any work is done."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.errors import LabelWarning
from uqcalc.probe.labelling.groups import group_names, reduced_formula
from uqcalc.probe.labelling.labels import Labels


FEWEST_STRUCTURES = 200
FEWEST_GROUPS = 10
# Below it P of further groups is less well known than the structures seem to say:
# benchmarks/few_groups.py.
ENOUGH_GROUPS = 30
# A series: this many frames of one composition, neighbours this much closer.
_FEWEST_IN_SERIES = 20
_CLOSER = 0.75
_MOST_IN_SERIES = 500  # more frames would not change the answer
_SHUFFLES = 20


def warn_of_prospects(frames: Sequence[Atoms], labels: Labels) -> None:
    """Warn, before any prediction, of what a probe of these frames will suffer from.

    Parameters
    ----------
    frames : sequence of Atoms
        All that a probe is to be fitted, calibrated and tested on.
    labels : Labels

    Raises
    ------
    LabelError
        If a frame lacks the group key.

    Warns
    -----
    LabelWarning
        Of few structures, few groups, one composition only, and frames of one run (or
        of one composition) without a group key; each a warning of its own.
    """
    if not frames:
        return
    for text in (
        _few_structures(len(frames)),
        _few_groups(group_names(frames, labels.group_key), labels.group_key),
        _one_composition(frames),
        _together(frames) if labels.group_key is None else None,
    ):
        if text is not None:
            warnings.warn(text, LabelWarning, stacklevel=3)


def find_series(frames: Sequence[Atoms]) -> list[str]:
    """Return the formulas whose frames follow each other as those of one run do.

    Among frames of the same atoms in the same order, the median distance of
    neighbours in the file is held against the same median after shuffling: for
    independent frames the two are alike, in a run, a scan or a relaxation neighbours
    are closer. Frames shuffled, or further apart than the run remembers, pass.
    """
    members: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        members[frame.numbers.tobytes(), frame.pbc.tobytes()].append(index)
    return [
        str(frames[rows[0]].symbols.formula.format("hill"))
        for rows in members.values()
        if len(rows) >= _FEWEST_IN_SERIES
        and _in_series([frames[i] for i in rows[:_MOST_IN_SERIES]])
    ]


def _few_structures(count: int) -> str | None:
    if count >= FEWEST_STRUCTURES:
        return None
    return (
        f"a probe should have at least {FEWEST_STRUCTURES} labelled structures, got "
        f"{count}: it will know little, and its report will be rough; label more"
    )


def _few_groups(groups: Sequence[str], key: str | None) -> str | None:
    count = len(set(groups))
    if key is None or count >= ENOUGH_GROUPS:
        return None
    if count >= FEWEST_GROUPS:
        return (
            f"labels should come in at least {ENOUGH_GROUPS} groups, got {count} by "
            f"{key!r}: frames of one group are right or wrong together, so what P is "
            "for further groups is less well known than so many frames seem to say; "
            "add groups"
        )
    if count == 1:
        return (
            f"labels should come in at least {FEWEST_GROUPS} groups, got one molecule "
            f"only ({key} {groups[0]!r}): nothing can be held back for calibration and "
            "test; add others, or name what divides these frames as group_key"
        )
    return (
        f"labels should come in at least {FEWEST_GROUPS} groups, got {count} by "
        f"{key!r}: calibration and test rest on one or two each, so the report is "
        "rough; add groups"
    )


def _one_composition(frames: Sequence[Atoms]) -> str | None:
    if len(frames) == 1 or len({reduced_formula(frame) for frame in frames}) > 1:
        return None
    return (
        "labels should cover what the probe will see, got one molecule only "
        f"({reduced_formula(frames[0])}): the probe will know that one and no other"
    )


def _together(frames: Sequence[Atoms]) -> str | None:
    """Say which frames a random split would tear apart."""
    if series := find_series(frames):
        return (
            f"frames of one run should stay together, but {series[0]} has frames that "
            "follow each other and no group_key is given: frames of one run among both "
            "training and test flatter the report; name as group_key (--group) the "
            "info entry that tells runs, or blocks of one run, apart"
        )
    kinds = len({reduced_formula(frame) for frame in frames})
    if kinds == 1 or len(frames) < 2 * kinds:
        return None
    return (
        f"frames that are alike should stay together, but {len(frames)} frames have "
        f"{kinds} compositions and no group_key is given: with one composition among "
        "both training and test the report says little of new ones; pass "
        "group_key='formula' (--group formula), or the info entry that tells them apart"
    )


def _in_series(frames: Sequence[Atoms]) -> bool:
    positions = np.array([frame.positions for frame in frames])
    cell = np.mean([frame.cell.array for frame in frames], axis=0)
    pbc = np.asarray(frames[0].pbc)
    rng = np.random.default_rng(0)
    order = np.arange(len(frames))
    neighbours = _median_step(positions[order], cell, pbc)
    shuffled = [
        _median_step(positions[rng.permutation(order)], cell, pbc)
        for _ in range(_SHUFFLES)
    ]
    return neighbours < _CLOSER * min(shuffled)


def _median_step(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> float:
    """Return the median RMS displacement from each frame to the next in Å."""
    steps = np.diff(positions, axis=0)
    if pbc.any():
        fractions = steps @ np.linalg.pinv(cell)
        steps = steps - (np.round(fractions) * pbc) @ cell
    steps = steps - steps.mean(axis=1, keepdims=True)
    return float(np.median(np.sqrt((steps**2).sum(axis=2).mean(axis=1))))
