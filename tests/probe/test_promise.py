"""The promise holds as often as it says, on populations whose risk is known."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from uqcalc.errors import LabelError, ProbeError
from uqcalc.probe.promise import (
    Promise,
    control_risk,
    exceeds,
    one_of_each,
    risk_bound,
    units_needed,
)


DRAWS = 1000
# Broken promises in 1 000 draws, were each broken with probability 5 %.
ALLOWED = stats.binom.ppf(0.999, DRAWS, 0.05)


def promised(probability, wrong, groups, **options):
    try:
        return control_risk(probability, wrong, groups, **options)
    except LabelError:
        return None


def risk_above(cutoff, density, wrong_at, points=20_001):
    """Integrate the true risk among probabilities of at least ``cutoff``."""
    grid = np.linspace(0, 1, points)[1:-1]
    weight = density(grid) * (grid >= cutoff)
    return (weight * wrong_at(grid)).sum() / weight.sum()


# P(wrong) as a function of the probability that the probe gives: honest; too sure;
# too risky everywhere by a hair; and upside down below 0.8, where the proof needs more.
POPULATIONS = {
    "honest": lambda p: 1 - p,
    "too sure": lambda p: np.minimum(1, 2 * (1 - p)),
    "no skill": lambda p: np.full_like(p, 0.0501),
    "upside down": lambda p: np.where(p > 0.8, 0.09, 0.01),
}


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("size", [90, 300])
def test_promises_are_broken_no_more_often_than_announced(name, size):
    wrong_at, law = POPULATIONS[name], stats.beta(2, 0.5)
    rng = np.random.default_rng(size)
    broken = 0
    for _ in range(DRAWS):
        probability = rng.beta(2, 0.5, size)
        wrong = rng.random(size) < wrong_at(probability)
        found = promised(probability, wrong, range(size))
        if found is not None:
            broken += risk_above(found.cutoff, law.pdf, wrong_at) > 0.05
    assert broken <= ALLOWED
    if name == "no skill":  # every promise is broken: the level is used, not wasted
        assert broken > 0.3 * ALLOWED


def test_groups_of_frames_that_err_together():
    """Each frame counted for itself breaks the promise; one of each group keeps it."""
    rng = np.random.default_rng(1)
    groups, each = 120, 20
    names = np.repeat([f"run {g}" for g in range(groups)], each)
    broken = {"groups": 0, "frames": 0}
    for seed in range(DRAWS):
        probability = np.repeat(rng.uniform(0.5, 1, groups), each)
        wrong = np.repeat(rng.random(groups) < 0.06, each)  # 6 % of all, everywhere
        broken["groups"] += promised(probability, wrong, names, seed=seed) is not None
        broken["frames"] += promised(probability, wrong, range(len(wrong))) is not None
    assert broken["groups"] <= ALLOWED
    assert broken["frames"] > 3 * ALLOWED


def test_closed_forms():
    for risk, confidence in ((0.05, 0.95), (0.1, 0.95), (0.01, 0.99)):
        expected = math.ceil(math.log(1 - confidence) / math.log(1 - risk))
        assert units_needed(risk, confidence) == expected
    assert units_needed(0.05, 0.95) == 59
    assert risk_bound(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59), rel=1e-12)
    assert risk_bound(7, 7, 0.9) == 1
    for wrong, accepted in ((1, 93), (4, 60), (30, 1000)):
        test = stats.binomtest(wrong, accepted, alternative="less")
        limit = test.proportion_ci(0.95, method="exact").high
        assert risk_bound(wrong, accepted, 0.95) == pytest.approx(limit, rel=1e-9)
    for wrong in range(4):
        fewest = units_needed(0.05, 0.95, wrong)
        assert risk_bound(wrong, fewest, 0.95) <= 0.05
        assert risk_bound(wrong, fewest - 1, 0.95) > 0.05


def test_59_right_answers_are_enough_and_58_are_not():
    probability = np.linspace(0.3, 0.999, 59)
    found = control_risk(probability, np.zeros(59), range(59))
    assert (found.accepted, found.wrong, found.groups, found.coverage) == (59, 0, 59, 1)
    assert found.cutoff <= 0.3
    with pytest.raises(LabelError, match=r"at least 59 accepted .* 58 of 58"):
        control_risk(probability[1:], np.zeros(58), range(58))
    blind = np.where(np.arange(100) < 40, np.nan, 0.9)  # NaN is never accepted
    with pytest.raises(LabelError, match=r"60 of 100 .* about 124 gro") as refused:
        control_risk(blind, np.zeros(100), range(100), risk=0.04, cutoffs=[0.8])
    assert "at least 74" in str(refused.value)


def test_the_number_of_groups_asked_for_is_enough():
    wrong = np.arange(100) % 50 == 7  # 2 %
    with pytest.raises(LabelError, match=r"2 wrong of the first 100") as refused:
        control_risk(np.full(100, 0.9), wrong, range(100))
    asked = int(str(refused.value).split("about ")[1].split()[0])
    assert 100 < asked < 300
    more = np.arange(asked) % 50 == 7
    assert control_risk(np.full(asked, 0.9), more, range(asked)).bound <= 0.05
    with pytest.raises(LabelError, match="no number of labels would do"):
        control_risk(np.full(100, 0.9), np.arange(100) % 10 == 0, range(100))


def test_more_labels_are_not_asked_for_where_none_has_a_probability():
    with pytest.raises(LabelError, match=r"got 0 of 100 groups .*none of these"):
        control_risk([np.nan] * 100, [False] * 100, range(100))


def test_a_larger_risk_accepts_no_less():
    rng = np.random.default_rng(0)
    for _ in range(50):
        probability = rng.beta(2, 0.5, 1000)
        wrong = rng.random(1000) > probability
        found = [
            promised(probability, wrong, range(1000), risk=risk)
            for risk in (0.03, 0.05, 0.08, 0.15)
        ]
        cutoffs = [1.0 if promise is None else promise.cutoff for promise in found]
        assert cutoffs == sorted(cutoffs, reverse=True)
        assert all(p is None or p.bound <= p.risk for p in found)
        assert found[-1] is not None


def test_one_member_of_each_group_each_as_likely():
    groups = ["a"] * 3 + ["b"] + ["c"] * 6
    drawn = np.concatenate([one_of_each(groups, seed) for seed in range(6000)])
    times = np.bincount(drawn, minlength=10) / 6000
    expected = np.repeat([1 / 3, 1, 1 / 6], [3, 1, 6])
    np.testing.assert_allclose(times, expected, atol=0.03)
    assert [groups[i] for i in one_of_each(groups)] == ["a", "b", "c"]


def test_what_is_no_number_is_wrong():
    assert exceeds([0.1, 0.2, np.nan, np.inf], 0.1).tolist() == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"risk": 0},
        {"confidence": 1.0},
        {"cutoffs": [0.5, 0.9]},
        {"cutoffs": []},
        {"groups": range(3)},
    ],
)
def test_arguments_are_checked(wrong):
    options = {"groups": range(100)} | wrong
    with pytest.raises(ValueError, match="must"):
        control_risk(np.ones(100), np.zeros(100), **options)


def test_a_promise_says_what_it_is_and_survives_a_file():
    made = Promise(0.8, 0.05, 0.95, 310, 143, 2, 0.0434, 0.05, "eV/Å")
    stored = json.loads(json.dumps(made.to_dict()))
    assert Promise.from_dict(stored) == made
    assert stored["coverage"] == pytest.approx(143 / 310)
    for part in ("0.05 eV/Å", "2 wrong of 143", "310 groups", "not along a run"):
        assert part in stored["statement"]
    with pytest.raises(ProbeError, match="must have the entries"):
        Promise.from_dict({"cutoff": 0.8})
