"""The default probe on a real backbone: local, invariant, additive, saved."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from builders import mace_calculator, rattled, salt, tiny_probe
from closeness import NETWORK, close
from hypothesis import given, strategies as st
from scipy.spatial.transform import Rotation
from scipy.special import expit

from uqcalc import Labels, Level, Probe, Recipe, ReliableCalculator
from uqcalc.backbones.registry import tap
from uqcalc.errors import ProbeError
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import build_dataset
from uqcalc.probe.probe import FILE
from uqcalc.probe.stacked import PATHS, REMOTE, StackedPaths, StackedShape
from uqcalc.signals.base import to_host
from uqcalc.signals.probe import ProbeSignal


FIELD = 2 * 4.0  # Å: layers times cutoff of the tiny MACE


def labelled(count, *, seed):
    """Crystals and molecules whose force errors grow with their distortion."""
    rng = np.random.default_rng(seed)
    backbone = tap(mace_calculator(0))
    frames = []
    for index in range(count):
        amount = rng.uniform(0.01, 0.4)
        atoms = salt() if index % 2 else molecule(["CH3OH", "H2O"][index // 2 % 2])
        atoms.rattle(amount, rng=rng)
        forces = backbone(atoms, ["energy", "forces"]).forces
        noise = rng.normal(size=forces.shape) * rng.lognormal(size=(len(atoms), 1))
        atoms.arrays["REF_forces"] = forces + 0.3 * amount * noise
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def probe():
    backbone, labels = tap(mace_calculator(0)), Labels(percentile=50)
    train, test = (
        build_dataset(labelled(count, seed=seed), backbone, labels)
        for seed, count in enumerate((72, 24))
    )
    recipe = Recipe(epochs=25)
    return fit_datasets(train, None, test, backbone, labels, recipe).probe


@pytest.fixture(scope="module")
def read(probe):
    """The results of the wrapped calculator for a structure."""
    calculator = ReliableCalculator(mace_calculator(0), probe)

    def read(atoms):
        calculator.get_property("forces", atoms.copy())
        return dict(calculator.results)

    return read


def distorted(seed=0):
    """A crystal whose atoms differ."""
    atoms = salt()
    atoms.rattle(0.25, seed=seed)
    return atoms


def test_atoms_of_a_supercell_are_those_of_the_cell(read):
    atoms = distorted()
    one = read(atoms)["probe_reliabilities"]
    many = read(atoms.repeat((2, 2, 2)))["probe_reliabilities"]
    assert one.shape == (8,)
    assert np.ptp(one) > 0.02  # otherwise the agreement has no meaning
    close(many, np.tile(one, 8), NETWORK, of=1.0)


def beside(first, second):
    """Both structures, farther apart than the receptive field, in one cell."""
    moved = second.copy()
    moved.positions += first.positions.max(axis=0) - second.positions.min(axis=0)
    moved.positions += FIELD + 0.5
    return first + moved


def slab(cell, seed):
    """A layer of salt, periodic in the plane and alone across it."""
    atoms = distorted(seed)
    atoms.set_cell([*atoms.cell.lengths()[:2], cell])
    return atoms


def test_distant_part_shifts_all_atoms_of_another_part_equally(probe, read):
    """It changes the error of the structure, not the shares of atoms within a part."""
    local = probe.with_card(atom_shares=None)
    backbone = tap(mace_calculator(0))
    alone = rattled("CH3OH", seed=3, amount=0.2)
    layer = slab(60.0, seed=5)
    other = slab(60.0, seed=6)
    other.positions[:, 2] += 25
    water = rattled("H2O", seed=7)
    water.positions += [1.0, 1.0, 30.0]
    for part, both in (
        (alone, beside(alone, rattled("H2O", seed=4, amount=0.3))),
        (layer, layer + other),
        (layer, layer + water),
    ):
        before, after = (backbone(x, ["energy", "forces"]) for x in (part, both))
        score, moved = (probe.path_output([p]) for p in (before, after))
        count = len(part)
        close(moved.atoms[:count], score.atoms, NETWORK, of=1.0)
        close(
            local.read([after]).atoms[:count],
            local.read([before]).atoms,
            NETWORK,
            of=1.0,
        )
        one, many = (read(x)["probe_reliabilities"][:count] for x in (part, both))
        np.testing.assert_array_equal(np.argsort(one), np.argsort(many))


def test_atoms_follow_their_structure(probe):
    """With equal shares, P of each atom falls with P of its structure."""
    assert probe.card.atom_shares is not None
    prediction = tap(mace_calculator(0))(rattled("H2O"), ["energy", "forces"])
    found = [
        probe.with_card(
            calibration=replace(probe.card.calibration, intercept=level)
        ).read([prediction])
        for level in (-6.0, -1.0, 1.0, 6.0)
    ]
    rows = torch.stack([each.atoms for each in found])
    assert torch.all(rows.diff(dim=0) > 0)
    assert rows[0].max() < 0.2
    assert rows[-1].min() > 0.8


@pytest.mark.parametrize("make", [distorted, lambda: rattled("CH3OH", amount=0.2)])
def test_neither_the_frame_nor_the_order_of_atoms_matters(read, make):
    atoms = make()
    before = read(atoms)
    rng = np.random.default_rng(0)
    turn = Rotation.random(rng=rng).as_matrix()
    order = rng.permutation(len(atoms))
    moved = atoms[order]
    moved.translate((1, 2, 3))
    moved.positions = moved.positions @ turn.T
    moved.set_cell(atoms.cell.array @ turn.T)
    after = read(moved)
    names = ["reliability", "novelty", *PATHS]
    for name in [f"probe_{name}" for name in names]:
        close(after[name], before[name], NETWORK, of=[1.0, before[name]])
    for name in ("probe_reliabilities", "probe_importance"):
        close(after[name], before[name][order], NETWORK, of=1.0)
    close(before["probe_importance"].sum(), 1.0)


def test_the_parts_add_up_to_the_log_odds(probe, read):
    calibration = probe.card.calibration
    assert calibration.knots == ()  # a few labels give no isotonic curve
    for seed in range(4):
        for atoms in (distorted(seed), rattled("H2O", seed=seed, amount=0.15)):
            found = read(atoms)
            total = sum(found[f"probe_{path}"] for path in PATHS)
            total += calibration.intercept
            # as probabilities: the log-odds of 0.999999 are only rounding
            close(expit(total), found["probe_reliability"], of=1.0)


def test_the_parts_of_the_labels_are_what_was_held_out(probe, read):
    """Every path with a weight gives different outputs for different structures."""
    paths = probe.card.training["paths"]
    assert [path["path"] for path in paths] == list(PATHS)
    several = [read(distorted(seed)) for seed in range(4)]
    for path in paths:
        spread = np.ptp([found[f"probe_{path['path']}"] for found in several])
        assert (spread > 1e-6) == (path["weight"] > 0)


def test_any_boundary_in_the_labels(probe):
    prediction = tap(mace_calculator(0))(distorted(), ["energy", "forces"])
    low, *_, high = probe.card.calibration.boundaries
    said = [
        probe.reliability([prediction], b).item() for b in np.geomspace(low, high, 7)
    ]
    assert said == sorted(said)
    own = probe.reliability([prediction], probe.card.boundary)
    assert torch.equal(own, probe.reliability([prediction]))
    with pytest.raises(ProbeError, match="boundary must lie between"):
        probe.reliability([prediction], 100 * high)
    uranium = replace(prediction, numbers=np.full(len(prediction.numbers), 92))
    known, unknown = probe.reliability([prediction, uranium], high)
    assert known.isfinite()
    assert unknown.isnan()  # as the signal has it


def test_outside_its_scope_has_a_reason(probe):
    calculator = ReliableCalculator(mace_calculator(0), probe)
    usual = calculator.assess(rattled("CH3OH"))
    assert usual.readings[0].out_of_scope == ()
    squeezed = salt()
    squeezed.set_cell(squeezed.cell * 0.4, scale_atoms=True)
    for atoms, why in (
        (squeezed, "probe_novelty"),
        (Atoms("H", [[0, 0, 0]]), "1 atom, calibrated for 2 to 16"),
    ):
        found = calculator.assess(atoms)
        assert found.level >= Level.SUSPECT
        words = f"outside its calibration: .*{why}"
        assert any(re.search(words, reason) for reason in found.verdict.reasons)


@pytest.mark.parametrize(
    ("total", "inside"), [(0.0, True), (1.4, True), (1.6, False), (math.nan, False)]
)
def test_a_total_charge_that_no_label_had_is_outside(probe, total, inside):
    prediction = tap(mace_calculator(0))(rattled("H2O"), ["energy", "forces"])
    prediction = replace(prediction, charges=torch.tensor([total - 1, 0.5, 0.5]))
    charged = probe.with_card(scope=replace(probe.card.scope, charges=(0, 1)))
    (reading,) = to_host([ProbeSignal(charged)(prediction)])
    gap = min(abs(total - 0), abs(total - 1))
    assert reading.results["probe_charge_gap"] == pytest.approx(
        gap, abs=1e-6, nan_ok=True
    )  # a sum of charges in float32
    assert any("probe_charge_gap" in why for why in reading.out_of_scope) != inside


def shapeless():
    """Paths with known limits and weights."""
    stacked = StackedPaths(StackedShape(4, 3))
    stacked.weights.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    stacked.averages.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    stacked.limit.fill_(3.0)
    stacked.known.fill_(-1.0)
    return stacked


def test_positive_contributions_fade_outside_the_scope():
    stacked = shapeless()
    paths = torch.tensor([[2.0, -1.0, 0.4, 0.2], [-2.0, 1.0, 0.4, 0.2]])
    plain = (paths - stacked.averages) * stacked.weights
    within = stacked.join(paths, torch.tensor([2.9, 0.1]), torch.tensor([-1.1, -9.0]))
    assert torch.equal(within, plain)
    away = torch.tensor([12.0, 12.0])  # 4 times the limit
    outside = stacked.join(paths, away, torch.tensor([-2.0, -2.0]))
    expected = plain.clone()
    expected[0, 0] /= 4  # positive contributions of attention and linear path
    expected[1, 1] /= 4
    expected[:, 2] -= REMOTE * math.log(4)
    close(outside, expected)
    nearer = stacked.join(paths, away, torch.tensor([-1 + 5.0, -1 + 1.0]))
    expected[0, 2] += REMOTE * (math.log(4) - 5)  # the geometric mean is farther
    close(nearer, expected)


@given(
    st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    st.floats(-2, 30),
    st.floats(0, 10),
)
def test_a_larger_distance_never_makes_a_structure_more_reliable(paths, start, more):
    """Four log-odds less for each e-fold of the distance, at least."""
    stacked = shapeless().double()
    rows = torch.tensor([paths, paths], dtype=torch.float64)
    logs = torch.tensor([start, start + more], dtype=torch.float64)
    near, far = stacked.join(rows, 3 * logs.exp(), logs - 40).sum(dim=1).tolist()
    beyond = max(start + more, 0) - max(start, 0)  # e-folds of the squared distance
    assert far <= near - REMOTE * beyond + 1e-9 * (1 + abs(near) + abs(far))


def test_trend_falls_with_distance_beyond_held_out_labels(probe):
    backbone = tap(mace_calculator(0))
    squeezed = []
    for factor in (1.0, 0.6, 0.5, 0.4):
        atoms = distorted()
        atoms.set_cell(atoms.cell * factor, scale_atoms=True)
        squeezed.append(backbone(atoms, ["energy", "forces"]))
    found = [probe.path_output([prediction]) for prediction in squeezed]
    away = np.array([out.mean_log_distance.item() for out in found])
    known = probe.stacked.known.item()
    assert away[0] < known < away[1] < away[2] < away[3]
    statistics = probe.statistics
    for prediction, mean_log_distance in zip(squeezed, away, strict=True):
        standard = statistics.features(prediction.features.float())
        numbers = torch.from_numpy(prediction.numbers)
        each = (statistics.distances(standard, numbers) + 1e-6).log()
        close(mean_log_distance, each.mean(), NETWORK, of=[1.0, mean_log_distance])
    trend = np.array([out.parts[0, PATHS.index("trend")].item() for out in found])
    limit = probe.stacked.limit.item()
    probe.stacked.known.fill_(torch.inf)
    probe.stacked.limit.fill_(torch.inf)
    try:
        plain = [probe.path_output([prediction]).parts[0] for prediction in squeezed]
    finally:
        probe.stacked.known.fill_(known)
        probe.stacked.limit.fill_(limit)
    lost = np.array([parts[PATHS.index("trend")].item() for parts in plain]) - trend
    farthest = np.log([out.distance.item() / limit for out in found])
    beyond = np.maximum(np.maximum(away - known, farthest), 0)
    close(lost, REMOTE * beyond, NETWORK)


def test_atoms_of_an_unseen_element_have_no_number(read):
    atoms = rattled("CH3NO2")
    results = read(atoms)
    assert math.isnan(results["probe_reliability"])
    np.testing.assert_array_equal(
        np.isnan(results["probe_reliabilities"]), atoms.symbols == "N"
    )


@pytest.mark.parametrize("what", ["feature", "force", "energy"])
def test_a_broken_prediction_never_has_a_probability(probe, what):
    backbone = tap(mace_calculator(0))
    broken, whole = (
        backbone(rattled(name), ["energy", "forces"]) for name in ("CH3OH", "H2O")
    )
    expected = probe.read([whole])
    if what == "feature":
        broken.features[2, 3] = torch.nan
    elif what == "force":
        broken.forces[2, 1] = np.nan
    else:
        object.__setattr__(broken, "energy", math.inf)
    found = probe.read([broken, whole])
    assert found.reliability[0].isnan()
    close(found.reliability[1:], expected.reliability, NETWORK)
    close(found.atoms[6:], expected.atoms, NETWORK)
    # the error of the structure is unknown, so that of each of its atoms is
    assert found.atoms.isnan().nonzero()[:, 0].tolist() == [*range(6)]


def test_round_trip_is_bitwise(probe, tmp_path):
    loaded = Probe.load(probe.save(tmp_path / "my.probe"))
    # as text: the precision is NaN if no structure is kept
    assert str(loaded.card.to_dict()) == str(probe.card.to_dict())
    backbone = tap(mace_calculator(0))
    frames = [distorted(1), rattled("CH3OH"), rattled("H2O")]
    predictions = [backbone(atoms, ["energy", "forces"]) for atoms in frames]
    ours = loaded.read(predictions, importance=True)
    for name, tensor in probe.read(predictions, importance=True)._asdict().items():
        if tensor is not None:
            assert torch.equal(getattr(ours, name), tensor), name
    assert ours.atoms.shape == (8 + 6 + 3,)
    assert ours.parts.shape == (3, len(PATHS))


@pytest.mark.parametrize(
    ("entries", "lost", "message"),
    [
        ({}, "joined.structure.narrow_weights", "fit the shape on its card"),
        ({}, "joined.numbers.rigidity", "fit the shape on its card"),
        ({"joined": None}, None, "must have kernel paths"),
        ({"architecture": "standard"}, None, "must not have kernel paths"),
        ({"joined": {"features": 7, "centres": 3}}, None, "fit the shape on its card"),
    ],
)
def test_a_damaged_file_is_refused(probe, tmp_path, entries, lost, message):
    path = probe.save(tmp_path / "my.probe")
    tensors, card = FILE.read(path)
    tensors.pop(lost, None)
    FILE.write(path, tensors, card | entries)
    with pytest.raises(ProbeError, match=message):
        Probe.load(path)


def test_kernel_paths_belong_to_the_default_architecture_only():
    with pytest.raises(ProbeError, match="'joined' must have kernel paths"):
        tiny_probe(tap(mace_calculator(0)), architecture="joined")
