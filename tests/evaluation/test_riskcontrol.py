"""The guarantee holds with its confidence, on populations of known risk."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from uqcalc.errors import LabelError, ProbeError
from uqcalc.evaluation.riskcontrol import (
    control_risk,
    exceeds,
    held_out_logits,
    one_of_each,
    plan,
    risk_bound,
    starting_cutoffs,
    units_needed,
)
from uqcalc.probe.card import Guarantee


DRAWS = 500
# Failed guarantees in this number of draws, if each fails with probability 5 %.
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


# P(wrong) as a function of the probability of the probe: calibrated; overconfident;
# slightly above the risk everywhere; and lower below 0.8 than above.
POPULATIONS = {
    "honest": lambda p: 1 - p,
    "too sure": lambda p: np.minimum(1, 2 * (1 - p)),
    "no skill": lambda p: np.full_like(p, 0.0501),
    "upside down": lambda p: np.where(p > 0.8, 0.09, 0.01),
}


LAW = stats.beta(2, 0.5)


@pytest.fixture
def briefly(monkeypatch):
    """Leave out the advice on the number of labels, which takes longest."""
    monkeypatch.setattr("uqcalc.evaluation.riskcontrol._advice", lambda *_: "")


def exact(shares):
    """Return the cutoffs above which these shares of Beta(2, 1/2) lie."""
    return LAW.isf(shares)


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("size", [90, 300])
@pytest.mark.parametrize("starts", [exact, None], ids=["card", "none"])
def test_guarantees_fail_at_most_at_their_stated_rate(name, size, starts, briefly):
    wrong_at, law = POPULATIONS[name], LAW
    rng = np.random.default_rng(size)
    broken = 0
    for _ in range(DRAWS):
        probability = rng.beta(2, 0.5, size)
        wrong = rng.random(size) < wrong_at(probability)
        found = promised(probability, wrong, range(size), starts=starts)
        if found is not None:
            broken += risk_above(found.cutoff, law.pdf, wrong_at) > 0.05
    assert broken <= ALLOWED
    if name == "no skill":  # every guarantee fails: the whole level is used
        assert broken > 0.3 * ALLOWED


# True risk of the share u of groups with the largest P: 2 % at the top; 5 % is allowed.
RISING = [lambda u: 0.02 + 0.2 * u**2, lambda u: np.where(u < 0.4, 0.02, 0.2)]


def power(size, wrong_at, draws, seed):
    """Share of draws with a guarantee, and share with a guarantee that fails."""
    rng, made, broken = np.random.default_rng(seed), 0, 0
    grid = (np.arange(20_000) + 0.5) / 20_000
    mean = np.cumsum(wrong_at(grid)) / np.arange(1, 20_001)
    for _ in range(draws):
        rank = rng.random(size)
        wrong = rng.random(size) < wrong_at(rank)
        found = promised(
            1 - rank, wrong, range(size), starts=lambda shares: 1 - np.array(shares)
        )
        if found is not None:
            made += 1
            broken += mean[min(int((1 - found.cutoff) * 20_000), 19_999)] > 0.05
    return made / draws, broken / draws


@pytest.mark.parametrize(("size", "least"), [(300, 0.1), (1000, 0.4), (5000, 0.97)])
def test_more_groups_make_a_guarantee_more_often(size, least, briefly):
    """With one start at the 60 largest P it is 24 to 29 %, for any size."""
    draws = 60
    for wrong_at in RISING:
        made, broken = power(size, wrong_at, draws, seed=size)
        assert broken <= stats.binom.ppf(0.999, draws, 0.05) / draws
        # three standard errors below the result of a thousand draws
        assert made >= least - 3 * np.sqrt(least * (1 - least) / draws)


@pytest.mark.slow
@pytest.mark.parametrize("size", [300, 1000, 5000])
def test_power_and_violations_at_length(size, briefly):
    for wrong_at in RISING:
        made, broken = power(size, wrong_at, 1000, seed=1)
        assert broken <= ALLOWED / DRAWS
        assert made >= {300: 0.12, 1000: 0.45, 5000: 0.97}[size]


def test_the_number_of_starts_depends_on_the_number_of_groups_alone():
    for groups, shares in ((5000, 3), (1650, 3), (1590, 2), (500, 2), (470, 1)):
        planned = plan(groups, 0.05, 0.95)
        assert [share for share, _ in planned] == [0.05, 0.15, 0.4][-shares:]
        assert sum(part for _, part in planned) == pytest.approx(0.05)
        # without errors each could be rejected, if enough are accepted
        for share, part in planned:
            assert 0.95 ** math.floor(share * groups + 1e-9) <= part * (1 + 1e-9)
    [(share, part)] = plan(100, 0.05, 0.95)
    assert (share, part) == (pytest.approx(1.15 * 0.59), pytest.approx(0.05))
    assert plan(59, 0.05, 0.95)[0][0] == 1


def test_unspent_budget_is_added_to_a_later_start():
    """2 starts at 2.5 % each: only with 80 of 80 right the next test is at 5 %."""
    cutoffs = {0.05: 0.99, 0.15: 0.9, 0.4: 0.5}

    def starts(shares):
        return [cutoffs[share] for share in shares]

    probability = np.repeat([0.95, 0.51, 0.1], [80, 110, 410])
    wrong = np.zeros(600, dtype=bool)
    wrong[190:] = True
    wrong[80:84] = True  # 4 wrong of 190: between the levels of 2.5 and 5 %
    assert 0.025 < stats.binom.cdf(4, 190, 0.05) < 0.05
    found = control_risk(probability, wrong, range(600), starts=starts)
    assert (found.accepted, found.wrong) == (190, 4)
    assert found.bound == pytest.approx(risk_bound(4, 190, 0.95))
    wrong[0] = True  # the first start fails now: only 2.5 % are left for the second
    wrong[83] = False
    with pytest.raises(LabelError, match="4 wrong of the 190 with the largest P"):
        control_risk(probability, wrong, range(600), starts=starts)


def test_groups_with_correlated_errors(briefly):
    """With each frame counted the guarantee fails; with one of each group it holds."""
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
    blind = np.where(np.arange(100) < 60, np.nan, 0.9)  # NaN is never accepted
    with pytest.raises(LabelError, match=r"40 of 100 .* more than 148 gro"):
        control_risk(blind, np.zeros(100), range(100), starts=exact)


@pytest.mark.parametrize("size", [100, 300, 900])
def test_stated_number_of_groups_suffices(size):
    """A refused draw names a number; most new draws of this size get a guarantee."""
    rng = np.random.default_rng(size)
    asked, kept = 0, 0

    def starts(shares):
        return 1 - np.array(shares)

    for wrong_at in RISING:
        for _ in range(12):
            rank = rng.random(size)
            wrong = rng.random(size) < wrong_at(rank)
            try:
                control_risk(1 - rank, wrong, range(size), starts=starts)
            except LabelError as refused:
                found = re.search(r"about (\d+) groups", str(refused))
                if found is None or int(found[1]) > 50_000:
                    continue  # only with luck, or with too many labels
                asked += 1
                more = int(found[1])
                assert more >= size
                rank = rng.random(more)
                wrong = rng.random(more) < wrong_at(rank)
                again = promised(1 - rank, wrong, range(more), starts=starts)
                kept += again is not None
    assert asked > 5
    # a guarantee is made in at least 80 % of them
    assert kept >= stats.binom.ppf(0.01, asked, 0.8)


def test_no_number_is_stated_if_none_suffices():
    many = np.arange(1000) % 5 == 0
    with pytest.raises(LabelError, match="no number of labels suffices"):
        control_risk(
            np.linspace(0, 1, 1000), many, range(1000), starts=lambda s: 1 - np.array(s)
        )


def test_more_labels_are_not_advised_without_probabilities():
    with pytest.raises(LabelError, match=r"got 0 of 80 groups .*none of these"):
        control_risk([np.nan] * 100, [False] * 100, range(100))


def test_larger_risk_accepts_at_least_as_many():
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


def test_one_member_of_each_group_with_equal_probability():
    groups = ["a"] * 3 + ["b"] + ["c"] * 6
    drawn = np.concatenate([one_of_each(groups, seed) for seed in range(6000)])
    times = np.bincount(drawn, minlength=10) / 6000
    expected = np.repeat([1 / 3, 1, 1 / 6], [3, 1, 6])
    np.testing.assert_allclose(times, expected, atol=0.03)
    assert [groups[i] for i in one_of_each(groups)] == ["a", "b", "c"]


def test_nan_error_is_wrong():
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
        {"groups": range(3)},
    ],
)
def test_arguments_are_checked(wrong):
    options = {"groups": range(100)} | wrong
    with pytest.raises(ValueError, match="must"):
        control_risk(np.ones(100), np.zeros(100), **options)


def test_guarantee_has_a_statement_and_survives_a_file():
    made = Guarantee(0.8, 0.05, 0.95, 310, 143, 2, 0.0434, 0.05, "eV/Å")
    stored = json.loads(json.dumps(made.to_dict()))
    assert Guarantee.from_dict(stored) == made
    assert stored["coverage"] == pytest.approx(143 / 310)
    for part in ("0.05 eV/Å", "2 wrong of 143", "310 groups", "not for a run"):
        assert part in stored["statement"]
    with pytest.raises(ProbeError, match="must have the entries"):
        Guarantee.from_dict({"cutoff": 0.8})


def test_cutoffs_accept_the_requested_shares():
    rng = np.random.default_rng(0)
    logits, groups = rng.normal(1, 2, 40_000), np.arange(40_000) // 2
    outside = groups % 10 == 0  # a tenth is never accepted
    pairs = held_out_logits(logits, outside, groups.tolist())
    shares = np.array([0.05, 0.15, 0.4])
    expected = stats.norm(1, 2).isf(shares / 0.9)
    found = starting_cutoffs(pairs, shares)
    np.testing.assert_allclose(np.log(found / (1 - found)), expected, atol=0.06)
    shifted = starting_cutoffs(pairs, shares, shift=-1.5)
    moved = np.log(shifted / (1 - shifted))
    np.testing.assert_allclose(moved, expected - 1.5, atol=0.06)
    # the largest stored share is 90 %: its cutoff is used for larger shares
    least = logits[~outside].min()
    (lowest,) = starting_cutoffs(pairs, [1.0])
    assert np.log(lowest / (1 - lowest)) < np.quantile(logits, 0.1)
    assert len(pairs) == len([p for p in pairs if p[0] <= 0.9])
    assert pairs[-1][1] == pytest.approx(max(least, -15), abs=2.0)


def test_cutoffs_are_within_single_precision():
    pairs = held_out_logits(np.full(10, 80.0), np.zeros(10), list("abcdefghij"))
    assert np.float32(starting_cutoffs(pairs, [0.05])[0]) < 1
