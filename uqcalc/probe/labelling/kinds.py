"""Labels of nearly one kind: a probe learns to say what almost all of them are."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from uqcalc.errors import LabelError, LabelWarning
from uqcalc.probe.labelling.labels import Labels
from uqcalc.quantities import UNITS


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
    unit = UNITS[labels.target]
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
