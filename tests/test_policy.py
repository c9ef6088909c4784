from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule
from builders import tiny_probe
from hypothesis import given, strategies as st
from probe.toys import ToyBackbone

from uqcalc import Level, Policy, Threshold, read_assessment
from uqcalc.annotating.copies import annotated_copy
from uqcalc.types import Assessment, Reading


NAMES = ("a", "b", "c")
limits = st.floats(allow_nan=False, allow_infinity=False, width=32)
risks = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def policies(draw):
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    pairs = [sorted((draw(limits), draw(limits))) for _ in names]
    return Policy(Threshold(n, *pair) for n, pair in zip(names, pairs, strict=True))


def read(risks_by_name):
    return [Reading(name, risk) for name, risk in risks_by_name.items()]


some_risks = st.dictionaries(st.sampled_from(NAMES), risks)
all_risks = st.fixed_dictionaries(dict.fromkeys(NAMES, risks))


@given(policies(), all_risks, st.sampled_from(NAMES))
def test_nan_in_any_judged_signal_is_unreliable(policy, values, name):
    verdict = policy(read(values | {name: math.nan}))
    if name in policy.signals:
        assert verdict.level is Level.UNRELIABLE
        assert any(r.startswith(f"{name}: ") for r in verdict.reasons)


@given(policies(), some_risks, st.sampled_from(NAMES), risks)
def test_a_larger_risk_never_gives_a_better_verdict(policy, values, name, other):
    ranked = sorted([values.get(name, 0.0), other], key=lambda r: (math.isnan(r), r))
    small, large = (policy(read(values | {name: risk})) for risk in ranked)
    assert small.level <= large.level


@given(policies(), some_risks, risks, risks, st.floats(0, 1))
def test_a_larger_risk_of_concern_never_gives_a_better_verdict(
    policy, values, one, other, limit
):
    """NaN is the worst risk: a stress that cannot be judged is no better than wrong."""
    ranked = sorted([one, other], key=lambda r: (math.isnan(r), r))
    small, large = (
        policy([*read(values), Reading("d", risk, concern=(limit, "strained"))])
        for risk in ranked
    )
    assert small.level <= large.level
    if not one <= limit:
        assert (
            policy([Reading("d", one, concern=(limit, "strained"))]).level
            is Level.SUSPECT
        )


@given(policies(), some_risks)
def test_verdict_is_the_worst_level_and_says_why(policy, values):
    verdict = policy(read(values))
    levels = {}
    for threshold in policy.thresholds:
        if threshold.signal in values:
            risk = values[threshold.signal]
            above = [not risk <= threshold.suspect, not risk <= threshold.unreliable]
            levels[threshold.signal] = Level(sum(above))
    assert verdict.level == max(levels.values(), default=Level.RELIABLE)
    guilty = [reason.split(":")[0] for reason in verdict.reasons]
    assert guilty == [name for name, level in levels.items() if level]
    assert set(verdict.skipped) == set(policy.signals) - set(values)


@given(policies())
def test_policies_survive_json(policy):
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_values_at_the_limits_are_accepted():
    threshold = Threshold("a", suspect=0.2, unreliable=0.5)
    levels = [threshold.level(r) for r in (0.2, 0.5, math.nextafter(0.5, 1), math.inf)]
    assert levels == [0, 1, 2, 2]


def test_reasons_give_risk_limit_and_unit():
    policy = Policy([Threshold("a", 0.2, 0.5), Threshold("b", 1, 2)])
    verdict = policy([Reading("a", 0.3), Reading("b", 3.0, "eV/Å")])
    assert verdict.reasons == ("a: risk 0.3 > 0.2", "b: risk 3 eV/Å > 2 eV/Å")
    [reason] = policy([Reading("a", math.nan, note="elements [92] are new")]).reasons
    assert reason == "a: elements [92] are new"


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_reason_shows_digits_that_differ(risk, limit):
    meaning = "P(RMS force error <= 38 meV/Å)"
    for reading, sign in (
        (Reading("a", risk, meaning=meaning), "<"),
        (Reading("a", risk), ">"),
    ):
        for reason in Policy([Threshold("a", limit, 2.0)])([reading]).reasons:
            found, bound = re.search(rf"([\d.e-]+) {sign} ([\d.e-]+)$", reason).groups()
            if abs(risk - limit) > 1e-12:
                assert (float(found) < float(bound)) == (sign == "<")
                assert found != bound
    [close] = Policy([Threshold("a", 0.16, 0.5)])(
        [Reading("a", 0.1604, meaning=meaning)]
    ).reasons
    assert close == f"a: {meaning} = 0.8396 < 0.84"


