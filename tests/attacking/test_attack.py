"""Attacks: gradients, bounds, and paths that are kept after errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixBondLength
from ase.data import covalent_radii
from ase.io import read, write
from builders import mace_calculator, rattled, salt, tiny_probe
from closeness import FLOAT64, NETWORK, close
from toys import ToyBackbone
from typer.testing import CliRunner

import uqcalc
from uqcalc import (
    ForceDelta,
    Level,
    MaxForce,
    Policy,
    ReliableCalculator,
    Threshold,
    attack,
    read_assessment,
)
from uqcalc.attacking.ascent import uphill
from uqcalc.cli import app
from uqcalc.distillation.head import HeadCard, make_network
from uqcalc.errors import BackboneError
from uqcalc.types import AttackSettings


pytest.importorskip("orb_models")
from backbones.orbs import both_heads, default_dtype, orb_calculator, orb_model


LIMITS = Policy([Threshold("force_delta", suspect=1e-3, unreliable=10.0)])
UP = {"beta": 0.0, "alpha": 2.0, "steps": 4}


def attackable(dtype=torch.float32, model=None, **options):
    base = orb_calculator(model or orb_model(dtype=dtype))
    return ReliableCalculator(base, signals=[ForceDelta()], policy=LIMITS, **options)


@pytest.fixture
def _double():
    with default_dtype(torch.float64):
        yield


def ratios(atoms):
    """Distances over sums of covalent radii, (pairs,), by ASE's own minimum image."""
    i, j = np.triu_indices(len(atoms), 1)
    apart = atoms.get_all_distances(mic=bool(atoms.pbc.any()))[i, j]
    radii = covalent_radii[atoms.numbers]
    return apart / (radii[i] + radii[j])


def same(one, two):
    assert one.reason == two.reason
    np.testing.assert_array_equal(one.force_delta, two.force_delta)
    for a, b in zip(one.frames, two.frames, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)


# ----------------------------------------------------------------- gradients


def central(function, size):
    return (function(size) - function(-size)) / (2 * size)


def read_u(calc, atoms):
    return calc.assess(atoms).reading("force_delta").risk


def moved_by(atoms, displacements):
    copy = atoms.copy()
    copy.positions += displacements
    return copy


def strained_by(atoms, strain):
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return copy


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(
    ("atoms", "model"),
    [
        (rattled(), None),
        (salt(), None),
        (rattled(), both_heads),
    ],
    ids=["molecule", "crystal", "conservative"],
)
def test_gradients_of_the_calculators_u_are_right(atoms, model):
    calc = attackable(torch.float64, model and model())
    rng = np.random.default_rng(0)
    along = rng.normal(size=atoms.positions.shape)
    along /= np.linalg.norm(along)
    for settings, value in (
        (AttackSettings(alpha=1, beta=0), lambda frame: read_u(calc, frame)),
        (
            AttackSettings(alpha=0, beta=1),
            lambda frame: -calc.get_potential_energy(frame),
        ),
    ):
        step = uphill(atoms, calc.backbone, calc.signals[0], settings)
        expected = central(lambda h, f=value: f(moved_by(atoms, h * along)), 1e-4)
        assert np.sum(step.displacements * along) == pytest.approx(
            expected, rel=1e-5, abs=1e-9
        )
        assert not step.strain.any()


@pytest.mark.usefixtures("_double")
def test_gradients_of_linear_molecules_are_right_along_the_axis():
    """U is discontinuous off the line: only there the torque about it counts."""
    atoms, calc = molecule("CO2"), attackable(torch.float64)
    settings = AttackSettings(alpha=1, beta=0)
    along = np.outer([0.5, -0.7, 0.3], [0, 0, 1])
    expected = central(lambda h: read_u(calc, moved_by(atoms, h * along)), 1e-4)
    step = uphill(atoms, calc.backbone, calc.signals[0], settings)
    assert np.sum(step.displacements * along) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (0, 1), (0.7, 0.2)])
