"""`fit_shipped`: a probe from shipped labels, after a comparison of energies."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.cluster import RayWorkers
from uqcalc.errors import LabelWarning
from uqcalc.fitting.recipe import Recipe
from uqcalc.fitting.training import FitReport, fit
from uqcalc.labels.dataset import build_dataset
from uqcalc.labels.labels import Labels
from uqcalc.labels.offsets import FEWEST, Explained, explained_by_composition
from uqcalc.labels.shipped import ShippedLabels, shipped_labels
from uqcalc.targets import TARGETS


_COMPARED = 300  # frames near equilibrium whose energies are compared


def fit_shipped(
    name: str,
    calculator: BaseCalculator | Backbone,
    labels: Labels = Labels(),  # noqa: B008  (frozen)
    recipe: Recipe = Recipe(),  # noqa: B008  (frozen)
    *,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
) -> FitReport:
    """Fit a probe as `uqcalc.fit`, with labels that ship with the package.

    First the energies of 300 frames near equilibrium are compared, for any target: this
    detects a potential whose method is not that of the labels. The card describes the
    labels and has the result.

    Parameters
    ----------
    name : str
        Name of the labels, such as "pbe-crystals".
    calculator : ase calculator or Backbone
        The potential. Its own method should be that of the labels.
    labels : Labels, optional
        Target, and boundary and group key instead of those of the set: for
        "pbe-crystals" 0.2 eV/Å, 0.5 GPa or 30 meV/atom, and the reduced formula.
    exclude : collection of str
        Defects of frames that are left out, instead of those of the set: "duplicate",
        "unknown elements", "not computable" and "not finite". The card counts them.
    recipe, cache, workers
        As for `uqcalc.fit`.

    Raises
    ------
    LabelError
        If the package has no such labels; and as `uqcalc.fit`.

    Warns
    -----
    LabelWarning
        If an energy offset for each element explains a large part of the differences of
        the energies; and as `uqcalc.fit`.
    """
    chosen = shipped_labels(name)
    backbone = tap(calculator)
    wanted = replace(labels, group_key=labels.group_key or "formula")
    if labels.boundary is None and labels.percentile is None:
        wanted = replace(wanted, boundary=chosen.boundaries.get(labels.target))
    left_out = exclude or chosen.exclude
    compared = compare_energies(chosen, backbone, left_out, cache, workers)
    if compared is not None and compared.telling and not labels.of_energy:
        warnings.warn(_mismatch(chosen, compared), LabelWarning, stacklevel=2)
    result = fit(
        chosen.frames(),
        backbone,
        wanted,
        recipe,
        exclude=left_out,
        cache=cache,
        workers=workers,
    )
    text = describe(chosen, wanted, compared)
    return replace(result, probe=result.probe.with_card(description=text))


def compare_energies(
    chosen: ShippedLabels,
    backbone: Backbone,
    exclude: Collection[str],
    cache: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
) -> Explained | None:
    """Return how far energies of the potential are from the labels, near equilibrium.

    Returns
    -------
    Explained or None
        The mean absolute difference per atom as it is, and after an offset for each
        element. None with fewer than 20 frames of elements that the potential knows.
    """
    known = backbone.elements or frozenset(range(1, 119))
    frames = [
        frame
        for frame in chosen.frames()
        if frame.info["set"] in chosen.near and known.issuperset(frame.numbers.tolist())
    ]
    if len(frames) < FEWEST:
        return None
    order = np.random.default_rng(0).permutation(len(frames))[:_COMPARED]
    data = build_dataset(
        [frames[i] for i in order],
        backbone,
        # offsets are fitted, so that only this module warns about the method
        Labels("energy_per_atom", offsets=True),
        exclude=exclude,
        title="energies",
        cache=cache,
        workers=workers,
    )
    if data.residuals is None or len(data) < FEWEST:
        return None
    return explained_by_composition(data.numbers, data.residuals)


def describe(chosen: ShippedLabels, labels: Labels, compared: Explained | None) -> str:
    """Return the description on the card: labels, what they judge, and energies."""
    text = (
        f"P({TARGETS[labels.target].meaning} <= boundary) against {chosen.method}. "
        f"Labels {chosen.name}: {chosen.origin}. Errors against another functional and "
        "other quantities are not judged."
    )
    if compared is None:
        return f"{text} The energies of the potential were not compared."
    return f"{text} Energies of potential and labels {_differ(compared)}."


def _differ(compared: Explained) -> str:
    return (
        f"differ by {1000 * compared.before:.3g} meV/atom on average near equilibrium, "
        f"and by {1000 * compared.after:.3g} meV/atom after an energy offset for each "
        "element"
    )


def _mismatch(chosen: ShippedLabels, compared: Explained) -> str:
    return (
        f"potential should follow {chosen.method}, the method of the labels "
        f"{chosen.name!r}, but their energies {_differ(compared)}. The potential may "
        "follow another functional (such as PBEsol or r2SCAN), another choice of +U, "
        "other pseudopotentials, or energies with corrections. Corrections of energies "
        "do not change forces and stress. But the probe takes the difference between "
        "two functionals for an error of the potential: if the potential follows "
        "another functional, fit with labels of that one"
    )
