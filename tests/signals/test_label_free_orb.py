"""Orb's own confidence head, read in the usual pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import rattled, salt
from closeness import NETWORK, close

from uqcalc import (
    ConformalInterval,
    OrbConfidence,
    Policy,
    ReliableCalculator,
    RotationAverage,
    Threshold,
    tap,
)
from uqcalc.signals.base import to_host
from uqcalc.testing import check_signal
from uqcalc.testing.instruments import counted_calls


pytest.importorskip("orb_models")
from backbones.orbs import both_heads, default_dtype, orb_calculator, orb_model


LIMITS = Policy([Threshold("orb_confidence", suspect=0.1, unreliable=0.2)])
MODELS = {
    "direct": lambda: orb_model("v3-direct"),
    "conservative": lambda: orb_model("v3-conservative"),
    "both": both_heads,
}


@pytest.fixture(autouse=True)
def _double():
    with default_dtype(torch.float64):
        yield


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
def test_is_the_mean_of_the_distribution_that_the_model_gives(name, atoms):
    model = MODELS[name]()
    with counted_calls() as calls:
        calc = ReliableCalculator(
            orb_calculator(model), signals=[OrbConfidence()], policy=LIMITS
        )
        reading = calc.assess(atoms).reading("orb_confidence")
    assert calls["MoleculeGNS"] == calls["ConfidenceHead"] == 1
    shares = calc.results["confidence"]  # Orb's own result, (atoms, 50)
    close(shares.sum(axis=1), np.ones(len(atoms)))
    centres = (np.arange(50) + 0.5) * 0.3 / 50  # linear bins up to 0.3 eV/Å
    expected = shares @ centres
    close(reading.per_atom, expected)
    close(reading.risk, expected.mean())
    assert reading.unit == "eV/Å"
    close(calc.results["expected_force_error_max"], expected.max())


def test_certain_head_gives_its_bin():
    model = orb_model("v3-direct", seed=5)
    last = [m for m in model.heads["confidence"].modules() if hasattr(m, "bias")][-1]
    before = last.bias.clone()
    try:
        last.bias[:] = -100.0
        last.bias[7] = 100.0
        backbone = tap(orb_calculator(model))
        [reading] = to_host([OrbConfidence("max")(backbone(rattled(), ["energy"]))])
    finally:
        last.bias[:] = before
    close(reading.per_atom, np.full(6, 7.5 * 0.3 / 50))


def test_batches_give_what_single_passes_give():
    backbone = tap(orb_calculator())
    frames = [rattled(), rattled("H2O"), rattled("CO2")]
    together = backbone.predict_many(frames)
    for atoms, prediction in zip(frames, together, strict=True):
        alone = backbone(atoms, ["energy", "forces"]).expected_errors
        assert alone.shape == (len(atoms),)
        close(prediction.expected_errors, alone, NETWORK)


def test_is_averaged_over_rotations():
    inner, seen = tap(orb_calculator()), []
    averaged = RotationAverage(inner, 3)
    for turned in averaged.calculator.evaluate(rattled(), ["energy", "forces"]):
        seen.append(turned.expected_errors)
    assert (seen[0] - seen[1]).abs().max() > 0
    got = averaged(rattled(), ["energy", "forces"]).expected_errors
    close(got, torch.stack(seen).mean(dim=0))


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_contract(reduce, transfers):
    prediction = tap(orb_calculator())(rattled(), ["energy", "forces"])
    check_signal(OrbConfidence(reduce), prediction)
    transfers.clear()
    reading = OrbConfidence(reduce)(prediction)
    assert transfers == []
    assert float(reading.risk) == float(getattr(prediction.expected_errors, reduce)())


def test_models_without_the_head_are_refused():
    assert "expected_errors" not in tap(orb_calculator(orb_model("v2"))).provides
    with pytest.raises(
        ValueError, match=r"needs \['expected_errors'\].*wrap an Orb v3"
    ):
        ReliableCalculator(
            orb_calculator(orb_model("v2")), signals=[OrbConfidence()], policy=LIMITS
        )
    with pytest.raises(ValueError, match="reduce must be 'mean' or 'max', got 'sum'"):
        OrbConfidence("sum")


def test_scales_a_conformal_interval(tmp_path):
    backbone = tap(orb_calculator())
    frames = [rattled(seed=seed) for seed in range(6)]
    for index, frame in enumerate(frames):
        forces = backbone(frame, ["energy", "forces"]).forces
        frame.arrays["REF_forces"] = forces + 0.01 * (index + 1)
    fitted = ConformalInterval.fit(frames, backbone, OrbConfidence("max"), coverage=0.5)
    other = ConformalInterval.load(fitted.save(tmp_path / "x"))
    assert other.base.reduce == "max"
    prediction = backbone(rattled(seed=9), ["energy", "forces"])
    assert float(other(prediction).risk) == float(fitted(prediction).risk) > 0
