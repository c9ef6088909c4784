"""Exploded frames among the labels: the probe is the same as without them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from probe.toys import random_prediction

from uqcalc import Labels, Recipe
from uqcalc.fitting.stacking import fit_joined
from uqcalc.labels.dataset import Dataset


WIDTH, BOUNDARY = 4, 0.35
BACKBONE = SimpleNamespace(fingerprint="made:1", provides=frozenset({"features"}))
DIRECTION = np.array([1.0, 0.5, 0.0, 0.0])


def distorted(amount, seed, *, force=None):
    """Twelve atoms: features move with the distortion, forces grow with it."""
    made = random_prediction(12, WIDTH, seed=seed)
    rng = np.random.default_rng(seed + 10_000)
    features = 0.3 * rng.normal(size=(12, WIDTH)) + 3 * amount * DIRECTION
    forces = rng.normal(size=(12, 3)) * (5 * amount if force is None else force)
    return replace(
        made,
        numbers=np.repeat([1, 6], 6),
        energy=float(-60 + 10 * amount),
        forces=forces,
        features=torch.from_numpy(features).float(),
    )


def labelled(*, broken):
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.05, 1.0, 185)
    predictions = [distorted(a, i) for i, a in enumerate(amounts)]
    errors = list(0.6 * amounts * rng.lognormal(sigma=0.2, size=185))
    if broken:
        for i, size in enumerate(np.geomspace(10, 20_000, 15)):
            frame = distorted(1.0, 500 + i, force=3 * size)
            lost = frame.features + torch.from_numpy(
                size * rng.normal(size=(12, WIDTH))
            )
            predictions.append(
                replace(frame, features=lost.float(), energy=float(size * 50))
            )
            errors.append(8 * size)
    atoms = [np.full(12, e * 3**0.5) for e in errors]
    groups = [str(i) for i in range(len(errors))]
    labels = Labels("forces", boundary=f"{BOUNDARY} eV/angstrom")
    return Dataset(
        predictions, np.array(errors), groups, {}, atom_errors=atoms, labels=labels
    )


@pytest.fixture(scope="module")
def probes():
    made = []
    for broken in (False, True):
        data = labelled(broken=broken)
        recipe = Recipe(epochs=8)
        made.append(fit_joined(data, BACKBONE, data.labels, recipe, BOUNDARY)[0])
    return made


def test_scope_and_scales_are_those_without_them(probes):
    clean, broken = probes
    assert broken.card.sizes == clean.card.sizes
    assert broken.card.scope.distance == pytest.approx(
        clean.card.scope.distance, rel=0.3
    )
    assert broken.stacked.known.item() == pytest.approx(
        clean.stacked.known.item(), abs=0.3
    )
    for name, tensor in clean.statistics.state_dict().items():
        torch.testing.assert_close(broken.statistics.state_dict()[name], tensor)
    for of in ("structure", "linear"):
        for name, tensor in getattr(clean.stacked, of).state_dict().items():
            torch.testing.assert_close(
                getattr(broken.stacked, of).state_dict()[name], tensor
            )
    assert broken.card.atom_floor.intercept == pytest.approx(
        clean.card.atom_floor.intercept, abs=0.7
    )


def test_p_of_stretched_frames_is_as_without_them(probes):
    amounts = np.linspace(0.1, 3.0, 12)
    frames = [distorted(a, 900 + i) for i, a in enumerate(amounts)]
    clean, broken = (probe.read(frames) for probe in probes)
    assert (broken.novelty / clean.novelty - 1).abs().max() < 0.3
    assert (broken.reliability - clean.reliability).abs().max() < 0.15
    assert broken.reliability[amounts > 1.5].max() < 0.5


def test_they_stay_labels_and_improve_no_score(probes):
    clean, broken = probes
    assert broken.card.calibration.labels == clean.card.calibration.labels + 15
    for ours, theirs in zip(
        broken.card.training["paths"], clean.card.training["paths"], strict=True
    ):
        assert ours["auroc"] == pytest.approx(theirs["auroc"], abs=0.05)
    fused = [distorted(1.0, 700, force=5_000.0)]
    assert broken.read(fused).reliability.item() < 0.05
