"""Fitting end to end: the probe learns the errors, and the report has its scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import mace_calculator, rattled
from closeness import FLOAT64, NETWORK, close
from probe.toys import ToyBackbone, random_prediction

from uqcalc import Labels, LabelWarning, Probe, Recipe, ReliableCalculator, fit
from uqcalc.backbones.registry import tap
from uqcalc.errors import LabelError, ProbeError
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.stacked import PATHS
from uqcalc.statistics import scores


NAMES = ["H2O", "CH3OH", "NH3", "C2H6"]
REPORT = {
    "structures",
    "right_outside",
    "prevalence",
    "majority_accuracy",
    "accuracy",
    "mcc",
    "ece_chance",
}
REPORT |= {"f1_unreliable", "f1_reliable"}
REPORT |= {"auroc", "ece", "ece_noise_floor", "brier", "coverage", "spearman"}
REPORT |= {"median_error", "unseen_elements", "groups", "atoms", "brier_decomposition"}
REPORT |= {"auroc_at_median", "mean_probability", "holds", "guarantee", "regimes"}
REPORT |= {"outside_scope", "false_trust", "false_trust_outside", "excluded"}


def amounts(count, *, seed):
    return np.random.default_rng(seed).uniform(0.01, 0.3, count)


def labelled(count, *, seed):
    """Frames whose error grows with the distortion: RMS force error = amount / 2."""
    rng = np.random.default_rng(seed + 100)
    frames = []
    for index, amount in enumerate(amounts(count, seed=seed)):
        name = NAMES[index % len(NAMES)]
        frames.append(rattled(name, seed=1000 * seed + index, amount=amount))
        frames[-1].info["run"] = f"{seed}/{index // 3}"
    done = tap(mace_calculator(0)).predict_many(frames)
    everything = zip(frames, amounts(count, seed=seed), done, strict=True)
    for frame, amount, prediction in everything:
        noise = rng.normal(size=prediction.forces.shape)
        noise /= np.sqrt(np.mean(noise**2))
        frame.arrays["REF_forces"] = prediction.forces + amount / 2 * noise
    return frames


@pytest.fixture(scope="module")
def sets():
    return [labelled(n, seed=s) for n, s in ((210, 0), (90, 2))]


@pytest.fixture(scope="module")
def fitted(sets):
    train, test = sets
    labels = Labels(group_key="run", percentile=50)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    report = fit(train, mace_calculator(0), labels, test=test)
    assert torch.equal(torch.random.get_rng_state(), before)
    return report


def test_learns_which_errors_are_large(fitted, sets):
    assert fitted.report["auroc"] > 0.8
    assert fitted.report["spearman"] > 0.5
    assert fitted.report["brier"] < 0.22  # 0.25 without information
    close(fitted.errors, amounts(90, seed=2) / 2, FLOAT64, of=1.0)  # eV/Å, of forces
    truth = fitted.errors <= fitted.probe.card.boundary
    assert fitted.report["auroc"] == scores.auroc(truth, fitted.probability)


def test_report_and_card_describe_the_fit(fitted, sets):
    assert set(fitted.report) == REPORT
    card = fitted.probe.card
    assert card.report == fitted.report
    assert card.fingerprint == tap(mace_calculator(0)).fingerprint
    assert card.elements == [1, 6, 7, 8]
    assert card.sizes == [3, 8]
    training = card.training
    assert training["structures"] == {"train": 210, "test": 90}
    assert training["groups"] == {"train": 70, "test": 30}
    assert [path["path"] for path in training["paths"]] == [*PATHS]
    assert card.calibration.labels == 210  # all of them: each was left out once
    assert training["epochs_run"] == len(fitted.curve)
    lowest = min(validation for _, validation in fitted.curve)
    assert training["validation_loss"] == lowest
    assert card.boundary == pytest.approx(np.median(amounts(210, seed=0)) / 2)
    assert card.percentile == 50
    text = str(fitted)
    assert f"{fitted.report['auroc']:.3f}" in text
    assert "90 structures" in text


def test_saved_probe_gives_the_same_in_a_calculator(fitted, sets, tmp_path):
    path = fitted.probe.save(tmp_path / "mace.probe")
    # as text: the precision is NaN if no structure is kept
    assert str(Probe.load(path).card.to_dict()) == str(fitted.probe.card.to_dict())
    calculator = ReliableCalculator(mace_calculator(0), path)
    for index in (0, 1, 2, 3):
        atoms = sets[1][index].copy()
        calculator.get_property("forces", atoms)
        live = calculator.results["probe_reliability"]
        close(live, fitted.probability[index], NETWORK, of=1.0)
    with pytest.raises(ProbeError, match="must belong to this backbone"):
        ReliableCalculator(mace_calculator(5), path)


def test_same_seed_gives_the_same_probe_after_any_calls(sets):
    labels, recipe = Labels(group_key="run", percentile=50), Recipe(epochs=6, seed=3)
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002  (the global state is the point)
        runs.append(fit(sets[0], mace_calculator(0), labels, recipe))
    first, second = runs
    np.testing.assert_array_equal(first.probability, second.probability)
    assert first.curve == second.curve
    assert str(first.probe.card.to_dict()) == str(second.probe.card.to_dict())
    theirs = second.probe.network.state_dict()
    for name, tensor in first.probe.network.state_dict().items():
        assert torch.equal(tensor, theirs[name])
    other = fit(sets[0], mace_calculator(0), labels, replace(recipe, seed=4))
    assert other.curve != first.curve


def test_default_split_divides_groups_not_frames(sets):
    labels = Labels(group_key="run", percentile=50)
    report = fit(sets[0], mace_calculator(0), labels, Recipe(epochs=6))
    training = report.probe.card.training
    assert sum(training["structures"].values()) == 210
    assert sum(training["groups"].values()) == 70
    assert training["structures"]["train"] == pytest.approx(0.85 * 210, abs=6)
    assert set(training["structures"]) == {"train", "test"}


def toy_datasets(count=80, width=6, *, charges=False):
    """Errors are a known function of one feature; three disjoint datasets."""
    sets = []
    for part in range(3):
        predictions = [
            random_prediction(4 + i % 3, width, seed=1000 * part + i, charges=charges)
            for i in range(count)
        ]
        shift = np.random.default_rng(part).normal(size=count)
        for prediction, s in zip(predictions, shift, strict=True):
            prediction.features[:, 0] += float(s)
        sets.append(
            Dataset(predictions, np.exp(shift), list(map(str, range(count))), {})
        )
    return sets


@pytest.mark.parametrize("percentile", [30.0, 75.0])
def test_boundary_from_a_percentile_of_the_training_errors(percentile):
    sets = toy_datasets()
    labels = Labels(percentile=percentile)
    report = fit_datasets(*sets, ToyBackbone(), labels, Recipe(epochs=8))
    ranked = np.sort(sets[0].errors)
    position = percentile / 100 * (len(ranked) - 1)
    expected = np.interp(position, np.arange(len(ranked)), ranked)
    close(report.probe.card.boundary, expected, FLOAT64)
    assert report.probe.card.percentile == percentile


def test_named_boundary_is_taken_as_it_is():
    labels = Labels(boundary=0.77, percentile=10)
    report = fit_datasets(*toy_datasets(), ToyBackbone(), labels, Recipe(epochs=8))
    assert report.probe.card.boundary == 0.77
    assert report.probe.card.percentile is None
    truth = toy_datasets()[2].errors <= 0.77
    assert report.report["prevalence"] == truth.mean()


@pytest.mark.parametrize("charges", [False, True])
def test_published_architecture(charges, tmp_path):
    sets = toy_datasets(60, charges=charges)
    backbone = ToyBackbone(charges=charges)
    recipe = Recipe.published(epochs=12, learning_rate=5e-4)
    assert (recipe.patience, recipe.weight_decay) == (25, 1e-4)
    assert (Recipe.published().epochs, recipe.batch_size) == (1000, 256)
    report = fit_datasets(*sets, backbone, Labels(percentile=50), recipe)
    assert report.report["auroc"] > 0.8
    probe = Probe.load(report.probe.save(tmp_path / "published.probe"))
    assert probe.card.architecture == "probe-2026"
    assert probe.card.charges is charges
    assert probe.statistics is None
    names = probe.network.state_dict().keys()
    assert ("charge_proj.0.weight" in names) is charges
    reliability, _ = probe(sets[2].predictions)
    close(reliability, report.probability, NETWORK, of=1.0)


def test_published_recipe_takes_atomic_energies_off():
    sets = toy_datasets(60)
    energies = {int(z): -1.0 * z for part in sets for row in part.numbers for z in row}
    recipe = Recipe.published(epochs=1, atomic_energies=energies)
    probe = fit_datasets(*sets, ToyBackbone(), Labels(percentile=50), recipe).probe
    prediction = sets[2].predictions[0]
    rest = prediction.energy + prediction.numbers.sum()
    assert probe.inputs([prediction])[2][0, 0].item() == pytest.approx(rest, rel=1e-5)
    few = Recipe.published(epochs=1, atomic_energies={1: 0.0})
    with pytest.raises(LabelError, match="must hold every element of the labels"):
        fit_datasets(*sets, ToyBackbone(), Labels(percentile=50), few)
    with pytest.raises(ValueError, match=r"they are for Recipe\.published"):
        Recipe(atomic_energies=energies)


def test_labels_without_skill_are_refused():
    sets = toy_datasets(30)
    with pytest.raises(LabelError, match=r"training labels .* got 30 of 30 within 1e"):
        fit_datasets(*sets, ToyBackbone(), Labels(boundary=1e9), Recipe())
    for part in sets:
        part.groups[:] = ["one run"] * 30
    for architecture, least in (("joined", 3), ("standard", 2)):
        recipe = Recipe(architecture, epochs=1)
        with pytest.raises(LabelError, match=f"at least {least} groups, got 1"):
            fit_datasets(*sets, ToyBackbone(), Labels(percentile=50), recipe)
    first, _, last = toy_datasets(30)
    with pytest.raises(LabelError, match=r"must be given for the .* 'standard', got"):
        fit_datasets(first, None, last, ToyBackbone(), Labels(percentile=50), recipe)


def test_unusable_test_set_is_refused_before_training(monkeypatch):
    first, held, last = toy_datasets(30)
    for prediction in last.predictions:
        prediction.numbers[0] = 79
    for name in ("fit_joined", "fit_single"):
        monkeypatch.setattr(f"uqcalc.fitting.training.{name}", None)
    with pytest.raises(LabelError, match=r"of the 30 test .*\(.*H C.*O.*, got none"):
        fit_datasets(first, held, last, ToyBackbone(), Labels(percentile=50), Recipe())


class Untouched(ToyBackbone):
    def predict_many(self, frames, wanted=("energy", "forces")):
        pytest.fail("evaluated, although no probe can come of these frames")


def test_invalid_input_fails_before_any_prediction(sets):
    train, test = sets
    labels, standard = Labels(group_key="run", percentile=50), Recipe("standard")
    with pytest.raises(LabelError, match="must be given for the architecture 'stand"):
        fit(train, Untouched(), labels, standard, test=test)
    few = pytest.warns(LabelWarning, match=r"at least (200 labelled|10 groups)")
    with few, pytest.raises(LabelError, match=r"at least 4 groups .* got 3 \(0/0, 0/1"):
        fit(train[:9], Untouched(), labels)
    few = pytest.warns(LabelWarning, match=r"at least (200 labelled|10 groups)")
    with few, pytest.raises(LabelError, match=r"at least 3 groups .* got 2 \(0/0, 0/1"):
        fit(train[:6], Untouched(), labels, test=test[:9])


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as after the use of MACE
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("double")
def test_fits_with_any_default_dtype(sets):
    labels, recipe = Labels(group_key="run", percentile=50), Recipe(epochs=2)
    report = fit(sets[0], ToyBackbone(), labels, recipe)
    assert np.isfinite(report.probability).all()
    for tensor in report.probe.stacked.state_dict().values():
        assert tensor.dtype == torch.float32


@pytest.mark.parametrize("force", [0.0, 1e-15])
def test_atoms_without_errors_do_not_prevent_a_fit(force):
    """Perfect crystals: their forces are zero by symmetry, their energies are not."""
    train, *_, test = toy_datasets()
    for part in (train, test):
        rng = np.random.default_rng(0)
        part.atom_errors = [
            force * rng.random(len(p.numbers)) for p in part.predictions
        ]
    with pytest.warns(LabelWarning, match="this probe has no probe_reliabilities"):
        report = fit_datasets(
            train, None, test, ToyBackbone(), Labels(percentile=50), Recipe()
        )
    assert report.report["auroc"] > 0.8
    assert report.report["atoms"] is report.probe.card.atom_boundary is None
    assert report.probe.read(test.predictions[:3]).atoms is None


def test_errors_are_taken_after_offsets_of_other_groups():
    train, _, test = toy_datasets()
    rng = np.random.default_rng(0)
    for part in (train, test):
        part.labels = Labels("energy", offsets=True, percentile=50)
        part.residuals = part.errors * rng.choice([-1, 1], len(part))
    train = train.fit_offsets()
    report = fit_datasets(train, None, test, ToyBackbone(), train.labels, Recipe())
    assert report.probe.card.boundary == np.median(train.crossed().errors)
    assert report.probe.card.boundary > np.median(train.errors)
    assert report.probe.card.offsets == train.offsets


def test_recipes_are_checked_before_any_work():
    with pytest.raises(ValueError, match="folds must be at least 2"):
        Recipe(folds=1)
    with pytest.raises(ValueError, match=r"architecture must .* got 'probe'"):
        Recipe(architecture="probe")
    with pytest.raises(TypeError, match="epoch"):
        Recipe.published(epoch=3)


def test_devices_of_earlier_versions_are_ignored_with_a_warning():
    with pytest.warns(DeprecationWarning, match="trains on the CPU, in one process"):
        recipe = Recipe(devices=4, accelerator="cuda")
    assert recipe == Recipe()
    assert replace(recipe, epochs=2) == Recipe(epochs=2)


def repeated(prediction, times):
    """The prediction of an exact supercell: all that is per atom, ``times`` times."""
    return replace(
        prediction,
        numbers=np.tile(prediction.numbers, times),
        pbc=np.ones(3, bool),
        positions=np.tile(prediction.positions, (times, 1)),
        energy=times * prediction.energy,
        forces=np.tile(prediction.forces, (times, 1)),
        features=prediction.features.repeat(times, 1),
    )


@pytest.mark.parametrize("times", [2, 8, 27])
def test_a_supercell_has_the_probability_of_its_cell(fitted, sets, times):
    """RMS errors of forces do not change if a cell is repeated."""
    probe = fitted.probe
    cells = tap(mace_calculator(0)).predict_many(sets[1][:12])
    one = probe.read([repeated(cell, 1) for cell in cells])
    many = probe.read([repeated(cell, times) for cell in cells])
    np.testing.assert_allclose(many.reliability, one.reliability, atol=1e-3)
    np.testing.assert_allclose(
        many.atoms[: times * len(cells[0].numbers)],
        one.atoms[: len(cells[0].numbers)].repeat(times),
        atol=1e-3,
    )
    np.testing.assert_allclose(many.novelty, one.novelty, rtol=1e-3)
    limits = {"mean_distance": 1e-3, "mean_slope": -2.0, "element_counts": (1, 9)}
    by_elements = probe.with_card(scope=replace(probe.card.scope, **limits))
    np.testing.assert_allclose(
        by_elements.read([repeated(cell, times) for cell in cells]).novelty,
        by_elements.read([repeated(cell, 1) for cell in cells]).novelty,
        rtol=1e-3,
    )
    if probe.card.atom_floor is not None:
        np.testing.assert_allclose(many.worst_atom, one.worst_atom, atol=1e-2)
    assert probe.card.scope.doubts(np.ones(10_000, int), periodic=True) == ()
