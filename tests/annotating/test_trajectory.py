from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from builders import mace_calculator, rattled, run_and_kill, salt, tiny_probe
from closeness import FLOAT64, NETWORK, close
from toys import POLICY, OfGeometry, Scripted, ToyBackbone, copper
from typer.testing import CliRunner

import uqcalc
from uqcalc import (
    Level,
    MaxForce,
    Policy,
    ReliableCalculator,
    Threshold,
    annotate,
    annotate_file,
    open_model,
    read_assessment,
    tap,
)
from uqcalc.annotating.copies import left_out_of, read_error
from uqcalc.cli.annotate import annotate as command
from uqcalc.errors import RecordError, SourceError


app = typer.Typer(pretty_exceptions_enable=False)
app.command()(command)


@pytest.fixture(scope="module")
def mace():
    """A tiny MACE, which has native batches, under a probe."""
    backbone = tap(mace_calculator())
    return ReliableCalculator(backbone, tiny_probe(backbone), signals=[MaxForce()])


def mixed():
    names = ["H2O", "CH3OH", "C6H6", "CO2"]
    frames = [rattled(name, seed=seed) for seed, name in enumerate(names)]
    return [*frames, salt(), rattled("NH3")]


def numbers_of(frame):
    return frame.arrays | ({} if frame.calc is None else frame.calc.results)


def same(frame, other, *, but=()):
    """Check that two annotated frames are equal, to the precision of a probe."""
    np.testing.assert_array_equal(frame.numbers, other.numbers)
    assert frame.info.keys() - set(but) == other.info.keys() - set(but)
    values, expected = numbers_of(frame), numbers_of(other)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        size = np.append(1.0, expected[name])  # probabilities of a network among them
        close(value, expected[name], NETWORK, of=size)
    ours, theirs = read_assessment(frame), read_assessment(other)
    assert ours.level == theirs.level
    for one, two in zip(ours.readings, theirs.readings, strict=True):
        assert (one.signal, one.note) == (two.signal, two.note)
        close(one.risk, two.risk, NETWORK, of=1.0)
    assert read_error(frame) == read_error(other)


# ------------------------------------------------------------------ in memory


