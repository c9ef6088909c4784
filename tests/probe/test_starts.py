"""Where a promise starts: at the shares of held-out groups that were asked for."""

import numpy as np
import pytest
from scipy import stats

from uqcalc.probe.starts import held_out_logits, starting_cutoffs


def test_cutoffs_accept_the_shares_that_were_asked_for():
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
    # nothing below 90 % ever had a probability: all of it is accepted there
    least = logits[~outside].min()
    (lowest,) = starting_cutoffs(pairs, [1.0])
    assert np.log(lowest / (1 - lowest)) < np.quantile(logits, 0.1)
    assert len(pairs) == len([p for p in pairs if p[0] <= 0.9])
    assert pairs[-1][1] == pytest.approx(max(least, -15), abs=2.0)


def test_probabilities_beyond_single_precision_are_no_cutoffs():
    pairs = held_out_logits(np.full(10, 80.0), np.zeros(10), list("abcdefghij"))
    assert np.float32(starting_cutoffs(pairs, [0.05])[0]) < 1
