"""Energies per element: found if they exist, and not found otherwise."""

import warnings

import numpy as np
import pytest

from uqcalc import LabelWarning
from uqcalc.labels.offsets import (
    composition,
    explained_by_composition,
    fit_offsets,
    offset_energies,
    warn_of_offsets,
)


def structures(count, elements, *, seed=0, kinds=None, largest=12):
    """Random compositions of three elements each; ``kinds`` of them at most."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.choice(rng.choice(elements, 3, replace=False), rng.integers(4, largest))
        for _ in range(kinds or count)
    ]
    return [drawn[i % len(drawn)] for i in range(count)]


def sizes(numbers):
    return np.array([len(z) for z in numbers])


def test_offsets_linear_in_composition_are_found():
    numbers = structures(100, [1, 6, 7, 8])
    truth = {"1": -13.6, "6": -1030.0, "7": -1480.0, "8": -2040.0}
    residuals = offset_energies(numbers, truth)
    found = fit_offsets(numbers, residuals)
    assert {z: round(energy, 3) for z, energy in found.items()} == truth
    assert explained_by_composition(numbers, residuals).share > 0.999
    with pytest.warns(LabelWarning, match="another: an energy offset for each element"):
        warn_of_offsets(numbers, residuals)


def test_outliers_have_little_effect():
    numbers = structures(200, [1, 6, 8])
    rng = np.random.default_rng(1)
    truth = {"1": -0.1, "6": 0.3, "8": -0.4}
    residuals = offset_energies(numbers, truth) + rng.normal(0, 0.01, 200)
    residuals[:10] += 50.0
    found = fit_offsets(numbers, residuals)
    assert found == pytest.approx(truth, abs=0.02)
    plain, *_ = np.linalg.lstsq(composition(numbers), residuals, rcond=None)
    assert np.abs(plain[[1, 6, 8]] - list(truth.values())).max() > 0.1


def test_more_elements_than_the_frames_determine():
    """Many elements explain noise of the fit, but not of held-out frames."""
    elements = np.arange(1, 86)
    numbers = structures(150, elements)
    rng = np.random.default_rng(2)
    noise = sizes(numbers) * rng.normal(0, 0.05, 150)
    counts = composition(numbers)
    plain, *_ = np.linalg.lstsq(counts, noise, rcond=None)
    in_sample = np.abs(noise - counts @ plain).mean() / np.abs(noise).mean()
    assert in_sample < 0.7  # would have been taken for an offset
    assert explained_by_composition(numbers, noise).share < 0.1
    # oxides 0.4 eV/atom lower, as corrected energies are
    train, test = structures(280, elements, seed=3), structures(500, elements, seed=4)
    oxide = [
        sizes(z) * (0.4 * np.array([8 in x or 16 in x or 17 in x for x in z]) + 0.04)
        + sizes(z) * rng.standard_t(3, len(z)) * 0.02
        for z in (train, test)
    ]
    left = [
        np.abs(oxide[1] - offset_energies(test, offsets)) / sizes(test)
        for offsets in (
            fit_offsets(train, oxide[0]),
            dict.fromkeys(map(str, elements), 0.0),
        )
    ]
    assert left[0].mean() < 0.8 * left[1].mean()


@pytest.mark.parametrize("kinds", [None, 3, 1])
def test_offset_is_recognised_and_random_errors_are_not(kinds):
    numbers = structures(120, [1, 6, 7, 8, 14], kinds=kinds)
    rng = np.random.default_rng(5)
    errors = sizes(numbers) * rng.normal(0, 0.03, 120)
    shift = offset_energies(
        numbers, {"1": 0.1, "6": 0.1, "7": 0.1, "8": 0.2, "14": 0.1}
    )
    with pytest.warns(LabelWarning, match="--fit-offsets"):
        warn_of_offsets(numbers, errors + shift)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_offsets(numbers, errors)
        warn_of_offsets(numbers, errors * 1e-3 + shift * 1e-3)  # 0.1 meV/atom
        warn_of_offsets(numbers[:19], (errors + shift)[:19])


def test_an_element_without_offset_is_named():
    numbers = structures(5, [1, 6, 8])
    with pytest.warns(LabelWarning, match="have none for O;"):
        energies = offset_energies(numbers, {"1": 1.0, "6": 1.0})
    expected = [np.sum(z != 8) for z in numbers]
    np.testing.assert_allclose(energies, expected)
