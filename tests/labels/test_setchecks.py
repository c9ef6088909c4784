"""Weak sets of labels give a warning or an error; good sets give none."""

import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from builders import rattled
from probe.toys import Cohesion

from uqcalc import Labels, LabelWarning
from uqcalc.errors import LabelError
from uqcalc.evaluation.guarantee import _refuse_early
from uqcalc.fitting.training import _both_kinds
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.defects import drop_leaks
from uqcalc.labels.offsets import fit_offsets, missing_span, warn_of_span
from uqcalc.labels.setchecks import (
    check_both_classes,
    check_spread_of_errors,
    find_series,
    warn_of_rare_class,
    warn_of_weak_set,
)


NAMES = ["H2O", "CH3OH", "NH3", "C2H6", "CH4", "CO2", "C2H4", "HCN", "H2CO", "N2H4"]


def independent(count, names=NAMES):
    """Rattled by amounts that differ from frame to frame."""
    amounts = np.random.default_rng(0).uniform(0.01, 0.3, count)
    frames = []
    for index, amount in enumerate(amounts):
        name = names[index % len(names)]
        frames.append(rattled(name, seed=index, amount=amount))
        frames[-1].info |= {"molecule": name, "batch": str(index % 30)}
    return frames


BY_MOLECULE = Labels(group_key="molecule")


def said(frames, labels=BY_MOLECULE):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_weak_set(frames, labels)
    assert all(w.category is LabelWarning for w in caught)
    return [str(w.message) for w in caught]


def run(count, stride=10, seed=0):
    """Frames of one Langevin run in a toy potential."""
    atoms = rattled("C2H6", seed=seed)
    atoms.calc = Cohesion()
    rng = np.random.RandomState(seed)
    dyn = Langevin(
        atoms, units.fs, temperature_K=300, friction=0.01, rng=rng, fixcm=False
    )
    frames = []
    dyn.attach(lambda: frames.append(atoms.copy()), interval=stride)
    dyn.run(stride * (count - 1))
    return frames


def test_good_set_gives_no_warning():
    assert said(independent(200), Labels(group_key="batch")) == []


def test_few_structures_and_few_groups_are_counted():
    few, some = said(independent(199))
    assert "at least 200 labelled structures, got 199" in few
    assert "at least 30 groups, got 10 by 'molecule'" in some
    (groups,) = said(independent(210, NAMES[:3]))
    assert "at least 10 groups, got 3 by 'molecule'" in groups


def test_one_molecule_only():
    alone, same = said(independent(210, NAMES[:1]))
    assert "one group only (molecule 'H2O')" in alone
    assert "one composition only (H2O)" in same
    with pytest.raises(LabelError, match="frame 0 must have the group key 'run'"):
        warn_of_weak_set(independent(3), Labels(group_key="run"))


def test_frames_of_one_run_without_a_group_key():
    frames = run(210)
    assert find_series(frames) == ["C2H6"]
    one, series = said(frames, Labels())
    assert "one composition only" in one
    assert "consecutive frames of C2H6 are correlated" in series
    assert "group_key" in series
    mixed = [*independent(200), *frames[:40]]
    assert find_series(mixed) == ["C2H6"]
    order = np.random.default_rng(0).permutation(len(frames))
    assert find_series([frames[i] for i in order]) == []  # not recognised


def test_key_that_differs_in_each_frame_does_not_identify_runs():
    frames = run(210)
    for index, frame in enumerate(frames):
        frame.info |= {"frame": index, "block": index // 10}
    _, split = said(frames, Labels(group_key="frame"))
    assert "each is a group of its own by 'frame'" in split
    assert len(said(frames, Labels(group_key="block"))) == 2  # few, of one composition
    with pytest.raises(LabelError, match="groups of one frame by 'frame', of C2H6,"):
        _refuse_early(frames, range(210), Labels(group_key="frame"), 59)


def test_a_run_of_a_crystal_is_seen_across_its_boundary():
    crystal = bulk("Cu", cubic=True)
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(0, 0.02, (60, 4, 3)), axis=0)
    free = rng.normal(0, 0.1, (60, 4, 3))
    for moves, expected in ((walk, ["Cu4"]), (free, [])):
        frames = []
        for move in moves:
            atoms = crystal.copy()
            atoms.positions += move
            atoms.wrap()
            frames.append(atoms)
        assert find_series(frames) == expected


