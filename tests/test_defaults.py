"""Which probe and policy a calculator takes when its user names none."""

import logging

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.io import read, write
from typer.testing import CliRunner

import uqcalc
from tests.builders import mace_calculator, rattled
from tests.probe.toys import ToyBackbone
from uqcalc import (
    Level,
    MaxForce,
    Policy,
    ProbeSignal,
    ReliableCalculator,
    Threshold,
    read_assessment,
)
from uqcalc.cli import app
from uqcalc.defaults import find_probes, label_free, shipped_probe
from uqcalc.errors import ProbeError
from uqcalc.models.bundled import bare_calculator
from uqcalc.models.named import PROBE_FILES, SHIPPED_PROBES
from uqcalc.runfile import opening
from uqcalc.runfile.file import read_run_file


POLICY = Policy([Threshold("max_force", 5.0, 20.0)])


def test_the_probe_of_the_very_model_is_taken_and_named(caplog):
    with caplog.at_level(logging.WARNING, logger="uqcalc"):
        calc = ReliableCalculator(bare_calculator())
    assert calc.signals[0].probe.card.fingerprint == calc.backbone.fingerprint
    atoms = rattled()
    atoms.calc = calc
    assert 0 <= calc.assess(atoms).reading("probe").results["probe_reliability"] <= 1
    said = [r.getMessage() for r in caplog.records if "took the probe" in r.message]
    assert all(calc.backbone.fingerprint in text for text in said)


def test_double_precision_is_the_same_model_and_other_weights_are_not():
    double = ReliableCalculator(bare_calculator(dtype="float64"))
    assert [signal.name for signal in double.signals] == ["probe", "sanity", "flags"]
    unknown = ReliableCalculator(mace_calculator(0)).backbone.fingerprint
    assert find_probes(unknown) == []


def test_without_a_probe_nothing_is_reliable_and_a_warning_is_given(caplog):
    atoms = rattled()
    with caplog.at_level(logging.WARNING, logger="uqcalc"):
        calc = ReliableCalculator(ToyBackbone())
    [said] = [r.getMessage() for r in caplog.records if "no probe ships" in r.message]
    assert "uqcalc fit --labels pbe-crystals --model NAME" in said
    assert [signal.name for signal in calc.signals] == ["max_force", "sanity", "flags"]
    assert calc.assess(atoms).level is Level.SUSPECT
    assert calc.refusal("no answer").level is Level.UNRELIABLE
    assert calc.assess(Atoms("H")).level is Level.SUSPECT  # its force is zero


def test_a_probe_among_the_signals_is_the_probe():
    mine = shipped_probe("default")
    calc = ReliableCalculator(bare_calculator(), signals=[ProbeSignal(mine)])
    assert calc.signals[0].probe is mine
    assert [signal.name for signal in calc.signals] == ["probe", "sanity", "flags"]
    assert calc.policy == mine.card.policy()
    with pytest.raises(ProbeError, match="the backbone's feature width"):
        ReliableCalculator(mace_calculator(0), signals=[ProbeSignal(mine)])


def test_a_committee_is_read_without_labels():
    calc = ReliableCalculator(mace_calculator(0, 1))
    names = [signal.name for signal in calc.signals]
    assert names == ["max_force", "force_spread", "sanity", "flags"]
    assert [s.name for s in label_free(calc.backbone)] == names[:2]


def test_given_signals_are_used_alone_without_a_shipped_probe():
    calc = ReliableCalculator(ToyBackbone(), signals=[MaxForce()], policy=POLICY)
    assert [signal.name for signal in calc.signals] == ["max_force", "sanity", "flags"]
    with pytest.raises(ValueError, match="policy must be given"):
        ReliableCalculator(ToyBackbone(), signals=[MaxForce()])


def test_none_means_no_probe():
    calc = ReliableCalculator(
        bare_calculator(), probe=None, signals=[MaxForce()], policy=POLICY, sanity=False
    )
    assert [signal.name for signal in calc.signals] == ["max_force"]


@pytest.mark.parametrize("name", sorted(SHIPPED_PROBES))
def test_shipped_probes_are_found_by_their_fingerprint(name):
    card = shipped_probe(name).card
    found = [probe.card for probe in find_probes(card.fingerprint)]
    assert {one.fingerprint for one in found} == {card.fingerprint}
    targets = [one.target for one in found]
    assert targets[0] == card.target == "forces"
    assert len(set(targets)) == len(SHIPPED_PROBES[name])


@pytest.mark.parametrize("name", ["chgnet", "sevennet"])
def test_cards_of_universal_probes_have_their_scores(name):
    card = shipped_probe(name).card
    assert card.target == "forces"
    assert card.atom_boundary is not None
    assert card.scope is not None
    assert card.promise["bound"] <= card.promise["risk"]
    regimes = {row["regime"]: row for row in card.report["regimes"]}
    assert {"relaxed", "hot and dense", "random cells"} <= set(regimes)
    assert all(np.isfinite(row["ece"]) for row in regimes.values())


def test_all_shipped_probes_are_small():
    from importlib.resources import files

    data = files("uqcalc") / "data"
    total = sum(len((data / name).read_bytes()) for name in PROBE_FILES.values())
    assert total < 8e6


def test_without_a_probe_library_commands_and_run_files_do_the_same(
    tmp_path, monkeypatch
):
    """Without a shipped probe, signals need no labels, and nothing is RELIABLE."""
    frames = [rattled(seed=seed) for seed in range(2)]
    write(tmp_path / "frames.xyz", frames)
    unknown = mace_calculator(0)
    by_library = ReliableCalculator(unknown)
    monkeypatch.setattr(uqcalc, "open_model", lambda *_, **__: unknown, raising=False)
    monkeypatch.setattr(opening, "open_model", lambda *_, **__: unknown)
    target = tmp_path / "judged.xyz"
    done = CliRunner().invoke(
        app,
        f"annotate {tmp_path}/frames.xyz -o {target} --model mace_off:small".split(),
    )
    assert done.exit_code == 0, done.output
    run = {"structure": "frames.xyz", "model": "mace_off:small"}
    run |= {"md": {"ensemble": "nvt", "steps": 1, "temperature_K": 300}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    by_file = opening.open_calculator(read_run_file(tmp_path / "run.yaml"))
    assert by_file.policy == by_library.policy
    assert [s.name for s in by_file.signals] == [s.name for s in by_library.signals]
    for frame, written in zip(frames, read(target, ":"), strict=True):
        assessment = read_assessment(written)
        assert assessment.level is Level.SUSPECT
        expected = by_library.assess(frame)
        assert assessment.verdict.reasons == expected.verdict.reasons
