"""Requirements of every backbone, tested for each row of the table in table.py."""

from __future__ import annotations

import copy
import pickle
from importlib.metadata import version

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.mixing import SumCalculator
from backbones.table import BACKBONES, alike, cases, opened, rows
from backbones.toys import Springs, around, mace_on_shared_models, scripted_model
from builders import mace_calculator, tiny_probe
from closeness import close
from packaging.version import Version

from uqcalc import MaxForce, Policy, ReliableCalculator, Threshold, tap
from uqcalc.errors import BackboneError
from uqcalc.targets import voigt_stress
from uqcalc.testing import check_backbone, contract_frames
from uqcalc.testing.instruments import counted_calls, ways_to_copy


CASES = cases()
WANTED = ["energy", "forces"]
UNKNOWN = r"must be among \['H', .* this {} model, got \['Og'\]; choose"
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda calculator: pickle.loads(pickle.dumps(calculator)),
}


@pytest.fixture
def row(request):
    with opened(BACKBONES[request.param]) as opening:
        yield opening


def every(keep=None):
    """Run a test for each row, or for those for which ``keep`` is true."""
    return pytest.mark.parametrize("row", rows(keep), indirect=True)


def reliable(calculator, **options):
    policy = Policy([Threshold("max_force", suspect=100.0, unreliable=200.0)])
    return ReliableCalculator(
        calculator, signals=[MaxForce()], policy=policy, **options
    )


def hooks(model):
    return [
        (list(module._forward_hooks), list(module._forward_pre_hooks))
        for module in model.modules()
    ]


def heavy(calculator):
    """Return the attributes that are torch modules, or lists of them."""

    def first(part):
        return part[0] if isinstance(part, list) and part else part

    held = vars(calculator).items()
    return {key: part for key, part in held if isinstance(first(part), torch.nn.Module)}


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    row, case = CASES[name]
    with opened(row):
        parts = (
            [{key: atoms} for key, atoms in case.frames.items()]
            if case.apart
            else [case.frames]
        )
        for frames in parts:

            def make(frames=frames):
                calculator = case.make()
                if case.used:
                    calculator.calculate(next(iter(frames.values())).copy(), WANTED)
                return calculator

            check_backbone(make, frames, **case.options)


@pytest.mark.slow
def test_contract_cuequivariance():
    pytest.importorskip("cuequivariance_torch")
    check_backbone(lambda: mace_calculator(0, enable_cueq=True), contract_frames())


@every()
def test_reports_what_it_is(row, request):
    backbone = row.tap()
    assert request.node.callspec.id.partition("-")[0] == backbone.name
    offered = {"features", "energy", "forces", "conservative_forces"}
    assert backbone.provides == offered | row.extras
    assert backbone.on_demand == row.on_demand
    assert backbone.elements == row.elements
    assert backbone.reads == row.reads
    got = backbone(row.frame, row.wanted(row.frame))
    assert backbone.feature_dim == row.width
    assert got.features.shape == (len(row.frame), row.width)
    assert got.features.dtype == row.dtype


@every()
def test_one_pass_a_geometry_for_any_request(row):
    atoms = row.frame
    atoms.calc = reliable(row.tap())
    with counted_calls() as calls:
        for step in range(3):
            atoms.get_forces()
            atoms.get_potential_energy()
            if "stress" in row.wanted(atoms):
                assert atoms.get_stress().shape == (6,)
            if "charges" in row.extras:
                assert atoms.get_charges().shape == (len(atoms),)
            if row.watched is not None:
                atoms.info["note"] = f"step {step}"
            atoms.get_forces()
            atoms.rattle(0.01, seed=step)
    assert calls[row.network] == atoms.calc.backbone.passes == 3 * row.passes


@every()
def test_a_probe_reads_the_same_pass(row):
    atoms, backbone = row.frame, row.tap()
    backbone(atoms, WANTED)  # the width of a module is known after a pass
    numbers = sorted({*atoms.numbers.tolist()})
    probe = tiny_probe(backbone, elements=numbers)
    before = backbone.passes
    atoms.calc = ReliableCalculator(backbone, probe=probe)
    atoms.get_forces()
    assert 0.0 <= atoms.calc.results["probe_reliability"] <= 1.0
    assert backbone.passes - before == row.passes


