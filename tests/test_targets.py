"""One table of targets: every one is usable everywhere, and a new one is an entry."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from closeness import FLOAT64, close
from probe.toys import random_prediction

from uqcalc import Labels
from uqcalc.probe.card import Card
from uqcalc.quantities import parse_quantity
from uqcalc.targets import QUANTITIES, TARGETS, Target


def predicted():
    prediction = random_prediction(7, 3, seed=1)
    results = {"energy": prediction.energy, "forces": prediction.forces}
    return replace(prediction, results=results)


def labelled(prediction, rng):
    """Return a frame whose reference differs from the prediction."""
    atoms = len(prediction.numbers)
    frame = Atoms(prediction.numbers, prediction.positions)
    frame.info["REF_energy"] = float(prediction.results["energy"]) + rng.normal()
    forces = prediction.results["forces"] + rng.normal(size=(atoms, 3))
    frame.arrays["REF_forces"] = forces
    return frame


def by_hand(prediction, frame):
    """Return the error of each target as its unit is defined, without the table."""
    energy = abs(prediction.results["energy"] - frame.info["REF_energy"])
    away = prediction.results["forces"] - frame.arrays["REF_forces"]
    return {
        "energy": energy,
        "energy_per_atom": energy / len(frame),
        "forces": (away**2).sum() ** 0.5 / (3 * len(frame)) ** 0.5,
        "atom_forces": np.linalg.norm(away, axis=1).max(),
    }


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_errors_are_those_of_their_definition(name):
    prediction = predicted()
    frame = labelled(prediction, np.random.default_rng(0))
    labels = Labels(name)
    reference = labels.reference(frame)
    assert reference.shape == QUANTITIES[labels.of].shape_for(7)
    found = labels.error(prediction, reference)
    close(found, by_hand(prediction, frame)[name], FLOAT64)
    assert TARGETS[name].unit.startswith(QUANTITIES[labels.of].unit)


def test_errors_of_energies_take_many_structures_at_once():
    rng = np.random.default_rng(0)
    energies, references = rng.normal(size=(2, 9))
    atoms = rng.integers(1, 50, 9)
    for target in TARGETS.values():
        if target.of == "energy":
            rows = (energies, references, atoms)
            each = [target.error(*row) for row in zip(*rows, strict=True)]
            close(target.error(energies, references, atoms), each, FLOAT64)


def test_a_new_target_is_one_entry(monkeypatch):
    def mean_absolute(predicted, reference, atoms):
        return np.abs(predicted - reference).mean()

    words = ("mean force error", "mean |error| of the forces")
    new = Target("mean_forces", "forces", "eV/Å", *words, mean_absolute)
    monkeypatch.setitem(TARGETS, "mean_forces", new)
    prediction = predicted()
    frame = labelled(prediction, np.random.default_rng(0))
    labels = Labels("mean_forces", boundary="50 meV/angstrom")
    assert labels.boundary == parse_quantity("50 meV/Å", "mean_forces") == 0.05
    away = prediction.results["forces"] - frame.arrays["REF_forces"]
    found = labels.error(prediction, labels.reference(frame))
    close(found, np.abs(away).mean(), FLOAT64)
    shape = {"features": 3, "charges": False}
    card = Card(
        fingerprint="toy:0",
        target="mean_forces",
        boundary=0.05,
        architecture="standard",
        shape=shape,
        elements=[1],
        sizes=[1, 9],
    )
    assert card.unit == "eV/Å"
    assert "P(mean force error <= 0.05 eV/Å)" in str(card)