def test_batches_have_the_number_of_atoms_that_the_backbone_prefers(mace):
    frames = [molecule("CH3CH2OH") for _ in range(40)]
    backbone = mace.backbone
    before = backbone.passes
    assert len(list(annotate(frames, mace))) == 40
    each = backbone.batch_atoms // 9  # complete frames of nine atoms in a batch
    assert backbone.passes - before == -(-40 // each) > 1


def test_every_frame_is_judged_as_by_assess_alone_or_in_batches(mace):
    frames = mixed()
    before = [frame.copy() for frame in frames]
    by_size = [list(annotate(frames, mace, batch_atoms=n)) for n in (1, 15, 512)]
    for frame, live, *copies in zip(before, frames, *by_size, strict=True):
        assert live == frame
        assert live.info == {}
        assert live.calc is None
        assessment = mace.assess(frame)
        for copy in copies:
            same(copy, copies[0])
            np.testing.assert_array_equal(copy.positions, frame.positions)
            ours = read_assessment(copy)
            assert ours.level == assessment.level
            for one, two in zip(ours.readings, assessment.readings, strict=True):
                close(one.risk, two.risk, NETWORK, of=1.0)
                assert one.results.keys() == two.results.keys()
            energy = copy.info["predicted_energy"]
            assert energy == pytest.approx(mace.results["energy"])
            forces = copy.arrays["predicted_forces"]
            close(forces, mace.results["forces"], FLOAT64)


def test_fitting_frames_are_evaluated_in_one_pass(mace):
    backbone = mace.backbone
    before = backbone.passes
    list(annotate(mixed(), mace))
    assert backbone.passes == before + 1


def broken():
    """Return frames that no potential can judge, with a word of each reason."""
    nan, cell = rattled(), salt()
    nan.positions[2, 1] = np.nan
    cell.cell[0, 0] = np.inf
    twice = rattled() + Atoms("C", positions=rattled().positions[:1])
    return {
        r"got \['S'\]": molecule("SH2"),
        r"positions must be finite.* at atoms \[2\]": nan,
        "cell must be finite": cell,
        "energy and forces .*must be finite": twice,
        "at least one atom": Atoms(),
    }


def test_bad_frame_is_marked_and_others_are_judged(tmp_path, mace):
    bad = broken()
    good = mixed()[: len(bad)]
    frames = [frame for pair in zip(good, bad.values(), strict=True) for frame in pair]
    done = list(annotate(iter(frames), mace))
    for frame, alone in zip(done[::2], annotate(good, mace), strict=True):
        same(frame, alone)
    write(tmp_path / "bad.xyz", done[1::2])
    for marked in (done[1::2], read(tmp_path / "bad.xyz", ":")):
        for reason, frame, source in zip(bad, marked, bad.values(), strict=True):
            assert len(frame) == len(source)
            assessment = read_assessment(frame)
            assert assessment.level is Level.UNRELIABLE
            assert all(math.isnan(r.risk) for r in assessment.readings)
            assert math.isnan(frame.info["probe_reliability"])
            assert frame.calc is None
            with pytest.raises(ValueError, match=reason):
                raise ValueError(read_error(frame))
            assert read_error(frame) in assessment.verdict.reasons[0]


class Refusing(EMT):
    """EMT that raises the error in ``info``."""

    def calculate(self, atoms=None, *args):
        if "raise" in atoms.info:
            raise atoms.info["raise"]
        super().calculate(atoms, *args)


def judged(calculator=None, *, signal=None, policy=POLICY):
    """Return copper's calculator: the risk is the largest coordinate along x / 10."""
    signal = signal or OfGeometry(lambda positions: positions[:, 0].max() / 10)
    backbone = ToyBackbone(calculator or EMT())
    return ReliableCalculator(backbone, signals=[signal], policy=policy)


def test_results_are_copied_before_they_are_overwritten():
    frames = [copper(seed) for seed in range(3)]
    for frame in annotate(frames, judged()):
        alone = frame.copy()
        alone.calc = EMT()
        close(frame.arrays["predicted_forces"], alone.get_forces(), FLOAT64)


@pytest.mark.parametrize(
    "error", [RuntimeError("a\nb"), CalculationFailed(), KeyError("Xx"), ValueError()]
)
def test_what_a_model_raises_on_a_frame_is_its_reason(error):
    frames = [copper(seed) for seed in range(4)]
    frames[2].info["raise"] = error
    done = list(annotate(frames, judged(Refusing())))
    assert [read_error(frame) is None for frame in done] == [True, True, False, True]
    assert read_error(done[2]).startswith(type(error).__name__)
    assert "\n" not in read_error(done[2])


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        torch.OutOfMemoryError(),
        torch.AcceleratorError("device-side assert"),
        AttributeError("a bug"),
    ],
)
def test_errors_not_caused_by_a_frame_pass_through(error):
    frame = copper()
    frame.info["raise"] = error
    with pytest.raises(type(error)):
        list(annotate([frame], judged(Refusing())))


