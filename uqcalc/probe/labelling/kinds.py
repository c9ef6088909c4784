"""Labels of nearly one kind: a probe learns to say what almost all of them are."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from uqcalc.errors import LabelError, LabelWarning
from uqcalc.probe.labelling.labels import Labels


FEWEST, FEW, SMALL_SHARE = 5, 30, 0.05
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
    msg = (
        f"labels should hold at least {FEW} structures of each kind and one in twenty, "
        f"but of the training labels {text} at the boundary {boundary:.4g}{rule}: the "
        "probe hardly learns what that kind looks like, and will say the other of what "
        f"it has not seen; add such frames, or choose another boundary (these "
        f"errors suggest {better:.3g})"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)
