"""Conformal quantiles have their stated level, for structures and for groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from uqcalc.errors import LabelError
from uqcalc.statistics.quantiles import conformal_factor, group_quantile, groups_needed


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_single_structures_give_the_value_of_the_textbook_rank(values, level):
    rank = math.ceil(round((len(values) + 1) * level, 9))
    groups = np.arange(len(values))
    if rank > len(values):
        assert groups_needed(level) > len(values)
        with pytest.raises(LabelError, match=rf"{groups_needed(level)} groups.*got"):
            group_quantile(values, groups, level)
    else:
        assert group_quantile(values, groups, level) == sorted(values)[rank - 1]


@given(
    st.lists(
        st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=9, max_size=20
    ),
    st.sampled_from([0.3, 0.5, 0.75, 0.9]),
)
def test_groups_have_equal_weights_for_any_size(groups, level):
    """The smallest value below which the weighted share of (K + 1) groups suffices."""
    names = [k for k, group in enumerate(groups) for _ in group]
    values = [value for group in groups for value in group]
    got = group_quantile(values, names, level)
    shares = {
        v: sum(np.mean(np.array(group) <= v) for group in groups) / (len(groups) + 1)
        for v in set(values)
    }
    assert shares[got] >= level - 1e-9
    assert all(shares[v] < level + 1e-9 for v in shares if v < got)


@pytest.mark.parametrize("size", ["one", "many"])
def test_new_group_is_within_the_limit_at_the_stated_rate(size):
    """Frames of a run are correlated: counted singly the level would be missed."""
    rng = np.random.default_rng(0)
    draws, groups, level = 4000, 20, 0.8
    kept = naive = 0
    for _ in range(draws):
        counts = np.ones(groups, int) if size == "one" else rng.integers(1, 30, groups)
        # long runs have larger errors: their frames must not have a larger weight
        means = rng.normal(size=groups) + (0 if size == "one" else 3 / counts)
        names = np.repeat(np.arange(groups), counts)
        values = means[names] + 0.1 * rng.normal(size=len(names))
        count = 1 if size == "one" else rng.integers(1, 30)
        new = rng.normal() + (0 if size == "one" else 3 / count) + 0.1 * rng.normal()
        kept += new <= group_quantile(values, names, level)
        naive += new <= group_quantile(values, np.arange(len(values)), level)
    spread = np.sqrt(level * (1 - level) / draws)
    assert kept / draws >= level - 3 * spread
    if size == "one":
        exact = math.ceil((groups + 1) * level) / (groups + 1)
        assert abs(kept / draws - exact) < 4 * spread
    else:
        assert naive / draws < level - 3 * spread


def test_nan_counts_as_infinite():
    values = [1.0, np.nan, 3.0, 2.0, np.inf]
    groups = np.arange(5)
    assert group_quantile(values, groups, 0.5) == 3.0
    with pytest.raises(LabelError, match="must be finite, but 2 of 5"):
        group_quantile(values, groups, 0.6)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_invalid_levels_are_refused(level):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        group_quantile([1.0], [0], level)


def test_the_factor_covers_scaled_errors_and_zeros_agree():
    errors = np.array([0.0, -0.2, 0.3, 0.0, 0.5])
    risks = np.array([0.0, 0.1, 0.3, 0.2, 1.0])
    groups = np.arange(5)
    assert conformal_factor(errors, risks, groups, 0.8) == pytest.approx(2.0)
    assert conformal_factor(errors, risks, groups, 0.6) == pytest.approx(1.0)
    with pytest.raises(LabelError, match=r"1 of 5 .* a risk of 0; add a floor"):
        conformal_factor(errors, [0.0, 0.1, 0.3, 0.2, 0.0], groups, 0.8)
