"""One table of targets: every target works everywhere; a new one is one entry."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from closeness import FLOAT64, close
from probe.toys import random_prediction

from uqcalc import Labels
from uqcalc.errors import LabelError, ProbeError
from uqcalc.evaluation.cardinfo import card_info
from uqcalc.policy import Policy, Threshold
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.card import Card, Guarantee
from uqcalc.probe.validity import validity
from uqcalc.quantities import parse_quantity
from uqcalc.records import Assessment, Reading
from uqcalc.showing import in_words
from uqcalc.targets import QUANTITIES, TARGETS, Target


def predicted():
    prediction = random_prediction(7, 3, seed=1)
    rng = np.random.default_rng(2)
    results = {"energy": prediction.energy, "forces": prediction.forces}
    results["stress"] = rng.normal(size=6)
    return replace(prediction, results=results)


def labelled(prediction, rng):
    """Return a frame whose reference differs from the prediction."""
    atoms = len(prediction.numbers)
    frame = Atoms(prediction.numbers, prediction.positions, cell=[9, 9, 9], pbc=True)
    frame.info["REF_energy"] = float(prediction.results["energy"]) + rng.normal()
    forces = prediction.results["forces"] + rng.normal(size=(atoms, 3))
    frame.arrays["REF_forces"] = forces
    frame.info["REF_stress"] = prediction.results["stress"] + rng.normal(size=6)
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
        "stress": np.linalg.norm(matrix(frame) - matrix(prediction)) / 3,
    }


def matrix(of):
    """Return the stress of a prediction or the labelled one of a frame, (3, 3)."""
    given = of.info["REF_stress"] if isinstance(of, Atoms) else of.results["stress"]
    xx, yy, zz, yz, xz, xy = given
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


@pytest.mark.parametrize("name", sorted(n for n in TARGETS if not TARGETS[n].relative))
def test_errors_are_those_of_their_definition(name):
    prediction = predicted()
    frame = labelled(prediction, np.random.default_rng(0))
    labels = Labels(name)
    reference = labels.reference(frame)
    assert reference.shape == QUANTITIES[labels.of].shape_for(7)
    found = labels.error(prediction, reference)
    close(found, by_hand(prediction, frame)[name], FLOAT64)
    assert TARGETS[name].unit.startswith(QUANTITIES[labels.of].unit)


def test_the_stress_error_is_the_same_after_a_rotation_and_for_a_matrix():
    prediction = predicted()
    frame = labelled(prediction, np.random.default_rng(0))
    labels = Labels("stress")
    first = labels.error(prediction, labels.reference(frame))
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    frame.info["REF_stress"] = turn @ matrix(frame) @ turn.T
    turned = turn @ matrix(prediction) @ turn.T  # CHGNet gives a matrix
    prediction = replace(prediction, results={"stress": turned})
    close(labels.error(prediction, labels.reference(frame)), first, FLOAT64)


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_only_three_periodic_directions_have_a_stress(pbc):
    frame = labelled(predicted(), np.random.default_rng(0))
    assert Labels("stress").reference(frame).shape == (6,)
    frame.pbc = pbc
    assert Labels("stress").reference(frame) is None


def test_relative_energy_needs_other_frames():
    frame = labelled(predicted(), np.random.default_rng(0))
    labels = Labels("relative_energy")
    with pytest.raises(LabelError, match="must be the error of one frame"):
        labels.error(predicted(), labels.reference(frame))
    with pytest.raises(LabelError, match="offsets of elements cancel"):
        Labels("relative_energy", offsets=True)


def test_a_stress_is_shown_in_gigapascal():
    """A user writes 0.5 GPa; every text has this unit, though functions use eV/Å³."""
    boundary = parse_quantity("0.5 GPa", "stress")
    made = Guarantee(0.9, 0.1, 0.95, 90, 60, 0, 0.05, boundary, "eV/Å³", boundary)
    card = Card(
        fingerprint="toy:0",
        target="stress",
        boundary=boundary,
        architecture="standard",
        shape={"features": 3, "charges": False},
        elements=[1],
        sizes=[1, 9],
        calibration=Calibration(
            1.0, 0.0, boundaries=(boundary, 20 * boundary), shifts=(0.0, 1.0)
        ),
        promise=made.to_dict(),
    )
    reading = Reading("stress_spread", 2 * boundary, unit="eV/Å³")
    limit = Threshold("stress_spread", suspect=boundary, unreliable=9 * boundary)
    assessment = Assessment((reading,), Policy([limit])([reading]))
    rows = dict(card_info(card).rows)
    with pytest.raises(ProbeError) as refused:
        card.calibration.at(40 * boundary, card.unit)
    for text, value in [
        (card.meaning, 0.5),
        (card.question, 0.5),
        (str(card), 0.5),
        (str(card.guarantee), 0.5),
        (validity(card), 0.5),
        (rows["other boundaries"], 10),
        (str(refused.value), 20),
        (str(assessment), 1),
        (repr(assessment), 1),
    ]:
        assert f"{value:g} GPa" in text
        assert "eV/Å³" not in text
    assert rows["boundary"] == "0.5 GPa (0.003121 eV/Å³)"
    assert in_words(float("nan"), "eV/Å³") == "nan GPa"


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
