"""Force Delta as a signal: closed forms, constraints, intervals, distilled heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from backbones.toys import mace_on_shared_models
from builders import rattled, salt
from closeness import FLOAT64, NETWORK, close
from scipy.spatial.transform import Rotation

from uqcalc import (
    ForceDelta,
    LabelWarning,
    MaxForce,
    Policy,
    ReliableCalculator,
    Threshold,
    calibrate_threshold,
    distill,
    error_curve,
    tap,
)
from uqcalc.backbones.differentiable import Differentiable
from uqcalc.errors import LabelError, ModelError
from uqcalc.signals.base import to_host
from uqcalc.signals.force_delta import without_torque
from uqcalc.testing import check_signal
from uqcalc.types import DistilledHead


LIMITS = Policy([Threshold("force_delta", suspect=1.0, unreliable=2.0)])


def disagreeing(atoms, *, by, seed=0):
    """A prediction whose direct forces are off by ``by`` (atoms, 3)."""
    prediction = tap(mace_on_shared_models())(atoms, ["energy", "forces"])
    direct = torch.as_tensor(prediction.forces + by)
    return replace(prediction, direct_forces=direct)


def read(prediction, **options):
    [reading] = to_host([ForceDelta(**options)(prediction)])
    return reading


class TestClosedForms:
    def test_root_mean_square_over_components(self):
        atoms = salt()
        by = np.random.default_rng(0).normal(size=(len(atoms), 3))
        by -= by.mean(axis=0)
        reading = read(disagreeing(atoms, by=by))
        close(reading.risk, np.sqrt(np.mean(by**2)), FLOAT64)
        close(reading.per_atom, np.linalg.norm(by, axis=1) / np.sqrt(3), FLOAT64)
        close(np.sqrt(np.mean(reading.per_atom**2)), reading.risk, FLOAT64)

    def test_a_net_force_counts_unless_the_head_takes_it_out(self):
        atoms = salt()
        by = np.broadcast_to([0.5, 0.0, 0.0], (len(atoms), 3))
        prediction = disagreeing(atoms, by=by)
        close(read(prediction).risk, 0.5 / np.sqrt(3), FLOAT64)
        close(read(prediction, projection=True).risk, 0.0, FLOAT64, of=by)
        of_such_a_head = replace(prediction, projected=frozenset({"net_force"}))
        close(read(of_such_a_head).risk, 0.0, FLOAT64, of=by)
        as_it_stands = read(of_such_a_head, projection=False).risk
        close(as_it_stands, 0.5 / np.sqrt(3), FLOAT64)

    def test_net_torque_is_taken_out_of_molecules_only(self):
        methanol = rattled()
        arms = methanol.positions - methanol.positions.mean(axis=0)
        by = np.cross([0.1, 0.2, 0.3], arms)
        prediction = disagreeing(methanol, by=by)
        close(read(prediction, projection=True).risk, 0.0, FLOAT64, of=by)
        close(read(prediction).risk, np.sqrt(np.mean(by**2)), FLOAT64)
        crystal = salt()
        by = np.cross([0.1, 0.2, 0.3], crystal.positions)
        assert read(disagreeing(crystal, by=by), projection=True).risk > 0.1

    @pytest.mark.parametrize("name", ["CH3OH", "CO2", "H2"])
    def test_projected_forces_have_no_torque_and_are_the_closest(self, name):
        atoms = molecule(name)
        arms = torch.as_tensor(atoms.positions - atoms.positions.mean(axis=0))
        forces = np.random.default_rng(0).normal(size=(len(atoms), 3))
        forces = torch.from_numpy(forces)
        left = without_torque(forces, torch.as_tensor(atoms.positions))
        torque = torch.linalg.cross(arms, left).sum(0)
        close(torque, np.zeros(3), FLOAT64, of=arms.abs().max() * forces)
        # a projection: a second one changes nothing, and the first removes a rotation
        again = without_torque(left, torch.as_tensor(atoms.positions))
        close(again, left, FLOAT64)
        close((left * (forces - left)).sum(), 0.0, FLOAT64, of=forces**2)

    def test_one_atom(self):
        prediction = disagreeing(Atoms("O"), by=np.ones((1, 3)))
        assert read(prediction, projection=True).risk == 0
        assert read(prediction).risk == pytest.approx(1.0)

    def test_stress(self):
        prediction = disagreeing(salt(), by=0.0)
        full = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        both = replace(prediction, direct_stress=full, conservative_stress=0 * full)
        nine = np.sqrt((1 + 4 + 9 + 2 * (16 + 25 + 36)) / 9)
        assert read(both).results["stress_delta"] == pytest.approx(nine)
        assert "stress_delta" not in read(prediction).results


def test_signal_contract():
    by = np.random.default_rng(1).normal(size=(6, 3))
    check_signal(ForceDelta(), disagreeing(rattled(), by=by))


def test_free_atoms_alone_count_where_some_are_fixed():
    atoms = salt()
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    by = np.random.default_rng(2).normal(size=(len(atoms), 3))
    by -= by.mean(axis=0)
    reading = read(disagreeing(atoms, by=by))
    close(reading.risk, np.sqrt(np.mean(by[3:] ** 2)), FLOAT64)
    assert reading.risk == reading.results["force_delta_free"]
    everything = np.sqrt(np.mean(by**2))
    close(reading.results["force_delta"], everything, FLOAT64)
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    reading = read(disagreeing(atoms, by=by))
    close(reading.risk, everything, FLOAT64)


@pytest.mark.parametrize("interval", [0, -1, 2.0, True])
def test_intervals_are_counts(interval):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        ForceDelta(interval=interval)


@pytest.fixture(scope="module")
def teacher():
    return tap(mace_on_shared_models())


@pytest.fixture(scope="module")
def benzenes():
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(80):
        atoms = molecule("CH3OH")
        atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def head(teacher, benzenes):
    return distill(benzenes, teacher, epochs=40, hidden=16)


@pytest.fixture
def watched(head):
    return ReliableCalculator(
        mace_on_shared_models(), signals=[ForceDelta(head)], policy=LIMITS
    )


class TestDistilledHead:
    def test_follows_the_forces_of_its_potential(self, head):
        assert head.card.report["r2"] > 0.9

    def test_rotates_with_the_structure(self, teacher, head):
        atoms = rattled()
        wanted = ["energy", "forces", "vectors"]
        forces = head(teacher(atoms, wanted)).numpy()
        turn = Rotation.random(random_state=3).as_matrix()
        atoms.positions = atoms.positions @ turn.T + [1.0, 2.0, 3.0]
        turned = head(teacher(atoms, wanted)).numpy()
        close(turned, forces @ turn.T, NETWORK)

    def test_disagrees_more_on_structures_unlike_the_fit(self, watched, benzenes):
        seen = [watched.assess(atoms).readings[0].risk for atoms in benzenes[:10]]
        strange = benzenes[0].copy()
        strange.rattle(0.3, seed=1)
        assert watched.assess(strange).readings[0].risk > 2 * max(seen)

    def test_saved_and_loaded_it_gives_the_same(self, teacher, head, tmp_path):
        path = head.save(tmp_path / "head.safetensors")
        prediction = teacher(rattled(), ["energy", "forces", "vectors"])
        loaded = DistilledHead.load(path)
        assert torch.equal(loaded(prediction), head(prediction))
        assert loaded.card == head.card

    def test_another_model_is_refused(self, head):
        with pytest.raises(ModelError, match="belong to this backbone"):
            ReliableCalculator(
                mace_on_shared_models(1), signals=[ForceDelta(head)], policy=LIMITS
            )

    def test_a_file_of_something_else_is_refused(self, head, tmp_path):
        path = tmp_path / "not.safetensors"
        path.write_bytes(b"no")
        with pytest.raises(ModelError, match="complete safetensors"):
            DistilledHead.load(path)
        with pytest.raises(ModelError, match="another kind of file"):
            head.save(path)

    def test_unseen_elements_are_unreliable_by_name(self, watched):
        assessment = watched.assess(molecule("NH3"))
        assert assessment.level == 2
        assert "'N'" in assessment.verdict.reasons[0]

    def test_its_gradient_is_the_slope_of_u(self, head, teacher):
        head.network.double()
        try:
            atoms = rattled(seed=4, amount=0.1)
            signal = ForceDelta(head)

            def value(moved):
                graph = teacher.differentiable(moved)
                return graph, signal.uncertainty(graph, moved)

            graph, u = value(atoms)
            (slope,) = torch.autograd.grad(u, [graph.positions])
            for atom, axis in ((0, 0), (3, 2)):
                sides = []
                for sign in (1, -1):
                    moved = atoms.copy()
                    moved.positions[atom, axis] += sign * 1e-4
                    sides.append(value(moved)[1].item())
                expected = (sides[0] - sides[1]) / 2e-4
                assert slope[atom, axis].item() == pytest.approx(expected, rel=1e-4)
        finally:
            head.network.float()

    def test_frames_that_fail_are_counted_and_named(self, teacher, benzenes):
        broken = benzenes[0].copy()
        broken.positions[0] = np.nan
        with pytest.warns(LabelWarning) as told:
            made = distill([*benzenes[:30], broken], teacher, epochs=1, hidden=4)
        first, second = (str(warning.message) for warning in told)
        assert "1 of 31 frames were left out" in first
        assert "should reproduce the forces of its potential" in second
        assert made.card.training["left_out"] == 1

    def test_too_few_frames_are_refused(self, teacher, benzenes):
        with pytest.raises(ModelError, match="at least 20 frames"):
            distill(benzenes[:3], teacher)


def test_between_intervals_the_reading_is_absent(head):
    signals = [ForceDelta(head, interval=3), MaxForce()]
    policy = Policy([*LIMITS.thresholds, Threshold("max_force", 50.0, 90.0)])
    calc = ReliableCalculator(mace_on_shared_models(), signals=signals, policy=policy)
    seen = []
    for seed in range(7):
        verdict = calc.assess(rattled(seed=seed)).verdict
        seen.append("force_delta" in calc.results)
        assert (verdict.skipped == ("force_delta",)) != seen[-1]
    assert seen == [True, False, False, True, False, False, True]
    assert calc.backbone.passes == 7


def test_model_without_direct_forces_is_refused():
    with pytest.raises(ValueError, match=r"force_delta.*needs \['direct_forces'\]"):
        ReliableCalculator(
            mace_on_shared_models(), signals=[ForceDelta()], policy=LIMITS
        )


class TestThresholds:
    def test_quantiles_of_a_normal_run(self, watched, benzenes):
        risks = sorted(watched.assess(a).readings[0].risk for a in benzenes)
        limit = calibrate_threshold(benzenes, watched, suspect=0.5, unreliable=0.9)
        # the conformal ranks: ceil(81 * 0.5) and ceil(81 * 0.9)
        assert limit.suspect == pytest.approx(risks[40], rel=1e-5)
        assert limit.unreliable == pytest.approx(risks[72], rel=1e-5)

    def test_message_of_too_few_frames_has_the_number_needed(self, watched, benzenes):
        with pytest.raises(LabelError, match=r"at least 99 groups .* got 80"):
            calibrate_threshold(benzenes, watched)

    def test_error_curve_is_the_share_of_failures(self, watched, benzenes):
        rng = np.random.default_rng(5)
        frames, risks = [], []
        for amount in np.linspace(0.02, 0.3, 60):
            atoms = molecule("CH3OH")
            atoms.positions += rng.normal(0, amount, atoms.positions.shape)
            frames.append(atoms)
            watched.assess(atoms)
            risks.append(watched.results["force_delta"])
            # a reference whose error grows with the risk
            off = rng.normal(size=(6, 3))
            off *= risks[-1] / np.sqrt(np.mean(off**2))
            atoms.arrays["REF_forces"] = watched.results["forces"] + off
        tolerance = float(np.median(risks))
        curve = error_curve(frames, watched, tolerance=tolerance)
        assert curve(0.5 * tolerance) == pytest.approx(1 / 62)
        assert curve(2 * tolerance) == pytest.approx(61 / 62)
        assert np.all(np.diff(curve.probabilities) >= 0)
        assert curve(float("nan")) == 1.0
        limit = curve.threshold()
        # 3 failures of 12 are too few for P = 0.5, at 90 %, and none of 12 for 0.2: the
        # last twelve with so few begin 9, and 12, below the first that fails
        assert limit.unreliable == pytest.approx(sorted(risks)[30 - 9], rel=1e-5)
        assert limit.suspect == pytest.approx(sorted(risks)[30 - 12], rel=1e-5)

    def test_forces_that_vanish_by_symmetry_are_not_counted_as_right(
        self, watched, benzenes
    ):
        """Atoms in vacuum have no force error with any potential."""
        frames = []
        for index, atoms in enumerate(benzenes[:20]):
            frame = atoms.copy()
            watched.assess(frame)
            off = np.zeros((len(frame), 3))
            off[0, 0] = 10.0 if index % 2 else 0.01
            frame.arrays["REF_forces"] = watched.results["forces"] + off
            frames.append(frame)
        lone = Atoms("C")
        lone.arrays["REF_forces"] = np.zeros((1, 3))
        alone = error_curve(frames, watched, tolerance=0.1)
        with pytest.warns(LabelWarning, match=r"2 of 22 frames \(frames 0, 21\)"):
            curve = error_curve([lone, *frames, lone], watched, tolerance=0.1)
        assert curve.labels == 20
        assert np.array_equal(curve.failed, alone.failed)

    def test_labels_on_one_side_are_refused(self, watched, benzenes):
        frames = [atoms.copy() for atoms in benzenes[:12]]
        for atoms in frames:
            atoms.arrays["REF_forces"] = np.zeros((6, 3))
        with pytest.raises(LabelError, match="on each side"):
            error_curve(frames, watched, tolerance=1e-9)
        with pytest.raises(LabelError, match="finite reference forces"):
            error_curve(benzenes[:12], watched, tolerance=0.1)


def test_uncertainty_needs_direct_forces():
    zero = torch.zeros(1, 3)
    graph = Differentiable(zero, torch.zeros(3, 3), zero.sum(), zero, zero)
    with pytest.raises(Exception, match="must give direct forces"):
        ForceDelta().uncertainty(graph, Atoms("H"))


def test_the_slope_along_a_strain_is_true_too(head):
    """A molecule in a cell, strained together."""
    backbone = tap(mace_on_shared_models())
    atoms = rattled(seed=4, amount=0.1)
    atoms.center(vacuum=1.0)
    atoms.pbc = True
    signal = ForceDelta(head)
    head.network.double()
    try:
        graph = backbone.differentiable(atoms)
        u = signal.uncertainty(graph, atoms)
        (slope,) = torch.autograd.grad(u, [graph.strain])
        sides = []
        for sign in (1, -1):
            cell = atoms.cell.array.copy()
            cell[:, 1] *= 1 + sign * 1e-5
            strained = atoms.copy()
            strained.set_cell(cell, scale_atoms=True)
            graph = backbone.differentiable(strained)
            sides.append(signal.uncertainty(graph, strained).item())
        expected = (sides[0] - sides[1]) / 2e-5
        assert slope[1, 1].item() == pytest.approx(expected, rel=1e-3)
    finally:
        head.network.float()
