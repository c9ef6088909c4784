"""Labels that are results of the potential itself are refused, others are not."""

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from builders import import_mace

from uqcalc import Labels, error_curve
from uqcalc.agreement import same_result
from uqcalc.backbones.registry import tap
from uqcalc.calculator import default_calculator
from uqcalc.errors import LabelError
from uqcalc.labels.dataset import build_dataset
from uqcalc.labels.ownresults import refuse_own_results
from uqcalc.models.bundled import bare_calculator


import_mace()
pytestmark = pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")


@pytest.fixture(scope="module")
def potential():
    return bare_calculator()


def trajectory(potential, count=8):
    """Frames with the results of the potential, as the trajectory of a run has."""
    frames = []
    for seed in range(count):
        atoms = molecule("CH3OH")
        atoms.rattle(0.05, seed=seed)
        results = {n: potential.get_property(n, atoms) for n in ("energy", "forces")}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


@pytest.mark.parametrize("target", ["forces", "energy_per_atom", "relative_energy"])
def test_a_trajectory_that_was_never_labelled_is_refused(potential, target):
    frames = trajectory(potential)
    labels = Labels(target, forces_key="forces", energy_key="energy")
    with pytest.raises(LabelError, match=r"of the potential itself in 8 of 8 frames"):
        build_dataset(frames, tap(potential), labels)
    for frame in frames:  # errors of 5 meV/Å and 2 meV/atom
        frame.calc.results["forces"] = frame.calc.results["forces"] + 0.005
        frame.calc.results["energy"] += 0.01 + 0.001 * np.random.default_rng(1).random()
    assert len(build_dataset(frames, tap(potential), labels)) == 8


def test_limits_from_errors_refuse_them_too(potential):
    frames = trajectory(potential)
    with pytest.raises(LabelError, match="name the key of the reference"):
        error_curve(
            frames,
            default_calculator(),
            tolerance=0.1,
            signal="probe",
            forces_key="forces",
        )


def test_a_few_labels_may_agree_by_chance():
    refuse_own_results([3, 4], 8, Labels())
    refuse_own_results([1, 2, 3], 40, Labels())
    with pytest.raises(LabelError, match=r"4 of 40 frames \(frames 1, 2, 3, 9\)"):
        refuse_own_results([1, 2, 3, 9], 40, Labels())
    stress = np.arange(6.0)
    assert same_result("stress", stress, stress * (1 + 1e-6))
    assert not same_result("stress", stress, stress * (1 + 1e-3))
    assert not same_result("energy", -5.0, np.nan)


@pytest.mark.parametrize("energy", [-5.0, -650.0, -5e5])
def test_a_good_potential_of_any_zero_of_energy_is_not_its_own_reference(energy):
    """Errors of 0.1 meV/atom are real, also with all-electron energies."""
    assert same_result("energy", energy, energy)
    assert not same_result("energy", energy, energy + 1e-4)
