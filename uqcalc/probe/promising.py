"""`calibrate`: labelled frames in, a probe with a promise on its card out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.probe.checkpoint import Probe
from uqcalc.probe.dataset import Dataset
from uqcalc.probe.labelling.defects import check_frames, usable_rows
from uqcalc.probe.labelling.groups import group_names
from uqcalc.probe.labelling.heldout import held_out_dataset, labels_for
from uqcalc.probe.labelling.labels import Labels
from uqcalc.probe.labelling.prospects import find_series
from uqcalc.probe.promise import control_risk, exceeds, units_needed
from uqcalc.probe.reporting.judged import judge
from uqcalc.quantities import parse_quantity


def calibrate(  # noqa: PLR0913  (as many choices as the command has)
    probe: Probe,
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels | None = None,
    *,
    tolerance: float | str | None = None,
    risk: float = 0.05,
    confidence: float = 0.95,
    exclude: Collection[str] = (),
) -> Probe:
    """Return ``probe`` with a promise about the structures that it accepts.

    With probability ``confidence``, at most a share ``risk`` of the accepted errs by
    more than ``tolerance``; see `uqcalc.probe.promise.control_risk` for what that
    rests on. It is on the card of the probe (``card.promise``).

    Parameters
    ----------
    frames : sequence of Atoms
        Labelled, and none of those the probe was fitted, calibrated or chosen on.
    calculator : ase calculator or Backbone
        The potential that the probe belongs to.
    labels : Labels, optional
        Where the reference is, and by ``group_key`` which frames are not independent
        of each other; its boundary is not looked at.
    tolerance : float or str, optional
        In the unit of the probe's boundary, or with a unit of its own such as
        "1 kcal/mol"; by default the boundary.
    exclude : collection of str
        Defects of frames to leave out instead of refusing (see `build_dataset`).

    Raises
    ------
    ProbeError
        If the probe belongs to another backbone.
    LabelError
        For unusable labels, offsets that the probe has not, frames of one run that no
        group key keeps together, or too few frames for such a promise; it says how many
        would do.

    Examples
    --------
    >>> probe = uqcalc.calibrate(  # doctest: +SKIP
    ...     probe, frames, calculator, uqcalc.Labels(group_key="molecule"),
    ...     tolerance="50 meV/angstrom",
    ... )
    >>> print(uqcalc.Promise.from_dict(probe.card.promise))  # doctest: +SKIP
    """
    check_frames(frames, exclude)
    wanted = labels_for(probe.card, labels)
    allowed = _allowed(probe, tolerance)
    backbone = tap(calculator)
    probe.check(backbone)
    usable = usable_rows(frames, backbone, wanted, exclude)
    _refuse_early(frames, usable, wanted, units_needed(risk, confidence))
    data = held_out_dataset(probe.card, frames, backbone, wanted, exclude)
    return calibrate_dataset(
        probe, data, tolerance=allowed, risk=risk, confidence=confidence
    )


def _refuse_early(
    frames: Sequence[Atoms], rows: Sequence[int], wanted: Labels, fewest: int
) -> None:
    """Refuse, before any prediction, what no promise can rest on."""
    usable = [frames[i] for i in rows]
    if wanted.group_key is None and (series := find_series(usable)):
        msg = (
            "frames must be independent where no group_key is given, got frames of "
            f"{series[0]} that follow each other as those of one run; name the info "
            "entry that tells runs apart, and use many runs"
        )
        raise LabelError(msg)
    groups = len(set(group_names(frames, wanted.group_key, rows)))
    if groups < fewest:
        msg = (
            f"a promise like this must rest on at least {fewest} groups (distinct "
            "frames without a group key) even if the probe never errs, got "
            f"{groups}; label more, or raise the risk"
        )
        raise LabelError(msg)


def _allowed(probe: Probe, tolerance: float | str | None) -> float:
    if tolerance is None:
        return float(probe.card.boundary)
    return parse_quantity(tolerance, probe.card.target, "tolerance")


def calibrate_dataset(
    probe: Probe,
    data: Dataset,
    *,
    tolerance: float | str | None = None,
    risk: float = 0.05,
    confidence: float = 0.95,
) -> Probe:
    """Do what `calibrate` does, from a dataset whose features are there already."""
    card, allowed = probe.card, _allowed(probe, tolerance)
    data.check(card.fingerprint)
    found = control_risk(
        acceptance(probe, data, allowed),
        exceeds(data.errors, allowed),
        data.groups,
        risk=risk,
        confidence=confidence,
    )
    promise = replace(
        found,
        tolerance=allowed,
        unit=card.unit,
        boundary=probability_boundary(probe, allowed),
    )
    return probe.with_card(promise=promise.to_dict())


def acceptance(probe: Probe, data: Dataset, tolerance: float) -> NDArray[np.float64]:
    """Return what structures are accepted by, (structures,); NaN is not accepted.

    P(error <= tolerance) where the probe's calibration covers the tolerance, and else
    its probability at its own boundary: a promise holds for any number that ranks them.
    Structures outside the scope of the probe (`Judged.outside`), those with elements
    that its labels lacked among them, are never accepted.
    """
    boundary = probability_boundary(probe, tolerance)
    seen = judge(probe, data.predictions, boundary)
    return np.where(seen.outside, np.nan, seen.probability)


def probability_boundary(probe: Probe, tolerance: float) -> float:
    """Return ``tolerance`` where the probe can answer for it, else its own boundary."""
    known = probe.card.calibration.boundaries
    covered = bool(known) and known[0] <= tolerance <= known[-1]
    return tolerance if covered else probe.card.boundary
