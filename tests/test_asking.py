"""The three rules by which to ask a reference."""

from __future__ import annotations

import math

import pytest
from ase.build import molecule

from uqcalc import Policy, Threshold, annotate, default_calculator, read_assessment
from uqcalc.annotating.tally import Tally
from uqcalc.asking import RULES, asks_words, why_ask
from uqcalc.policy import extended
from uqcalc.records import Assessment, Level, Reading
from uqcalc.uses import NOT_JUDGED


POLICY = Policy([Threshold("probe", 0.2, 0.5)])


def judged(risk, *others, policy=POLICY, **probe):
    reading = Reading("probe", risk, meaning="P(error <= 1 eV)", **probe)
    readings = (reading, *others)
    return Assessment(readings, policy(readings))


def flags(**findings):
    return Reading("flags", 0.0, always=True, **findings)


NO_STRESS = f"the cell moves, {NOT_JUDGED} stress"
STRESS = Reading("run", 0.0, doubts=(NO_STRESS,), always=True)
BROKEN = flags(doubts=("C0 and C1 are between bonded and apart",))
HOT = flags(unlabelled=("the regime is 'hot'",))
BOTH = flags(doubts=("broken",), unlabelled=("the regime is 'reactive'",))
FAR = {"results": {"probe_novelty": 2.0}, "limits": {"probe_novelty": 1.0}}
WEAK = {"results": {"probe_worst_atom": 1.0}, "limits": {"probe_worst_atom": 0.0}}


@pytest.mark.parametrize(
    ("assessment", "rule", "said"),
    [
        (judged(0.1), None, ""),
        (judged(0.3), None, ""),  # neither high nor low
        (judged(0.3, BROKEN), None, ""),
        (judged(0.7), "low", "P(error <= 1 eV) = 0.3"),
        (judged(0.7, BROKEN), "low", "P(error <= 1 eV) = 0.3"),
        (judged(math.nan, note="NaN somewhere"), "low", "NaN somewhere"),
        (judged(0.1, **WEAK), "low", "P low"),
        (judged(0.1, BROKEN), "disagree", "= 0.9, but flags: C0 and C1 are"),
        (judged(0.1, BOTH), "disagree", "but flags: broken"),
        (judged(0.1, HOT), "unlabelled", "but flags: the regime is 'hot'"),
        (judged(0.1, doubts=("elements",)), "unlabelled", "but probe: elements"),
        (judged(0.1, **FAR), "unlabelled", "but probe: probe_novelty 2 > 1"),
        (judged(0.1, STRESS), None, ""),
        (judged(0.1, flags(absurd=("fused",))), None, ""),
    ],
)
def test_the_first_rule_that_holds_is_named(assessment, rule, said):
    found = why_ask(assessment)
    assert (None if found is None else found[0]) == rule
    if found is not None:
        assert found[1].startswith(RULES[rule])
        assert said in found[1]


def test_a_finding_of_the_run_counts():
    hotter = Reading("run", 0.0, unlabelled=("the temperature is",), always=True)
    assessment = extended(judged(0.1), hotter)
    assert assessment.level is Level.SUSPECT
    assert why_ask(assessment)[0] == "unlabelled"


def test_with_a_guarantee_p_is_that_of_the_guarantee():
    policy = Policy([Threshold("probe", 0.2, 0.5, guarantee="P(error <= 2 eV)")])
    more = {"probe_tolerance_reliability": 0.9, "probe_promised": False}
    assessment = judged(0.6, HOT, policy=policy, results=more)
    assert assessment.level is Level.SUSPECT
    assert why_ask(assessment)[0] == "unlabelled"


def test_annotated_frames_have_the_rule_and_the_summary_counts_it():
    scan = molecule("CH3CH2OH")
    scan.set_distance(0, 1, 2.2, fix=0)
    frames = [molecule("CH3CH2OH"), scan, molecule("CH3O")]  # a radical
    tally, rules = Tally(3), []
    for frame in annotate(frames, default_calculator()):
        tally.add(frame)
        rule = frame.info.get("uqcalc_ask")
        rules.append(rule)
        again = why_ask(read_assessment(frame))
        assert (None if again is None else again[0]) == rule
    assert rules == [None, "low", "disagree"]
    [told] = [x for x in str(tally.summary("f", 0)).splitlines() if "reference" in x]
    assert told == asks_words({"low": 1, "disagree": 1})
    assert told.startswith("Frames to ask the reference about: 2 (P low: 1, P and")
    [anew] = annotate([frame], default_calculator())
    assert anew.info["uqcalc_ask"] == rules[2]
    assert "original_uqcalc_ask" not in anew.info
