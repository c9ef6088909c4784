"""Labels that no useful probe can come of: too few, all of one kind, of one run."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.errors import LabelError, LabelWarning
from uqcalc.labels.groups import group_names, reduced_formula
from uqcalc.labels.labels import Labels
from uqcalc.targets import TARGETS


FEWEST, FEW, SMALL_SHARE = 5, 30, 0.05
# A default boundary that is fewer medians than this lies among errors that are all
# alike, as those of runs at one temperature are: a choice (ethanol, labels at 300 to
# 1500 K: 1.7 to 1.8 medians; a log-normal spread of 0.25: 1.4).
_ALIKE = 1.5
_BALANCED = 0.25  # few labels in all have a warning of their own


def few_of_a_kind(reliable: NDArray[np.bool_]) -> str:
    """Say which kind has few labels; nothing where there are enough of both."""
    total = len(reliable)
    right = int(np.sum(reliable))
    count, kind = min((right, "reliable"), (total - right, "unreliable"))
    share = count / max(total, 1)
    if share >= SMALL_SHARE and (count >= FEW or share >= _BALANCED):
        return ""
    return f"{count} of {total} are {kind}"


def refuse_one_kind(errors: NDArray[np.float64], boundary: float) -> None:
    """Refuse training labels of which fewer than 5 are of the rarer kind.

    Raises
    ------
    LabelError
        With the range of the errors, to choose another boundary from.
    """
    right = int(np.sum(errors <= boundary))
    if min(right, len(errors) - right) >= FEWEST:
        return
    low, middle, high = np.percentile(errors, (0, 50, 100))
    msg = (
        f"training labels must hold at least {FEWEST} reliable and {FEWEST} unreliable "
        f"structures, got {right} of {len(errors)} within {boundary:.4g} (errors from "
        f"{low:.3g} to {high:.3g}, median {middle:.3g}); choose another boundary, or "
        "add frames that reach further"
    )
    raise LabelError(msg)


def refuse_alike(errors: NDArray[np.float64], boundary: float, labels: Labels) -> None:
    """Refuse a default boundary that lies among errors which are all alike.

    Frames of sound runs lie on both sides of it, and a monitor would halt such runs.
    A boundary or a percentile that is given is taken as it is.

    Raises
    ------
    LabelError
        With the smallest boundary that sound runs would keep, by these labels.
    """
    middle, high = np.percentile(errors, (50, 100))
    chosen = labels.boundary is not None or labels.percentile is not None
    if chosen or boundary >= _ALIKE * middle:
        return
    unit = TARGETS[labels.target].unit
    msg = (
        "errors of the training labels must spread for a boundary to be chosen from "
        f"them, got {middle:.3g} {unit} at the median, {boundary:.3g} where the few "
        f"largest begin and {high:.3g} at most: they are all alike, and a boundary "
        "among them would halt sound runs; add frames on which the potential fails "
        "(hotter runs, stretched bonds) and name the error you can live with, such "
        f"as boundary={3 * middle:.2g}, or pass percentile=50 for a probe that ranks "
        "and watches no runs"
    )
    raise LabelError(msg)


def warn_of_one_kind(
    errors: NDArray[np.float64], boundary: float, labels: Labels
) -> None:
    """Warn where one kind has fewer than 30 labels, or less than one in twenty.

    Warns
    -----
    LabelWarning
    """
    if not (text := few_of_a_kind(errors <= boundary)):
        return
    better = replace(labels, boundary=None, percentile=None).chosen_boundary(errors)
    rule = f" ({labels.boundary_rule})" if labels.boundary_rule else ""
    apart = better >= _ALIKE * float(np.median(errors))
    other = f"choose another boundary (these errors suggest {better:.3g})"
    msg = (
        f"labels should hold at least {FEW} structures of each kind and one in twenty, "
        f"but of the training labels {text} at the boundary {boundary:.4g}{rule}: the "
        "probe hardly learns what that kind looks like, and will say the other of what "
        f"it has not seen; add such frames{', or ' + other if apart else ''}"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)


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
