"""Learn the limit on the mean distance of a shipped probe again; P stays the same.

The scope of a probe is an entry of its card. The shipped probes were fitted when the
limit on the mean distance was one number. This module gives them a limit that follows
the number of elements (`uqcalc.probe.scope.element_slope`), without a new fit.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import torch

import uqcalc
from uqcalc.evaluation.readings import read_structures
from uqcalc.fitting.leftout import left_out_distances
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.scope import element_slope, tail_limit


def with_mean_limit(probe: uqcalc.Probe, data: Dataset) -> uqcalc.Probe:
    """Return the probe with a limit on the mean distance by number of elements.

    The slope is that of the labels which are right and have a P of RELIABLE. This P is
    the one of the finished probe, so more labels seem well judged than in the fit,
    where P came from left-out groups, and limits learned from them alone would be
    wider. So the new limit keeps the share of these labels, by groups, that lies
    within the old limit: it changes which structures are outside, not how many. The
    limit on the largest distance and those on sizes stay. A guarantee is dropped,
    because other structures are accepted.

    Parameters
    ----------
    probe : Probe
    data : Dataset
        The labels of its fit.

    Raises
    ------
    ValueError
        If the probe has no limit on the mean distance.
    """
    card, scope = probe.card, probe.card.scope
    if scope is None or scope.mean_distance is None:
        msg = f"probe must have a limit on the mean distance, got the scope {scope}"
        raise ValueError(msg)
    data = data.subset(np.flatnonzero(~data.exploded()))
    _, mean_log, elements = left_out_distances(data)
    said = read_structures(probe, data.predictions).probability
    judged = (data.errors <= card.boundary) & (said >= card.suspect)
    rows = np.flatnonzero(judged & np.isfinite(mean_log))
    mean_log, elements = mean_log[rows], elements[rows]
    groups = [data.groups[i] for i in rows]
    old = scope.as_of_one_element(*map(torch.from_numpy, (mean_log, elements))).numpy()
    inside = old <= math.log(scope.mean_distance)
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    share = float(np.average(inside, weights=1 / counts[place]))
    slope = element_slope(mean_log, elements, groups)
    limit = tail_limit(mean_log - slope * np.log(elements), groups, share)
    learned = replace(
        scope,
        mean_distance=math.exp(limit),
        mean_slope=slope,
        element_counts=(int(elements.min()), int(elements.max())),
    )
    print(
        f"{card.target}: {len(rows)} well judged labels in {len(counts)} groups, "
        f"{share:.1%} within the old limit {scope.mean_distance:.3g}; slope "
        f"{slope:.2f}, limits {learned.mean_limits} for {learned.element_counts}"
    )
    return probe.with_card(
        scope=learned, promise=None, schema=max(card.schema, _BY_ELEMENTS)
    )


_BY_ELEMENTS = 9  # schema of a card with such a limit

if __name__ == "__main__":
    sys.exit("read by fit_probe.py; run that script with --scope")
