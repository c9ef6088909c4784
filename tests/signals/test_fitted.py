"""Latent distance and prediction rigidity: fits, readings, files, thresholds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from backbones.toys import mace_on_shared_models
from builders import rattled, salt
from closeness import NETWORK, close
from probe.toys import ToyBackbone
from signals.cases import labelled
from typer import Typer
from typer.testing import CliRunner

from uqcalc import (
    Labels,
    LabelWarning,
    LatentDistance,
    Policy,
    PredictionRigidity,
    ReliableCalculator,
    load_signal,
    tap,
)
from uqcalc.cli.info import info
from uqcalc.defaults import shipped_probe
from uqcalc.errors import LabelError, SignalError
from uqcalc.labels.dataset import build_dataset
from uqcalc.signals.base import to_host
from uqcalc.signals.distance import Mahalanobis
from uqcalc.statistics.quantiles import group_quantile
from uqcalc.testing import check_signal
from uqcalc.types import Split


WANTED = ["energy", "forces"]
MAHALANOBIS = {"kind": "mahalanobis"}
NEAREST = {"kind": "nearest", "nearest": 3, "reduce": "max"}
FRAMES = labelled(300)
LEVELS = {"suspect": 0.9, "unreliable": 0.95}


def distance(backbone=None, frames=FRAMES, **options):
    return LatentDistance.fit(frames, backbone or ToyBackbone(), **options)


def rigidity(backbone=None, frames=FRAMES, **options):
    return PredictionRigidity.fit(frames, backbone or ToyBackbone(), **options)


FITS = {
    "mahalanobis": lambda **more: distance(**MAHALANOBIS, **more),
    "nearest": lambda **more: distance(**NEAREST, **more),
    "rigidity": lambda **more: rigidity(**more),
    "rigidity per atom": lambda **more: rigidity(per_atom=True, **more),
}


@pytest.fixture(scope="module")
def fitted():
    return {name: make() for name, make in FITS.items()}


def read(signal, atoms, backbone=None):
    [reading] = to_host([signal((backbone or ToyBackbone())(atoms, WANTED))])
    return reading


@pytest.mark.parametrize("name", FITS)
class TestEvery:
    def test_keeps_the_contract(self, fitted, name):
        check_signal(fitted[name], ToyBackbone()(rattled(), WANTED))

    def test_does_not_wait_for_the_device(self, fitted, name, transfers):
        prediction = ToyBackbone()(rattled(), WANTED)
        transfers.clear()
        fitted[name](prediction)
        assert transfers == []

    def test_is_the_same_from_a_file(self, fitted, name, tmp_path):
        signal = fitted[name]
        path = signal.save(tmp_path / "my.signal")
        for other in (type(signal).load(path), load_signal(path)):
            assert type(other) is type(signal)
            assert other.card == signal.card
            assert other.threshold(**LEVELS) == signal.threshold(**LEVELS)
            for seed in range(3):
                mine, its = (read(s, rattled(seed=seed)) for s in (signal, other))
                assert mine.risk == its.risk
                np.testing.assert_array_equal(mine.per_atom, its.per_atom)

    def test_knows_its_backbone(self, fitted, name):
        fitted[name].check(ToyBackbone())
        with pytest.raises(SignalError, match=r"toy:0 and the backbone toy:1"):
            fitted[name].check(ToyBackbone(identity="toy:1"))
        with pytest.raises(SignalError, match=r"6 features .* a backbone with 7"):
            fitted[name].check(ToyBackbone(7))
        policy = Policy([fitted[name].threshold(**LEVELS)])
        with pytest.raises(SignalError, match="must belong to this backbone"):
            ReliableCalculator(
                ToyBackbone(identity="x"), signals=[fitted[name]], policy=policy
            )

    def test_is_nan_for_an_element_outside_the_fit(self, fitted, name):
        atoms = rattled("CH3SH")
        reading = read(fitted[name], atoms)
        assert np.isnan(reading.risk)
        assert reading.note == "elements ['S'] were not in its fit"
        policy = Policy([fitted[name].threshold(**LEVELS)])
        calc = ReliableCalculator(ToyBackbone(), signals=[fitted[name]], policy=policy)
        assessment = calc.assess(atoms)
        assert assessment.level == 2
        assert "['S']" in assessment.verdict.reasons[0]

    def test_rises_when_molecules_are_pulled_apart(self, fitted, name):
        medians = []
        for amount in (0.1, 0.3, 0.9):
            frames = labelled(40, seed=900, amount=amount)
            risks = [read(fitted[name], atoms).risk for atoms in frames]
            medians.append(np.median(risks))
        assert medians[0] < medians[1] < medians[2]

    def test_threshold_is_one_line_and_keeps_its_share(self, fitted, name):
        signal = fitted[name]
        policy = Policy([signal.threshold(**LEVELS)])
        calc = ReliableCalculator(
            ToyBackbone(), signals=[signal], policy=policy, flags=False
        )
        new = labelled(400, seed=5000)
        flagged = np.mean([calc.assess(atoms).level > 0 for atoms in new])
        held = signal.card.training["held_out_groups"]
        assert held == 60
        assert abs(flagged - 0.1) < 3 * np.sqrt(0.1 * 0.9 * (1 / held + 1 / len(new)))

    def test_a_dataset_is_as_good_as_its_frames(self, fitted, name):
        dataset = build_dataset(FRAMES, ToyBackbone(), Labels("energy"))
        again = FITS[name](frames=dataset)
        mine, its = (read(signal, rattled()) for signal in (fitted[name], again))
        assert its.risk == pytest.approx(mine.risk, rel=1e-4)  # float32 features

    def test_info_shows_the_card(self, fitted, name, tmp_path):
        path = fitted[name].save(tmp_path / "x")
        app = Typer()
        app.command()(info)
        result = CliRunner().invoke(app, [str(path)], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert fitted[name].kind.replace("_", " ") in result.output
        assert "H C O" in result.output
        assert "no groups were given" in " ".join(result.output.split())

    def test_atoms_far_away_change_nothing_per_atom(self, fitted, name):
        """Local: the value of an atom does not depend on distant atoms."""
        del name
        atoms = rattled()
        far = rattled("CO2")
        far.translate((60.0, 0, 0))
        both = atoms + far
        for signal in fitted.values():
            alone, together = read(signal, atoms), read(signal, both)
            close(together.per_atom[: len(atoms)], alone.per_atom, NETWORK)


def test_supercells_have_equal_values_per_atom():
    """Sums grow with the cell, values per atom do not."""
    frames = [salt(seed=seed) for seed in range(6)]
    backbone = tap(mace_on_shared_models())
    near = LatentDistance.fit(frames, backbone, split=Split(held_out=0))
    with_sum = PredictionRigidity.fit(frames, backbone, split=Split(held_out=0))
    cell = salt(seed=99)
    big = cell * 2
    one, many = (read(near, atoms, backbone) for atoms in (cell, big))
    assert many.risk == pytest.approx(one.risk, rel=1e-4)
    one, many = (read(with_sum, atoms, backbone) for atoms in (cell, big))
    assert many.risk == pytest.approx(8 * one.risk, rel=1e-4)
    per_atom = "rigidity_sigma_per_atom"
    assert many.results[per_atom] == pytest.approx(one.results[per_atom], rel=1e-4)


class TestDistance:
    def test_is_the_array_level_one_of_the_frames_that_were_not_held_out(self):
        signal = distance()
        _, codes = np.unique(np.arange(len(FRAMES)).astype(str), return_inverse=True)
        held = set(signal.held_out.groups.tolist())
        fitting = [i for i, code in enumerate(codes) if code not in held]
        assert len(fitting) == 240
        backbone = ToyBackbone()
        seen = [backbone(FRAMES[i], WANTED).own() for i in fitting]
        direct = Mahalanobis.fit(
            np.concatenate([p.numbers for p in seen]),
            torch.cat([p.features for p in seen]).float(),
        )
        atoms = rattled(seed=77)
        prediction = backbone(atoms, WANTED)
        expected = direct(atoms.numbers, prediction.features)
        [reading] = to_host([signal(prediction)])
        np.testing.assert_allclose(reading.per_atom, expected, rtol=1e-3)
        assert reading.risk == pytest.approx(float(expected.mean()), rel=1e-3)
        assert reading.results["latent_distance_max"] == reading.per_atom.max()

    def test_uses_the_requested_number_of_atoms(self):
        signal = distance(kind="nearest", per_element=25)
        assert signal.distance.counts.tolist() == [25, 25, 25]
        assert signal.card.training["atoms_used"] == 75
        assert signal.card.training["atoms"] > 1000

    def test_groups_are_held_out_whole(self):
        signal = distance(split=Split(group_key="run", held_out=0.3))
        groups, counts = np.unique(signal.held_out.groups, return_counts=True)
        assert len(groups) == round(0.3 * 75)
        assert set(counts) == {4}
        assert signal.card.notes == []
        risks = signal.held_out.risks
        limit = group_quantile(risks, signal.held_out.groups, 0.9)
        assert signal.threshold(suspect=0.9, unreliable=0.9).suspect == limit

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "cosine"}, "kind must be one of"),
            ({"reduce": "rms"}, "reduce must be 'mean' or 'max', got 'rms'"),
            ({"nearest": 0}, "must be at least 1, got 0"),
        ],
    )
    def test_invalid_settings_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            distance(**options)


class TestRigidity:
    def test_sigma_describes_errors_of_its_own_kind(self):
        """Errors are drawn from the model: factor and shares are found again."""
        backbone = ToyBackbone()
        frames = labelled(600, noise=0.0)
        with pytest.warns(LabelWarning):
            loose = rigidity(frames=frames, labels=Labels("energy", energy_key="none"))
        rng = np.random.default_rng(0)
        for frame in frames:
            sigma = read(loose, frame).risk
            energy = backbone(frame, WANTED).energy
            frame.info["REF_energy"] = energy + 0.03 * sigma * rng.normal()
        signal = rigidity(frames=frames)
        assert signal.card.unit == "eV"
        assert signal.card.settings["alpha"] == pytest.approx(0.03, rel=0.2)
        assert signal.card.report["labels"] == 120
        assert signal.card.report["errors_within_1_sigma"] == pytest.approx(
            0.68, abs=0.13
        )
        assert signal.card.report["errors_within_2_sigma"] == pytest.approx(
            0.95, abs=0.06
        )

    def test_risk_is_per_structure_or_per_atom(self, fitted):
        atoms = rattled()
        whole, each = (
            read(fitted[n], atoms) for n in ("rigidity", "rigidity per atom")
        )
        assert (whole.unit, each.unit) == ("eV", "eV/atom")
        assert each.risk == pytest.approx(whole.risk / len(atoms))
        for key, value in whole.results.items():
            np.testing.assert_array_equal(each.results[key], value)

    def test_without_labels_the_card_says_not_calibrated(self):
        frames = [atoms.copy() for atoms in FRAMES[:60]]
        for frame in frames:
            del frame.info["REF_energy"]
        with pytest.warns(LabelWarning, match="at least 10 held-out energies .* got 0"):
            signal = rigidity(frames=frames)
        assert signal.card.unit == ""
        assert any("uncalibrated" in note for note in signal.card.notes)
        ranked = rigidity(frames=FRAMES[:60])
        alpha = ranked.card.settings["alpha"]
        assert read(ranked, rattled()).risk == pytest.approx(
            alpha * read(signal, rattled()).risk
        )

    def test_labels_of_forces_are_refused(self):
        with pytest.raises(LabelError, match=r"for the target 'energy'.* got 'forces'"):
            rigidity(labels=Labels("forces"))
        dataset = build_dataset(FRAMES[:30], ToyBackbone(), Labels("forces"))
        with pytest.raises(LabelError, match="must be 'energy', got 'forces'"):
            rigidity(frames=dataset)


class TestRefusals:
    def test_too_few_groups_for_a_quantile(self):
        signal = distance(frames=FRAMES[:60])
        with pytest.raises(
            LabelError, match=r"0\.95 must have at least 19 groups.*got 12"
        ):
            signal.threshold()
        with pytest.raises(ValueError, match="0 < suspect <= unreliable < 1"):
            signal.threshold(suspect=0.9, unreliable=0.8)

    def test_nothing_held_out(self):
        signal = distance(frames=FRAMES[:60], split=Split(held_out=0))
        with pytest.raises(LabelError, match="groups that were held out, got none"):
            signal.threshold()

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            ([], "at least one frame must be given, got none"),
            (rattled(), "list of Atoms or a Dataset, got Atoms"),
            ("frames.xyz", "list of Atoms or a Dataset, got str"),
            ([rattled()], "at least 2 groups.* got 1"),
            ([rattled(), rattled("CO2"), rattled()[:0]], "got frame 2: structure must"),
        ],
    )
    def test_invalid_frames_are_refused(self, frames, message):
        with pytest.raises(LabelError, match=message):
            distance(frames=frames)

    def test_frames_without_their_group(self):
        with pytest.raises(LabelError, match="must have the group key 'molecule'"):
            distance(split=Split(group_key="molecule"))

    def test_elements_that_are_held_out_only(self):
        frames = [*FRAMES[:90], *[rattled("CH3SH", seed=i) for i in range(10)]]
        for index, frame in enumerate(frames):
            frame.info["kind"] = "sulfur" if index >= 90 else str(index)
        seeds = (
            distance(frames=frames, split=Split(group_key="kind", seed=seed))
            for seed in range(50)
        )
        signal = next(s for s in seeds if s.card.report["held_out_unknown"])
        assert signal.card.report["held_out_unknown"] == 10
        with pytest.raises(LabelError, match="must be finite, but 10 of"):
            replace_level(signal)

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_invalid_share_is_refused(self, share):
        with pytest.raises(LabelError, match=r"held_out must be a share in \[0, 1\)"):
            Split(held_out=share)


def replace_level(signal):
    """Ask for the highest quantile that the number of groups allows."""
    groups = signal.card.training["held_out_groups"]
    return signal.threshold(suspect=0.5, unreliable=groups / (groups + 1))


class TestFiles:
    def test_another_kind_is_named(self, fitted, tmp_path):
        path = fitted["rigidity"].save(tmp_path / "r")
        with pytest.raises(SignalError, match="a latent_distance, got a prediction_ri"):
            LatentDistance.load(path)

    def test_other_files_are_not_signals(self, tmp_path):
        with pytest.raises(SignalError, match="must be an existing file"):
            load_signal(tmp_path / "none")
        probe = shipped_probe("default").save(tmp_path / "probe")
        with pytest.raises(SignalError, match="must be a uqcalc fitted signal"):
            load_signal(probe)
        with pytest.raises(SignalError, match="new file or over a fitted signal"):
            distance(frames=FRAMES[:30]).save(probe)

    def test_a_newer_or_damaged_card_is_refused(self, fitted, tmp_path):
        signal = fitted["mahalanobis"]
        card = signal.card
        for change, message in (
            ({"schema": 99}, "schema of a fitted signal must be at most 2.* got 99"),
            ({"kind": "tarot"}, "must be one of .*latent_distance.*got 'tarot'"),
        ):
            other = LatentDistance(replace(card, **change), signal.distance)
            path = other.save(tmp_path / "x")
            with pytest.raises(SignalError, match=message):
                load_signal(path)
        damaged = distance(frames=FRAMES[:30])
        del damaged.distance._buffers["means"]
        with pytest.raises(SignalError, match="got no entry 'means'"):
            load_signal(damaged.save(tmp_path / "x"))