def test_gradients_with_respect_to_strain_are_true(alpha, beta):
    atoms, calc = salt(), attackable(torch.float64)
    rng = np.random.default_rng(1)
    along = rng.normal(size=(3, 3))
    along = (along + along.T) / 2

    def value(h):
        frame = strained_by(atoms, h * along)
        return alpha * read_u(calc, frame) - beta * calc.get_potential_energy(frame)

    settings = AttackSettings(alpha=alpha, beta=beta, cell="free")
    step = uphill(atoms, calc.backbone, calc.signals[0], settings)
    square = len(atoms) * atoms.cell.volume ** (2 / 3)
    got = np.sum(step.strain * along) * square
    assert got == pytest.approx(central(value, 1e-5), rel=1e-5)


# ----------------------------------------------------------------- paths


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
def test_u_rises_step_by_step(atoms):
    calc = attackable(torch.float64)
    [path] = attack(atoms, calc, AttackSettings(alpha=0.5, beta=0, steps=6))
    assert path.reason == "all 6 steps done"
    assert np.all(np.diff(path.force_delta) > 0)
    assert path.steps == 6
    assert path.force_error is None


def test_u_of_a_distilled_head_rises_too():
    backbone = uqcalc.tap(mace_calculator(0))
    width, channels = backbone.feature_dim, 8
    card = HeadCard(
        fingerprint=backbone.fingerprint,
        features=width,
        vectors=channels,
        cutoff=4.0,
        hidden=16,
        elements=[1, 6, 8],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = uqcalc.types.DistilledHead(card, make_network(card))
    calc = ReliableCalculator(backbone, signals=[ForceDelta(head)], policy=LIMITS)
    settings = AttackSettings(alpha=1e-3, beta=0, steps=4)
    [path] = attack(rattled(), calc, settings)
    assert np.all(np.diff(path.force_delta) > 0)
    [path] = attack(molecule("NH3"), calc, settings)
    assert path.reason.startswith("U is NaN: the head was distilled without")
    assert len(path.frames) == 1


@pytest.mark.usefixtures("_double")
def test_the_energy_term_alone_lowers_the_energy():
    settings = AttackSettings(alpha=0, beta=2e-3, steps=5)
    [path] = attack(rattled(amount=0.1), attackable(torch.float64), settings)
    assert np.all(np.diff(path.energy) < 0)
    assert path.energy_rise[-1] < 0 == path.energy_rise[0]


def test_frames_have_the_results_of_the_calculator():
    calc = attackable()
    given = rattled()
    [path] = attack(given, calc, AttackSettings(steps=3))
    for step, frame in enumerate(path.frames):
        assert frame.info["attack_start"] == 0
        assert frame.info["attack_step"] == step
        ours, theirs = read_assessment(frame), calc.assess(frame)
        assert ours.level == theirs.level == path.levels[step] == Level.SUSPECT
        risk = theirs.reading("force_delta").risk
        assert ours.reading("force_delta").risk == pytest.approx(risk, rel=1e-4)
        assert path.force_delta[step] == ours.reading("force_delta").risk
        assert frame.info["predicted_energy"] == path.energy[step]
        assert frame.arrays["predicted_forces"].shape == (6, 3)
    np.testing.assert_array_equal(path.frames[0].positions, given.positions)


def test_probe_is_read_too():
    base = orb_calculator(orb_model(dtype=torch.float32))
    probe = tiny_probe(uqcalc.tap(base))
    calc = ReliableCalculator(base, probe, [ForceDelta()])
    [path] = attack(rattled(), calc, AttackSettings(steps=1))
    assert 0 <= path.frames[1].info["probe_reliability"] <= 1
    close(path.frames[1].arrays["probe_importance"].sum(), 1.0)


def test_a_signal_with_an_interval_is_read_at_every_step():
    base = orb_calculator(orb_model(dtype=torch.float32))
    signals = [ForceDelta(interval=10)]
    calc = ReliableCalculator(base, signals=signals, policy=LIMITS)
    [path] = attack(rattled(), calc, AttackSettings(steps=3))
    assert np.all(path.force_delta > 0)


def test_no_atom_moves_further_than_max_step():
    settings = AttackSettings(alpha=1e3, beta=0, steps=5, max_step=0.02)
    [path] = attack(rattled(), attackable(), settings)
    for one, two in zip(path.frames, path.frames[1:], strict=False):
        longest = np.linalg.norm(two.positions - one.positions, axis=1).max()
        close(longest, 0.02)  # alpha alone would give more


@pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
def test_atoms_keep_their_distance(atoms):
    closest = 0.97 * ratios(atoms).min()
    settings = AttackSettings(
        alpha=1e3, beta=0, steps=40, max_step=0.2, closest=min(closest, 0.99)
    )
    [path] = attack(atoms, attackable(), settings)
    assert min(ratios(frame).min() for frame in path.frames) >= settings.closest
    assert path.steps < 40
    assert path.reason.startswith(f"atoms would come closer than {settings.closest:g}")


def test_rattled_starts_keep_their_distance_too():
    settings = AttackSettings(starts=6, rattle=0.5, steps=1)
    for path in attack(rattled(), attackable(), settings):
        assert all(ratios(frame).min() >= 0.6 for frame in path.frames)


def test_the_same_seed_gives_the_same_paths():
    atoms, calc = rattled(), attackable()
    settings = AttackSettings(starts=3, seed=7, steps=2)
    first = attack(atoms, calc, settings)
    for one, two in zip(first, attack(atoms, calc, settings), strict=True):
        same(one, two)
    fewer = attack(atoms, calc, AttackSettings(starts=2, seed=7, steps=2))
    same(first[1], fewer[1])
    other = attack(atoms, calc, AttackSettings(starts=2, seed=8, steps=2))
    assert not np.allclose(first[1].frames[0].positions, other[1].frames[0].positions)


def test_starts_differ_and_the_first_is_the_structure_itself():
    atoms = rattled()
    paths = attack(atoms, attackable(), AttackSettings(starts=3, steps=1))
    assert [path.start for path in paths] == [0, 1, 2]
    starts = [path.frames[0].positions for path in paths]
    np.testing.assert_array_equal(starts[0], atoms.positions)
    spread = [np.std(start - atoms.positions) for start in starts]
    assert spread[0] == 0
    assert all(0.02 < s < 0.09 for s in spread[1:])
    assert not np.allclose(starts[1], starts[2])


def test_fixed_atoms_stay_and_stay_fixed():
    atoms = rattled()
    atoms.set_constraint(FixAtoms([0, 3]))
    settings = AttackSettings(starts=2, steps=3, alpha=10)
    for path in attack(atoms, attackable(), settings):
        last = path.frames[-1]
        np.testing.assert_array_equal(last.positions[[0, 3]], atoms.positions[[0, 3]])
        assert not np.allclose(last.positions[1], atoms.positions[1])
        assert last.constraints[0].index.tolist() == [0, 3]
        assert last.info["force_delta_free"] > 0
        assert path.force_delta[-1] == last.info["force_delta"]


def test_atoms_and_calculator_are_left_as_they_were():
    calc = attackable()
    atoms, other = rattled(), rattled(seed=5)
    atoms.info["name"] = "methanol"
    atoms.calc = calc
    calc.assess(other)
    state, assessment = dict(calc.results), calc.assessment
    copy = atoms.copy()
    paths = attack(atoms, calc, AttackSettings(starts=2, steps=2))
    assert atoms == copy
    assert atoms.info == copy.info
    assert atoms.calc is calc
    assert calc.assessment is assessment
    assert calc.results == state
    assert calc.assess(other) is assessment
    assert paths[0].frames[-1].info["name"] == "methanol"


def test_a_free_cell_is_strained_within_its_limit():
    settings = {"steps": 3, "alpha": 1e3, "beta": 0.0, "max_strain": 4e-3}
    atoms, calc = salt(), attackable()
    [fixed] = attack(atoms, calc, AttackSettings(**settings))
    [free] = attack(atoms, calc, AttackSettings(**settings, cell="free"))
    assert all(np.all(frame.cell == atoms.cell) for frame in fixed.frames)
    for one, two in zip(free.frames, free.frames[1:], strict=False):
        strain = np.linalg.solve(one.cell.array, two.cell.array) - np.eye(3)
        assert 0 < np.abs(strain).max() <= 4e-3 * (1 + NETWORK)
        close(strain, strain.T, FLOAT64, of=1.0)  # a difference of matrices about 1
    assert free.frames[-1].info["predicted_stress"].shape == (6,)


@pytest.mark.usefixtures("_double")
def test_free_cell_reaches_a_larger_u():
    settings = {"steps": 1, "alpha": 0.1, "beta": 0.0}
    atoms, calc = salt(), attackable(torch.float64)
    gains = [
        np.ptp(
            attack(atoms, calc, AttackSettings(**settings, cell=cell))[0].force_delta
        )
        for cell in ("fixed", "free")
    ]
    assert gains[1] > gains[0] > 0


# ----------------------------------------------------------------- references


def test_a_reference_scores_every_frame():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    [path] = attack(atoms, attackable(), AttackSettings(steps=2), reference=EMT())
    assert path.force_error.shape == (3,)
    for frame, error in zip(path.frames, path.force_error, strict=True):
        apart = frame.arrays["predicted_forces"] - EMT().get_forces(frame)
        close(error, np.sqrt(np.mean(apart**2)), NETWORK)
        assert frame.info["attack_force_error"] == error
        # EMT sums in another order with an older neighbour list
        close(frame.arrays["REF_forces"], EMT().get_forces(frame), FLOAT64)


class Failing(Calculator):
    """Gives forces a few times, and then does not converge."""

    implemented_properties = ("energy", "forces")

    def __init__(self, times, error):
        super().__init__()
        self.times, self.error = times, error

    def calculate(self, atoms=None, properties=(), system_changes=()):
        if self.times == 0:
            raise self.error
        self.times -= 1
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


@pytest.mark.parametrize(
    "error", [CalculationFailed("no SCF"), FileNotFoundError("no dft")]
)
def test_failing_reference_ends_the_path_and_frames_are_kept(error):
    [path] = attack(
        rattled(), attackable(), AttackSettings(steps=5), reference=Failing(2, error)
    )
    assert path.steps == 2
    assert np.isfinite(path.force_error).tolist() == [True, True, False]
    assert path.reason == f"the reference failed: {type(error).__name__}: {error}"
    assert "REF_forces" not in path.frames[-1].arrays


# ----------------------------------------------------------------- ends


def test_single_atom_ends_the_path_without_an_error():
    for settings, reason in (
        (AttackSettings(**UP), "U no longer changes"),
        (AttackSettings(), "no step is left"),
    ):
        [path] = attack(Atoms("H"), attackable(), settings)
        assert path.reason == reason
        assert path.steps == 0
        assert path.force_delta.tolist() == [0.0]


def test_perfect_crystal_gives_finite_numbers():
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    [path] = attack(atoms, attackable(), AttackSettings(**UP))
    assert np.isfinite(path.force_delta).all()


def test_energy_above_the_limit_ends_the_path_before():
    settings = {"alpha": 100.0, "beta": 0.0, "steps": 30, "closest": 0.2}
    [free] = attack(rattled(), attackable(), AttackSettings(**settings))
    ceiling = float(free.energy_rise.max()) / 2
    assert ceiling > 0
    [path] = attack(
        rattled(), attackable(), AttackSettings(**settings, max_energy_rise=ceiling)
    )
    assert path.reason == f"energy rose by more than {ceiling:g} eV/atom"
    assert path.energy_rise.max() <= ceiling
    assert 0 < path.steps < free.steps


def test_frames_before_a_failure_are_kept(monkeypatch):
    calc = attackable()
    plain, calls = calc.backbone.differentiable, []

    def differentiable(atoms):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the graph\nis gone")
        return plain(atoms)

    monkeypatch.setattr(calc.backbone, "differentiable", differentiable)
    paths = attack(rattled(), calc, AttackSettings(starts=2, steps=4))
    assert [path.steps for path in paths] == [2, 4]
    assert paths[0].reason == "no gradient: RuntimeError: the graph is gone"
    assert paths[1].reason == "all 4 steps done"


@pytest.mark.parametrize("kind", ["energy", "exception"])
def test_failing_model_ends_the_path(monkeypatch, kind):
    calc = attackable()
    base = calc.backbone.calculator
    plain, calls = base.calculate, []

    def calculate(*args):
        calls.append(1)
        plain(*args)
        if len(calls) == 3 and kind == "energy":
            base.results["energy"] = np.nan
        elif len(calls) == 3:
            raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(base, "calculate", calculate)
    [path] = attack(rattled(), calc, AttackSettings(steps=5))
    assert path.steps == 1
    assert (
        path.reason
        == {
            "energy": "energy must be finite, got NaN or infinity",
            "exception": "OutOfMemoryError: full",
        }[kind]
    )


def test_nan_gradients_end_the_path(monkeypatch):
    def uncertainty(self, graph, atoms):
        return graph.energy * torch.nan

    monkeypatch.setattr(ForceDelta, "uncertainty", uncertainty)
    [path] = attack(rattled(), attackable(), AttackSettings())
    assert path.reason == "a gradient is NaN or infinite"
    assert path.steps == 0


def test_an_observer_sees_every_frame_as_it_is_made():
    seen = []
    paths = attack(
        rattled(), attackable(), AttackSettings(starts=2, steps=2), observer=seen.append
    )
    assert [id(f) for path in paths for f in path.frames] == [id(f) for f in seen]


# ----------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"starts": 2.0}, "starts must be a whole number of at least 1, got 2.0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"alpha": -1}, "alpha must be a number at least 0, got -1"),
        ({"beta": float("nan")}, "beta must be a number at least 0, got nan"),
        ({"max_step": 0}, "max_step must be a number above 0, got 0"),
        ({"closest": 1.2}, "closest must be below 1, got 1.2"),
        ({"max_strain": "x"}, "max_strain must be a number above 0, got 'x'"),
        ({"max_energy_rise": -1}, "max_energy_rise must be a number above 0"),
        ({"alpha": 0, "beta": 0}, "alpha or beta must be above 0"),
        ({"starts": 2, "rattle": 0}, "rattle must be above 0 for 2 starts"),
        ({"cell": "both"}, "cell must be 'fixed' or 'free', got 'both'"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        AttackSettings(**changes)


def fixed(indices, atoms=None):
    atoms = rattled() if atoms is None else atoms
    atoms.set_constraint(FixAtoms(indices))
    return atoms


def bonded():
    atoms = rattled()
    atoms.set_constraint(FixBondLength(0, 1))
    return atoms


@pytest.mark.parametrize(
    ("atoms", "cell", "error", "words"),
    [
        ([rattled()], "fixed", TypeError, "atoms must be one ase Atoms, got list"),
        (Atoms(), "fixed", BackboneError, "at least one atom"),
        (fixed(range(6)), "fixed", ValueError, "at least one atom must be free"),
        (bonded(), "fixed", ValueError, "must be FixAtoms .*'FixBondLengths'"),
        (rattled(), "free", ValueError, "pbc must be True in all three directions"),
        (fixed([0], salt()), "free", ValueError, "must have no FixAtoms"),
        (
            Atoms("H2", [[0, 0, 0], [0, 0, 0.2]]),
            "fixed",
            ValueError,
            "got atoms 0 and 1 at 0.2 Å; lower `closest`",
        ),
        (
            Atoms("Cu", cell=[1.5, 4, 4], pbc=True),
            "fixed",
            ValueError,
            "got atoms 0 and 0 at 1.5 Å",
        ),
    ],
)
def test_structures_are_checked(atoms, cell, error, words):
    with pytest.raises(error, match=words):
        attack(atoms, attackable(), AttackSettings(cell=cell))


def test_calculators_are_checked():
    atoms = rattled()
    with pytest.raises(TypeError, match="must be a ReliableCalculator, got EMT"):
        attack(atoms, EMT())
    policy = Policy([Threshold("max_force", 1.0, 2.0)])
    calc = ReliableCalculator(orb_calculator(), signals=[MaxForce()], policy=policy)
    with pytest.raises(ValueError, match=r"got signals .*\[ForceDelta\(\)\]"):
        attack(atoms, calc)
    calc = attackable()
    calc.backbone = ToyBackbone(EMT())
    with pytest.raises(BackboneError, match="must be twice differentiable"):
        attack(atoms, calc)
    reference = LennardJones()
    reference.implemented_properties = ["energy"]
    with pytest.raises(ValueError, match="reference must give forces"):
        attack(atoms, attackable(), reference=reference)


def test_a_structure_that_cannot_be_evaluated_is_refused(monkeypatch):
    calc = attackable()

    def calculate(*args):
        raise RuntimeError("broken")

    monkeypatch.setattr(calc.backbone.calculator, "calculate", calculate)
    with pytest.raises(
        BackboneError, match="evaluate the structure, got: RuntimeError: broken"
    ):
        attack(rattled(), calc)


# ----------------------------------------------------------------- the command


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`uqcalc attack` on a small Orb, for any name of the model."""

    def open_model(name, **options):
        return orb_calculator(orb_model(dtype=torch.float32))

    monkeypatch.setattr(uqcalc, "open_model", open_model, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    write(tmp_path / "in.xyz", [salt(), rattled()])
    target = tmp_path / "attack.xyz"

    def invoke(*words, name="in.xyz"):
        words = [str(tmp_path / name), "-o", str(target), "--model", "orb:x", *words]
        return CliRunner().invoke(app, ["attack", *words]), target

    return invoke


def test_the_command_writes_every_frame_and_shows_every_path(command):
    words = ["--steps", "3", "--starts", "2", "--seed", "4", "--limits", "1e-3", "9"]
    done, target = command(*words)
    assert done.exit_code == 0, done.output
    assert "all 3 steps done" in done.stdout
    assert done.stdout.count("SUSPECT") == 2
    assert "with 8 frames" in done.stdout
    frames = read(target, ":")
    assert [f.info["attack_start"] for f in frames] == [0] * 4 + [1] * 4
    assert [f.info["attack_step"] for f in frames] == [*range(4)] * 2
    expected = attack(
        read(target.with_name("in.xyz")),
        attackable(),
        AttackSettings(steps=3, starts=2, seed=4),
    )
    for frame, other in zip(
        frames, [f for p in expected for f in p.frames], strict=True
    ):
        np.testing.assert_allclose(frame.positions, other.positions, atol=1e-7)
        close(frame.info["force_delta"], other.info["force_delta"], NETWORK)
        assert read_assessment(frame).level == Level.SUSPECT


def test_mistakes_end_with_a_message(command):
    for words, status, message in (
        (["--alpha", "-1"], 2, "alpha must be a number at least 0"),
        (["--free-cell"], 1, "pbc must be True in all three directions"),
        (["--probe", "no.probe"], 2, "no.probe"),
        (["--limits", "2", "1"], 2, "must have finite suspect <= unreliable"),
    ):
        done, target = command(*words)
        assert done.exit_code == status
        assert message in done.stderr
        assert isinstance(done.exception, SystemExit)  # no traceback
        assert not target.exists()
    target.write_text("mine")
    done, _ = command()
    assert "must be a new file" in done.stderr
    assert target.read_text() == "mine"


def test_frames_are_on_disk_when_it_is_interrupted(command, monkeypatch):
    from uqcalc.backbones.orb import OrbBackbone

    plain, calls = OrbBackbone.differentiable, []

    def differentiable(self, atoms):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, atoms)

    monkeypatch.setattr(OrbBackbone, "differentiable", differentiable)
    done, target = command("--steps", "9")
    assert done.exit_code == 130
    assert "the frames so far are in" in done.stderr
    assert len(read(target, ":")) == 3
