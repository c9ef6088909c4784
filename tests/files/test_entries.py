"""Numbers on cards: of their type, and finite if they are used in computations."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest

from uqcalc.defaults import shipped_probe
from uqcalc.errors import ProbeError, SignalError
from uqcalc.probe.card import Card
from uqcalc.signals.card import SignalCard
from uqcalc.signals.distance import LatentDistance


# Entries that are not used: scores may be NaN if there is one class only.
FREE = {"report", "training", "shape", "joined"}


def numbers(value, path=()):
    """Yield the path of every float of a card."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from numbers(entry, (*path, key))
    elif isinstance(value, list):
        for key, entry in enumerate(value):
            yield from numbers(entry, (*path, key))
    elif isinstance(value, float):
        yield path


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, "0.5", None, [1.0]])
def test_nan_on_a_card_is_refused(wrong):
    card = json.loads(json.dumps(shipped_probe("default").card.to_dict()))
    card |= {"promise": None}
    tried = {}
    for path in numbers(card):
        if path[0] not in FREE and path != ("scope", "outside"):
            tried.setdefault(tuple(k for k in path if isinstance(k, str)), path)
    optional = {("percentile",), ("atom_boundary",), ("scope", "mean_distance")}
    assert {("calibration", "slope"), ("calibration", "intercept")} <= set(tried)
    for names, path in tried.items():
        if wrong is None and names in optional:
            continue
        changed = copy.deepcopy(card)
        entry = changed
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = wrong
        with pytest.raises(ProbeError):
            Card.from_dict(changed)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "nearest"},
        {"kind": "nearest", "reduce": "median"},
        {"kind": 3, "reduce": "mean"},
    ],
)
def test_settings_of_a_signal_must_be_valid(settings):
    card = SignalCard(
        kind="latent_distance",
        fingerprint="toy:1",
        feature_dim=4,
        elements=[1],
        risk="a distance",
    )
    with pytest.raises(SignalError, match=r"of settings of latent_dist|must have the"):
        LatentDistance(replace(card, settings=settings), None)
