"""`certify`: from labelled frames to a probe with a guarantee on its card."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.evaluation.readings import read_structures
from uqcalc.evaluation.regimes import regime_counts
from uqcalc.evaluation.riskcontrol import (
    Starts,
    control_risk,
    exceeds,
    one_of_each,
    risk_bound,
    starting_cutoffs,
    units_needed,
)
from uqcalc.labels.dataset import Dataset, held_out_dataset, labels_for
from uqcalc.labels.defects import check_frames, usable_rows
from uqcalc.labels.groups import BY_FORMULA, group_names, reduced_formula
from uqcalc.labels.labels import Labels
from uqcalc.labels.setchecks import find_series
from uqcalc.probe.probe import Probe, check_probe
from uqcalc.quantities import parse_quantity


_NAMED = 5  # largest number of frames or groups listed in a message
_ALIKE = 2  # mean number of frames per composition from which a warning is given


def certify(  # noqa: PLR0913  (same options as the command)
    probe: Probe,
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels | None = None,
    *,
    tolerance: float | str | None = None,
    risk: float = 0.05,
    confidence: float = 0.95,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
) -> Probe:
    """Return ``probe`` with a guarantee about the structures that it accepts.

    Take one structure from each new group. With probability ``confidence``, at most a
    share ``risk`` of the accepted structures has an error above ``tolerance``. The
    assumptions are in `uqcalc.evaluation.riskcontrol`. The guarantee is stored on the
    card (``card.promise``), and `uqcalc.Policy.from_guarantee` makes a policy from it.

    The same statement is tested in each regime by itself, for the structures with P of
    at least the card's ``suspect`` (`uqcalc.probe.card.RegimeCount`). At 5 % and 95 %
    a regime needs 59 accepted groups, more if some are wrong.
    `uqcalc.probe.validity.validity` gives the result as one sentence.

    Parameters
    ----------
    frames : sequence of Atoms
        Labelled frames that were not used to fit, calibrate or choose the probe. Frames
        of fit and calibration are found by `uqcalc.probe.seen`.
    calculator : ase calculator or Backbone
        The potential of the probe.
    labels : Labels, optional
        Keys of the reference, and ``group_key``: frames of one group are not
        independent. Its boundary is not used.
    tolerance : float or str, optional
        In the unit of the probe's boundary, or a text with a unit such as
        "1 kcal/mol"; by default the boundary.
    risk : float
        Largest share of the accepted structures that may be wrong, from 0 to 1.
    confidence : float
        Probability that the guarantee holds, from 0 to 1.
    exclude : collection of str
        Frames with these defects are left out instead of an error (`build_dataset`).
    cache : path, optional
        Folder that stores the features of this potential, as for `uqcalc.fit`.

    Raises
    ------
    ProbeError
        If the probe was fitted on another backbone.
    LabelError
        If labels are unusable or ask for offsets that the probe lacks; if frames or
        groups were used for the probe; if frames of one run have no group key; if there
        are too few frames. The message then gives the number of groups needed.

    Warns
    -----
    LabelWarning
        If no group key is given although compositions repeat, or the probe has no
        record of its labelled frames.
    """
    check_probe(probe)
    check_frames(frames, exclude)
    wanted = labels_for(probe.card, labels)
    allowed = _allowed(probe, tolerance)
    backbone = tap(calculator)
    probe.check(backbone)
    usable = usable_rows(frames, backbone, wanted, exclude)
    _refuse_early(frames, usable, wanted, units_needed(risk, confidence))
    names = group_names(frames, wanted.group_key, usable)
    _refuse_seen(
        probe, probe.seen.frames(frames, usable), names, wanted.group_key, len(frames)
    )
    _warn_of_groups(probe, [frames[i] for i in usable], wanted.group_key)
    data = held_out_dataset(probe.card, frames, backbone, wanted, exclude, cache)
    return certify_dataset(
        probe, data, tolerance=allowed, risk=risk, confidence=confidence
    )


def _refuse_early(
    frames: Sequence[Atoms], rows: Sequence[int], wanted: Labels, fewest: int
) -> None:
    """Raise LabelError, before any prediction, if frames are dependent or too few."""
    usable = [frames[i] for i in rows]
    if wanted.group_key is None and (series := find_series(usable)):
        msg = (
            "frames must be independent where no group_key is given, got frames of "
            f"{series[0]} that follow each other as those of one run; name the info "
            "entry that identifies the run, and use many runs"
        )
        raise LabelError(msg)
    names = group_names(frames, wanted.group_key, rows)
    key = wanted.group_key
    if key is not None and (series := find_series(usable, names)):
        msg = (
            f"groups must be independent, got groups of one frame by {key!r}, of "
            f"{series[0]}, that follow each other as frames of one run; name the info "
            "entry that identifies the run, and use many runs"
        )
        raise LabelError(msg)
    groups = len(set(names))
    if groups < fewest:
        msg = (
            f"a guarantee like this must rest on at least {fewest} groups (distinct "
            "frames without a group key) even if no structure is wrong, got "
            f"{groups}; label more, or raise the risk"
        )
        raise LabelError(msg)


def _refuse_seen(
    probe: Probe, rows: Sequence[int], names: Sequence[str], key: str | None, total: int
) -> None:
    """Raise LabelError for frames or groups of the probe's own fit or calibration."""
    groups = probe.seen.names(key, names)
    if rows or groups:
        what = [f"{len(rows)} of its own ({_first(rows)})"] if rows else []
        if groups:
            what.append(f"{len(groups)} of its groups by {key!r} ({_first(groups)})")
        msg = (
            f"none of the {total} frames may be among those that the probe was fitted "
            f"or calibrated on, got {' and '.join(what)}; leave them out, and label "
            "others"
        )
        raise LabelError(msg)
    if not len(probe.seen.geometries):
        text = (
            "frames should be compared with those of the fit, but this probe does not "
            "list them (an earlier version or another program wrote it): a guarantee "
            "on frames of the fit is not valid; fit the probe again to be sure"
        )
        warnings.warn(text, LabelWarning, stacklevel=3)


