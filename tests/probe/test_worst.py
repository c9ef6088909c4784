"""The least reliable atom: how often its limit fires on right structures, and when."""

import math

import numpy as np
import pytest

from uqcalc.errors import ProbeError
from uqcalc.probe.card import Card
from uqcalc.probe.worst import AtomFloor, learn_floor
from uqcalc.shipped import shipped_probe


def lowest_of(sizes, rng):
    """Lowest of independent standard normal log-odds."""
    return np.array([rng.normal(size=n).min() for n in sizes])


@pytest.mark.parametrize("level", [0.99, 0.9])
def test_the_stated_share_of_right_structures_lies_above_at_every_size(level):
    """Averaged over labelled sets a conformal quantile holds its level."""
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
    for share in below.values():  # the line is not the law of the minimum: a factor
        assert share < 4 * (1 - level)


def test_more_atoms_have_a_lower_lowest_one_and_few_count_as_the_fewest_seen():
    rng = np.random.default_rng(1)
    sizes = np.repeat([8, 64], 100)
    floor = learn_floor(lowest_of(sizes, rng), sizes, [str(i) for i in range(200)])
    assert floor.at(64) < floor.at(8) == floor.at(1)
    same = learn_floor(
        lowest_of([8] * 99, rng), np.full(99, 8), list(map(str, range(99)))
    )
    assert same.slope == 0.0  # one size says nothing of a slope
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
    """It would call RELIABLE what the probe that was fitted does not."""
    card = shipped_probe("default").card.to_dict()
    assert Card.from_dict(card).atom_floor is not None
    with pytest.raises(ProbeError, match=entry):
        Card.from_dict(card | {entry: None})