def test_only_one_batch_is_in_memory_and_atoms_may_be_reused():
    seen = []

    def run():
        live = copper()
        for step in range(1000):
            live.positions += 0.01
            seen.append((step, live.positions.copy()))
            yield live

    yielded = annotate(run(), judged(), batch_atoms=12)
    for index in range(30):
        frame = next(yielded)
        np.testing.assert_array_equal(frame.positions, seen[index][1])
        assert len(seen) <= 3 * (index // 3 + 1) + 1


def test_arguments_that_cannot_work_are_refused_at_once():
    with pytest.raises(TypeError, match=r"iterable of Atoms, got Atoms; pass \[atoms"):
        annotate(copper(), judged())
    with pytest.raises(TypeError, match="got str; pass"):
        annotate("md.traj", judged())
    with pytest.raises(TypeError, match="ReliableCalculator, got EMT; wrap it"):
        annotate([copper()], EMT())
    with pytest.raises(ValueError, match="batch_atoms must be at least 1, got 0"):
        annotate([copper()], judged(), batch_atoms=0)
    with pytest.raises(TypeError, match="each frame must be Atoms, got int"):
        list(annotate([3], judged()))


def test_labels_survive_and_an_earlier_annotation_does_not(tmp_path):
    atoms = copper()
    atoms.info.update(REF_energy=-7.0, energy=5.0)
    labels = {"energy": 2.0, "forces": np.full((4, 3), 0.5), "stress": np.arange(6.0)}
    atoms.calc = SinglePointCalculator(atoms, **labels, charges=np.ones(4))
    [first] = annotate([atoms], judged(policy=Policy([Threshold("scripted", -2, -1)])))
    again = Scripted()
    again.name = "again"
    policy = Policy([Threshold("again", 0.3, 0.7)])
    write(tmp_path / "first.xyz", first)
    [second] = annotate(
        [read(tmp_path / "first.xyz")], judged(signal=again, policy=policy)
    )
    for frame in (first, second):
        assert frame.info["REF_energy"] == -7.0
        assert frame.info["original_energy"] == 2.0
        assert frame.info["original_energy_2"] == 5.0
        np.testing.assert_allclose(frame.arrays["original_forces"], labels["forces"])
        np.testing.assert_allclose(frame.arrays["original_charges"], 1)
        np.testing.assert_allclose(frame.info["original_stress"], labels["stress"])
        assert frame.calc is None
        assert "predicted_energy" in frame.info
        assert "predicted_energy_2" not in frame.info
    assert read_assessment(first).level is Level.UNRELIABLE
    assert read_assessment(second).level is Level.RELIABLE
    assert [r.signal for r in read_assessment(second).readings] == [
        "again",
        "sanity",
        "flags",
    ]
    assert "original_energy_3" not in second.info  # the first annotation's own
    relabelled = first.copy()
    relabelled.calc = SinglePointCalculator(relabelled, energy=-3.5)
    [third] = annotate([relabelled], judged())
    assert third.info["original_energy_3"] == -3.5  # a new label
    live = copper()
    live.calc = judged()  # an attached calculator may hold results of another geometry
    live.get_potential_energy()
    assert not any("original" in key for key in next(annotate([live], live.calc)).info)


# -------------------------------------------------------------------- in files


def many():
    frames = [copper(seed, amount=0.05 * seed) for seed in range(9)]
    for index, frame in enumerate(frames):
        frame.info["raise"] = f"not raised, frame {index}"
    frames[4].positions[0] = np.nan
    return frames


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "md.xyz", many())
    return tmp_path / "md.xyz"


@pytest.mark.parametrize("suffix", ["xyz", "traj"])
def test_file_is_annotated_counted_and_unchanged_when_complete(tmp_path, suffix):
    source, target = tmp_path / f"md.{suffix}", tmp_path / "out.extxyz"
    write(source, many())
    summary = annotate_file(source, target, judged(), worst=3, batch_atoms=8)
    frames = read(target, ":", format="extxyz")
    for frame, expected in zip(frames, annotate(many(), judged()), strict=True):
        same(frame, expected, but=["uqcalc_model", "uqcalc_frame"])
    assert (summary.frames, summary.resumed_from) == (9, 0)
    assert [index for index, _ in summary.failed] == [4]
    levels = [read_assessment(frame).level for frame in frames]
    assert summary.levels == {level: levels.count(level) for level in Level}
    good = [index for index in range(9) if index != 4]
    risk = {i: read_assessment(frames[i]).readings[0].risk for i in good}
    worst = sorted(good, key=lambda i: (levels[i], risk[i]), reverse=True)[:3]
    assert [row.index for row in summary.worst] == worst
    assert [row.risk for row in summary.worst] == [risk[i] for i in worst]
    assert summary.worst[0].formula == "Cu4"
    assert f"{target}: 9 (" in str(summary)
    assert "evaluated: 1.\n  4: positions must be finite" in str(summary)
    before = (target.read_bytes(), target.stat().st_mtime_ns)
    again = annotate_file(source, target, judged(), worst=3)
    assert (target.read_bytes(), target.stat().st_mtime_ns) == before
    assert again.resumed_from == again.frames == 9
    assert (again.levels, again.failed) == (summary.levels, summary.failed)
    assert [row.index for row in again.worst] == worst
    assert "it is unchanged" in str(again)


