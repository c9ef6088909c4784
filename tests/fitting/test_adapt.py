"""A probe adapted to one system: its probabilities are right on other frames."""

from dataclasses import replace

import numpy as np
import pytest
from builders import rattled, tiny_probe
from probe.toys import ToyBackbone

from uqcalc import Labels, Probe, Recipe, ReliableCalculator, adapt, evaluate, fit
from uqcalc.errors import LabelError, LabelWarning, ProbeError
from uqcalc.statistics.systems import Residuals, Spread, learn_runs


NAMES = ("H2O", "CH3OH", "NH3", "C2H6")


def frames(names, count, *, seed, factor=1.0, runs=None):
    """Frames whose errors grow with the rattling, ``factor`` times as much."""
    rng = np.random.default_rng(seed)
    bare = ToyBackbone().calculator
    made = []
    for index in range(count):
        amount = float(np.exp(rng.uniform(np.log(0.01), np.log(0.3))))
        name = names[index % len(names)]
        atoms = rattled(name, seed=1000 * seed + index, amount=amount)
        error = factor * amount * np.exp(0.3 * rng.normal(size=(len(atoms), 3)))
        sign = rng.choice([-1, 1], size=(len(atoms), 3))
        atoms.arrays["REF_forces"] = bare.get_forces(atoms) + error * sign
        atoms.info["group"] = f"{name} {index // (4 * len(names))}"
        if runs:
            atoms.info["run"] = f"run {index % runs}"
        made.append(atoms)
    return made


@pytest.fixture(scope="module")
def probe():
    labels = Labels(group_key="group", boundary=0.06)
    report = fit(frames(NAMES, 240, seed=0), ToyBackbone(), labels, Recipe(epochs=5))
    return report.probe


def gap(probe, rows):
    found = evaluate(probe, rows, ToyBackbone())
    return found.probability.mean() - np.mean(found.errors <= probe.card.boundary)


@pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")
@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_system_with_other_errors_gets_probabilities_that_hold(probe, factor):
    rest = frames(["CH3OH"], 80, seed=3, factor=factor)
    mine = adapt(probe, frames(["CH3OH"], 25, seed=2, factor=factor), ToyBackbone())
    assert abs(gap(mine, rest)) < 0.5 * abs(gap(probe, rest))
    told = mine.card.training["adapted"]
    assert told["labels"] == 25
    assert told["elements"] == ["H", "C", "O"]
    assert factor / 2.5 < told["error_factor"] < 2.5 * factor


def test_it_keeps_the_order_survives_a_file_and_covers_its_elements(probe, tmp_path):
    rows = frames(["CH3OH"], 30, seed=5, factor=3.0, runs=6)
    mine = adapt(probe, rows, ToyBackbone(), Labels(group_key="run"))
    again = Probe.load(mine.save(tmp_path / "mine.probe"))
    new = frames(["CH3OH"], 20, seed=6)
    before = evaluate(probe, new, ToyBackbone()).probability
    for one in (mine, again):
        after = evaluate(one, new, ToyBackbone()).probability
        np.testing.assert_array_equal(np.argsort(before), np.argsort(after))
        assert np.all(after < before)  # errors here are larger
    assert mine.card.promise is None
    assert mine.card.training["adapted"]["runs"] == 6
    live = ReliableCalculator(ToyBackbone(), again)
    other = live.assess(frames(["NH3"], 1, seed=7)[0])
    assert "adapted to a system without N" in str(other)
    assert again.seen.frames(rows, range(30)) == list(range(30))
    with pytest.warns(LabelWarning, match="got 30 of 50 on which it was"):
        own = evaluate(again, rows + new, ToyBackbone())
    assert own.report["seen"] == 30
    assert "30 of them are labels of the probe itself" in str(own)
    # P grows with the boundary, after the shift too
    predictions = ToyBackbone().predict_many(new)
    low, high = again.card.calibration.boundaries[::8][:2]
    assert np.all(
        again.reliability(predictions, low).numpy()
        <= again.reliability(predictions, high).numpy()
    )