@every(lambda row: row.module is None)
def test_a_sum_shows_the_model_and_returns_the_sum(row):
    """A sum requests energy, forces and stress one after the other: one pass."""
    atoms = row.frame
    wanted = row.wanted(atoms)
    alone = row.tap()(atoms, wanted)
    ours = tap(SumCalculator([row.make(), Springs()]))
    got = ours(atoms, wanted)
    assert ours.passes == row.passes
    assert got.energy == alone.energy
    assert np.array_equal(got.forces, alone.forces)
    assert torch.equal(got.features, alone.features)
    springs = Springs()
    for name in WANTED:
        whole = alone.results[name] + springs.get_property(name, atoms)
        assert np.array_equal(got.results[name], whole), name
    first, _ = ours.predict_many([atoms, atoms.copy()], wanted)
    assert alike(first.results, got.results)


@every()
def test_batch_equals_single_frames(row):
    """Energies agree to a fraction of 1 eV per atom, and forces to one of 1 eV/Å."""
    frames = [row.frames[name] for name in row.batch or row.frames]
    backbone = row.tap()
    together = backbone.predict_many(frames)
    assert backbone.passes == (len(frames) if row.batch == () else 1) * row.passes
    for many, frame in zip(together, frames, strict=True):
        alone = backbone(frame, WANTED)
        close(many.energy, alone.energy, row.bound, of=len(frame))
        close(many.forces, alone.forces, row.bound, of=1.0)
        close(many.features, alone.features, row.bound)
        if "charges" in row.extras:
            close(many.charges, alone.charges, row.bound)
    solid = [frame for frame in frames if frame.pbc.all()]
    if backbone.batches_stress and len(solid) > 1:
        wanted = [*WANTED, "stress"]
        together = backbone.predict_many(solid, wanted)
        for many, frame in zip(together, solid, strict=True):
            alone = voigt_stress(backbone(frame, wanted).results["stress"])
            close(voigt_stress(many.results["stress"]), alone, row.bound, of=1.0)


@every()
def test_a_left_handed_cell_has_the_stress_of_a_right_handed_one(row):
    """Exchanged cell vectors are the same crystal; a signed volume turns the stress."""
    backbone = row.tap()
    for atoms in (f for f in row.frames.values() if f.pbc.all()):
        wanted = row.wanted(atoms)
        if "stress" not in wanted:
            continue
        other = atoms.copy()
        other.set_cell(other.cell[[1, 0, 2]])
        right, left = sorted((atoms, other), key=lambda a: -np.linalg.det(a.cell.array))
        stress = voigt_stress(backbone(right, wanted).results["stress"])
        if backbone.name == "chgnet":  # its own stress has the wrong sign
            with pytest.raises(BackboneError, match="cell must be right-handed"):
                backbone(left, wanted)
            continue
        found = backbone(left, wanted).results["stress"]
        close(voigt_stress(found), stress, row.bound, of=1.0)


@every()
def test_an_answer_is_the_same_after_other_structures(row):
    """Forward and back through the frames, compared with calculators of one frame."""
    if row.package.startswith("aimnet") and Version(version("aimnet")) < Version(
        "0.2.1"
    ):
        pytest.xfail("aimnet 0.2.0 itself gives a crystal another energy then")
    used, names = row.tap(), list(row.frames)
    for name in names[::-1]:
        used(row.frames[name], row.wanted(row.frames[name]))
    for name, atoms in row.frames.items():
        fresh = row.tap()(atoms, row.wanted(atoms))
        got = used(atoms, row.wanted(atoms))
        assert got.results.keys() == fresh.results.keys(), name
        assert got.energy == pytest.approx(fresh.energy, rel=1e-6), name  # float32
        close(got.forces, fresh.forces, row.bound, of=1.0)  # eV/Å
        close(got.features, fresh.features, row.bound)
        if not atoms.pbc.all():
            assert got.conservative_stress is None, name


