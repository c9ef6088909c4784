"""Scores of distributions: the members of a committee or of a perturbation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc.agreement import same_result
from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.batching import evaluate_each
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.labels.defects import check_frames
from uqcalc.labels.labels import Labels
from uqcalc.labels.offsets import fit_offsets, offset_energies
from uqcalc.labels.ownresults import refuse_own_results
from uqcalc.progress import progress_bar
from uqcalc.statistics import scores


# Fields of a prediction with the members: prefix -> the signal that reads them.
DISTRIBUTIONS = {"committee": "force_spread", "perturbed": "functional_spread"}
_FIELDS = {"energy": "energies", "forces": "forces", "stress": "stresses"}
_UNITS = {"energy": "eV/atom", "forces": "eV/Å", "stress": "eV/Å³"}


@dataclass(frozen=True, slots=True)
class MemberScores:
    """Scores of the members of one signal against the references of one quantity.

    All but the counts and ratios are in ``unit``: eV/Å for each component of the
    forces, eV/atom, and eV/Å³ for each component of the stress.

    Attributes
    ----------
    signal : {"force_spread", "functional_spread"}
        A committee, or a learned perturbation.
    quantity : {"forces", "energy", "stress"}
    unit : str
    members, structures, values : int
        Number of members, of structures, and of compared numbers.
    crps : float
        Fair ensemble CRPS; the smaller the better (`scores.fair_crps`).
    crps_gaussian : float
        CRPS of normal distributions with mean and variance of the members
        (`scores.gaussian_crps`).
    mae : float
        Mean absolute error of the potential's own results: its CRPS without a spread.
    rmse : float
        Root mean square error of the mean of the members.
    spread : float
        Root mean square of the standard deviation over the members.
    spread_skill : float
        `scores.spread_skill`: 1 if the spread has the size of the error.
    nll : float
        Mean negative log-likelihood of these normal distributions, for values in
        ``unit`` (`scores.gaussian_nll`).
    spearman : float
        Rank correlation, over the structures, of RMS error and RMS spread.
    """

    signal: str
    quantity: str
    unit: str
    members: int
    structures: int
    values: int
    crps: float
    crps_gaussian: float
    mae: float
    rmse: float
    spread: float
    spread_skill: float
    nll: float
    spearman: float

    def to_dict(self) -> dict[str, Any]:
        """Return the scores by name, JSON-able but for NaN and infinity."""
        return asdict(self)


def evaluate_members(
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels | None = None,
) -> list[MemberScores]:
    """Score every distribution that a potential gives, on labelled frames.

    Parameters
    ----------
    frames : sequence of Atoms
        Frames that nothing was trained on. A quantity is scored on the frames with a
        reference for it.
    calculator : ase calculator or Backbone
        A committee, or a `uqcalc.ReliableCalculator` with a `uqcalc.FunctionalSpread`.
    labels : Labels, optional
        Keys of the references. With ``offsets=True`` an energy for each element is
        fitted to the errors of these frames and subtracted.

    Returns
    -------
    list of MemberScores
        One for each distribution and quantity.

    Raises
    ------
    LabelError
        If the potential gives no distribution, if it cannot evaluate a frame, or if no
        frame has a reference.
    """
    check_frames(frames, ())
    backbone = backbone_of(calculator)
    kinds = distributions(backbone)
    if not kinds:
        msg = (
            "potential must give members to score, got none from "
            f"{backbone.name}; pass a committee, or ReliableCalculator(calculator, "
            "signals=[FunctionalSpread(file)], policy=...)"
        )
        raise LabelError(msg)
    keys = labels or Labels()
    found = _compared(frames, backbone, kinds, keys)
    if not found:
        msg = (
            "at least one frame must have a reference, got none under "
            f"{[keys.forces_key, keys.energy_key, keys.stress_key]}; name the keys"
        )
        raise LabelError(msg)
    return [
        _scores(DISTRIBUTIONS[kind], quantity, rows, offsets=keys.offsets)
        for (kind, quantity), rows in found.items()
    ]


def backbone_of(calculator: BaseCalculator | Backbone) -> Backbone:
    """Return the backbone of a calculator; of a `ReliableCalculator`, its own."""
    return tap(getattr(calculator, "backbone", calculator))


def distributions(backbone: Backbone) -> list[str]:
    """Return the keys of `DISTRIBUTIONS` for which a backbone gives members."""
    return [kind for kind in DISTRIBUTIONS if f"{kind}_forces" in backbone.provides]


@dataclass(frozen=True, slots=True, eq=False)
class _Compared:
    """Members (members, n), own result (n,) and reference (n,) of one structure."""

    members: NDArray[np.float64]
    own: NDArray[np.float64]
    truth: NDArray[np.float64]
    numbers: NDArray[np.int64]


def _compared(
    frames: Sequence[Atoms], backbone: Backbone, kinds: Sequence[str], labels: Labels
) -> Mapping[tuple[str, str], list[_Compared]]:
    wanted = {"energy", "forces"} | {
        f"{kind}_{field}" for kind in kinds for field in _FIELDS.values()
    }
    if any(labels.reference_of(frame, "stress") is not None for frame in frames):
        wanted |= {"stress"}
    else:
        wanted -= {f"{kind}_stresses" for kind in kinds}
    found: dict[tuple[str, str], list[_Compared]] = defaultdict(list)
    own: list[int] = []
    with progress_bar() as progress:
        task = progress.add_task("members", total=len(frames))
        given = sorted(wanted & backbone.provides)
        for row, (frame, outcome) in enumerate(evaluate_each(backbone, frames, given)):
            if isinstance(outcome, str):
                msg = (
                    "the potential must be able to evaluate every frame, got frame "
                    f"{row}: {outcome}; leave it out"
                )
                raise LabelError(msg)
            truth = labels.reference_of(frame, "forces")
            if truth is not None and same_result("forces", outcome.forces, truth):
                own.append(row)
            for kind in kinds:
                for quantity, field in _FIELDS.items():
                    reference = labels.reference_of(frame, quantity)
                    members = getattr(outcome, f"{kind}_{field}")
                    if reference is None or members is None:
                        continue
                    one = _one(outcome, quantity, members, reference)
                    found[kind, quantity].append(one)
            progress.advance(task)
    of_forces = replace(labels, target="forces", offsets=False)
    refuse_own_results(own, len(frames), of_forces)
    return found


def _one(
    prediction: Prediction,
    quantity: str,
    members: NDArray[np.float64],
    reference: NDArray[np.float64],
) -> _Compared:
    own = np.asarray(prediction.results[quantity], dtype=float).reshape(-1)
    several = np.asarray(members, dtype=float).reshape(len(members), -1)
    if not np.isfinite(reference).all():
        msg = f"reference {quantity} must be finite, got NaN or infinity; leave it out"
        raise LabelError(msg)
    return _Compared(several, own, reference.reshape(-1), prediction.numbers)


def _scores(
    signal: str, quantity: str, rows: Sequence[_Compared], *, offsets: bool
) -> MemberScores:
    # differences: NumPy would lose digits of large total energies
    apart = [row.members - row.truth for row in rows]
    own = [row.own - row.truth for row in rows]
    if quantity == "energy":
        numbers = [row.numbers for row in rows]
        if offsets:
            residuals = np.array([-float(part.mean()) for part in apart])
            shifts = offset_energies(numbers, fit_offsets(numbers, residuals))
            apart = [part + shift for part, shift in zip(apart, shifts, strict=True)]
            own = [part + shift for part, shift in zip(own, shifts, strict=True)]
        apart = [part / len(n) for part, n in zip(apart, numbers, strict=True)]
        own = [part / len(n) for part, n in zip(own, numbers, strict=True)]
    errors = np.concatenate(apart, axis=1)
    zero = np.zeros(errors.shape[1])
    mean, deviation = errors.mean(axis=0), errors.std(axis=0, ddof=1)
    spreads = [float(np.sqrt(part.var(axis=0, ddof=1).mean())) for part in apart]
    misses = [float(np.sqrt(np.mean(part.mean(axis=0) ** 2))) for part in apart]
    return MemberScores(
        signal=signal,
        quantity=quantity,
        unit=_UNITS[quantity],
        members=len(errors),
        structures=len(rows),
        values=errors.shape[1],
        crps=float(scores.fair_crps(errors, zero).mean()),
        crps_gaussian=float(scores.gaussian_crps(mean, deviation, zero).mean()),
        mae=float(np.abs(np.concatenate(own)).mean()),
        rmse=float(np.sqrt(np.mean(mean**2))),
        spread=float(np.sqrt(np.mean(deviation**2))),
        spread_skill=scores.spread_skill(errors, zero),
        nll=float(scores.gaussian_nll(mean, deviation, zero).mean()),
        spearman=scores.spearman(misses, spreads),
    )
