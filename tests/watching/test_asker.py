"""`on_unreliable="ask"`: the reference decides, and labelled frames are kept."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import FIRE
from builders import mace_calculator, rattled, tiny_probe
from toys import BAD, GOOD, Scripted, copper, watched

from uqcalc import Ask, Monitor, ReliableCalculator, default_calculator, read_log, tap
from uqcalc.errors import LabelError
from uqcalc.info import file_info
from uqcalc.policy import Policy, Threshold
from uqcalc.signals.base import TensorReading
from uqcalc.watching.asker import Criterion, criteria_of
from uqcalc.watching.eventlog import read_standing


class Shifted(EMT):
    """EMT with another force on each atom: ``shift`` after the call ``after``."""

    def __init__(self, shift=0.01, *, after=0, fault=None):
        super().__init__()
        self.calls, self.shift, self.after, self.fault = 0, shift, after, fault

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        np.random.random(3)  # noqa: NPY002  (a reference that draws from numpy)
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        shift = 0.01
        if self.calls > self.after:
            if self.fault is not None:
                raise self.fault
            shift = self.shift
        self.results["forces"] = self.results["forces"] + shift / np.sqrt(3)


class Finding(Scripted):
    """A flag without a threshold that has a finding at every step."""

    name = "flags"

    def __call__(self, prediction):
        return TensorReading(self.name, 0.0, doubts=("a bond breaks",), always=True)


def run(tmp_path, risks, reference, steps=30, *, atoms=None, **settings):
    atoms = atoms or watched(risks)
    dynamics = VelocityVerlet(atoms, 2 * units.fs)
    options = {"boundary": 0.1, "spacing": 5} | settings
    monitor = Monitor(
        dynamics,
        log=tmp_path / "run.jsonl",
        flagged=tmp_path / "flagged.xyz",
        patience=2,
        on_unreliable=Ask(reference, tmp_path / "labelled.xyz", **options),
    )
    dynamics.run(steps)
    return monitor


def test_a_right_frame_is_kept_and_the_run_goes_on(tmp_path):
    reference = Shifted(0.05)
    risks = [GOOD] * 3 + [BAD] * 3 + [GOOD] * 30
    monitor = run(tmp_path, risks, reference)
    assert not monitor.halted
    assert monitor.history[-1].step == 30
    [record] = [r for r in read_log(tmp_path / "run.jsonl") if r["event"] == "asked"]
    assert (record["step"], record["rule"], record["right"]) == (4, "low", True)
    assert record["errors"]["forces"] == pytest.approx(0.05 / np.sqrt(3))
    assert record["units"] == {"forces": "eV/Å"}
    [frame] = read(tmp_path / "labelled.xyz", ":")
    assert frame.info["step"] == 4
    assert frame.info["asked_right"]
    assert frame.info["asked_error_forces"] == pytest.approx(0.05 / np.sqrt(3))
    assert frame.info["uqcalc_reference"] == "Shifted"
    truth = frame.copy()
    truth.calc = EMT()
    assert frame.info["REF_energy"] == pytest.approx(truth.get_potential_energy())
    np.testing.assert_allclose(
        frame.arrays["REF_forces"], truth.get_forces() + 0.05 / np.sqrt(3), atol=1e-6
    )
    assert "asked 1 of at most 20 times: 1 right, 0 wrong" in monitor.summary()
    assert "Frames to ask the reference about: 3 (P low: 3)" in monitor.summary()
    assert monitor.end["asked"] == {"right": 1, "wrong": 0, "failed": 0}
    assert monitor.end["ask"] == {"low": 3}
    rows = dict(file_info(tmp_path / "run.jsonl").rows)
    assert rows["asked 1"].startswith("step 4: Shifted: RMS force error 0.0289 eV/Å <=")


def test_a_wrong_frame_halts_and_its_label_is_kept(tmp_path):
    monitor = run(tmp_path, [GOOD] * 3 + [BAD] * 30, Shifted(1.0, after=1))
    assert monitor.halted
    # right at step 4; the trigger acts again at 6, and waits until a call is allowed
    assert monitor.history[-1].step == 9
    assert "Wrong by the reference Shifted: RMS force error 0.577" in monitor.reason
    assert "> 0.1 eV/Å" in monitor.reason
    frames = read(tmp_path / "labelled.xyz", ":")
    assert [f.info["asked_right"] for f in frames] == [True, False]
    assert [f.info["step"] for f in frames] == [4, 9]
    assert read(tmp_path / "flagged.xyz", -1).info["step"] == 9


@pytest.mark.parametrize("fault", [ZeroDivisionError("no SCF"), None])
def test_a_failure_is_named_counted_and_halts(tmp_path, fault):
    shift = 0.0 if fault else np.nan
    monitor = run(tmp_path, [GOOD, BAD, BAD], Shifted(shift, fault=fault))
    assert monitor.halted
    assert monitor.asker.failed == 1
    why = "ZeroDivisionError: no SCF" if fault else "forces of the reference must be"
    for text in (monitor.reason, monitor.summary(), monitor.end["asked"]["why"][0]):
        assert why in text
    [record] = [r for r in read_log(tmp_path / "run.jsonl") if r["event"] == "asked"]
    assert why in record["failed"]
    assert not record["right"]
    assert not (tmp_path / "labelled.xyz").exists()


def test_the_potential_itself_is_refused_as_reference(tmp_path):
    monitor = run(tmp_path, [GOOD] * 3 + [BAD] * 9, EMT())
    assert monitor.halted
    assert "the reference must be another method" in monitor.reason
    assert monitor.end["asked"]["failed"] == 1
    assert not (tmp_path / "labelled.xyz").exists()


def test_frame_on_which_p_and_flags_disagree_is_evaluated(tmp_path):
    atoms = watched()
    atoms.calc = ReliableCalculator(
        atoms.calc.backbone,
        signals=[Scripted(), Finding()],
        policy=Policy([Threshold("scripted", 0.3, 0.7)]),
        sanity=False,
    )
    reference = Shifted()
    monitor = run(tmp_path, (), reference, 80, atoms=atoms, max_calls=3)
    assert not monitor.halted  # the flag alone makes a step SUSPECT only
    steps = [r["step"] for r in read_log(tmp_path / "run.jsonl")
             if r["event"] == "asked"]  # fmt: skip
    assert steps == [0, 10, 30]  # less often after each right answer
    assert reference.calls == 3
    assert monitor.history.asks == {"disagree": 81}


def test_without_a_call_left_the_trigger_halts(tmp_path):
    monitor = run(tmp_path, [BAD] * 40, Shifted(), max_calls=2)
    assert monitor.halted
    assert monitor.reason.startswith("UNRELIABLE after 2 calls of the reference")
    assert len(read(tmp_path / "labelled.xyz", ":")) == 2


def test_the_path_is_that_of_the_bare_calculator(tmp_path):
    ends = []
    for asks in (True, False):
        np.random.seed(0)  # noqa: NPY002  (ASE's default generator)
        atoms = watched([BAD] * 40) if asks else copper()
        atoms.calc = atoms.calc or EMT()
        dynamics = Langevin(
            atoms, 2 * units.fs, temperature_K=300, friction=0.05, fixcm=False
        )
        if asks:
            settings = Ask(Shifted(), tmp_path / "l.xyz", boundary=0.1, spacing=3)
            monitor = Monitor(dynamics, patience=1, on_unreliable=settings)
        dynamics.run(25)
        ends.append((atoms.positions.copy(), atoms.get_momenta()))
    assert monitor.asker.right == 9
    np.testing.assert_array_equal(ends[0], ends[1])


def test_a_continued_run_counts_its_calls(tmp_path):
    atoms = watched([BAD] * 40)
    for _ in range(2):
        monitor = run(tmp_path, (), Shifted(), 8, atoms=atoms, max_calls=3)
    assert monitor.asker.calls == 3
    assert len(read(tmp_path / "labelled.xyz", ":")) == 3
    kinds = [r["event"] for r in read_standing(tmp_path / "run.jsonl")]
    assert kinds.count("asked") == 3


def test_probe_defines_a_right_frame(tmp_path):
    """Boundary, quantity, offsets and atoms are those of the probe."""
    backbone = tap(mace_calculator())
    probe = tiny_probe(backbone, target="energy", offsets={"6": 0.5, "1": 0.25})
    calculator = ReliableCalculator(backbone, probe)
    [criterion] = criteria_of(calculator, None)
    assert (criterion.target, criterion.boundary) == ("energy", 0.1)
    atoms = rattled("CH3OH")
    reference = Criterion("energy", 0.1, {"6": 0.5, "1": 0.25})

    class Answer:
        energy, forces, stress = 3.0, np.ones((6, 3)), None

    assert reference.error(atoms, {"energy": 1.0}, Answer) == pytest.approx(0.5)
    region = Criterion("forces", 0.1, atoms=(2, 3))
    forces = np.ones((6, 3))
    forces[2] = 0.0
    results = {"forces": forces}
    assert region.error(atoms, results, Answer) == pytest.approx(np.sqrt(0.5))
    assert Criterion("stress", 0.1).error(atoms, results, Answer) is None


class WithoutStress(Shifted):
    implemented_properties = ("energy", "forces")


@pytest.mark.parametrize(
    ("reference", "moving", "counts"),
    [
        (Shifted, False, (1, 0, 0)),
        (Shifted, True, (0, 1, 0)),
        (WithoutStress, False, (1, 0, 0)),
        (WithoutStress, True, (0, 0, 1)),
    ],
)
def test_the_stress_decides_only_while_the_cell_moves(
    reference, moving, counts, tmp_path
):
    atoms = watched([GOOD] + [BAD] * 40)
    dynamics = VelocityVerlet(atoms, 2 * units.fs)
    ask = Ask(reference(), tmp_path / "labelled.xyz", boundary=0.1)
    monitor = Monitor(dynamics, patience=2, on_unreliable=ask)
    never = Criterion("stress", -1.0, only_moving_cell=True)  # no error is below 0
    monitor.asker.criteria.append(never)
    if moving:
        dynamics.attach(lambda: atoms.set_cell(1.001 * atoms.cell, scale_atoms=True))
    dynamics.run(6)
    asked = monitor.asker
    assert (asked.right, asked.wrong, asked.failed) == counts
    assert monitor.halted is moving
    assert ("stress cannot be compared" in monitor.reason) is bool(counts[2])


def test_bundled_potential_is_compared_at_its_boundary():
    calculator = default_calculator()
    [criterion] = criteria_of(calculator, None)
    card = calculator.signals[0].probe.card
    assert (criterion.target, criterion.boundary) == ("forces", card.boundary)
    assert criterion.atoms is None


def test_invalid_settings_are_refused(tmp_path):
    path = tmp_path / "l.xyz"
    for options, message in [
        ({"max_calls": 0}, "max_calls must be a whole number"),
        ({"spacing": 1.5}, "spacing must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            Ask(EMT(), path, **options)
    with pytest.raises(LabelError, match="must be a force"):
        Ask(EMT(), path, boundary="1 eV")
    with pytest.raises(ValueError, match="must be an ASE calculator, got ABCMeta"):
        Ask(EMT, path)
    atoms = watched()
    dynamics = VelocityVerlet(atoms, units.fs)
    own = atoms.calc.backbone.calculator
    for options, message in [
        ({"on_unreliable": "ask"}, "reference must be given"),
        ({"on_unreliable": "ask", "reference": EMT()}, "labelled must be given"),
        ({"reference": EMT()}, "reference must be left out unless"),
        ({"on_unreliable": Ask(EMT(), path)}, "must have a probe for an error of one"),
        ({"on_unreliable": Ask(own, path, boundary=1.0)}, "must be another calculator"),
        (
            {"on_unreliable": Ask(EMT(), path, boundary=1.0), "flagged": path},
            "flagged and labelled must be different files",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            Monitor(dynamics, **options)
    images = [watched() for _ in range(3)]
    band = FIRE(NEB(images, method="improvedtangent"), logfile=None)
    with pytest.raises(ValueError, match="must have a run of one structure"):
        Monitor(band, on_unreliable=Ask(EMT(), path, boundary=1.0))


def test_a_restart_drops_the_frames_that_it_repeats(tmp_path):
    atoms = watched([BAD] * 60)
    run(tmp_path, (), Shifted(), 12, atoms=atoms)
    before = [f.info["step"] for f in read(tmp_path / "labelled.xyz", ":")]
    assert before == [1, 6, 11]
    monitor = Monitor(
        VelocityVerlet(atoms, 2 * units.fs),
        log=tmp_path / "run.jsonl",
        mode="append",
        first_step=5,
        patience=2,
        on_unreliable=Ask(
            Shifted(), tmp_path / "labelled.xyz", boundary=0.1, spacing=5
        ),
    )
    assert monitor.asker.calls == 1
    monitor.dynamics.run(4)
    after = [f.info["step"] for f in read(tmp_path / "labelled.xyz", ":")]
    assert after[0] == 1
    assert 5 <= after[1] <= 7
