"""Annotation without forces, and a choice of signals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import read, write
from builders import mace_calculator, rattled, tiny_probe
from toys import POLICY, OfGeometry, ToyBackbone, copper
from typer.testing import CliRunner

from uqcalc import (
    Level,
    MaxForce,
    ReliableCalculator,
    annotate,
    annotate_file,
    read_assessment,
    tap,
)
from uqcalc.cli import app
from uqcalc.errors import RecordError
from uqcalc.policy import Policy, Threshold


def frames():
    return [rattled(name, seed=seed) for seed, name in enumerate(["H2O", "CO2", "NH3"])]


class OfEnergy:
    """A signal that judges the energy, from features alone."""

    name = "of_energy"
    requires = frozenset({"energy", "features"})
    judges = frozenset({"energy"})

    def __call__(self, prediction):
        from uqcalc.signals.base import TensorReading

        assert not prediction.has_forces
        risk = float(prediction.features.double().square().mean())
        return TensorReading(self.name, 0.0 * risk)


@pytest.fixture(scope="module")
def backbone():
    return tap(mace_calculator())


def test_energy_and_features_are_those_of_a_full_pass_and_cost_no_gradient(backbone):
    full = backbone.predict_many(frames())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", None)  # calling it would fail
        bare = backbone.predict_many(frames(), ["energy"])
        [alone] = backbone.predict_many(frames()[:1], ["energy"])
    for one, other in zip([*bare, alone], [*full, full[0]], strict=True):
        assert not one.has_forces
        assert "forces" not in one.results
        np.testing.assert_allclose(one.energy, other.energy, rtol=1e-6)
        torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-5)


def test_a_verdict_on_forces_is_never_reliable_without_them(backbone):
    policy = Policy([Threshold("of_energy", 0.5, 0.9)])
    calculator = ReliableCalculator(
        backbone, None, [OfEnergy()], policy, sanity=True, flags=False
    )
    for use, level in ((None, Level.RELIABLE), ("energy", Level.RELIABLE),
                       ("fixed_cell", Level.SUSPECT)):  # fmt: skip
        for frame in annotate(frames(), calculator, use=use, forces=False):
            assert "predicted_forces" not in frame.arrays
            assert np.isfinite(frame.info["predicted_energy"])
            assert read_assessment(frame).level is level
    broken = rattled()
    broken.positions[0] = np.nan
    [frame] = annotate([broken], calculator, forces=False)
    assert read_assessment(frame).level is Level.UNRELIABLE


def test_signals_that_read_forces_are_refused_by_name(backbone):
    for signals, probe in (([MaxForce()], None), ([], tiny_probe(backbone))):
        policy = None if probe else Policy([Threshold("max_force", 1.0, 2.0)])
        calculator = ReliableCalculator(backbone, probe, signals, policy)
        name = "probe" if probe else "max_force"
        with pytest.raises(ValueError, match=f"'{name}' must not read forces"):
            annotate(frames(), calculator, forces=False)
    risk = OfGeometry(lambda positions: 0.0 * positions[0, 0])
    toy = ReliableCalculator(ToyBackbone(EMT()), signals=[risk], policy=POLICY)
    with pytest.raises(ValueError, match="can leave out the forces"):
        annotate([copper()], toy, forces=False)


def test_files_with_and_without_forces_are_not_mixed(backbone, tmp_path):
    policy = Policy([Threshold("of_energy", 0.5, 0.9)])

    class Either(OfEnergy):
        def __call__(self, prediction):
            from uqcalc.signals.base import TensorReading

            return TensorReading(self.name, 0.0)

    calculator = ReliableCalculator(backbone, None, [Either()], policy)
    write(tmp_path / "md.xyz", frames())
    annotate_file(tmp_path / "md.xyz", tmp_path / "out.xyz", calculator, forces=False)
    with pytest.raises(RecordError, match="choose another name"):
        annotate_file(tmp_path / "md.xyz", tmp_path / "out.xyz", calculator)


def annotated(tmp_path, *options):
    arguments = ["annotate", str(tmp_path / "md.xyz"), "-o", str(tmp_path / "out.xyz")]
    return CliRunner().invoke(app, [*arguments, "-q", *options])


def test_the_command_evaluates_only_the_signals_that_are_named(tmp_path):
    write(tmp_path / "md.xyz", [molecule("H2O")])
    done = annotated(tmp_path, "--signals", "max_force")
    assert done.exit_code == 0, done.output
    frame = read(tmp_path / "out.xyz")
    assert "max_force" in frame.info
    assert "probe_reliability" not in frame.info
    assessment = read_assessment(frame)
    names = [reading.signal for reading in assessment.readings]
    assert names == ["max_force", "sanity", "flags"]
    assert assessment.level >= Level.SUSPECT


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--signals", "colour"], "signals must be among probe"),
        (["--signals", "max_force", "--guaranteed"], "must contain probe"),
        (["--signals", "functional_spread"], "--perturbation FILE"),
    ],
)
def test_wrong_choices_of_signals_are_usage_errors(tmp_path, options, reason):
    write(tmp_path / "md.xyz", [molecule("H2O")])
    done = annotated(tmp_path, *options)
    assert done.exit_code == 2
    assert reason in " ".join(done.output.replace("│", " ").split())


def test_the_command_says_why_a_probe_needs_forces(tmp_path):
    write(tmp_path / "md.xyz", [molecule("H2O")])
    done = annotated(tmp_path, "--no-forces")
    assert done.exit_code == 1
    assert "'probe' must not read forces" in done.output
    assert not (tmp_path / "out.xyz").exists()
