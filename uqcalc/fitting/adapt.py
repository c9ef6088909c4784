"""`adapt`: fit a probe's probabilities to one system, with ten to a hundred labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.special import expit

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError, LabelWarning, ProbeError
from uqcalc.labels.dataset import Dataset, held_out_dataset, labels_for
from uqcalc.labels.defects import check_frames, usable_rows
from uqcalc.labels.groups import group_names
from uqcalc.labels.labels import Labels
from uqcalc.labels.setchecks import find_series
from uqcalc.labels.shards import evenly
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.probe import Probe, check_probe
from uqcalc.probe.scope import FAR, Scope, held_out_limit
from uqcalc.probe.seen import Seen
from uqcalc.statistics.systems import (
    ASSUMED,
    Posterior,
    Residuals,
    Spread,
    compare_places,
    learn_runs,
    learn_system_spread,
    posterior,
    residuals,
)


FEWEST = 5
# Groups with fewer structures, or fewer groups, do not show how far systems differ.
_FEWEST_OF_SYSTEM, _FEWEST_SYSTEMS = 5, 10
_MOST_OF_SYSTEM, _MOST_SYSTEMS = 50, 300
_MOST_ATOMS = 2000  # atoms in the fit of the atoms' calibration
_FAR = 4.0  # in scales of the spread over systems; from here on a warning is given
_DIFFERENT = 3.0  # log Bayes factor from which compositions are said to differ
_ONE_RUN = "one run"


def adapt(
    probe: Probe,
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels | None = None,
    *,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
) -> Probe:
    """Return ``probe`` with probabilities for the system of these labelled frames.

    The score of the probe stays. Its calibration is shifted: the labels show how much
    larger or smaller errors are on this system than the probe expects
    (`uqcalc.statistics.systems`). Each label counts with the size of its error, so ten
    labels suffice for a rough shift, also if all of them are right or all are wrong.
    With few labels the shift is small, and the probabilities are moved towards 0.5,
    because systems differ from each other. Probabilities of atoms follow those of
    their structures; with probes of earlier versions they are shifted by the errors of
    the atoms. A guarantee is removed: it was for the old probabilities.

    The scope is widened to the labelled frames and narrowed to their elements: a
    structure with other elements is at least SUSPECT.

    Parameters
    ----------
    probe : Probe
        Of any architecture with a calibration at several boundaries.
    frames : sequence of Atoms
        Labelled frames of one system (one molecule, material or alloy) that the probe
        was not fitted on.
    calculator : ase calculator or Backbone
        The potential of the probe.
    labels : Labels, optional
        Keys of the reference, and ``group_key``: the run of each frame. Frames of one
        run have correlated errors, and count less than as many independent ones.
    exclude : collection of str
        Frames with these defects are left out instead of an error (`build_dataset`).
    cache : path, optional
        Folder that stores the features of this potential, as for `uqcalc.fit`.

    Raises
    ------
    ProbeError
        If the probe was fitted on another backbone, or for one boundary only.
    LabelError
        If labels are unusable, fewer than 5, of the probe's own fit, or of elements
        that its labels lacked.

    Warns
    -----
    LabelWarning
        If all frames seem to be of one run, if compositions differ in their errors, or
        if the errors are so far from those that the probe expects that the labels may
        be of another level of theory.
    """
    check_probe(probe)
    check_frames(frames, exclude)
    check_original(probe)
    wanted = labels_for(probe.card, labels)
    backbone = tap(calculator)
    probe.check(backbone)
    usable = usable_rows(frames, backbone, wanted, exclude)
    names = group_names(frames, wanted.group_key, usable)
    _refuse(probe, frames, usable)
    grouped = wanted.group_key is not None
    series = find_series([frames[i] for i in usable], names if grouped else None)
    single = bool(series)
    if single or (grouped and len(set(names)) == 1):
        _warn_of_one_run(len(usable))
    data = held_out_dataset(probe.card, frames, backbone, wanted, exclude, cache)
    if single:
        data = replace(data, groups=[_ONE_RUN] * len(data))
    return adapt_dataset(probe, data)


def adapt_dataset(probe: Probe, data: Dataset) -> Probe:
    """Adapt as in `adapt`, from a dataset with features; its groups are the runs."""
    card = probe.card
    found, learnt, spread = _learn(probe, data)
    calibration = replace(card.calibration, system=learnt.knots(), labels=len(data))
    of_atoms = _atom_calibration(probe, data, spread)
    adapted = _summary(probe, data, learnt, found)
    seen = Seen(
        np.union1d(probe.seen.geometries, _or_empty(data.geometries)),
        np.union1d(probe.seen.groups, Seen.of([data]).groups),
    )
    return probe.with_card(
        calibration=calibration,
        atom_calibration=of_atoms,
        scope=_scope(probe, data),
        promise=None,
        held_out=[],
        training=card.training | {"adapted": adapted},
    ).with_seen(seen)


def structure_calibration(probe: Probe, data: Dataset) -> Calibration:
    """Return only the calibration of the structures, as in `adapt_dataset`."""
    _, learnt, _ = _learn(probe, data)
    return replace(probe.card.calibration, system=learnt.knots(), labels=len(data))


def _learn(probe: Probe, data: Dataset) -> tuple[Residuals, Posterior, Spread]:
    """Return the residuals of the structures, their place, and the spread of runs."""
    check_original(probe)
    data.check(probe.card.fingerprint)
    found = _residuals(probe, data)
    spread = Spread.of_card(probe.card.training)
    _warn_of_mixture(found, data.groups, _compositions(data), spread)
    spread = replace(spread, run=learn_runs(found, data.groups, spread))
    learnt = posterior(found, data.groups, spread)
    warn_of_level(learnt, spread)
    return found, learnt, spread


def learn_spread(
    calibration: Calibration,
    score: NDArray[np.float64],
    errors: NDArray[np.float64],
    groups: Sequence[str],
) -> dict[str, Any] | None:
    """Return how much left-out groups differ from each other, for the card.

    None with fewer than ten groups of five structures. The spread over runs of one
    group is not known from these labels, and is the assumed one.

    Parameters
    ----------
    calibration : Calibration
    score, errors : arrays (structures,)
        Of left-out structures.
    groups : sequence of str
        Group of each: its molecule or material.
    """
    if len(calibration.boundaries) < 2:
        return None
    names, counts = np.unique(np.asarray(groups), return_counts=True)
    names = names[counts >= _FEWEST_OF_SYSTEM]
    if len(names) < _FEWEST_SYSTEMS:
        return None
    logits = calibration.logits(torch.from_numpy(np.asarray(score, float))).numpy()
    known = (calibration.boundaries, calibration.shifts)
    tables = []
    for name in names[evenly(len(names), _MOST_SYSTEMS)]:
        rows = np.flatnonzero(np.asarray(groups) == name)
        rows = rows[evenly(len(rows), _MOST_OF_SYSTEM)]
        tables.append(residuals(logits[rows], errors[rows], *known))
    system = learn_system_spread(tables)
    return Spread(system, ASSUMED.run, len(tables)).to_dict()


def check_original(probe: Probe) -> None:
    """Raise ProbeError for a probe that cannot be adapted.

    It must be calibrated at several boundaries, not adapted, and have no prior.
    """
    card = probe.card
    if len(card.calibration.boundaries) < 2:
        msg = (
            "probe must be calibrated at several boundaries, got one; fit it again "
            "with uqcalc.fit"
        )
        raise ProbeError(msg)
    if card.calibration.system or card.added is not None:
        msg = (
            "probe must be the original one, got a probe that is adapted already, or "
            "has a prior; start from the original, with all labels together"
        )
        raise ProbeError(msg)


def _refuse(probe: Probe, frames: Sequence[Atoms], rows: Sequence[int]) -> None:
    """Raise LabelError for frames without new information about the probe."""
    if len(rows) < FEWEST:
        msg = f"at least {FEWEST} labelled frames must be given, got {len(rows)}"
        raise LabelError(msg)
    refuse_seen(probe, frames, rows)
    for row in rows:
        if unseen := probe.unseen_elements(frames[row].numbers):
            msg = (
                "frames must have elements of the probe's labels only, got "
                f"{' '.join(unseen)} in frame {row}; fit a probe on labels with this "
                "element (uqcalc.fit)"
            )
            raise LabelError(msg)


def refuse_seen(probe: Probe, frames: Sequence[Atoms], rows: Sequence[int]) -> None:
    """Raise LabelError if the probe was fitted on one of these ``rows``."""
    if own := probe.seen.frames(frames, rows):
        msg = (
            "frames must be new to the probe, got "
            f"{len(own)} that it was fitted on (the first is frame {own[0]}); leave "
            "them out"
        )
        raise LabelError(msg)


def _residuals(probe: Probe, data: Dataset) -> Residuals:
    card = probe.card
    score = torch.cat([probe.scores([p]) for p in data.predictions]).double()
    logits = card.calibration.logits(score).numpy()
    known = card.calibration
    return residuals(logits, data.errors, known.boundaries, known.shifts)


def _atom_calibration(
    probe: Probe, data: Dataset, spread: Spread
) -> Calibration | None:
    """Return the calibration of atoms with a correction for this system.

    The errors of the atoms of one structure are correlated: each structure is a run,
    and the spread over structures is learnt from these labels. Where P of atoms follows
    from the error of their structure, its correction is that of the atoms too.
    """
    known = probe.card.atom_calibration
    if probe.card.atom_shares is not None:
        return known
    if known is None or data.atom_errors is None or probe.stacked is None:
        return known
    if len(known.boundaries) < 2:
        return known
    scores, errors, names = [], [], []
    for number, prediction in enumerate(data.predictions):
        of_atoms = probe.path_output([prediction]).atoms
        if of_atoms is not None:
            scores.append(of_atoms.double().numpy())
            errors.append(np.asarray(data.atom_errors[number], float))
            names.append(np.full(len(errors[-1]), number))
    score, error, which = (np.concatenate(part) for part in (scores, errors, names))
    said = np.flatnonzero(np.isfinite(error))  # NaN: the force vanishes by symmetry
    if not len(said):
        return known
    rows = said[evenly(len(said), _MOST_ATOMS)]
    logits = known.logits(torch.from_numpy(score[rows])).numpy()
    found = residuals(logits, error[rows], known.boundaries, known.shifts)
    runs = [str(number) for number in which[rows]]
    spread = replace(spread, run=learn_runs(found, runs, spread))
    return replace(known, system=posterior(found, runs, spread).knots())


def _scope(probe: Probe, data: Dataset) -> Scope | None:
    """Return the scope, widened to the labelled frames and with only their elements."""
    scope = probe.card.scope
    if scope is None or probe.stacked is None:
        return scope
    data = data.subset(np.flatnonzero(~data.exploded()))
    sizes = data.sizes
    if not len(data):
        return scope
    seen = [probe.path_output([p]) for p in data.predictions]
    largest = np.array([float(output.distance[0]) for output in seen])
    limit, level = _wider(scope.distance, largest, data.groups)
    mean_limit = scope.mean_distance
    if mean_limit is not None:
        of_one = [
            scope.as_of_one_element(output.mean_log_distance, output.elements)
            for output in seen
        ]
        means = torch.cat(of_one).exp().double().numpy()
        mean_limit, _ = _wider(mean_limit, means, data.groups)
    return replace(
        scope,
        distance=limit,
        level=scope.level if level is None else level,
        smallest=min(scope.smallest, int(sizes.min())),
        largest=max(scope.largest, int(sizes.max())),
        elements=tuple(sorted({int(z) for n in data.numbers for z in n})),
        mean_distance=mean_limit,
    )


def _wider(
    limit: float, away: NDArray[np.float64], groups: Sequence[str]
) -> tuple[float, float | None]:
    """Return a limit that includes the labelled frames, and its level, or None."""
    found, level = held_out_limit(away, groups)
    found = min(found, FAR * limit)  # a single unusual label must not raise the limit
    return (found, level) if found > limit else (limit, None)


def _summary(
    probe: Probe, data: Dataset, learnt: Posterior, found: Residuals
) -> dict[str, Any]:
    """Return what the labels showed, for the card."""
    card = probe.card
    score = torch.cat([probe.scores([p]) for p in data.predictions]).double()
    before = card.calibration.logits(score).numpy()
    mean, deviation = learnt.place
    right = float(np.mean(data.errors <= card.boundary))
    factor = _factor(card.calibration, mean)
    symbols = [
        chemical_symbols[z] for z in sorted({int(z) for n in data.numbers for z in n})
    ]
    shown = " ".join(symbols)
    statement = (
        f"adapted to {len(data)} labels of {shown} in {len(set(data.groups))} runs: "
        f"errors are about {factor:.2g} times as large as the probe expected; "
        f"{right:.0%} are right, mean P {expit(before).mean():.2f} before and "
        f"{expit(learnt.logit(before)).mean():.2f} after"
    )
    return {
        "labels": len(data),
        "runs": len(set(data.groups)),
        "elements": symbols,
        "place": mean,
        "place_deviation": deviation,
        "error_factor": factor,
        "censored": int(np.count_nonzero(found.side)),
        "right": right,
        "mean_before": float(expit(before).mean()),
        "mean_after": float(expit(learnt.logit(before)).mean()),
        "spread": learnt.spread.to_dict(),
        "statement": statement,
    }


def _factor(calibration: Calibration, place: float) -> float:
    """Return how much larger errors are, from the slope of the shifts by log error."""
    logs = np.log(calibration.boundaries)
    slope = np.polyfit(logs, calibration.shifts, 1)[0]
    return float(np.exp(place / max(slope, 1e-3)))


def _compositions(data: Dataset) -> list[str]:
    names = []
    for numbers in data.numbers:
        counts = np.bincount(numbers)
        counts = counts // np.gcd.reduce(counts[counts > 0])
        names.append(
            "".join(f"{chemical_symbols[z]}{counts[z]}" for z in np.flatnonzero(counts))
        )
    return names


def _or_empty(values: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64) if values is None else values


def _warn_of_one_run(count: int) -> None:
    msg = (
        f"labels should come from several runs, got {count} of one: the errors of one "
        "run are correlated, so these frames contain less information than as many "
        "independent ones; name the info entry of the runs as group_key, or add runs"
    )
    warnings.warn(msg, LabelWarning, stacklevel=3)


def _warn_of_mixture(
    found: Residuals, runs: Sequence[str], compositions: Sequence[str], spread: Spread
) -> None:
    """Warn if the errors of several compositions differ."""
    names, counts = np.unique(compositions, return_counts=True)
    common = names[counts >= FEWEST]
    if len(common) < 2:
        return
    if compare_places(found, runs, compositions, spread) < _DIFFERENT:
        return
    msg = (
        f"labels should be of one system, got {len(names)} compositions whose errors "
        f"differ ({', '.join(common[:5])}): one shift cannot be right for all; adapt a "
        "probe for each"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)


def warn_of_level(learnt: Posterior, spread: Spread) -> None:
    """Warn if the system differs more from the others than systems usually do.

    Warns
    -----
    LabelWarning
        If so; the labels may then be of another level of theory.
    """
    mean, deviation = learnt.place
    if abs(mean) - 2 * deviation < _FAR * spread.system:
        return
    larger = "larger" if mean > 0 else "smaller"
    msg = (
        f"errors of the labels should be like those of other systems, got errors much "
        f"{larger} than the probe expects (shift {mean:+.1f} in log-odds, systems "
        f"differ by {spread.system:.1f}); check that the labels are of the level of "
        "theory of the potential: functional, dispersion, +U, units"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)