@pytest.mark.parametrize(
    "pair", [(0.5, 0.2), (math.nan, 0.5), (0.1, math.nan), (0.1, math.inf)]
)
def test_limits_must_be_numbers_in_order(pair):
    with pytest.raises(ValueError, match="finite suspect <= unreliable, got suspect="):
        Threshold("a", *pair)


@pytest.mark.parametrize("thresholds", [[], [Threshold("a", 0, 1)] * 2])
def test_each_signal_has_one_threshold(thresholds):
    with pytest.raises(ValueError, match="one threshold for each of its signals"):
        Policy(thresholds)


def test_numpy_numbers_are_converted():
    threshold = Threshold("max_force", np.float32(1), np.float32(2))
    assert json.loads(json.dumps(Policy([threshold]).to_dict()))
    with pytest.raises(ValueError, match="suspect must be a number, got '1'"):
        Threshold("max_force", "1", 2)


def test_far_outside_is_unreliable_without_a_threshold():
    policy = Policy([Threshold("probe", 0.2, 0.5)])
    limits = {"limits": {"novelty": 1.0}, "far_limits": {"novelty": 5.0}}
    found = {
        novelty: policy([Reading("probe", 0.1, results={"novelty": novelty}, **limits)])
        for novelty in (0.5, 2.0, 9.0, math.nan)
    }
    assert [verdict.level for verdict in found.values()] == [0, 1, 2, 2]
    assert found[9.0].reasons == ("probe: far outside its calibration: novelty 9 > 1",)
    sanity = Reading("sanity", 0.0, faults=("atoms 0 and 1 fused",), always=True)
    [reason] = policy([Reading("probe", 0.1), sanity]).reasons
    assert reason == "sanity: atoms 0 and 1 fused"
    assert policy([Reading("probe", 0.1), sanity]).level is Level.UNRELIABLE
    unjudged = Reading("other", 9.0, faults=("broken",))
    assert policy([Reading("probe", 0.1), unjudged]).level is Level.RELIABLE


def test_a_published_number_can_have_a_threshold_of_its_own():
    policy = Policy([Threshold("probe", 0.2, 0.5), Threshold("probe_novelty", 0.5, 2)])
    levels = [
        policy([Reading("probe", 0.1, results={"probe_novelty": value})]).level
        for value in (0.4, 0.6, 3.0, math.nan)
    ]
    assert levels == [0, 1, 2, 2]
    verdict = policy([Reading("probe", 0.1, results={"probe_novelty": 3.0})])
    assert verdict.reasons == ("probe_novelty: risk 3 > 2",)
    assert policy([Reading("probe", 0.1)]).skipped == ("probe_novelty",)


def test_the_reason_names_the_boundary_and_its_unit():
    meaning = "P(RMS force error <= 38 meV/Å)"
    reading = Reading("probe", 0.71, meaning=meaning)
    policy = Policy([Threshold("probe", suspect=0.2, unreliable=0.5)])
    verdict = policy([reading])
    assert verdict.reasons == (f"probe: {meaning} = 0.29 < 0.5",)
    atoms = annotated_copy(molecule("H2O"), Assessment((reading,), verdict), {})
    assert policy(read_assessment(atoms).readings).reasons == verdict.reasons
    card = tiny_probe(ToyBackbone()).card
    for boundary, said in ((0.038, "38 meV/Å"), (1.5, "1.5 eV/Å")):
        assert replace(card, boundary=boundary).meaning == (
            f"P(RMS force error <= {said})"
        )
