"""When to ask the reference: three rules on the assessment of one geometry.

The event log, annotated frames and the summaries name the rule that a frame meets.
``Monitor(on_unreliable="ask")`` asks a reference calculator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from uqcalc.records import Assessment, Level, Reading
from uqcalc.uses import NOT_JUDGED


# Rule -> its meaning. "P" stands for the risks of all signals with a threshold, which
# is 1 - P for a probe.
LOW, DISAGREE, UNLABELLED = "low", "disagree", "unlabelled"
RULES: Mapping[str, str] = {
    LOW: "P low",
    DISAGREE: "P and another check disagree",
    UNLABELLED: "P high, no similar labels",
}
# A limit of the probe on the probability of one atom, not on the scope of its labels.
_OF_AN_ATOM = "_worst_atom"


def why_ask(assessment: Assessment) -> tuple[str, str] | None:
    """Return the rule by which to ask a reference, and the reason in a sentence.

    The first rule that holds:

    1. "low": a risk is above the limit for UNRELIABLE, so P is below its cutoff, or the
       probability of a single atom is too low.
    2. "disagree": every risk is below the limit for SUSPECT, so P is high, and another
       signal has a finding (`uqcalc.Flags`, `uqcalc.Sanity`, the checks of a run).
    3. "unlabelled": P is high, and no labelled structure was like this one: another
       regime, hotter than the labels, or outside the scope of the probe.

    None if no rule holds, and for geometries that are physically impossible, for which
    a reference is of no use.
    """
    if assessment.level is Level.RELIABLE or assessment.absurd:
        return None
    by_risk = assessment.verdict.by_risk
    readings = {reading.signal: reading for reading in assessment.readings}
    low = [name for name, level in by_risk.items() if level is Level.UNRELIABLE]
    low += [name for name in by_risk if name in readings and _weak(readings[name])]
    if low:
        said = dict.fromkeys(_risk(name, readings.get(name)) for name in low)
        return LOW, f"{RULES[LOW]}: {', '.join(said)}"
    if not by_risk or any(by_risk.values()):
        return None
    high = ", ".join(_risk(name, readings.get(name)) for name in by_risk)
    for rule, of in ((DISAGREE, _findings), (UNLABELLED, _unlabelled)):
        found = [why for r in assessment.readings for why in of(r, by_risk)]
        if found:
            return rule, f"{RULES[rule]}: {high}, but {'; '.join(found)}"
    return None


def _weak(reading: Reading) -> bool:
    """Return whether the probability of a single atom is below its limit."""
    return any(
        _OF_AN_ATOM in key and not reading.results[key] <= limit
        for key, limit in reading.limits.items()
    )


def _findings(reading: Reading, judged: Mapping[str, Level]) -> list[str]:
    """Return what a signal without a threshold has found, apart from the labels."""
    if reading.signal in judged:
        return list(reading.faults)
    beside = len(reading.out_of_scope) - len(reading.unlabelled)
    found = [*reading.faults, *reading.out_of_scope[:beside], *reading.concerns]
    # P of a probe for forces is not about the stress, so P does not disagree
    return [f"{reading.signal}: {why}" for why in found if NOT_JUDGED not in why]


def _unlabelled(reading: Reading, judged: Mapping[str, Level]) -> list[str]:
    """Return in what respect no labelled structure was like this one."""
    scope = reading.out_of_scope if reading.signal in judged else reading.unlabelled
    return [f"{reading.signal}: {why}" for why in scope]


def _risk(name: str, reading: Reading | None) -> str:
    """Return the risk of a signal, or its probability, as text."""
    if reading is None:  # a published value with a threshold of its own
        return name
    if math.isnan(reading.risk):
        return f"{name} not known ({reading.note or 'NaN'})"
    if reading.meaning:
        return f"{reading.meaning} = {1 - reading.risk:.2g}"
    return f"risk of {name} = {reading.risk:.3g} {reading.unit}".rstrip()


def asks_words(counts: Mapping[str, int]) -> str:
    """Return a sentence with the number of frames that meet each rule."""
    known = {rule: counts[rule] for rule in RULES if counts.get(rule)}
    each = ", ".join(f"{RULES[rule]}: {n}" for rule, n in known.items())
    return f"Frames to ask the reference about: {sum(known.values())} ({each})."
