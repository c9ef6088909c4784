"""Checks for labels that give a poor probe: too few, of one class, of one run."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.errors import LabelError, LabelWarning
from uqcalc.labels.groups import group_names, reduced_formula
from uqcalc.labels.labels import Labels
from uqcalc.showing import in_words
from uqcalc.targets import TARGETS


FEWEST, FEW, SMALL_SHARE = 5, 30, 0.05
# If a default boundary is below this many medians, all errors are similar, as in runs
# at one temperature. This is a choice (ethanol, labels at 300 to 1500 K: 1.7 to 1.8
# medians; log-normal errors with a spread of 0.25: 1.4).
_ALIKE = 1.5
_BALANCED = 0.25  # share that suffices for any count: few labels have another warning


def rare_class(reliable: NDArray[np.bool_]) -> str:
    """Return which class has few labels, as text; empty if both have enough."""
    total = len(reliable)
    right = int(np.sum(reliable))
    count, name = min((right, "reliable"), (total - right, "unreliable"))
    share = count / max(total, 1)
    if share >= SMALL_SHARE and (count >= FEW or share >= _BALANCED):
        return ""
    return f"{count} of {total} are {name}"


def check_both_classes(
    errors: NDArray[np.float64], boundary: float, unit: str = ""
) -> None:
    """Check that at least 5 training labels are of each class.

    Raises
    ------
    LabelError
        If not. The message gives the range of the errors, for another boundary.
    """
    right = int(np.sum(errors <= boundary))
    if min(right, len(errors) - right) >= FEWEST:
        return
    found = (boundary, *np.percentile(errors, (0, 50, 100)))
    text, low, middle, high = (in_words(x, unit, digits=3) for x in found)
    msg = (
        f"training labels must have at least {FEWEST} reliable and {FEWEST} unreliable "
        f"structures, got {right} of {len(errors)} within {text} (errors from "
        f"{low} to {high}, median {middle}); choose another boundary, or "
        "add frames of the rarer class"
    )
    raise LabelError(msg)


def check_spread_of_errors(
    errors: NDArray[np.float64], boundary: float, labels: Labels
) -> None:
    """Check that the default boundary is well above the median error.

    If all errors are similar, good runs have frames on both sides of the boundary, and
    a monitor would stop them. A given boundary or percentile is not checked.

    Raises
    ------
    LabelError
        If the boundary is below 1.5 medians. The message suggests a boundary.
    """
    middle, high = np.percentile(errors, (50, 100)).tolist()
    chosen = labels.boundary is not None or labels.percentile is not None
    if chosen or boundary >= _ALIKE * middle:
        return
    unit = TARGETS[labels.target].unit
    given, half, most = (in_words(x, unit, digits=3) for x in (boundary, middle, high))
    enough = in_words(3 * middle, unit, digits=2)
    msg = (
        "default boundary must be at least "
        f"{_ALIKE:g} times the median error of the training labels, got "
        f"{given} with the median {half} and the maximum "
        f"{most}: all errors are similar, and such a boundary halts good runs; add "
        "frames with large errors (hotter runs, stretched bonds) and choose the "
        f"largest error that you accept, for example boundary={enough!r}, or "
        "percentile=50 for a probe that ranks structures and does not monitor runs"
    )
    raise LabelError(msg)


def warn_of_rare_class(
    errors: NDArray[np.float64], boundary: float, labels: Labels
) -> None:
    """Warn if few labels are of one class.

    Warns
    -----
    LabelWarning
        If one class has less than 5 % of the labels, or fewer than 30 labels and less
        than 25 %.
    """
    if not (text := rare_class(errors <= boundary)):
        return
    better = replace(labels, boundary=None, percentile=None).chosen_boundary(errors)
    rule = f" ({labels.boundary_rule})" if labels.boundary_rule else ""
    apart = better >= _ALIKE * float(np.median(errors))
    unit = TARGETS[labels.target].unit
    suggested = in_words(better, unit, digits=3)
    other = f"choose another boundary (these errors suggest {suggested})"
    msg = (
        f"labels should have at least {FEW} structures and {SMALL_SHARE:.0%} of each "
        f"class, but of the training labels {text} at the boundary "
        f"{in_words(boundary, unit)}{rule}: the probe learns little about this class "
        "and often predicts the other one; add frames of this class"
        f"{', or ' + other if apart else ''}"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)


FEWEST_STRUCTURES = 200
FEWEST_GROUPS = 10
FEWEST_RUNS = 5  # of labels that are added to a prior
# With fewer groups, P of new groups is less certain than the number of structures
# suggests (benchmarks/few_groups.py).
ENOUGH_GROUPS = 30
# A series has at least this many frames of one composition, and its median step is
# below this multiple of the median step of shuffled frames.
_FEWEST_IN_SERIES = 20
_CLOSER = 0.75
_MOST_IN_SERIES = 500  # frames that suffice for the test
_SHUFFLES = 20


def warn_of_weak_set(
    frames: Sequence[Atoms], labels: Labels, *, added: bool = False
) -> None:
    """Warn, before any prediction, if these frames are likely to give a poor probe.

    Parameters
    ----------
    frames : sequence of Atoms
        All frames for fit, calibration and test.
    labels : Labels
    added : bool
        Whether they are added to a prior: they may be few, of few groups and of one
        composition.

    Raises
    ------
    LabelError
        If a frame lacks the group key.

    Warns
    -----
    LabelWarning
        One warning for each of: few structures, few groups, one composition only,
        frames of one run (or of one composition) without a group key.
    """
    if not frames:
        return
    groups, key = group_names(frames, labels.group_key), labels.group_key
    texts = [_few_runs(groups, key)]
    if not added:
        of_groups = _few_groups(groups, key)
        texts = [_few_structures(len(frames)), of_groups, _one_composition(frames)]
    texts.append(
        _ungrouped(frames, added=added) if key is None else _split(frames, groups, key)
    )
    for text in texts:
        if text is not None:
            warnings.warn(text, LabelWarning, stacklevel=3)


def find_series(
    frames: Sequence[Atoms], groups: Sequence[str] | None = None
) -> list[str]:
    """Return the formulas whose consecutive frames are correlated, as in one run.

    With ``groups``, (frames,), only frames that are alone in their group are compared:
    a key that differs in each frame, such as a frame number, does not identify a run.

    For frames with the same atoms in the same order, the median RMS displacement
    between neighbours in the file is compared with the same median after shuffling.
    For independent frames the two are similar. In a run, a scan or a relaxation,
    neighbours are closer. Shuffled frames, and frames further apart than the
    correlation time of a run, are not found.
    """
    members: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    alone = Counter(groups or ())
    for index, frame in enumerate(frames):
        if groups is not None and alone[groups[index]] > 1:
            continue
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
        f"{count}: its probabilities and its scores are uncertain; add labels"
    )


def _few_groups(groups: Sequence[str], key: str | None) -> str | None:
    count = len(set(groups))
    if key is None or count >= ENOUGH_GROUPS:
        return None
    if count >= FEWEST_GROUPS:
        return (
            f"labels should have at least {ENOUGH_GROUPS} groups, got {count} by "
            f"{key!r}: the errors of one group are correlated, so P of new groups is "
            "less certain than the number of frames suggests; add groups"
        )
    if count == 1:
        return (
            f"labels should have at least {FEWEST_GROUPS} groups, got one group only "
            f"({key} {groups[0]!r}): no group is left for calibration and test; add "
            "groups, or choose a group_key that divides these frames"
        )
    return (
        f"labels should have at least {FEWEST_GROUPS} groups, got {count} by "
        f"{key!r}: calibration and test have one or two groups each, so the scores are "
        "uncertain; add groups"
    )


def _one_composition(frames: Sequence[Atoms]) -> str | None:
    if len(frames) == 1 or len({reduced_formula(frame) for frame in frames}) > 1:
        return None
    return (
        "labels should have several compositions, got one composition only "
        f"({reduced_formula(frames[0])}): the probe learns this composition only; add "
        "the other compositions that you will simulate"
    )


def _few_runs(groups: Sequence[str], key: str | None) -> str | None:
    count = len(set(groups))
    if key is None or count >= FEWEST_RUNS:
        return None
    return (
        f"labels that are added to a prior should be of at least {FEWEST_RUNS} runs, "
        f"got {count} by {key!r}: the errors of one run are correlated, and the "
        "correction is chosen and calibrated on left-out runs; add runs"
    )


def _ungrouped(frames: Sequence[Atoms], *, added: bool) -> str | None:
    """Return a warning if a random split would separate frames that belong together."""
    if series := find_series(frames):
        return (
            "frames of one run should be in one group, but consecutive frames of "
            f"{series[0]} are correlated and no group_key is given: with frames of one "
            "run in training and test, the scores are too good; choose as group_key "
            "(--group) the info entry that names the run, or a block of a run"
        )
    kinds = len({reduced_formula(frame) for frame in frames})
    if added or kinds == 1 or len(frames) < 2 * kinds:
        return None
    return (
        f"similar frames should be in one group, but {len(frames)} frames have {kinds} "
        "compositions and no group_key is given: with one composition in training and "
        "test, the scores do not hold for new compositions; choose "
        "group_key='formula' (--group formula), or the info entry that names the group"
    )


def _split(frames: Sequence[Atoms], groups: Sequence[str], key: str) -> str | None:
    """Return a warning if the key seems to differ in each frame of a run."""
    if not (series := find_series(frames, groups)):
        return None
    return (
        "frames of one run should be in one group, but consecutive frames of "
        f"{series[0]} are correlated and each is a group of its own by {key!r}: with "
        "frames of one run in training and test, the scores are too good; choose as "
        "group_key (--group) the info entry that names the run, or a block of a run"
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
    """Return the median RMS displacement between consecutive frames, in Å."""
    steps = np.diff(positions, axis=0)
    if pbc.any():
        fractions = steps @ np.linalg.pinv(cell)
        steps = steps - (np.round(fractions) * pbc) @ cell
    steps = steps - steps.mean(axis=1, keepdims=True)
    return float(np.median(np.sqrt((steps**2).sum(axis=2).mean(axis=1))))
