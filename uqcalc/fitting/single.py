"""One path alone: the attention network, as published or with standardised inputs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.prediction import Prediction
from uqcalc.errors import LabelError
from uqcalc.fitting.loop import optimise
from uqcalc.fitting.recipe import Recipe
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.labels import Labels
from uqcalc.probe.card import RAW_ARCHITECTURE, Card
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.moments import Moments, chunks
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.probe import Probe
from uqcalc.probe.released import released_energies


def fit_single(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
) -> tuple[Probe, list[tuple[float, float]]]:
    """Return a probe that is not calibrated yet, and its losses by epoch."""
    with torch.random.fork_rng(devices=[]):  # torch.manual_seed would seed GPUs too
        torch.default_generator.manual_seed(recipe.seed)
        probe = new_probe(data, backbone, labels, recipe, boundary)
        curve = optimise(probe, data, data.errors <= boundary, recipe)
    return probe, curve


def new_probe(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
) -> Probe:
    """Return a probe with random weights, its input statistics learnt from ``data``.

    Frames that have exploded have no say in them, nor in elements and sizes.
    """
    data = data.subset(np.flatnonzero(~data.exploded()))
    raw = recipe.architecture == RAW_ARCHITECTURE
    architecture = RAW_ARCHITECTURE if raw else "standard"
    card = new_card(data, backbone, labels, recipe, boundary, architecture)
    network = ProbeNetwork(Shape.from_dict(card.shape))
    statistics = None
    if not raw:
        statistics = Statistics(card.feature_dim)
        moments = Moments(data.predictions)
        statistics.learn(data.predictions, moments, card.element_energies())
    return Probe(card, network, statistics)


def new_card(
    data: Dataset,
    backbone: Backbone,
    labels: Labels,
    recipe: Recipe,
    boundary: float,
    architecture: str,
) -> Card:
    """Return what is known of a probe before it is fitted."""
    width = data.predictions[0].features.shape[1]
    elements = sorted({int(z) for atoms in data.numbers for z in np.unique(atoms)})
    if architecture == RAW_ARCHITECTURE:
        energies = released_energies(backbone, recipe.atomic_energies)
        _refuse_unknown(energies, elements)
    else:
        energies = atom_energies(data.predictions)
    return Card(
        fingerprint=backbone.fingerprint,
        target=labels.target,
        boundary=boundary,
        percentile=labels.percentile if labels.boundary is None else None,
        architecture=architecture,
        shape=recipe.shape(width, charges="charges" in backbone.provides).to_dict(),
        elements=elements,
        sizes=[int(data.sizes.min()), int(data.sizes.max())],
        suspect=recipe.suspect,
        unreliable=recipe.unreliable,
        atom_energies=energies,
        uqcalc_version=version("uqcalc"),
    )


def _refuse_unknown(energies: dict[str, float], elements: list[int]) -> None:
    missing = [chemical_symbols[z] for z in elements if str(z) not in energies]
    if energies and missing:
        msg = (
            "atomic_energies must hold every element of the labels, got none for "
            f"{missing}; add them to the recipe"
        )
        raise LabelError(msg)


def atom_energies(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return the least-squares energy of each element in the *predicted* energies.

    From the normal equations, which do not grow with the structures.
    """
    gram, right = np.zeros((119, 119)), np.zeros(119)
    for chunk in chunks(predictions):
        counts = np.array([np.bincount(p.numbers, minlength=119) for p in chunk], float)
        gram += counts.T @ counts
        right += counts.T @ np.array([p.energy for p in chunk])
    present = np.flatnonzero(gram.diagonal())
    # the shrinkage decides where elements come in fixed proportions only
    shrunk = gram[np.ix_(present, present)] + 1e-6 * np.eye(len(present))
    solution = np.linalg.solve(shrunk, right[present])
    return {str(z): float(e) for z, e in zip(present, solution, strict=True)}
