"""Frames on which a potential explodes: found, named, and without other effects."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from builders import rattled
from probe.toys import Cohesion, ToyBackbone, random_prediction

from uqcalc import Labels, LabelWarning
from uqcalc.labels.comparison import warn_of_units
from uqcalc.labels.dataset import build_dataset
from uqcalc.labels.exploded import exploded


def predictions(count, *, scale=3.0):
    """Forces of the size of MD at room temperature."""
    made = [random_prediction(4 + i % 3, 4, seed=i) for i in range(count)]
    return [replace(p, forces=scale * p.forces) for p in made]


def blown(prediction, size):
    """Set one atom's force to ``size`` eV/Å."""
    forces = prediction.forces.copy()
    forces[0] *= size / np.linalg.norm(forces[0])
    return replace(prediction, forces=forces)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.4])
def test_failures_are_found_however_many_and_large(share):
    made = predictions(200)
    chosen = np.random.default_rng(0).permutation(200)[: int(200 * share)]
    sizes = np.geomspace(100, 65_000, len(chosen))
    references = [p.forces for p in made]
    for i, size in zip(chosen, sizes, strict=True):
        made[i] = blown(made[i], size)
    errors = [
        np.linalg.norm(p.forces - r, axis=1) + 0.1
        for p, r in zip(made, references, strict=True)
    ]
    found = exploded(made, errors)
    assert set(np.flatnonzero(found)) == set(chosen)
    unlabelled = exploded(made)  # from energies alone: only values above any true one
    assert set(np.flatnonzero(unlabelled)) == set(chosen[sizes > 300])


def test_large_true_forces_are_not_failures():
    """Cells under stress: 200 eV/Å in the reference, and predicted to 10 %."""
    made = predictions(100)
    for i in range(5):
        made[i] = blown(made[i], 200.0)
    errors = [0.1 * np.linalg.norm(p.forces, axis=1) for p in made]
    errors[7][:] = np.nan  # forces that vanish by symmetry
    assert not exploded(made, errors).any()
    assert not exploded(made).any()
    assert exploded([]).shape == (0,)


def test_energies_that_explode_are_found_beside_another_zero_of_energy():
    made = predictions(100)
    sizes = np.array([len(p.numbers) for p in made])
    residuals = sizes * np.random.default_rng(0).normal(-1030.0, 0.1, 100)
    assert not exploded(made, residuals=residuals).any()
    residuals[[3, 50]] += [1e6, -30 * sizes[50]]
    assert np.flatnonzero(exploded(made, residuals=residuals)).tolist() == [3, 50]


class Exploding(Cohesion):
    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if atoms.get_all_distances()[0, 1] < 0.5:
            self.results["forces"] = self.results["forces"] * 1e5


def test_a_fit_names_them_and_keeps_them_as_labels():
    backbone = ToyBackbone()
    backbone.calculator = backbone.model_calculator = Exploding()
    frames = []
    for index in range(20):
        frames.append(rattled("CH3OH", seed=index))
        if index in {4, 11}:
            direction = frames[-1].positions[1] - frames[-1].positions[0]
            direction *= 0.4 / np.linalg.norm(direction)
            frames[-1].positions[1] = frames[-1].positions[0] + direction
        frames[-1].arrays["REF_forces"] = np.full((6, 3), 0.1)
    with pytest.warns(LabelWarning, match=r"on 2 of 20 frames \(frames 4, 11; up to"):
        data = build_dataset(frames, backbone, Labels())
    assert len(data) == 20
    assert np.flatnonzero(data.exploded()).tolist() == [4, 11]
    assert data.errors[[4, 11]].min() > 1e3 > data.errors[5]
    part = data.subset([11, 3, 2])
    assert part.exploded().tolist() == [True, False, False]


@pytest.mark.parametrize("target", ["forces", "energy"])
@pytest.mark.parametrize("size", [30.0, 65_000.0])
def test_correct_labels_keep_their_unit_beside_them(target, size):
    """15 of 200 explode; with standard deviations the unit would seem wrong."""
    made = predictions(200)
    rng = np.random.default_rng(0)
    references = []
    for i, p in enumerate(made):
        value = p.forces if target == "forces" else np.array(p.energy)
        references.append(value + 0.1 * rng.normal(size=value.shape))
        if i % 14 == 0:
            made[i] = replace(blown(p, size), energy=p.energy - size)
    made = [replace(p, results={"energy": p.energy, "forces": p.forces}) for p in made]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_units(target, made, references)
    unit, factor = ("kcal/mol/Å", 23.06) if target == "forces" else ("kcal/mol", 23.06)
    with pytest.warns(LabelWarning, match=rf"which fits {unit} \(factor"):
        warn_of_units(target, made, [factor * r for r in references])
