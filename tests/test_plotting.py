"""Pictures: drawn on the axes they are given, and true to their numbers."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from ase.build import molecule
from closeness import FLOAT64, close

from uqcalc import plotting
from uqcalc.evaluation import panels
from uqcalc.records import Event, Level
from uqcalc.statistics import scores


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
        lambda ax: panels.plot_reliability_diagram([1, 0, 1], [0.9, 0.2, 0.6], ax),
        lambda ax: panels.plot_risk_coverage([0.1, 0.2], {"a": [1, 2]}, "eV", ax),
        lambda ax: panels.plot_errors([0.1, 0.9], [0.2, 0.0], 0.1, "eV", ax),
        lambda ax: panels.plot_path_weights({"trend": 1.0, "local": 0.0}, ax),
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
    panels.plot_risk_coverage(error, {"noise": rng.random(50)}, "eV", axes)
    noise, perfect = (line.get_ydata() for line in axes.lines)
    assert np.all(perfect <= noise + FLOAT64)


def test_reliability_diagram_shows_counts_and_intervals(axes):
    truth, belief = [0, 0, 1, 1, 1], [0.05, 0.06, 0.31, 0.97, 1.0]
    panels.plot_reliability_diagram(truth, belief, axes)
    assert [text.get_text() for text in axes.texts] == ["2", "1", "2"]
    (bars,) = [c for c in axes.containers if hasattr(c, "has_yerr")]
    segments = bars.lines[2][0].get_segments()
    low, high = scores.wilson_interval([0, 1, 2], [2, 1, 2])
    close([s[0][1] for s in segments], low, FLOAT64)
    close([s[1][1] for s in segments], high, FLOAT64)


def test_errors_are_red_beyond_the_boundary_and_crosses_outside(axes):
    x, y = [0.1, 0.2, 0.3, 0.4], [0.05, 0.5, 0.06, 0.7]
    panels.plot_errors(x, y, 0.1, "eV", axes, outside=[0, 0, 1, 1])
    drawn = [c.get_offsets()[:, 0].tolist() for c in axes.collections]
    assert drawn == [[0.1], [0.3], [0.2], [0.4]]
    colours = [mpl.colors.to_hex(c.get_edgecolor()[0]) for c in axes.collections]
    blue, red = plotting.COLOURS[Level.RELIABLE], plotting.COLOURS[Level.UNRELIABLE]
    assert colours == [blue, blue, red, red]


def test_path_weights_are_shares(axes):
    panels.plot_path_weights({"attention": 1.0, "trend": 3.0}, axes)
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.75]
    assert [text.get_text() for text in axes.texts] == ["25%", "75%"]
