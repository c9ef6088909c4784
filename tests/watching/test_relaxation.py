from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS, FIRE, BFGSLineSearch, LBFGSLineSearch
from ase.optimize.sciopt import SciPyFminBFGS
from closeness import FLOAT64, close
from toys import BAD, GOOD, SUSPECT, FaultyEMT, OfGeometry, copper, watched

from uqcalc import Level, read_assessment, read_log, relax
from uqcalc.types import Outcome


def bare_path(optimizer=BFGS, *, fmax=0.01, steps=100, amount=0.1, **options):
    """Return the positions at each step of ASE's own run."""
    atoms = copper(amount=amount)
    atoms.calc = EMT()
    path = []
    dynamics = optimizer(atoms, logfile=None, **options)
    dynamics.attach(lambda: path.append(atoms.positions.copy()))
    dynamics.run(fmax=fmax, steps=steps)
    return path


@pytest.mark.parametrize("optimizer", [BFGS, FIRE, BFGSLineSearch, SciPyFminBFGS])
def test_a_reliable_relaxation_is_ases_own(optimizer):
    path = bare_path(optimizer)
    atoms = watched()
    done = relax(atoms, optimizer, fmax=0.01)
    assert done.outcome is Outcome.CONVERGED
    assert len(done.history) == len(path)
    np.testing.assert_array_equal(atoms.positions, path[-1])
    for frame in (done.final, done.trusted):
        np.testing.assert_array_equal(frame.positions, path[-1])
    assert done.went_bad_at is None
    assert done.trusted_step == len(path) - 1
    assert str(done) == f"converged after {len(path) - 1} steps"


def test_the_record_for_a_workflow_is_json_and_has_the_frames():
    done = relax(watched([GOOD, GOOD, np.nan]), fmax=1e-6, steps=2)
    record = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    assert record["outcome"] == "not converged"
    assert (record["steps"], record["trusted_step"], record["went_bad_at"]) == (2, 1, 2)
    assert record["level"] == "UNRELIABLE"
    assert record["reasons"] == list(done.history[-1].reasons)
    assert len(record["history"]) == 3
    assert record["history"][-1]["readings"]["scripted"] is None
    for name in ("final", "trusted"):
        frame, ours = read(StringIO(record[name]), format="extxyz"), getattr(done, name)
        np.testing.assert_allclose(frame.positions, ours.positions, atol=1e-7)
        assert read_assessment(frame).level is read_assessment(ours).level


def test_running_out_of_steps_is_not_converged():
    done = relax(watched(), fmax=1e-6, steps=2)
    assert done.outcome is Outcome.NOT_CONVERGED
    assert len(done.history) == 3
    assert done.trusted_step == 2


def test_converged_but_unreliable(tmp_path):
    last = len(bare_path()) - 1
    atoms = watched([GOOD] * last, after=BAD)
    done = relax(atoms, fmax=0.01, log=tmp_path / "run.jsonl")
    assert done.outcome is Outcome.CONVERGED_UNRELIABLE
    assert (done.trusted_step, done.went_bad_at) == (last - 1, last)
    assert read_assessment(done.final).level is Level.UNRELIABLE
    ends = [r for r in read_log(tmp_path / "run.jsonl") if r["event"] == "end"]
    assert [end["how"] for end in ends] == ["finished"]


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_leaving_the_reliable_region_gives_the_last_trusted_geometry(
    tmp_path, optimizer
):
    path = bare_path(optimizer, fmax=1e-6, steps=10)
    risks = [GOOD, BAD, BAD, SUSPECT, BAD, BAD, BAD]
    done = relax(
        watched(risks),
        optimizer,
        fmax=1e-6,
        patience=3,
        log=tmp_path / "run.jsonl",
        flagged=tmp_path / "flagged.xyz",
    )
    assert done.outcome is Outcome.LEFT
    assert (done.trusted_step, done.went_bad_at) == (3, 4)
    np.testing.assert_array_equal(done.trusted.positions, path[3])
    np.testing.assert_array_equal(done.final.positions, path[6])
    assert read_assessment(done.trusted).level is Level.SUSPECT
    energy = done.trusted.info["predicted_energy"]
    done.trusted.calc = EMT()
    # EMT's neighbour list has a skin: its order of summation depends on the past
    fresh = done.trusted.get_potential_energy()
    close(energy, fresh, FLOAT64, of=len(done.trusted))  # 1 eV an atom
    steps = [frame.info["step"] for frame in read(tmp_path / "flagged.xyz", ":")]
    assert steps == [1, 2, 4, 5, 6]
    assert str(done).endswith("after 6 steps; UNRELIABLE from step 4 on")


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(BFGSLineSearch, {}), (LBFGSLineSearch, {}), (SciPyFminBFGS, {"alpha": 7.0})],
)
def test_trial_points_of_line_searches_do_not_count(optimizer, options):
    path = bare_path(optimizer, fmax=1e-3, steps=8, amount=0.8, **options)
    worst = 3

    def risk(positions):  # every geometry is bad but the first and the third
        good = [np.array_equal(positions, path[step]) for step in (0, 2)]
        return GOOD if any(good) else BAD

    atoms = watched(signal=OfGeometry(risk), amount=0.8)
    done = relax(atoms, optimizer, fmax=1e-3, steps=8, patience=worst, **options)
    assert atoms.calc.backbone.passes > len(done.history)  # there were trial points
    assert done.outcome is Outcome.LEFT
    assert (done.trusted_step, done.went_bad_at) == (2, 3)
    assert done.history[-1].step == 2 + worst
    np.testing.assert_array_equal(done.trusted.positions, path[2])
    np.testing.assert_array_equal(done.final.positions, path[2 + worst])


def test_no_reliable_geometry():
    done = relax(watched(after=BAD), fmax=1e-6, patience=1)
    assert done.outcome is Outcome.LEFT
    assert (done.trusted, done.trusted_step, done.went_bad_at) == (None, None, 0)


def test_cells_and_constraints_relax_too():
    atoms, bare = watched(), copper()
    bare.calc = EMT()
    for each in (atoms, bare):
        each.set_constraint(FixAtoms([0]))
    done = relax(FrechetCellFilter(atoms), fmax=0.01)
    dynamics = BFGS(FrechetCellFilter(bare), logfile=None)
    assert dynamics.run(fmax=0.01)
    assert done.outcome is Outcome.CONVERGED
    np.testing.assert_array_equal(atoms.cell.array, bare.cell.array)
    np.testing.assert_array_equal(atoms.positions, bare.positions)
    np.testing.assert_array_equal(done.trusted.cell.array, bare.cell.array)


def test_an_exception_in_the_base_passes_through():
    with pytest.raises(ZeroDivisionError, match="fell over"):
        relax(watched(base=FaultyEMT(2, "raise")), fmax=1e-6)


def test_an_optimizer_must_be_a_class():
    with pytest.raises(TypeError, match="optimizer must be a class such as ase"):
        relax(watched(), "BFGS")