TRAJECTORIES = {name: (row, row.make) for name, row in BACKBONES.items()} | {
    "mace-torchscript": (BACKBONES["mace"], lambda: around([scripted_model()])),
    "mace-float32": (
        BACKBONES["mace"],
        lambda: mace_on_shared_models(0, 1, dtype="float32"),
    ),
    "mace-sum": (
        BACKBONES["mace"],
        lambda: SumCalculator([mace_on_shared_models(), Springs()]),
    ),
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_is_bitwise_the_bare_calculators(name):
    """Steps small enough for neighbour lists and caches to be reused."""
    row, make = TRAJECTORIES[name]
    with opened(row):
        ours, bare, atoms = row.tap(make()), make(), row.frame
        wanted = row.wanted(atoms)
        for step in range(8):
            atoms.rattle(0.01, seed=step)
            results = ours(atoms, wanted).results
            bare.calculate(atoms, wanted, ["positions"])
            if step < 4 and name == "mace-torchscript":
                continue  # TorchScript optimises it in its first runs
            for key in wanted:
                assert np.array_equal(results[key], bare.results[key]), (step, key)


@every()
def test_fingerprint_is_of_the_weights(row):
    # calculators of a row may share a model, which does not change
    twin = copy.deepcopy(row.make()) if row.copies else row.make()
    before = row.tap(twin).fingerprint
    assert before == row.tap().fingerprint
    row.tap(twin)(row.frame, row.wanted(row.frame))
    assert row.tap(twin).fingerprint == before
    with torch.no_grad():
        next(row.model(twin).parameters()).add_(1e-3)
    assert row.tap(twin).fingerprint != before


@every(lambda row: row.another is not None)
def test_fingerprint_tells_models_apart(row):
    assert row.tap().fingerprint != row.tap(row.another()).fingerprint


class TestNoTrace:
    """After use the model is unchanged, also after an exception."""

    @every()
    def test_hooks_and_default_dtype(self, row):
        calculator, dtype = row.make(), torch.get_default_dtype()
        before = hooks(row.model(calculator))
        row.tap(calculator)(row.frame, row.wanted(row.frame))
        assert hooks(row.model(calculator)) == before
        assert torch.get_default_dtype() == dtype

    @every()
    def test_exception_in_the_model(self, row, monkeypatch):
        calculator = row.make()
        model, backbone = row.model(calculator), row.tap(calculator)
        parts = heavy(calculator)
        expected, before = backbone(row.frame, WANTED), hooks(model)

        def fail(*args, **options):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", fail)
            with pytest.raises(MemoryError):
                backbone(row.frame, WANTED)
        assert all(getattr(calculator, key) is part for key, part in parts.items())
        assert row.model(calculator) is model
        assert hooks(model) == before
        assert torch.equal(backbone(row.frame, WANTED).features, expected.features)

    @every(lambda row: row.copies)
    def test_copies_after_use_give_equal_results(self, row):
        backbone = row.tap()
        expected = backbone(row.frame, WANTED)
        possible = ways_to_copy(backbone.calculator)
        assert "deepcopy" in possible
        for way in possible:
            got = row.tap(COPIES[way](backbone.calculator))(row.frame, WANTED)
            assert torch.equal(got.features, expected.features), way
            assert got.energy == expected.energy, way
        twin = copy.deepcopy(backbone)(row.frame, WANTED)
        assert torch.equal(twin.features, expected.features)


@every(lambda row: row.elements is not None)
def test_unknown_element_is_refused_before_any_pass(row):
    backbone = row.tap()
    with pytest.raises(BackboneError, match=UNKNOWN.format(backbone.name)):
        backbone(Atoms("Og"), WANTED)
    assert backbone.passes == 0


@every()
def test_charge_and_spin_count_where_the_calculator_reads_them(row):
    """Other entries do not count, unless it is unknown which entries are read."""
    backbone, atoms = row.tap(), row.frame
    before = backbone.extra_state(atoms)
    backbone(atoms, WANTED)
    assert backbone.extra_state(atoms) == before
    atoms.info["note"] = "step 12"
    assert (backbone.extra_state(atoms) == before) == (row.watched is not None)
    for key in ("charge", "spin", "mult"):
        told = row.frame
        told.info[key] = 2
        counts = backbone.extra_state(told) != before
        assert counts == (row.watched is None or key in row.watched), key