def test_incomplete_file_is_continued_to_the_complete_one(source, tmp_path):
    target = tmp_path / "out.xyz"
    annotate_file(source, target, judged())
    whole, expected = target.read_bytes(), read(target, ":")
    for end in [0, 1, 300, 900, *range(1000, len(whole), 997), len(whole) - 1]:
        target.write_bytes(whole[:end])
        summary = annotate_file(source, target, judged(), batch_atoms=8)
        for frame, other in zip(read(target, ":"), expected, strict=True):
            same(frame, other)
        kept = summary.resumed_from
        assert kept == whole[:end].count(b"\n") // 6
        head = b"".join(whole.splitlines(keepends=True)[: 6 * kept])
        assert target.read_bytes().startswith(head)
        assert summary.frames == 9
        assert summary.resumed_from < 9


def test_a_source_that_grows_is_followed(source, tmp_path):
    target = tmp_path / "out.xyz"
    annotate_file(source, target, judged())
    write(source, [copper(77)], append=True)
    summary = annotate_file(source, target, judged())
    assert (summary.frames, summary.resumed_from) == (10, 9)
    assert len(read(target, ":")) == 10


@pytest.mark.parametrize("suffix", ["xyz", "traj"])
def test_a_truncated_source_is_annotated_as_far_as_it_goes(tmp_path, suffix):
    source, target = tmp_path / f"md.{suffix}", tmp_path / "out.xyz"
    write(source, many())
    whole = source.read_bytes()
    source.write_bytes(whole[:-60])
    for already in (0, 8):
        with pytest.raises(
            SourceError, match=r"after 8 frames, which are in"
        ) as caught:
            annotate_file(source, target, judged())
        assert caught.value.summary.resumed_from == already
        assert len(read(target, ":")) == 8
    source.write_bytes(whole)
    assert annotate_file(source, target, judged()).resumed_from == 8


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a thesis\nin two lines\n"])
def test_a_source_without_a_frame_is_refused(tmp_path, content):
    source, target = tmp_path / "md.xyz", tmp_path / "out.xyz"
    source.write_bytes(content)
    with pytest.raises(RecordError, match="with at least one frame"):
        annotate_file(source, target, judged())
    assert not target.exists()


def other_source(path):
    frames = many()
    frames[3].positions[1, 1] += 1e-4
    write(path, frames)
    return path


def test_other_target_is_refused_and_does_not_change(source, tmp_path):
    target = tmp_path / "out.xyz"
    annotate_file(source, target, judged())
    before = target.read_bytes()
    limits = Policy([Threshold("scripted", 0.3, 0.8)])
    with pytest.raises(RecordError, match="potential, probe, policy and choice"):
        annotate_file(source, target, judged(policy=limits))
    with pytest.raises(RecordError, match=r"frame 3 differs from that of .*other\.xyz"):
        annotate_file(other_source(tmp_path / "other.xyz"), target, judged())
    write(tmp_path / "short.xyz", many()[:7])
    with pytest.raises(RecordError, match="frame 7 differs from that of"):
        annotate_file(tmp_path / "short.xyz", target, judged())
    assert target.read_bytes() == before
    write(target, next(annotate(many()[:1], judged())))
    mine = b"1\nmine, without a last line end\nCu 0.0 0.0 0.0"
    for content in (b"a thesis\n", mine, target.read_bytes()):
        target.write_bytes(content)
        with pytest.raises(RecordError, match="choose another name"):
            annotate_file(source, target, judged())
        assert target.read_bytes() == content


@pytest.mark.parametrize("suffix", ["xyz", "traj", "db"])
@pytest.mark.parametrize("change", ["pbc", "charge", "initial charges"])
def test_verdicts_of_another_periodicity_or_charge_are_not_kept(
    tmp_path, suffix, change
):
    source, target = tmp_path / "md.traj", tmp_path / f"out.{suffix}"
    frames = many()[:2]
    for frame in frames:
        frame.info["charge"] = 0
        frame.set_initial_charges([0.3, 0.3, 0.2, 0.2])
    write(source, frames)
    annotate_file(source, target, judged())
    assert annotate_file(source, target, judged()).resumed_from == 2
    if change == "pbc":
        frames[1].pbc = [True, True, False]
    elif change == "charge":
        frames[1].info["charge"] = 1
    else:
        frames[1].set_initial_charges(None)
    write(source, frames)
    with pytest.raises(RecordError, match="whose frame 1 differs"):
        annotate_file(source, target, judged())


