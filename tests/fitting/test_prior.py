"""Labels of one system added to a probe: they count there, the prior elsewhere."""

import warnings

import numpy as np
import pytest
import torch
from builders import tiny_probe
from fitting.test_adapt import NAMES, frames
from probe.toys import ToyBackbone

from uqcalc import Labels, Probe, Recipe, ReliableCalculator, adapt, evaluate, fit
from uqcalc.errors import LabelError, LabelWarning, ProbeError
from uqcalc.evaluation.report import whether_p_holds
from uqcalc.fitting.correction import Rows, fit_correction
from uqcalc.probe.regressions import KernelPaths, KernelShape
from uqcalc.statistics.systems import Residuals, Spread


BOUNDARY = 0.06
MINE = Labels(group_key="run")


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    labels = Labels(group_key="group", boundary=BOUNDARY)
    recipe = Recipe(epochs=1)
    made = fit(frames(NAMES, 240, seed=0), ToyBackbone(), labels, recipe)
    path = tmp_path_factory.mktemp("probes") / "shipped.probe"
    return Probe.load(made.probe.save(path))


def mine(count, *, seed, runs=10):
    """Frames with an element that the prior lacks, and errors twice as large."""
    return frames(["CH3SH"], count, seed=seed, factor=2.0, runs=runs)


@pytest.fixture(scope="module")
def both(prior, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabelWarning)
        report = fit(mine(100, seed=2), ToyBackbone(), MINE, prior=prior)
    path = tmp_path_factory.mktemp("probes") / "mine.probe"
    return Probe.load(report.probe.save(path))


def test_one_file_is_calibrated_on_the_new_system_and_names_its_prior(prior, both):
    found = evaluate(both, mine(80, seed=3), ToyBackbone(), MINE)
    right = found.errors <= BOUNDARY
    assert abs(found.probability.mean() - right.mean()) < 0.15
    assert found.report["auroc"] > 0.8
    assert set(both.card.elements) == {*prior.card.elements, 16}
    assert both.card.added.checksum == prior.file[1]
    told = both.card.training["prior"]
    assert told["name"] == "shipped.probe"
    assert told["log_loss_after"] < told["log_loss_before"]
    # such a probe cannot be adapted, so the report must not suggest it
    failed = found.report | {"holds": found.report["holds"] | {"holds": False}}
    assert "start from the original probe" in whether_p_holds(failed)


def test_far_from_the_labels_it_is_the_prior(prior, both):
    known = ToyBackbone().predict_many(frames(NAMES[:1], 40, seed=4))
    ours, theirs = both.read(known), prior.read(known)
    torch.testing.assert_close(ours.reliability, theirs.reliability)
    torch.testing.assert_close(ours.atoms, theirs.atoms, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.novelty, theirs.novelty)
    torch.testing.assert_close(ours.worst_atom, theirs.worst_atom, rtol=1e-3, atol=1e-3)


def test_one_of_two_scopes_suffices_and_far_from_both_is_not_reliable(both):
    backbone = ToyBackbone()
    # the added labels are near in feature space: only the prior lacks sulphur
    near = both.read(backbone.predict_many(mine(20, seed=5)))
    assert (near.novelty <= 1).float().mean() > 0.8
    far = mine(10, seed=6)
    for atoms in far:
        atoms.positions *= 3.0
    away = both.read(backbone.predict_many(far))
    assert (away.added == 0).all()
    assert (away.novelty > 1).all()
    assert (away.reliability == 0).all()
    live = ReliableCalculator(backbone, both).assess(far[0])
    assert live.level > 0


def test_probabilities_grow_with_the_boundary_and_another_one_can_be_chosen(both):
    predictions = ToyBackbone().predict_many(mine(20, seed=7))
    low, high = both.card.calibration.boundaries[::8][:2]
    at_low = both.reliability(predictions, low)
    assert (at_low <= both.reliability(predictions, high)).all()
    torch.testing.assert_close(both.at(low).reliability(predictions), at_low)


def rows(level, direction):
    """Residuals that follow the first feature, in ten runs."""
    rng = np.random.default_rng(0)
    count = 200
    numbers, features = torch.zeros(count, 2), torch.from_numpy(rng.normal(size=count))
    noise = np.log(1 / rng.uniform(size=count) - 1)
    value = noise - level - direction * features.numpy()
    logits = rng.normal(size=count)
    return Rows(
        numbers.double(),
        features[:, None],
        KernelPaths(KernelShape(2, 1, 1, (0,))),
        logits,
        Residuals(value, np.zeros(count, int)),
        [str(i % 10) for i in range(count)],
        [str(i % 10) for i in range(count)],
    )


@pytest.mark.parametrize(("level", "direction"), [(2.0, 0.0), (0.0, 3.0)])
def test_a_correction_is_made_where_left_out_runs_favour_one(level, direction):
    found = fit_correction(rows(level, direction), Spread(1.0, 0.1))
    middle = np.interp(0.0, *np.transpose(found.knots))
    if direction:
        assert found.gain > 0.3
        assert np.isfinite(found.penalty)
    else:
        assert found.gain < 0.02
        assert middle == pytest.approx(level, abs=0.6)


def test_a_linear_part_follows_what_left_out_runs_show():
    along = torch.from_numpy(np.random.default_rng(1).normal(size=(200, 3)))
    flat = rows(0.0, 0.0)
    moved = flat.found.value + 4.0 * along[:, 0].numpy()
    given = flat._replace(
        found=Residuals(moved, flat.found.side),
        linear=along,
    )
    found = fit_correction(given, Spread(1.0, 0.1))
    slope = found.scale * found.slope[:-1]
    np.testing.assert_allclose(slope, [-4.0, 0.0, 0.0], atol=1.2)
    assert found.gain > 0.3


def test_unusable_labels_or_priors_are_refused(prior, both):
    labelled, backbone = mine(40, seed=8), ToyBackbone()
    few = mine(40, seed=8, runs=3)
    with pytest.warns(LabelWarning, match="at least 5 runs, got 3 by 'run'"):
        fit(few, backbone, MINE, prior=prior)
    with pytest.raises(LabelError, match=r"at least 30 labelled frames.*got 20.*adapt"):
        fit(labelled[:20], backbone, MINE, prior=prior)
    own, by_group = frames(NAMES, 240, seed=0)[:40], Labels(group_key="group")
    with pytest.raises(LabelError, match="new to the probe"):
        fit(own, backbone, by_group, prior=prior)
    with pytest.raises(ProbeError, match="must belong to this backbone"):
        fit(labelled, ToyBackbone(identity="toy:1"), MINE, prior=prior)
    with pytest.raises(LabelError, match="target of the labels must be 'forces'"):
        fit(labelled, backbone, Labels("energy", group_key="run"), prior=prior)
    with pytest.raises(LabelError, match="percentile must be left out"):
        fit(labelled, backbone, Labels(percentile=50, group_key="run"), prior=prior)
    with pytest.raises(LabelError, match="calibration frames must be left out"):
        fit(labelled, backbone, MINE, prior=prior, calibration=labelled)
    with pytest.raises(ProbeError, match="adapted already, or has a prior"):
        fit(labelled, backbone, MINE, prior=both)
    with pytest.raises(ProbeError, match="adapted already, or has a prior"):
        adapt(both, labelled, backbone)
    with pytest.raises(ProbeError, match="at several boundaries"):
        fit(labelled, backbone, MINE, prior=tiny_probe(backbone))
