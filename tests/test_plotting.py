"""Pictures: drawn on the axes they are given, and true to their numbers."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from ase.build import molecule

from uqcalc import plotting
from uqcalc.event import Event
from uqcalc.records import Level


mpl.use("Agg")


@pytest.fixture
def axes():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def history(levels):
    return [
        Event(
            step=i,
            time_fs=i * 0.5,
            temperature_K=300.0 + i,
            energy_eV=-1.0,
            level=level,
            readings={"probe": 0.1 * i},
            values={"probe_reliability": 1 - 0.1 * i},
            reasons=(),
            worst_atoms=(),
        )
        for i, level in enumerate(levels)
    ]


LEVELS = [Level.RELIABLE] * 3 + [Level.SUSPECT] * 2 + [Level.UNRELIABLE]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plotting.plot_verdicts(history(LEVELS), ax),
        lambda ax: plotting.plot_probability(history(LEVELS), 0.8, 0.5, ax),
        lambda ax: plotting.plot_temperature(history(LEVELS), ax),
        lambda ax: plotting.plot_true_error([0, 1], [0.1, np.nan], 0.2, ax),
        lambda ax: plotting.plot_atoms(molecule("C6H6"), np.full(12, 1 / 12), ax),
        lambda ax: plotting.plot_reliability_diagram([1, 0, 1], [0.9, 0.2, 0.6], ax),
        lambda ax: plotting.plot_risk_coverage([0.1, 0.2], {"a": [1, 2]}, "eV", ax),
    ],
)
def test_returns_the_axes_it_was_given(draw, axes):
    assert draw(axes) is axes
    axes.figure.canvas.draw()


def test_verdict_strip_shows_every_step(axes):
    plotting.plot_verdicts(history(LEVELS), axes)
    (mesh,) = axes.collections
    assert np.ravel(mesh.get_array()).tolist() == [int(level) for level in LEVELS]


def test_one_atom_and_missing_importance_are_drawn(axes):
    atoms = molecule("CH4")[:1]
    plotting.plot_atoms(atoms, [np.nan], axes)
    axes.figure.canvas.draw()


def test_risk_coverage_of_a_perfect_ranking_is_the_lower_envelope(axes):
    rng = np.random.default_rng(0)
    error = rng.random(50)
    plotting.plot_risk_coverage(error, {"noise": rng.random(50)}, "eV", axes)
    noise, perfect = (line.get_ydata() for line in axes.lines)
    assert np.all(perfect <= noise + 1e-12)