def test_invalid_paths_are_refused(source, tmp_path):
    link = tmp_path / "link.xyz"
    link.symlink_to(source)
    before = source.read_bytes()
    for target in (source, link):
        with pytest.raises(RecordError, match="another file than the source"):
            annotate_file(source, target, judged())
    with pytest.raises(RecordError, match=r"end in \.xyz, .* or \.db, got out\.cif"):
        annotate_file(source, tmp_path / "out.cif", judged())
    with pytest.raises(RecordError, match=r"existing trajectory, got .*no\.xyz"):
        annotate_file(tmp_path / "no.xyz", tmp_path / "out.xyz", judged())
    assert source.read_bytes() == before


def test_entries_that_the_format_cannot_hold_are_named(tmp_path):
    source, target = tmp_path / "md.traj", tmp_path / "out.xyz"
    frames = many()[:3]
    frames[1].info["note"] = "two\nlines"
    frames[2].info["k=v"], frames[2].info["uqcalc"] = 3, "of somebody else"
    write(source, frames)
    summary = annotate_file(source, target, judged())
    assert summary.failed == ()
    assert summary.left_out == {"info 'k=v'": (2,)}
    assert "2: info 'k=v'" in str(summary)
    assert read(target, 1).info["note"] == "two\nlines"
    last = read(target, 2)
    assert left_out_of(last) == ("info 'k=v'",)
    assert last.info["original_uqcalc"] == "of somebody else"
    assert last.info["reliability_level"] == int(read_assessment(last).level)
    energy = EMT().get_potential_energy(last)
    assert last.info["predicted_energy"] == pytest.approx(energy)
    again = annotate_file(source, target, judged())
    assert (again.resumed_from, again.left_out) == (3, summary.left_out)


def test_chgnet_annotates_crystals_and_marks_molecules(tmp_path):
    pytest.importorskip("chgnet")
    from uqcalc.defaults import shipped_probe

    calculator = ReliableCalculator(
        open_model("chgnet", device="cpu"), shipped_probe("chgnet")
    )
    frames = [bulk("NaCl", "rocksalt", a=a) for a in (5.64, 5.2)] + [molecule("H2O")]
    write(tmp_path / "in.traj", frames)
    summary = annotate_file(tmp_path / "in.traj", tmp_path / "out.xyz", calculator)
    assert [index for index, _ in summary.failed] == [2]
    assert "must have a cell for CHGNet" in summary.failed[0][1]
    back = read(tmp_path / "out.xyz", ":")
    assert read_assessment(back[0]).level == calculator.assess(frames[0]).level
    assert back[1].info["predicted_energy"] == pytest.approx(
        float(calculator.get_potential_energy(frames[1])), abs=1e-4
    )


# ----------------------------------------------------------------- the command


def molecules(count):
    frames = [rattled(["CH3OH", "H2O"][i % 2], seed=i) for i in range(count)]
    frames[1:2] = [molecule("SH2")] * (count > 1)
    return frames


VICTIM = """
import sys, time
import typer
import uqcalc.annotating.targets as module
from uqcalc.cli.annotate import annotate
plain = module.append_frame
def slowly(*args):
    left_out = plain(*args)
    time.sleep(0.1)
    return left_out
module.append_frame = slowly
app = typer.Typer()
app.command()(annotate)
app()
"""


def test_killed_command_is_continued_to_the_complete_file(tmp_path):
    source, target = tmp_path / "md.xyz", tmp_path / "out.xyz"
    write(source, molecules(40))
    arguments = [str(source), "-o", str(target)]
    run_and_kill(
        [sys.executable, "-c", VICTIM, *arguments],
        lambda: target.exists() and target.read_bytes().count(b"uqcalc_model") >= 7,
    )
    with target.open("ab") as file:  # as if it had been killed within a write
        file.write(b"6\nProperties=species:S:1")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1  # one frame failed
    assert ": 40 (" in result.output
    assert "frames were already in" in result.output
    assert "  1: elements must be among" in result.output
    expected = annotate(molecules(40), uqcalc.default_calculator())
    for frame, other in zip(read(target, ":"), expected, strict=True):
        np.testing.assert_allclose(frame.positions, other.positions, atol=1e-8)
        other.positions[:] = frame.positions
        same(frame, other, but=["uqcalc_model", "uqcalc_frame"])