@pytest.mark.parametrize("seed", range(20))
def test_independent_frames_are_not_a_run(seed):
    rng = np.random.default_rng(seed)
    calm = rng.random(25) < 0.5  # half are relaxed, half are shaken
    frames = [
        rattled("CH3OH", seed=100 * seed + i, amount=0.002 if c else 0.3)
        for i, c in enumerate(calm)
    ]
    assert find_series(frames) == []


def test_many_frames_of_few_compositions_without_a_group_key():
    (together,) = said(independent(210), Labels())
    assert "210 frames have 10 compositions" in together
    assert "--group formula" in together
    (few,) = said(independent(210), Labels(group_key="formula"))
    assert "at least 30 groups, got 10 by 'formula'" in few
    assert said([], Labels()) == []
    lone = [Atoms("H", positions=[[0, 0, i]]) for i in range(2)]
    assert len(said(lone, Labels())) == 2  # few, and one composition only


def errors(right, wrong):
    return np.array([0.1] * right + [1.0] * wrong)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (586, 6, "6 of 592 are unreliable"),
        (975, 25, "25 of 1000 are unreliable"),
        (40, 960, "40 of 1000 are reliable"),
        (20, 180, "20 of 200 are reliable"),
        (900, 100, None),
        (25, 25, None),  # a small number of labels has another warning
    ],
)
def test_labels_of_nearly_one_kind_are_named(right, wrong, said):
    check_both_classes(errors(right, wrong), 0.5)
    if said is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_rare_class(errors(right, wrong), 0.5, Labels())
    else:
        with pytest.warns(LabelWarning, match=said):
            warn_of_rare_class(errors(right, wrong), 0.5, Labels())


@pytest.mark.parametrize(("right", "wrong"), [(4, 500), (500, 4), (100, 0)])
def test_fewer_than_five_of_a_kind_are_refused(right, wrong):
    with pytest.raises(LabelError, match=f"got {right} of {right + wrong} within 0.5"):
        check_both_classes(errors(right, wrong), 0.5)


