"""The scope: share of structures outside, their kinds, and the verdict."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from uqcalc import Level, Policy, Threshold
from uqcalc.defaults import shipped_probe
from uqcalc.errors import LabelError, ProbeError
from uqcalc.evaluation.cardinfo import card_info
from uqcalc.probe.card import Card
from uqcalc.probe.scope import (
    FARTHEST,
    AtomFloor,
    Scope,
    element_slope,
    learn_floor,
    learn_scope,
    tail_limit,
)
from uqcalc.types import Reading


def away(structures, atoms=20, dim=8, *, seed, stretch=1.0):
    """Largest and mean log squared distance per dimension among Gaussian atoms.

    All are of two elements.
    """
    rows = np.random.default_rng(seed).normal(size=(structures, atoms, dim))
    squares = (stretch * rows**2).mean(axis=2)
    elements = np.full(structures, 2.0)
    return squares.max(axis=1), np.log(squares).mean(axis=1), elements


def fired(scope, *distances):
    """Share of structures outside."""
    novelty = scope.novelty(*map(torch.from_numpy, distances))
    return float((novelty > FARTHEST).double().mean())


@pytest.mark.parametrize("groups", [39, 400])
def test_stated_share_of_new_structures_is_outside(groups):
    """Independent events at 1 and 5 % give about 6 %, with few and with many groups."""
    names = [str(i) for i in range(groups)]
    shares = []
    for seed in range(40):
        scope = learn_scope("forces", away(groups, seed=seed), [20], names, [])
        shares.append(fired(scope, *away(500, seed=10_000 + seed)))
    assert np.mean(shares) == pytest.approx(0.055, abs=0.025)
    assert np.std(shares) < 0.07  # little dependence on the draw of the groups


def test_small_shift_of_all_atoms_is_outside():
    """Wrong elements or another density change every atom a little."""
    scope = learn_scope(
        "forces", away(400, seed=0), [20], list(map(str, range(400))), []
    )
    distances = away(200, seed=1, stretch=1.5)
    assert np.mean(distances[0] > scope.distance) < 0.5
    assert fired(scope, *distances) > 0.9


def test_labels_with_a_low_probability_do_not_widen_the_limits():
    near, far = away(200, seed=0), away(600, seed=1, stretch=100.0)
    both = tuple(np.concatenate(pair) for pair in zip(near, far, strict=True))
    names = list(map(str, range(800)))
    judged = np.arange(800) < 200
    scope = learn_scope("forces", both, [20], names, [], judged)
    alone = learn_scope("forces", near, [20], names[:200], [])
    assert scope == alone
    assert fired(scope, *far) == 1.0
    few = np.arange(800) < 5  # too few to learn from: all labels set the limits
    assert learn_scope("forces", both, [20], names, [], few).distance > scope.distance


def test_the_limit_is_that_of_groups_and_robust():
    """A long run of unusual structures or a few broken frames do not change it."""
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(0, 1, 300), np.full(3000, 9.0))
    groups = [str(i) for i in range(300)] + ["run"] * 3000
    assert tail_limit(values, groups, 0.95) == pytest.approx(1.645, abs=0.4)
    few = rng.normal(0, 1, 39)
    few[:2] = 1e3
    limit = tail_limit(few, groups[:39], 0.95)
    assert limit == pytest.approx(1.645, abs=1.0)


def test_nan_sets_no_limit_and_stays_nan():
    largest, mean_log, elements = away(100, seed=0)
    largest[3] = mean_log[3] = np.nan  # its element is in no other group
    scope = learn_scope(
        "forces", (largest, mean_log, elements), [20], list(map(str, range(100))), []
    )
    assert math.isfinite(scope.distance)
    for pair in ((math.nan, 0.0), (0.1, math.nan)):
        assert scope.novelty(*map(torch.tensor, (*pair, 2.0))).isnan()
    nothing = np.full(2, np.nan)
    with pytest.raises(LabelError, match="must occur in two groups"):
        learn_scope("forces", (nothing, nothing, elements[:2]), [1], ["a", "b"], [])


def test_a_scope_of_an_earlier_version_has_one_limit_or_none_on_the_mean():
    one, many = torch.tensor(1.0), torch.tensor(9.0)
    data = Scope(2.0, 0.99, 3, 8).to_dict()
    for entry in ("mean_slope", "element_counts"):
        del data[entry]
    scope = Scope.from_dict(data | {"mean_distance": 0.5})
    for count in (one, many):
        assert scope.novelty(one, torch.tensor(0.0), count) == 2.0
    del data["mean_distance"]
    older = Scope.from_dict(data)
    assert older.mean_limits is None
    assert older.novelty(torch.tensor(3.0), torch.tensor(99.0), one) == 1.5


def varied(groups, slope, *, seed, each=1):
    """Structures of 1 to 5 elements whose mean log distance has a median slope."""
    rng = np.random.default_rng(seed)
    elements = np.repeat(rng.integers(1, 6, groups), each).astype(float)
    mean_log = slope * np.log(elements) + rng.normal(0, 0.5, len(elements))
    names = np.repeat([str(i) for i in range(groups)], each).tolist()
    return (np.full(len(elements), 0.1), mean_log, elements), names


def test_the_limit_follows_the_number_of_elements_as_the_labels_do():
    """With one limit 30 % of structures of one element are outside, others never."""
    data, names = varied(600, -1.0, seed=0)
    scope = learn_scope("forces", data, [20], names, [])
    assert scope.mean_slope == pytest.approx(-1.0, abs=0.35)
    fresh, _ = varied(4000, -1.0, seed=1)
    for count in (1, 2, 5):
        rows = fresh[2] == count
        assert 0.01 < fired(scope, *(column[rows] for column in fresh)) < 0.13
    first, last = scope.mean_limits
    assert first / last == pytest.approx(5**-scope.mean_slope, rel=1e-9)
    ends = [scope.novelty(*map(torch.tensor, (0.0, 0.0, n))) for n in (5.0, 40.0)]
    assert ends[0] == ends[1]  # no extrapolation of the limit


def test_no_slope_without_support_by_the_labels():
    for seed in range(5):
        data, names = varied(600, 0.5, seed=seed)  # rising
        assert element_slope(*data[1:], names) == 0.0
        data, names = varied(19, -3.0, seed=seed, each=20)  # few groups
        assert element_slope(*data[1:], names) == 0.0
        _, mean_log, elements = away(200, seed=seed)  # all of two elements
        assert element_slope(mean_log, elements, list(map(str, range(200)))) == 0.0


def test_few_groups_shrink_the_slope():
    """Slopes by chance are more than halved; a large slope mostly stays."""
    found = {0.0: [], -2.0: []}
    for slope, slopes in found.items():
        for seed in range(10):
            data, names = varied(40, slope, seed=seed)
            slopes.append(element_slope(*data[1:], names))
    assert np.mean(found[0.0]) > -0.2
    assert -2.5 < np.mean(found[-2.0]) < -1.4


@pytest.mark.parametrize(
    "entries",
    [{"mean_slope": 0.5}, {"element_counts": (0, 2)}, {"element_counts": (3, 2)}],
)
def test_impossible_limits_of_the_mean_are_refused(entries):
    with pytest.raises(ProbeError, match="must have a mean_slope of at most 0"):
        Scope(2.0, 0.99, 3, 8, mean_distance=0.5, **entries)


def test_card_shows_the_limits_for_few_and_for_many_elements():
    card = shipped_probe("default").card
    limits = {"mean_distance": 0.9, "mean_slope": -1.0, "element_counts": (1, 3)}
    sloped = replace(card, scope=replace(card.scope, **limits))
    text = dict(card_info(sloped).rows)["scope"]
    assert "mean over atoms to 0.9 (1 element) down to 0.3 (3 or more)" in text
    assert "element" not in dict(card_info(card).rows)["scope"]


def two(n=4):
    """Distances of n structures that do not matter."""
    return np.full(n, 1.0), np.zeros(n), np.ones(n)


def test_sizes_have_the_limits_of_the_target():
    for target, low, high in (("energy", 5, 9), ("forces", 3, 18)):
        scope = learn_scope(target, two(2), [9, 5], ["a", "b"], [])
        for atoms in (low, high):
            assert scope.doubts(np.ones(atoms, dtype=int), periodic=False) == ()
        for atoms in (low - 1, high + 1):
            numbers = np.ones(atoms, dtype=int)
            (why,) = scope.doubts(numbers, periodic=False)
            assert why == f"{atoms} atoms, calibrated for {low} to {high}"
            assert bool(scope.doubts(numbers, periodic=True)) == (target == "energy")


def test_charges_are_the_nearest_whole_ones():
    scope = learn_scope(
        "forces", two(), [3] * 4, list("abcd"), [-0.98, 0.02, 0.01, 1.1]
    )
    assert scope.charges == (-1, 0, 1)


def test_a_scope_is_json():
    for outside in (0.25, math.nan):
        limits = {"mean_slope": -0.5, "element_counts": (1, 5)}
        scope = Scope(1.5, 0.99, 3, 8, (0, 1), outside, **limits)
        assert str(Scope.from_dict(scope.to_dict())) == str(scope)
    assert Scope(1.5, 0.99, 3, 8).to_dict()["outside"] is None  # JSON has no NaN


POLICY = Policy([Threshold("probe", 0.2, 0.5)])


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1),
    st.booleans(),
)
def test_outside_is_at_least_suspect_with_that_reason(novelty, risk, small):
    doubts = ("2 atoms",) if small else ()
    reading = Reading(
        "probe",
        risk,
        results={"probe_novelty": novelty},
        limits={"probe_novelty": 1.0},
        doubts=doubts,
    )
    verdict = POLICY([reading])
    alone = POLICY([Reading("probe", risk)]).level
    beyond = not novelty <= 1.0  # NaN is outside
    assert verdict.level == (max(alone, Level.SUSPECT) if beyond or small else alone)
    words = " ".join(verdict.reasons)
    assert ("outside its calibration" in words) == (beyond or small)
    assert ("probe_novelty" in words) == beyond
    assert ("2 atoms" in words) == small


def lowest_of(sizes, rng):
    """Lowest of independent standard normal log-odds."""
    return np.array([rng.normal(size=n).min() for n in sizes])


@pytest.mark.parametrize("level", [0.99, 0.9])
def test_the_stated_share_of_right_structures_lies_above_at_every_size(level):
    """Averaged over labelled sets a conformal quantile has its level."""
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(199)]
    below, fired, drawn = {4: 0, 64: 0}, 0, 0
    for _ in range(60):
        sizes = rng.integers(4, 65, 199)
        floor = learn_floor(lowest_of(sizes, rng), sizes, groups, level)
        assert floor.slope <= 0
        assert floor.structures == 199
        fresh = rng.integers(4, 65, 200)
        levels = np.array([floor.at(n) for n in fresh])
        fired, drawn = fired + np.sum(lowest_of(fresh, rng) < levels), drawn + 200
        for n in below:
            below[n] += np.mean(lowest_of([n] * 200, rng) < floor.at(n)) / 60
    spread = math.sqrt(level * (1 - level) * (1 / drawn + 1 / (60 * 199)))
    assert fired / drawn == pytest.approx(1 - level, abs=4 * spread)
    for share in below.values():  # the line is only approximate: a factor
        assert share < 4 * (1 - level)


def test_floor_falls_with_atoms_and_is_constant_below_the_smallest():
    rng = np.random.default_rng(1)
    sizes = np.repeat([8, 64], 100)
    floor = learn_floor(lowest_of(sizes, rng), sizes, [str(i) for i in range(200)])
    assert floor.at(64) < floor.at(8) == floor.at(1)
    same = learn_floor(
        lowest_of([8] * 99, rng), np.full(99, 8), list(map(str, range(99)))
    )
    assert same.slope == 0.0  # one size gives no slope
    rising = learn_floor(np.log(sizes), sizes, [str(i) for i in range(200)])
    assert rising.slope == 0.0


def test_few_right_structures_set_no_floor():
    assert learn_floor(np.zeros(19), np.full(19, 5), list(map(str, range(19)))) is None


def test_a_floor_is_json_and_finite():
    floor = AtomFloor(0.99, -1.5, -0.25, 3, 200)
    assert AtomFloor.from_dict(floor.to_dict()) == floor
    assert floor.at(3) == pytest.approx(-1.5 - 0.25 * math.log(3), rel=1e-12)
    with pytest.raises(ProbeError, match="must have finite numbers"):
        AtomFloor(0.99, math.nan, 0.0, 3, 200)


@pytest.mark.parametrize("entry", ["scope", "atom_calibration", "atom_floor"])
def test_a_card_without_a_limit_that_was_learned_is_refused(entry):
    """Without the limit, more verdicts would be RELIABLE than for the fitted probe."""
    card = shipped_probe("default").card.to_dict()
    assert Card.from_dict(card).atom_floor is not None
    with pytest.raises(ProbeError, match=entry):
        Card.from_dict(card | {entry: None})