def strained(count):
    frames = [salt().copy() for _ in range(count)]
    for index, frame in enumerate(frames):
        frame.set_cell(frame.cell * (1 + 1e-3 * (index // 2)), scale_atoms=True)
    return frames


def test_a_cell_that_moves_from_frame_to_frame_is_a_doubt(mace, tmp_path):
    def doubted(frames):
        return [
            any("the cell moves" in why for why in read_assessment(f).verdict.reasons)
            for f in frames
        ]

    moving = strained(5)  # a barostat that acts at every second frame
    assert doubted(annotate(moving, mace)) == [False, False, True, True, True]
    assert not any(doubted(annotate(moving, mace, use="fixed_cell")))
    assert all(doubted(annotate(moving, mace, use="moving_cell")))
    # other atoms, then the first cell again: no trajectory
    assert not any(doubted(annotate([moving[0], *mixed(), moving[-1]], mace)))
    source, target = tmp_path / "npt.xyz", tmp_path / "out.xyz"
    write(source, moving[:3])
    annotate_file(source, target, mace)
    write(source, moving)
    annotate_file(source, target, mace)  # continues, with the frames before
    assert doubted(read(target, ":")) == [False, False, True, True, True]


def test_structures_of_a_data_set_do_not_move_and_those_of_a_run_do(mace):
    """The same atoms in other cells: random strains, or frames of a run."""

    def doubted(frames):
        return [
            any("the cell moves" in why for why in read_assessment(f).verdict.reasons)
            for f in annotate(frames, mace)
        ]

    def strained_by(*strains, moving=False, rattled=0.0):
        frames = []
        for seed, strain in enumerate(strains):
            frame = salt().copy()
            frame.set_cell(frame.cell * (1 + strain), scale_atoms=True)
            frame.rattle(rattled, seed=seed)
            if moving:
                frame.set_momenta(np.random.default_rng(seed).normal(size=(8, 3)))
            frames.append(frame)
        return frames

    assert not any(doubted(strained_by(0.0, 0.03, -0.02, 0.05)))
    assert not any(doubted(strained_by(0.0, 0.004, -0.003, rattled=0.2)))
    relaxed = strained_by(0.0, 0.006, 0.009, 0.01, rattled=0.01)
    assert doubted(relaxed) == [False, True, True, True]
    barostat = strained_by(0.0, 0.02, 0.02, -0.01, moving=True, rattled=0.2)
    assert doubted(barostat) == [False, True, True, True]
    # a run, and structures of a data set after it
    assert doubted([*barostat, *strained_by(0.05, 0.0)])[-2:] == [False, False]


def test_exit_status_says_whether_every_frame_could_be_judged(tmp_path):
    write(tmp_path / "good.xyz", molecules(1))
    target = str(tmp_path / "out.xyz")
    good = CliRunner().invoke(app, [str(tmp_path / "good.xyz"), "-o", target])
    assert good.exit_code == 0
    assert "the worst frames" in good.output
    assert "P(reliable)" in good.output
    assert ": 1 (1 RELIABLE" in good.output
    refused = [["no.xyz"], ["good.xyz", "--model", "chgnet:x"]]
    refused += [["good.xyz", "--probe", str(tmp_path / "no.probe")]]
    for name, *options in refused:
        path = str(tmp_path / name)
        result = CliRunner().invoke(app, [path, "-o", target, *options])
        assert result.exit_code == 2
        assert isinstance(result.exception, SystemExit)  # a message, no traceback


def test_frames_of_a_truncated_source_are_shown(tmp_path):
    source = tmp_path / "md.xyz"
    write(source, molecules(3)[::2])
    source.write_bytes(source.read_bytes()[:-40])
    result = CliRunner().invoke(app, [str(source), "-o", str(tmp_path / "out.xyz")])
    assert result.exit_code == 1
    assert ": 1 (" in result.output
    assert "source must be readable to its end" in result.stderr