def test_atoms_are_shifted_by_their_own_errors(probe):
    rest = frames(["CH3OH"], 60, seed=9, factor=4.0)
    rows = frames(["CH3OH"], 30, seed=8, factor=4.0, runs=10)
    mine = adapt(probe, rows, ToyBackbone(), Labels(group_key="run"))

    def off(one):
        found = evaluate(one, rest, ToyBackbone()).tested
        right = found.atom_errors <= one.card.atom_boundary
        return abs(found.atom_probability.mean() - right.mean())

    assert off(mine) < 0.5 * off(probe)


def test_unusable_labels_are_refused(probe):
    rows = frames(["CH3OH"], 8, seed=11)
    with pytest.raises(LabelError, match=r"at least 5 labelled frames.*got 4"):
        adapt(probe, rows[:4], ToyBackbone())
    with pytest.raises(LabelError, match="new to the probe, got"):
        adapt(probe, frames(NAMES, 8, seed=0), ToyBackbone())
    strange = frames(["NaCl"], 6, seed=12)
    with pytest.raises(LabelError, match=r"elements.*Na Cl in frame 0"):
        adapt(probe, strange, ToyBackbone())
    mine = adapt(probe, rows, ToyBackbone())
    with pytest.raises(ProbeError, match="adapted already"):
        adapt(mine, frames(["CH3OH"], 8, seed=13), ToyBackbone())
    single = tiny_probe(ToyBackbone())
    with pytest.raises(ProbeError, match="at several boundaries"):
        adapt(single, rows, ToyBackbone())


def test_problems_of_the_labels_give_warnings(probe):
    same = frames(["CH3OH"], 12, seed=14, runs=1)
    with pytest.warns(LabelWarning, match="several runs, got 12 of one"):
        adapt(probe, same, ToyBackbone(), Labels(group_key="run"))
    mixed = [
        *frames(["CH3OH"], 20, seed=15, factor=0.1),
        *frames(["NH3"], 20, seed=16, factor=5.0),
    ]
    with pytest.warns(LabelWarning, match="2 compositions whose errors differ"):
        adapt(probe, mixed, ToyBackbone())


@pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")
def test_one_unusual_label_does_not_raise_the_limit_of_the_scope(probe):
    rows = frames(["CH3OH"], 20, seed=17)
    plain = adapt(probe, rows, ToyBackbone()).card.scope.distance
    rows[0].positions[0] += [0, 0, 30.0]
    bare = ToyBackbone().calculator
    rows[0].arrays["REF_forces"] = bare.get_forces(rows[0]) + 0.1
    odd = adapt(probe, rows, ToyBackbone()).card.scope.distance
    assert odd <= max(plain, 4.0 * probe.card.scope.distance)


@pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")
def test_the_limit_by_number_of_elements_is_widened_to_the_labels(probe):
    """The slope stays, and frames like the labelled ones come inside."""
    rows = frames(["CH3OH"], 40, seed=18)
    own = ToyBackbone().predict_many(rows)
    far = probe.path_output(own)
    limits = {
        "distance": 1e6,
        "mean_slope": -2.0,
        "element_counts": (1, 4),
        "mean_distance": 9.0 * float(far.mean_log_distance.exp().median()) / 1.5,
    }
    strict = probe.with_card(scope=replace(probe.card.scope, **limits))
    assert far.elements.eq(3).all()
    assert strict.read(own).novelty.median() == pytest.approx(1.5, rel=1e-3)
    mine = adapt(strict, rows, ToyBackbone())
    assert mine.card.scope.mean_slope == -2.0
    assert (mine.read(own).novelty <= 1).float().mean() > 0.8  # most were not before


def test_one_label_of_a_run_does_not_show_how_far_runs_lie():
    found = Residuals(np.linspace(-0.1, 0.1, 5), np.zeros(5, int))
    spread = Spread(system=1.0, run=0.3)
    assert learn_runs(found, list("abcde"), spread) == spread.run
