from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.mep import NEB
from ase.mep.dimer import DimerControl, MinModeAtoms, MinModeTranslate
from ase.optimize import BFGS, FIRE
from builders import mace_calculator, rattled, salt, tiny_probe
from toys import BAD, GOOD, Counted, watched

from uqcalc import Monitor, ReliableCalculator, tap


@pytest.fixture(scope="module")
def base():
    return mace_calculator()


@pytest.fixture(scope="module")
def probe(base):
    return tiny_probe(tap(base), bias=9.0)


def relaxed(atoms, dynamics_of, steps, watch):
    dynamics = dynamics_of(atoms)
    monitor = Monitor(dynamics, patience=1) if watch else None
    geometries = []

    def keep():
        inside = getattr(atoms, "atoms", atoms)
        geometries.append((inside.positions.copy(), inside.cell.array.copy()))

    dynamics.attach(keep)
    dynamics.run(fmax=1e-4, steps=steps)
    return geometries, monitor


@pytest.mark.parametrize("make", [FrechetCellFilter, lambda atoms: atoms])
def test_cells_and_constraints_relax_bitwise_in_one_pass_a_geometry(base, probe, make):
    bare, atoms = salt(), salt()
    for each in (bare, atoms):
        each.set_constraint(FixAtoms([0, 1]))

    def bfgs(target):
        return BFGS(target, logfile=None)

    base.reset()
    bare.calc = base
    expected, _ = relaxed(make(bare), bfgs, 6, watch=False)
    base.reset()
    atoms.calc = ReliableCalculator(base, probe)
    with Counted(base) as count:
        found, monitor = relaxed(make(atoms), bfgs, 6, watch=True)
    for (x, cell), (y, other) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)
        np.testing.assert_array_equal(cell, other)
    assert count.passes == len(monitor.history) == 7
    assert not atoms.get_forces()[:2].any()
    assert atoms.get_forces(apply_constraint=False)[:2].any()


def band():
    """Five images of a hydrogen that crosses a methanol molecule."""
    first, last = rattled(), rattled()
    last.positions[-1] += [0.3, 0.4, -0.2]
    images = [first, *(first.copy() for _ in range(3)), last]
    NEB(images, method="aseneb").interpolate()
    return images


@pytest.mark.parametrize(("method", "ends"), [("aseneb", 0), ("improvedtangent", 2)])
def test_images_of_a_band_share_a_model_and_pay_one_pass_each(base, method, ends):
    probe = tiny_probe(tap(base))
    bare = band()
    for image in bare:
        image.calc = base
    neb = NEB(bare, method=method, allow_shared_calculator=True)
    FIRE(neb, logfile=None).run(fmax=1e-6, steps=4)

    images = band()
    for image in images:
        image.calc = ReliableCalculator(base, probe)
    with Counted(base) as count:
        dynamics = FIRE(NEB(images, method=method), logfile=None)
        dynamics.run(fmax=1e-6, steps=4)
        assert count.passes == ends + 3 * 5  # ends once, the rest at steps 0 to 4
        energies = [image.get_potential_energy() for image in images]
        assessed = [image.calc.assess(image) for image in images]
        assert count.passes == 2 + 3 * 5
    for image, other in zip(images, bare, strict=True):
        np.testing.assert_array_equal(image.positions, other.positions)
    assert energies == [base.get_property("energy", image) for image in bare]
    own = ReliableCalculator(mace_calculator(), probe)
    risks = [assessment.reading("probe").risk for assessment in assessed]
    assert risks == [own.assess(image).reading("probe").risk for image in images]
    assert len(set(risks)) == 5


def test_a_monitored_band_costs_no_further_pass(base, probe):
    images = band()
    for image in images:
        image.calc = ReliableCalculator(base, probe)
    dynamics = FIRE(NEB(images, method="improvedtangent"), logfile=None)
    with Counted(base) as count:
        monitor = Monitor(dynamics, patience=1)
        dynamics.run(fmax=1e-6, steps=3)
        risks = [a.reading("probe").risk for a in monitor.band.images]
        assert count.passes == 2 + 3 * 4
    own = ReliableCalculator(mace_calculator(), probe)
    assert risks == [own.assess(image).reading("probe").risk for image in images]


def test_a_monitor_resumes_the_log_of_a_probe(tmp_path, base, probe):
    """The card of a probe, in the header, is the same after conversion to JSON."""
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.05, seed=0)
    for first in (0, 2):
        atoms = atoms.copy()
        atoms.calc = ReliableCalculator(base, probe)
        dynamics = BFGS(atoms, logfile=None)
        monitor = Monitor(dynamics, log=tmp_path / "run.jsonl", patience=1)
        dynamics.run(fmax=1e-6, steps=2)
        assert [event.step for event in monitor.history] == [
            first + n for n in range(3)
        ]


def test_a_dimer_search_is_judged_at_its_midpoint_and_halted():
    for after, steps in ((GOOD, 4), (BAD, 2)):
        atoms = watched(after=after)
        control = DimerControl(
            initial_eigenmode_method="displacement",
            displacement_method="vector",
            logfile=None,
        )
        moved = MinModeAtoms(atoms, control)
        shift = np.zeros((4, 3))
        shift[0] = [0.1, 0.05, 0.0]
        moved.displace(displacement_vector=shift, mask=[True] + 3 * [False])
        dynamics = MinModeTranslate(moved, logfile=None)
        monitor = Monitor(dynamics)
        dynamics.run(fmax=1e-9, steps=4)
        assert monitor.halted == (after is BAD)
        assert dynamics.nsteps == steps == monitor.history[-1].step
        bare = atoms.copy()
        bare.calc = EMT()
        assert monitor.history[-1].energy_eV == pytest.approx(
            bare.get_potential_energy(), rel=1e-9
        )
        control.logfile.close()
        moved.mlogfile.close()