def _first(found: Sequence[int] | Sequence[str]) -> str:
    listed = ", ".join(repr(one) for one in found[:_NAMED])
    noun = "frame" if isinstance(found[0], int) else "group"
    more = ", ..." if len(found) > _NAMED else ""
    return f"{noun}{'' if len(found) == 1 else 's'} {listed}{more}"


def _warn_of_groups(probe: Probe, frames: Sequence[Atoms], key: str | None) -> None:
    """Warn if no group key is given but the frames seem to form groups."""
    if key is not None:
        return
    kinds = len({reduced_formula(frame) for frame in frames})
    own = probe.card.training.get("group_key")
    why = f"{len(frames)} frames have {kinds} compositions"
    if own in BY_FORMULA or (own and all(own in frame.info for frame in frames)):
        why = f"these frames have {own!r}, the group key of the probe's fit"
    elif len(frames) < _ALIKE * kinds:
        return
    text = (
        f"frames that are alike should count as one group, but no group_key is given "
        f"and {why}: if the errors of one molecule, material or run are correlated, "
        "the guarantee fails more often than it states; pass "
        f"group_key={(own or 'formula')!r} (--group), or the info entry that "
        "identifies the group"
    )
    warnings.warn(text, LabelWarning, stacklevel=3)


def _allowed(probe: Probe, tolerance: float | str | None) -> float:
    if tolerance is None:
        return float(probe.card.boundary)
    return parse_quantity(tolerance, probe.card.target, "tolerance")


def certify_dataset(
    probe: Probe,
    data: Dataset,
    *,
    tolerance: float | str | None = None,
    risk: float = 0.05,
    confidence: float = 0.95,
) -> Probe:
    """Add a guarantee as in `certify`, from a dataset with features."""
    card, allowed = probe.card, _allowed(probe, tolerance)
    data.check(card.fingerprint)
    kept = np.empty(0, int) if data.geometries is None else data.geometries
    known = np.flatnonzero(np.isin(kept, probe.seen.geometries)).tolist()
    _refuse_seen(probe, known, data.groups, data.group_key, len(data))
    accepted, wrong = acceptance(probe, data, allowed), exceeds(data.errors, allowed)
    found = control_risk(
        accepted,
        wrong,
        data.groups,
        risk=risk,
        confidence=confidence,
        starts=starts_of(probe, allowed),
    )
    guarantee = replace(
        found,
        tolerance=allowed,
        unit=card.unit,
        boundary=probability_boundary(probe, allowed),
        regimes=regime_counts(data, accepted, wrong, card.suspect, confidence),
    )
    return probe.with_card(promise=guarantee.to_dict())


def guarantee_report(probe: Probe, data: Dataset) -> dict[str, Any] | None:
    """Return how the guarantee of the card holds on labelled structures.

    None without a guarantee. One random structure of each group counts. Entries:
    ``risk`` (largest share of wrong ones that the card guarantees), ``accepted`` and
    ``wrong`` (numbers), ``share``, and ``low`` and ``high``, the 95 % interval of the
    share (Clopper & Pearson 1934); NaN if none is accepted.
    """
    made = probe.card.guarantee
    if made is None or made.tolerance is None:
        return None
    one = data.subset(one_of_each(data.groups))
    accepted = acceptance(probe, one, made.tolerance) >= made.cutoff
    count = int(accepted.sum())
    wrong = int((exceeds(one.errors, made.tolerance) & accepted).sum())
    low, high = (math.nan, math.nan)
    if count:
        high = risk_bound(wrong, count, 0.975)
        low = 1.0 - risk_bound(count - wrong, count, 0.975)
    return {
        "risk": made.risk,
        "accepted": count,
        "wrong": wrong,
        "share": wrong / count if count else math.nan,
        "low": low,
        "high": high,
    }


def starts_of(probe: Probe, tolerance: float) -> Starts | None:
    """Return the starts of the sequence of cutoffs; None if the card lacks them."""
    card, boundary = probe.card, probability_boundary(probe, tolerance)
    if not card.held_out:
        return None
    shift = 0.0
    if boundary != card.boundary:
        shift = card.calibration.shift(boundary, card.unit)
    return partial(starting_cutoffs, card.held_out, shift=shift)


def acceptance(probe: Probe, data: Dataset, tolerance: float) -> NDArray[np.float64]:
    """Return the probability for the acceptance of each structure, (structures,).

    It is P(error <= tolerance) if the probe's calibration covers the tolerance, else P
    at the probe's own boundary: the guarantee holds for any number that ranks the
    structures. It is NaN (never accepted) for structures outside the scope of the probe
    (`StructureReadings.outside`), including structures with elements that the labels
    lack, and for structures with an unreliable atom (`StructureReadings.weak`).
    """
    boundary = probability_boundary(probe, tolerance)
    seen = read_structures(probe, data.predictions, boundary)
    return np.where(seen.outside | seen.weak, np.nan, seen.probability)


def probability_boundary(probe: Probe, tolerance: float) -> float:
    """Return ``tolerance`` if the calibration covers it, else the probe's boundary."""
    known = probe.card.calibration.boundaries
    covered = bool(known) and known[0] <= tolerance <= known[-1]
    return tolerance if covered else probe.card.boundary
