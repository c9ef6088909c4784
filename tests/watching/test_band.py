"""A band of images under a monitor: a verdict for each image, and for the barrier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.mep import NEB, DyNEB
from ase.mep.neb import NEBOptimizer
from ase.optimize import BFGS, FIRE
from toys import BAD, GOOD, POLICY, SUSPECT, OfGeometry, ToyBackbone, copper

from uqcalc import (
    Level,
    Monitor,
    Policy,
    ReliableCalculator,
    UnreliableError,
    read_log,
    relax,
)
from uqcalc.errors import RecordError
from uqcalc.watching.band import BandAssessment


SHIFT = np.array([0.4, 0.5, 0.1])


def judge(positions_of_first_atom):
    """Return a signal whose risk is a function of the place of the first atom."""
    start = copper().positions[0]

    def risk(positions):
        return positions_of_first_atom((positions[0] - start) @ SHIFT / (SHIFT @ SHIFT))

    return OfGeometry(risk)


def calculator(risk):
    return ReliableCalculator(ToyBackbone(EMT()), signals=[judge(risk)], policy=POLICY)


def band(risk, count=5, *, shared=False, kind=NEB, ends=True, **options):
    first, last = copper(), copper()
    last.positions[0] += SHIFT
    images = [first, *[first.copy() for _ in range(count - 2)], last]
    one = calculator(risk)
    for index, image in enumerate(images):
        image.calc = one if shared else calculator(risk)
        if not ends and index in (0, count - 1):
            bare = copper()
            bare.positions[:] = image.positions
            bare.calc = EMT()
            energy = bare.get_potential_energy()
            image.calc = SinglePointCalculator(image, energy=energy)
    options = {"method": "improvedtangent"} | options
    neb = kind(images, allow_shared_calculator=shared, **options)
    neb.interpolate()
    return neb


def passes(neb):
    return sum({i.calc: i.calc.backbone.passes for i in neb.images}.values())


def middle(risk):
    """The middle image has this risk at the start and near it; the others are good."""
    return lambda way: risk if 0.4 < way < 0.6 else GOOD


@pytest.mark.parametrize("count", [5, 11])  # more images than a calculator caches
@pytest.mark.parametrize(
    "options", [{}, {"shared": True}, {"parallel": True}, {"kind": DyNEB, "fmax": 0.01}]
)
def test_each_image_is_judged_once_a_step_and_the_worst_decides(options, count):
    neb = band(middle(SUSPECT), count, **options)
    dynamics = FIRE(neb, logfile=None)
    monitor = Monitor(dynamics)
    dynamics.run(fmax=1e-9, steps=2)
    assert passes(neb) <= 2 + 3 * (count - 2)
    seen, worst = monitor.band, count // 2
    expected = [Level.RELIABLE] * count
    assert (seen.worst, monitor.history[-1].image) == (worst, worst)
    assert seen.levels[worst] is Level.SUSPECT is monitor.history[-1].level
    energies = []
    for image in neb.images:
        bare = image.copy()
        bare.calc = EMT()
        energies.append(bare.get_potential_energy())
    np.testing.assert_allclose(seen.energies_eV, energies, atol=1e-6)
    assert seen.highest == int(np.argmax(energies))
    assert seen.barrier_eV == pytest.approx(max(energies) - energies[0], abs=1e-6)
    assert monitor.last.verdict.reasons[0].startswith(f"image {worst}: scripted: risk")
    assert f"{worst} SUSPECT" in monitor.summary()
    assert "Barrier from image 0 to image" in monitor.summary()
    assert sum(e is not s for e, s in zip(expected, seen.levels, strict=True)) <= 3


def test_an_unreliable_image_halts_the_band_and_is_the_one_that_is_flagged(tmp_path):
    log, flagged = tmp_path / "neb.jsonl", tmp_path / "flagged.xyz"
    neb = band(lambda way: BAD if 0.2 < way < 0.6 else GOOD)
    dynamics = BFGS(neb, logfile=None)
    monitor = Monitor(dynamics, log=log, flagged=flagged, patience=2)
    assert not dynamics.run(fmax=1e-9, steps=9)
    assert monitor.halted
    assert dynamics.nsteps == 1
    frames = [(f.info["step"], f.info["image"]) for f in read(flagged, ":")]
    assert frames == [(0, 2), (0, 1), (1, 2), (1, 1)]  # the image that decides is last
    last = monitor.snapshot()
    assert last.info["image"] == 1
    np.testing.assert_array_equal(last.positions, neb.images[1].positions)
    np.testing.assert_array_equal(
        monitor.snapshot(3).positions, neb.images[3].positions
    )
    records = [r for r in read_log(log) if r["event"] == "step"]
    assert [r["image"] for r in records] == [1, 1]
    assert records[0]["levels"] == ["RELIABLE", *["UNRELIABLE"] * 2, *["RELIABLE"] * 2]
    assert records[0]["reasons"][-1] == "also UNRELIABLE: image 2"
    assert records[0]["barrier"] == monitor.history[0].barrier.name == "SUSPECT"
    assert "of image 1" in monitor.summary() or not monitor.last.worst_atoms()
    positions = neb.get_positions()
    dynamics.run(fmax=1e-9, steps=5)
    np.testing.assert_array_equal(neb.get_positions(), positions)


def test_ends_that_were_calculated_elsewhere_leave_the_barrier_suspect():
    neb = band(middle(GOOD), ends=False)
    monitor = Monitor(FIRE(neb, logfile=None))
    monitor.dynamics.run(fmax=1e-9, steps=1)
    assert monitor.band.levels == (None, *[Level.RELIABLE] * 3, None)
    assert monitor.last.level is Level.RELIABLE  # of the images that move
    assert monitor.band.barrier.level is Level.SUSPECT
    assert "image 0 is not judged" in str(monitor.band)
    assert np.isfinite(monitor.band.barrier_eV)
    with pytest.raises(ValueError, match="image must carry a ReliableCalculator"):
        monitor.snapshot(0)


def test_the_barrier_is_judged_by_the_images_it_is_between():
    def seen(levels, energies):
        made = [
            None if r is None else calculator(lambda _, r=r: r).assess(copper())
            for r in levels
        ]
        return BandAssessment.of(made, energies)

    energies = [0.0, 0.2, 0.7, 0.1]
    for risks, level in [
        ([GOOD, GOOD, GOOD, GOOD], Level.RELIABLE),
        ([GOOD, SUSPECT, GOOD, GOOD], Level.RELIABLE),
        ([GOOD, BAD, GOOD, GOOD], Level.SUSPECT),  # it may be higher there
        ([BAD, GOOD, GOOD, GOOD], Level.UNRELIABLE),
        ([GOOD, GOOD, BAD, SUSPECT], Level.UNRELIABLE),
        ([None, GOOD, GOOD, None], Level.SUSPECT),
    ]:
        found = seen(risks, energies)
        assert found.barrier.level is level
        assert bool(found.barrier.reasons) == (level is not Level.RELIABLE)
        assert (found.highest, found.barrier_eV) == (2, 0.7)
        which = "first" if risks[0] is BAD else "highest"
        told = f"The {which} image is UNRELIABLE: do not report this barrier."
        assert (told in found.barrier_words()) == (level is Level.UNRELIABLE)
    nan = float("nan")
    # an image without a finite energy may be the highest: no barrier is known
    for risks, energies, named in [
        ([None, GOOD], [nan, 0.0], 0),
        ([GOOD, nan, GOOD], [0.0, nan, -0.1], 1),
        ([GOOD, GOOD, nan], [0.0, 0.4, nan], 2),
    ]:
        found = seen(risks, energies)
        assert np.isnan(found.barrier_eV)
        assert found.barrier.level is Level.UNRELIABLE
        assert f"image {named} has no finite energy" in found.barrier_words()
        assert found.barrier_words().endswith("The barrier is not known.")


@pytest.mark.parametrize(
    ("judges", "most", "level"),
    [
        ({"forces"}, GOOD, Level.RELIABLE),
        ({"energy", "forces"}, GOOD, Level.RELIABLE),
        ({"energy", "forces"}, GOOD - 1, Level.UNRELIABLE),
    ],
)
def test_barrier_states_whether_its_energies_are_judged(judges, most, level):
    """A barrier is a difference of energies; a verdict on forces does not cover it."""
    neb = band(middle(GOOD))
    for image in neb.images:
        calc, [limit] = image.calc, image.calc.policy.thresholds
        calc.signals[0].judges = frozenset(judges)
        on_energy = replace(limit, suspect=most, unreliable=most)
        calc.policy = Policy([limit], energy=[on_energy])
    monitor = Monitor(FIRE(neb, logfile=None), on_unreliable="warn")
    monitor.dynamics.run(fmax=1e-9, steps=1)
    words, judged = monitor.band.barrier_words(), "energy" in judges
    assert monitor.band.barrier.level is level
    assert monitor.band.energies_judged is judged
    assert ("No probe judges the energies" in words) is not judged
    assert words in monitor.summary()
    assert ("UNRELIABLE in its energy" in words) is (level is Level.UNRELIABLE)


def test_an_optimiser_of_bands_with_a_loop_of_its_own_is_halted_by_raising():
    dynamics = NEBOptimizer(band(middle(BAD)), logfile=None, method="static")
    monitor = Monitor(dynamics, patience=2)
    with pytest.raises(UnreliableError, match="image 2: scripted"):
        dynamics.run(steps=6)
    assert monitor.halted
    assert len(monitor.history) == 2


def test_a_time_of_changed_bonds_is_refused():
    with pytest.raises(ValueError, match="bond_change_fs must be left out for a band"):
        Monitor(BFGS(band(middle(0.0)), logfile=None), bond_change_fs=25.0)


def test_images_without_a_verdict_and_other_bands_are_refused():
    neb = band(middle(GOOD))
    neb.images[2].calc = EMT()
    with pytest.raises(ValueError, match="must carry a ReliableCalculator, got EMT"):
        Monitor(FIRE(neb, logfile=None))
    with pytest.raises(TypeError, match="one structure, got BFGS around NEB"):
        relax(band(middle(GOOD)))


def test_a_band_goes_on_in_its_log_where_it_ended(tmp_path):
    log = tmp_path / "neb.jsonl"
    neb = band(middle(GOOD))
    for _ in range(2):
        dynamics = FIRE(neb, logfile=None)
        monitor = Monitor(dynamics, log=log)
        dynamics.run(fmax=1e-9, steps=2)
    assert monitor.step == 4
    with pytest.raises(RecordError, match="must be continued from the geometry"):
        Monitor(FIRE(band(middle(GOOD)), logfile=None), log=log)
