"""`fit_targets`: one probe for each of several targets, from one evaluation."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError
from uqcalc.fitting.recipe import Recipe
from uqcalc.fitting.training import FitReport, fit
from uqcalc.labels.labels import Labels
from uqcalc.targets import TARGETS


def fit_targets(  # noqa: PLR0913  (the options of `fit`)
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    targets: Mapping[str, float | str | None] | Sequence[str],
    labels: Labels = Labels(),  # noqa: B008  (frozen)
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    calibration: Sequence[Atoms] | None = None,
    test: Sequence[Atoms] | None = None,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, FitReport]:
    """Fit a probe for each target; every frame is evaluated once.

    Save each probe in a file of its own, and pass all of them:
    ``ReliableCalculator(calculator, probe=["forces.probe", "stress.probe"])``.

    Parameters
    ----------
    frames, calculator, recipe, calibration, test
        As for `uqcalc.fit`.
    targets : mapping or sequence of str
        Names of targets, or target -> boundary: a number in the unit of the target, a
        text with unit, or None for the default rule (`uqcalc.Labels`).
    labels : Labels, optional
        Keys, groups and percentile. Target and boundary are those of ``targets``;
        ``offsets`` counts for "energy" and "energy_per_atom" only.
    exclude : collection of str
        As for `uqcalc.fit`. With ``"no stress"`` frames without a cell are labels for
        the other targets.
    cache : path, optional
        Folder that stores the features. By default a temporary folder, which needs free
        disk space for the features of all frames.

    Returns
    -------
    dict
        Target -> `FitReport`, in the order of ``targets``.

    Raises
    ------
    LabelError
        As `uqcalc.fit`, or if there is no target or an unknown one.
    RecordError
        If the cache is of another potential.
    """
    wanted = _all_labels(targets, labels)
    options: dict[str, Any] = {
        "calibration": calibration,
        "test": test,
        "exclude": exclude,
    }
    backbone = tap(calculator)
    # the stress first: features that are stored without it are computed again
    order = sorted(wanted, key=lambda name: TARGETS[name].of != "stress")
    with TemporaryDirectory() if cache is None else nullcontext(cache) as folder:
        features = Path(folder) / "features" if cache is None else folder
        found = {
            name: fit(frames, backbone, wanted[name], recipe, cache=features, **options)
            for name in order
        }
    return {name: found[name] for name in wanted}


def _all_labels(
    targets: Mapping[str, float | str | None] | Sequence[str], labels: Labels
) -> dict[str, Labels]:
    """Return the labels of each target.

    Raises
    ------
    LabelError
        If there is no target or an unknown one, or a boundary does not fit its target.
    """
    if isinstance(targets, str) or not targets:
        msg = (
            "targets must be several names, or a mapping from target to boundary, got "
            f'{targets!r}; write targets=("forces", "stress")'
        )
        raise LabelError(msg)
    given = targets if isinstance(targets, Mapping) else dict.fromkeys(targets)
    absolute = ("energy", "energy_per_atom")
    return {
        name: replace(
            labels,
            target=name,
            boundary=boundary,
            offsets=labels.offsets and name in absolute,
        )
        for name, boundary in given.items()
    }
