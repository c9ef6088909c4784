"""Pictures: drawn on the given axes, with the right numbers."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from ase.build import bulk, molecule
from closeness import FLOAT64, close

from uqcalc import plotting
from uqcalc.evaluation import bysize, panels
from uqcalc.geometry.drawn import drawn_bonds
from uqcalc.plotting.track import NOVELTY_LIMITS
from uqcalc.probe.scope import FAR, FARTHEST
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
        lambda ax: bysize.plot_error_histogram(
            [0.1, 0.9], [0.9, np.nan], (0.8, 0.5), 0.2, "eV", ax
        ),
        lambda ax: bysize.plot_accuracy_by_error([0.1, 0.9], [0.9, 0.2], 0.2, "eV", ax),
        lambda ax: plotting.plot_energy_drift(history(LEVELS), ax),
        lambda ax: plotting.plot_structure(annotated_crystal(), ax),
    ],
)
def test_returns_the_axes_it_was_given(draw, axes):
    assert draw(axes) is axes
    axes.figure.canvas.draw()


def test_histories_are_events_or_records(axes):
    events = history(LEVELS)
    records = [{"event": "header", "run": {}}, *(e.to_dict() for e in events)]
    one, other = plotting.Track.of(events), plotting.Track.of(records)
    assert np.array_equal(one.level, other.level)
    assert np.array_equal(one.x, other.x)
    assert one.timed


def test_the_timeline_has_a_panel_for_each_signal_and_marks_halts():
    run = {
        "formula": "CH4",
        "dynamics": "VelocityVerlet",
        "policy": {
            "thresholds": [
                {"signal": "probe", "suspect": 0.2, "unreliable": 0.5},
                {"signal": "force_delta", "suspect": 0.1, "unreliable": None},
            ]
        },
    }
    records = [{"event": "header", "run": run}]
    for found in history(LEVELS):
        record = found.to_dict()
        record["readings"] |= {"force_delta": 0.05}
        records.append(record)
    end = {"event": "end", "how": "halted", "step": 5, "reason": "why"}
    figure = plotting.plot_run([*records, end])
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == [
        "T [K]",
        "energy drift\n[meV/atom]",
        "P(reliable)",
        "force delta [eV/Å]",
        "verdict",
    ]
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert "halted at step 5" in texts
    assert {"RELIABLE", "SUSPECT", "UNRELIABLE", "SUSPECT above"} <= set(texts)
    assert plotting.Track.of(records).drift_meV[0] == 0
    mpl.pyplot.close(figure)
    with pytest.raises(ValueError, match="at least one step"):
        plotting.plot_run([])


@pytest.mark.parametrize("steps", [(1, 2, 3), (3, 4, 5)])
def test_names_of_marks_close_to_each_other_do_not_overlap(steps):
    records = [{"event": "header", "run": {}}]
    records += [found.to_dict() for found in history(LEVELS)]
    warnings = [{"event": "warning", "step": step, "reason": ""} for step in steps]
    figure = plotting.plot_run([*records, *warnings])
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 3
    for number, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[number + 1 :])
    mpl.pyplot.close(figure)


def test_limits_of_the_novelty_are_those_of_the_probe():
    assert NOVELTY_LIMITS == (FARTHEST, FAR)


def annotated_crystal():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    p = np.full(len(atoms), 0.9)
    p[3] = 0.1
    atoms.arrays["probe_reliabilities"] = p
    return atoms


def test_a_crystal_is_drawn_with_its_cell_and_the_worst_atoms_named(axes):
    atoms = annotated_crystal()
    plotting.plot_structure(atoms, axes, worst=1)
    texts = [text.get_text() for text in axes.texts]
    assert f"{atoms.symbols[3]}3" in texts
    assert len(axes.patches) == len(atoms)
    assert len(axes.lines) > 12  # the edges of the cell, and bonds
    assert drawn_bonds(atoms).inside.sum() < len(drawn_bonds(atoms).first) == 8 * 6
    with pytest.raises(ValueError, match="shade must be one of"):
        plotting.plot_structure(atoms, axes, shade="importance")


def test_two_sided_cutoffs_leave_out_undecided_structures():
    reliable, p = np.array([1, 1, 0, 0], bool), np.array([0.99, 0.6, 0.05, np.nan])
    rows = {row[0]: row[1:] for row in bysize.two_sided_rows(reliable, p)}
    assert rows["0.50"] == ("75.0%", "100.0%")
    assert rows["0.90"] == ("50.0%", "100.0%")


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
