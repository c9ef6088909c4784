"""Scoring a probe on frames of one's own, and what it writes."""

import json

import numpy as np
import pytest
from ase.build import molecule
from builders import mace_calculator, rattled, tiny_probe

from uqcalc import (
    LabelError,
    Labels,
    ProbeError,
    ReliableCalculator,
    evaluate,
    scores,
    tap,
)


def labelled(count=24):
    """Frames with errors of 0.02 to 0.2 eV/Å on every force component."""
    calculator = mace_calculator(0)
    rng = np.random.default_rng(0)
    frames = []
    for index, error in enumerate(np.linspace(0.02, 0.2, count)):
        atoms = rattled("CH3OH", seed=index, amount=0.1)
        atoms.calc = calculator
        sign = rng.choice([-1, 1], size=(len(atoms), 3))
        atoms.arrays["REF_forces"] = atoms.get_forces() + error * sign
        atoms.calc = None
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def probe():
    return tiny_probe(tap(mace_calculator(0)), bias=0.1)


def test_scores_what_the_calculator_says_against_the_labels(probe, tmp_path):
    frames = labelled()
    result = evaluate(probe, frames, mace_calculator(0))
    np.testing.assert_allclose(result.errors, np.linspace(0.02, 0.2, 24), atol=1e-9)
    live = ReliableCalculator(mace_calculator(0), probe)
    for index in (0, 11, 23):
        live.assess(frames[index])
        expected = live.results["probe_reliability"]
        assert result.probability[index] == pytest.approx(expected, abs=1e-6)
    truth = result.errors <= probe.card.boundary
    assert result.report["brier"] == pytest.approx(
        np.mean((result.probability - truth) ** 2)
    )
    assert result.report["auroc"] == scores.auroc(truth, result.probability)
    numbers, picture = result.write(tmp_path / "my.test")
    assert numbers.name == "my.test.json"
    assert picture.read_bytes()[1:4] == b"PNG"
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written["report"]["brier"] == result.report["brier"]
    assert written["card"]["fingerprint"] == probe.card.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my.test.json",
        "my.test.png",
    ]


def test_structures_of_unseen_elements_are_counted_and_not_scored():
    probe = tiny_probe(tap(mace_calculator(0)), elements=[1, 6, 8])
    frames = labelled(6)
    ammonia = molecule("NH3")
    ammonia.arrays["REF_forces"] = np.zeros((4, 3))
    result = evaluate(probe, [*frames, ammonia], mace_calculator(0))
    assert result.report["unseen_elements"] == 1
    assert result.report["structures"] == 6
    with pytest.raises(LabelError, match="must be made of the probe's elements"):
        evaluate(probe, [ammonia], mace_calculator(0))


def test_refuses_another_backbone_and_another_target(probe):
    with pytest.raises(ProbeError, match="must belong to this backbone"):
        evaluate(probe, labelled(3), mace_calculator(1))
    with pytest.raises(LabelError, match="own target 'forces', got 'energy'"):
        evaluate(probe, labelled(3), mace_calculator(0), Labels("energy"))
