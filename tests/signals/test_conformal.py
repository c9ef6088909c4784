"""Conformal intervals: they have their coverage, with any signal as scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from backbones.toys import Springs, mace_on_shared_models
from builders import rattled, tiny_probe
from closeness import FLOAT64, close
from probe.toys import Cohesion, ToyBackbone
from signals.cases import labelled

from uqcalc import (
    Committee,
    ConformalInterval,
    ForceDelta,
    ForceSpread,
    Labels,
    LatentDistance,
    Level,
    MaxForce,
    Policy,
    ProbeSignal,
    ReliableCalculator,
    Threshold,
    load_signal,
    tap,
)
from uqcalc.errors import LabelError, SignalError
from uqcalc.labels.dataset import build_dataset
from uqcalc.signals.base import TensorReading, to_host
from uqcalc.statistics.quantiles import group_quantile
from uqcalc.testing import check_signal
from uqcalc.types import Split


WANTED = ["energy", "forces"]
FRAMES = labelled(200)


class Spread:
    """A signal equal to the scale of the errors: the width of the molecule."""

    name = "spread"
    requires = frozenset({"features"})

    def __call__(self, prediction):
        return TensorReading(self.name, width(prediction.positions))


def width(positions):
    return float(np.std(positions, axis=0).max()) ** 4


def scattered(count, *, seed=0):
    """Errors that grow with the width of the molecule, heavy-tailed."""
    rng = np.random.default_rng(seed)
    frames = labelled(count, seed=seed, noise=0.0)
    for frame in frames:
        noise = width(frame.positions) * rng.standard_t(3)
        frame.info["REF_energy"] += noise
        frame.arrays["REF_forces"] = frame.arrays["REF_forces"] + noise
    return frames


def interval(signal=None, frames=FRAMES, **options):
    return ConformalInterval.fit(frames, ToyBackbone(), signal, **options)


def read(signal, atoms, backbone=None):
    [reading] = to_host([signal((backbone or ToyBackbone())(atoms, WANTED))])
    return reading


def error(atoms, target):
    return Labels(target).error(
        ToyBackbone()(atoms, WANTED), Labels(target).reference(atoms)
    )


@pytest.mark.parametrize(
    ("target", "unit"),
    [
        ("forces", "eV/Å"),
        ("energy", "eV"),
        ("energy_per_atom", "eV/atom"),
        ("atom_forces", "eV/Å"),
    ],
)
@pytest.mark.parametrize("signal", [None, Spread()], ids=["constant", "scaled"])
def test_bounds_hold_at_the_requested_rate(target, unit, signal):
    fitted = interval(signal, scattered(200), target=target, coverage=0.8)
    assert fitted.name == f"conformal_{target}"
    assert fitted.card.unit == unit
    new = scattered(300, seed=7000)
    readings = [read(fitted, atoms) for atoms in new]
    assert {reading.unit for reading in readings} == {unit}
    bounds = np.array([reading.risk for reading in readings])
    errors = np.array([error(atoms, target) for atoms in new])
    spread = np.sqrt(0.8 * 0.2 * (1 / 200 + 1 / 300))
    assert abs(np.mean(errors <= bounds) - 0.8) < 3 * spread
    factor = fitted.card.settings["factor"]
    scales = [width(atoms.positions) if signal else 1.0 for atoms in new]
    close(bounds, factor * np.array(scales), FLOAT64)
    key = f"{target}_error_bound"
    assert readings[0].results == {key: pytest.approx(bounds[0])}


def test_informed_bound_covers_small_and_large_errors_equally():
    frames, new = scattered(600), scattered(600, seed=7000)
    order = np.argsort([width(atoms.positions) for atoms in new])
    shares = {}
    for signal in (Spread(), None):
        fitted = interval(signal, frames, target="energy", coverage=0.8)
        held = np.array([error(a, "energy") <= read(fitted, a).risk for a in new])
        quarters = held[order].reshape(4, 150).mean(axis=1)
        shares["scaled" if signal else "constant"] = quarters[[0, 3]]
    np.testing.assert_allclose(shares["scaled"], 0.8, atol=0.12)
    assert shares["constant"][0] > 0.95
    assert shares["constant"][1] < 0.6


def test_the_constant_bound_is_the_quantile_of_the_errors():
    fitted = interval(target="energy", coverage=0.9)
    errors = [error(atoms, "energy") for atoms in FRAMES]
    expected = group_quantile(errors, np.arange(len(FRAMES)), 0.9)
    assert read(fitted, rattled()).risk == pytest.approx(expected)
    assert fitted.requires == frozenset()
    with pytest.raises(LabelError, match=r"must differ between structures.*eV for all"):
        fitted.threshold()


def test_floor_corrects_a_signal_that_vanishes():
    class Vanishing(Spread):
        def __call__(self, prediction):
            reading = super().__call__(prediction)
            still = prediction.numbers[0] == 6
            return replace(reading, risk=1e-9 if still else reading.risk)

    frames = scattered(200)
    bare, mended = (
        interval(Vanishing(), frames, target="energy", floor=floor)
        for floor in (0.0, 0.2)
    )
    assert bare.card.settings["factor"] > 1e6 > 1e4 * mended.card.settings["factor"]
    atoms = rattled("H2O")
    factor = mended.card.settings["factor"]
    expected = factor * (width(atoms.positions) + 0.2)
    assert read(mended, atoms).risk == pytest.approx(expected)
    new = scattered(300, seed=7000)
    held = [error(a, "energy") <= read(mended, a).risk for a in new]
    assert abs(np.mean(held) - 0.9) < 3 * np.sqrt(0.9 * 0.1 * (1 / 200 + 1 / 300))
    with pytest.raises(ValueError, match=r"floor at least 0.* got 'forces', -1 and"):
        interval(floor=-1)
    for coverage in (1.0, 95):
        with pytest.raises(ValueError, match=f"between 0 and 1, got .* {coverage}"):
            interval(coverage=coverage)


def test_groups_count_once():
    frames = [atoms.copy() for atoms in FRAMES]
    for index, frame in enumerate(frames):  # one molecule's run, and many of others
        frame.info["run"] = "long" if index < 120 else str(index)
        if index < 120:
            frame.info["REF_energy"] += 5.0
    singly = interval(frames=frames, target="energy", coverage=0.9)
    grouped = interval(
        frames=frames, target="energy", coverage=0.9, labels=Labels(group_key="run")
    )
    assert singly.card.settings["factor"] > 4.0
    assert grouped.card.settings["factor"] < 0.2
    assert "each frame counts as independent" in singly.card.notes[0]
    assert grouped.card.notes == []
    assert grouped.card.training["groups"] == 81


def test_limits_may_be_named_in_units_of_the_error_or_as_quantiles():
    fitted = interval(MaxForce())
    calc = ReliableCalculator(
        ToyBackbone(),
        signals=[fitted],
        policy=Policy([Threshold("conformal_forces", suspect=0.2, unreliable=0.5)]),
    )
    assessment = calc.assess(rattled())
    assert calc.results["forces_error_bound"] == assessment.reading(fitted.name).risk
    limits = fitted.threshold(suspect=0.9, unreliable=0.95)
    bounds = [read(fitted, atoms).risk for atoms in FRAMES]
    # one of the bounds is the limit itself, by another route
    assert np.mean(np.array(bounds) <= limits.suspect * (1 + FLOAT64)) == 0.905


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaxForce(),
        lambda: None,
        lambda: LatentDistance.fit(
            labelled(60, seed=800), ToyBackbone(), split=Split(held_out=0)
        ),
    ],
    ids=["plain", "constant", "fitted"],
)
def test_a_file_holds_the_other_signal_too(make, tmp_path):
    fitted = interval(make())
    check_signal(fitted, ToyBackbone()(rattled(), WANTED))
    path = fitted.save(tmp_path / "x")
    for other in (ConformalInterval.load(path), load_signal(path)):
        assert other.card == fitted.card
        for seed in range(3):
            atoms = rattled(seed=seed)
            assert read(other, atoms).risk == read(fitted, atoms).risk
        with pytest.raises(SignalError, match="must belong to this backbone"):
            other.check(ToyBackbone(identity="toy:1"))


def test_settings_of_the_other_signal_are_kept(tmp_path):
    committee = Committee([ToyBackbone(), Cohesion(), Springs(0.1), Springs(0.3)])
    frames = labelled(40)
    fits = [
        ConformalInterval.fit(frames, committee, ForceSpread(kind), coverage=0.8)
        for kind in ("rms", "max")
    ]
    factors = [fitted.card.settings["factor"] for fitted in fits]
    assert factors[0] > factors[1]
    other = ConformalInterval.load(fits[1].save(tmp_path / "x"))
    assert other.base.reduction == "max"
    dataset = build_dataset(frames, committee, Labels())
    with pytest.raises(LabelError, match=r"hold \['committee_forces'\].*pass the fra"):
        ConformalInterval.fit(dataset, committee, ForceSpread())


def test_signal_that_no_file_can_hold_is_passed_to_load(tmp_path):
    backbone = tap(mace_on_shared_models())
    signal = ProbeSignal(tiny_probe(backbone))
    fitted = ConformalInterval.fit(labelled(12), backbone, signal, coverage=0.5)
    path = fitted.save(tmp_path / "x")
    with pytest.raises(
        SignalError, match=r"signal= must be given.*'probe'.*signal=\.\.\."
    ):
        load_signal(path)
    with pytest.raises(SignalError, match="of the signal 'max_force', got a conformal"):
        ConformalInterval.load(path, MaxForce())
    other = ConformalInterval.load(path, signal)
    atoms = rattled()
    assert read(other, atoms, backbone).risk == read(fitted, atoms, backbone).risk


def test_bound_is_nan_where_the_base_signal_is_nan():
    frames = labelled(60)
    base = LatentDistance.fit(
        [frame for frame in frames if 6 in frame.numbers],
        ToyBackbone(),
        split=Split(held_out=0),
    )
    base.card.elements.remove(1)
    known = ConformalInterval.fit(frames, ToyBackbone(), base)
    assert known.card.training["structures"] + known.card.training["left_out"] == 60
    reading = read(known, rattled("CH3SH"))
    assert np.isnan(reading.risk)
    assert "'S'" in reading.note


class Resting(Spread):
    """Runs at every seventh geometry, and not on large molecules."""

    interval = 7

    def __call__(self, prediction):
        return super().__call__(prediction) if len(prediction.numbers) < 7 else None


def test_bound_is_absent_where_the_base_signal_does_not_run():
    fitted = interval(Resting())
    assert fitted.interval == 7
    assert fitted.card.training["left_out"] == sum(len(atoms) > 6 for atoms in FRAMES)
    assert fitted(ToyBackbone()(rattled("C2H6"), WANTED)) is None
    assert read(fitted, rattled("H2O")).risk > 0


def test_a_signal_that_cannot_read_the_backbone_is_refused():
    with pytest.raises(ValueError, match=r"'force_delta' needs \['direct_forces'\]"):
        interval(ForceDelta())


def test_outside_the_other_signals_scope_is_outside_this_one():
    class Scoped(Spread):
        def __call__(self, prediction):
            return replace(
                super().__call__(prediction),
                results={"away": 3.0, "own": 1.0},
                limits={"away": 1.0},
                doubts=("too many atoms",),
            )

    reading = read(interval(Scoped()), FRAMES[0])
    assert {*reading.results} == {"forces_error_bound", "away"}
    policy = Policy([Threshold("conformal_forces", 1e6, 1e7)])
    verdict = policy([reading])
    assert verdict.level is Level.SUSPECT
    assert "too many atoms" in verdict.reasons[0]


def test_errors_are_taken_after_offsets_of_other_groups():
    frames = labelled(40)
    labels = Labels("energy", offsets=True)
    data = build_dataset(frames, ToyBackbone(), labels)
    fitted = interval(None, data, target="energy", coverage=0.8)
    expected = group_quantile(data.crossed().errors, data.groups, 0.8)
    assert fitted.card.settings["factor"] == expected
    assert expected > group_quantile(data.errors, data.groups, 0.8)


class TestRefusals:
    def test_a_dataset_of_another_potential(self):
        data = build_dataset(FRAMES[:40], ToyBackbone(identity="toy:1"), Labels())
        with pytest.raises(
            LabelError, match="of the potential toy:0, got one of toy:1"
        ):
            interval(None, data)

    def test_unknown_risks_are_refused(self):
        class Choosy(Spread):
            def __call__(self, prediction):
                return TensorReading(self.name, np.nan)

        with pytest.raises(LabelError, match="got NaN for 200 of 200"):
            interval(Choosy())

    def test_too_few_labels_name_the_number_needed(self):
        with pytest.raises(
            LabelError, match=r"0\.9 must have at least 9 groups.*got 8"
        ):
            interval(frames=FRAMES[:8])
        assert interval(frames=FRAMES[:9]).card.training["structures"] == 9

    def test_a_label_that_is_not_there(self):
        frames = [atoms.copy() for atoms in FRAMES[:20]]
        del frames[7].arrays["REF_forces"]
        frames[9].arrays["REF_forces"][0, 0] = np.nan
        with pytest.raises(LabelError, match=r"none in 2 \(the first: frame 7\)"):
            interval(frames=frames)

    def test_target_or_dataset_of_another_kind_is_refused(self):
        with pytest.raises(ValueError, match="target must be one of"):
            interval(target="charge")
        dataset = build_dataset(FRAMES[:20], ToyBackbone(), Labels("forces"))
        with pytest.raises(LabelError, match="must be 'energy', got 'forces'"):
            interval(frames=dataset, target="energy")
        with pytest.raises(
            LabelError, match="pass a Dataset, which fits and subtracts"
        ):
            interval(target="energy", labels=Labels("energy", offsets=True))

    def test_dataset_of_the_target_is_accepted(self):
        dataset = build_dataset(FRAMES, ToyBackbone(), Labels("energy"))
        from_dataset = interval(frames=dataset, target="energy")
        factor = interval(target="energy").card.settings["factor"]
        assert from_dataset.card.settings["factor"] == pytest.approx(factor)