def test_the_default_boundary_is_one_that_usual_frames_keep():
    rng = np.random.default_rng(0)
    usual = rng.lognormal(np.log(0.03), 0.3, 5000)  # a run at room temperature
    boundary = Labels().chosen_boundary(usual)
    assert np.mean(usual > boundary) <= 0.1 + 1e-3
    wide = np.concatenate([usual, rng.uniform(0.5, 5.0, 2000)])  # and broken ones
    boundary = Labels().chosen_boundary(wide)
    assert boundary == pytest.approx(3 * np.median(wide))
    assert np.mean(usual <= boundary) > 0.98
    for count in (60, 220, 1000):  # enough of the rarer kind, whatever the errors are
        even = rng.uniform(0, 1, count)
        beyond = np.sum(even > Labels().chosen_boundary(even))
        assert beyond >= min(30, count // 4)
    assert Labels(percentile=50).chosen_boundary(wide) == np.median(wide)
    assert Labels(boundary="50 meV/Å").chosen_boundary(wide) == pytest.approx(0.05)
    assert Labels().chosen_boundary([np.nan, *wide]) == boundary
    assert "times the median" in Labels().boundary_rule
    assert Labels(boundary=1.0).boundary_rule == ""


def test_default_boundary_among_similar_errors_is_refused():
    """Labels of one temperature: no error exceeds a multiple of their median."""
    rng = np.random.default_rng(0)
    alike = rng.lognormal(np.log(0.03), 0.25, 500)
    boundary = Labels().chosen_boundary(alike)
    named = f"all errors are similar, .* boundary='{3 * np.median(alike):.2g} eV/Å',"
    with pytest.raises(LabelError, match=named):
        check_spread_of_errors(alike, boundary, Labels())
    for given in (Labels(boundary=boundary), Labels(percentile=50)):
        check_spread_of_errors(alike, boundary, given)
    hotter = np.concatenate([alike, rng.lognormal(np.log(0.1), 0.25, 150)])
    boundary = Labels().chosen_boundary(hotter)
    check_spread_of_errors(hotter, boundary, Labels())
    assert np.mean(alike > boundary) < 0.01
    assert np.sum(hotter > boundary) >= 30
    with pytest.warns(
        LabelWarning, match="add frames of this class$"
    ):  # this is no better boundary
        warn_of_rare_class(alike, 0.06, Labels(boundary=0.06))


def test_a_geometry_in_two_sets_is_named_and_left_out_of_the_earlier_one():
    frames = [rattled("CH3OH", seed=seed) for seed in range(9)]
    sets = [frames[:5], frames[4:7], [*frames[6:], frames[0]]]
    listed = r"3 in two of them \(training frames 0, 4; calibration frames 2\)"
    with pytest.raises(LabelError, match=listed):
        drop_leaks(sets, ())
    with pytest.warns(LabelWarning, match="left out of the earlier set"):
        assert drop_leaks(sets, ["duplicate"]) == [{0, 4}, {2}, set()]
    assert drop_leaks([frames[:5], frames[5:]], ()) == [set(), set()]


def test_a_test_of_one_kind_is_divided_again():
    """Only 3 of 20 groups hold wrong ones: a test of 3 groups often has none."""
    groups = np.repeat([str(i) for i in range(20)], 5).tolist()
    wrong = np.isin(groups, ["2", "9", "17"])
    data = Dataset([], np.where(wrong, 1.0, 0.1), groups, {})
    data.predictions = [None] * 100
    labels = Labels(boundary=0.5)
    redrawn = 0
    for seed in range(12):
        parts = _both_kinds(data, (0.85, 0.15), labels, seed)
        assert 0 < np.sum(parts[1].errors > 0.5) < len(parts[1])
        again = _both_kinds(data, (0.85, 0.15), labels, seed)
        assert [part.groups for part in again] == [part.groups for part in parts]
        redrawn += data.split((0.85, 0.15), seed)[1].groups != parts[1].groups
    assert redrawn > 0
    data.errors[:] = 0.1
    with pytest.warns(LabelWarning, match="none of 20 random splits"):
        _both_kinds(data, (0.85, 0.15), labels, 0)


def test_offsets_of_one_composition_give_a_warning_on_others():
    water, more = [np.array([8, 1, 1])] * 20, [np.array([1, 1, 8] * 2)]
    offsets = fit_offsets(water, np.full(20, -2066.0))
    span = missing_span(water, offsets)
    assert span["elements"] == [1, 8]
    assert len(span["basis"]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_span([*water, *more], span)  # twice as many are the same direction
        warn_of_span([], span)
    with pytest.warns(LabelWarning, match=r"1 of 21 structures \(such as H2O2\)"):
        warn_of_span([*water, np.array([8, 8, 1, 1])], span)
    both = [*water, np.array([8, 8, 1, 1])]
    assert missing_span(both, fit_offsets(both, np.full(21, -2066.0))) is None
    assert missing_span(water, {}) is None


def test_one_number_is_an_energy_however_it_is_wrapped():
    for value in (-3.0, np.array(-3.0), np.array([-3.0]), np.array([[-3.0]]), [-3.0]):
        frame = rattled("H2O", seed=0)
        frame.info["REF_energy"] = value
        found = Labels("energy").reference(frame)
        assert found.shape == ()
        assert found == -3.0
    for value in (np.array([-3.0, 1.0]), np.array([]), True, "x"):
        frame.info["REF_energy"] = value
        assert Labels("energy").reference(frame) is None
