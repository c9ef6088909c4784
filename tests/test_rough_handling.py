"""Bad input and failures: each gives a message, and computed results are kept.

What belongs to one command is tested with it: kill -9 of an annotation in
`annotating/test_trajectory.py`, kill -9 of a run in `runfile/test_running.py`.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from builders import mace_calculator, rattled, tiny_probe
from hypothesis import HealthCheck, given, settings, strategies as st
from typer.testing import CliRunner

from uqcalc import (
    LabelWarning,
    Level,
    MaxForce,
    Policy,
    ReliableCalculator,
    Threshold,
    UqcalcError,
    fit,
    read_log,
    tap,
)
from uqcalc.asking import why_ask
from uqcalc.cli import app
from uqcalc.errors import BackboneError, LabelError


def reliable_calculator(**options):
    backbone = tap(mace_calculator(0))
    return ReliableCalculator(backbone, tiny_probe(backbone), **options)


@pytest.fixture(scope="module")
def calculator():
    return reliable_calculator()


def methanol(**changes):
    atoms = molecule("CH3OH")
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def moved(row, to):
    atoms = molecule("CH3OH")
    atoms.positions[row] = to
    return atoms


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (Atoms(), "structure must have at least one atom, got none"),
        (Atoms("Xe"), r"elements must be among .*'Cl'\] .* got \['Xe'\]"),
        (methanol(pbc=True), r"cell must span the periodic directions, got \[\[0.0"),
        (
            methanol(pbc=True, cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]]),
            "cell must span the periodic directions",
        ),
        (
            methanol(pbc=True, cell=[0.5, 0.5, 0.5]),
            "cell must hold at most 10 atoms/Å³ .* got 6 in 0.125 Å³; give",
        ),
        (
            methanol(pbc=[True, True, False], cell=[0.2, 0.2, 9]),
            "cell must hold at most 10 atoms/Å² .* got 1 in 0.04 Å²; give",
        ),
        (moved(1, np.nan), r"positions must be finite, got NaN .* atoms \[1\]"),
        (moved(2, [0, np.inf, 0]), "positions must be finite"),
        (methanol(pbc=True, cell=[np.nan, 9, 9]), "cell must be finite"),
        (
            methanol(pbc=True, cell=[9, 9, 9], positions=np.full((6, 3), 2e6)),
            r"coordinates must be at most 1e\+06 Å, got 2e\+06 Å",
        ),
    ],
    ids=[
        "no atoms",
        "unknown element",
        "no cell",
        "flat cell",
        "cell in nm",
        "slab in nm",
        "NaN",
        "infinity",
        "NaN cell",
        "far away",
    ],
)
def test_structures_that_cannot_be_evaluated(calculator, atoms, words):
    with pytest.raises(BackboneError, match=words):
        calculator.assess(atoms)


@pytest.mark.parametrize(
    "atoms",
    [
        moved(1, molecule("CH3OH").positions[0]),
        Atoms("H3", positions=np.zeros((3, 3))),
    ],
    ids=["one on another", "all on one"],
)
def test_overlapping_atoms_are_unreliable_with_a_reason(calculator, atoms):
    assessment = calculator.assess(atoms)
    assert assessment.level is Level.UNRELIABLE
    assert "NaN or infinite" in assessment.verdict.reasons[0]
    assert np.isnan(calculator.results["probe_reliability"])
    assert any("are 0 Å apart" in reason for reason in assessment.verdict.reasons)
    assert assessment.impossible
    assert why_ask(assessment) is None  # a reference cannot evaluate it either


def test_one_atom_and_mixed_periodicity_are_judged(calculator):
    for atoms in (Atoms("H"), methanol(pbc=[True, True, False], cell=[8, 8, 0])):
        assert np.isfinite(calculator.assess(atoms).readings[0].risk)


def labelled(count=12, factor=1.0):
    """Frames whose labels are the potential's own forces and some noise."""
    calculator, rng = mace_calculator(0), np.random.default_rng(0)
    frames = []
    for index in range(count):
        atoms = rattled("CH3OH", seed=index, amount=0.2)
        forces = calculator.get_forces(atoms)
        noise = rng.normal(scale=0.1 * forces.std(), size=forces.shape)
        atoms.arrays["REF_forces"] = factor * (forces + noise)
        frames.append(atoms)
    return frames


def test_missing_labels_in_half_of_the_frames_are_counted_and_named():
    frames = labelled()
    for frame in frames[::2]:
        del frame.arrays["REF_forces"]
    words = r"12 frames must have a usable label, got missing: 6 \(frames 0, 2, 4, 6, 8"
    few = pytest.warns(LabelWarning)  # of few structures, and of one molecule
    with few, pytest.raises(LabelError, match=words):
        fit(frames, mace_calculator(0))


def test_labels_in_kcal_per_mol_are_recognised_by_their_scale():
    from uqcalc import Labels
    from uqcalc.labels.dataset import build_dataset

    with pytest.warns(LabelWarning, match="which fits kcal/mol/Å"):
        build_dataset(labelled(factor=23.06), tap(mace_calculator(0)), Labels())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "what is this\n",
        "3\nProperties=species:S:1:pos:R:3\nH 0 0 0\n",
    ],
    ids=["empty", "no trajectory", "truncated"],
)
@pytest.mark.parametrize("command", ["fit", "annotate"])
def test_files_without_frames_end_with_a_message(tmp_path, command, content):
    path = tmp_path / "empty.xyz"
    path.write_text(content)
    words_in = [command, str(path), "-o", str(tmp_path / "out.xyz")]
    done = CliRunner().invoke(app, [*words_in, "--device", "cpu"])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)  # no traceback
    assert "empty.xyz" in done.stderr
    visible = [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")]
    assert visible == ["empty.xyz"]


# A run with a limit on the bytes of its files, as for a disk that becomes full.
RUN = """
import resource, sys, warnings
sys.path.insert(0, {tests!r})
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from ase import units
from ase.md.verlet import VelocityVerlet
from builders import rattled
from test_rough_handling import reliable_calculator
from uqcalc import Monitor
atoms = rattled("CH3OH")
atoms.calc = reliable_calculator()
dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
monitor = Monitor(dynamics, log="run.jsonl", patience=1000, mode="append")
dynamics.run(20)
print(monitor.summary())
"""


def run_with_limit(folder, limit):
    code = RUN.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-W", "ignore", "-c", code, str(limit)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False
    )


def test_full_disk_does_not_end_a_run_and_keeps_earlier_steps(tmp_path):
    assert run_with_limit(tmp_path, 0).returncode == 0
    whole = (tmp_path / "run.jsonl").read_bytes()
    (tmp_path / "run.jsonl").unlink()
    done = run_with_limit(tmp_path, len(whole) // 2)
    assert done.returncode == 0
    assert "Not written: log, " in done.stdout
    kept = [r["step"] for r in read_log(tmp_path / "run.jsonl") if "step" in r]
    assert kept == list(range(len(kept)))
    assert len(kept) > 5
    assert run_with_limit(tmp_path, 0).returncode == 0  # there is room again
    steps = [r["step"] for r in read_log(tmp_path / "run.jsonl") if "readings" in r]
    assert set(steps) == set(range(len(kept) - 1 + 21))


known = st.sampled_from([1, 6, 7, 8])
coordinate = st.one_of(
    st.floats(-6, 6),
    st.sampled_from([0.0, 1e-9, 1e8, -1e300, np.nan, np.inf]),
)


@st.composite
def structures(draw):
    numbers = draw(st.lists(st.one_of(known, st.integers(0, 118)), max_size=5))
    size = len(numbers)
    rows = st.lists(coordinate, min_size=3, max_size=3)
    positions = draw(st.lists(rows, min_size=size, max_size=size))
    edge = st.one_of(st.floats(1.5, 9), st.sampled_from([0.0, 1e-3, np.nan, 1e6]))
    cell = draw(st.lists(edge, min_size=3, max_size=3))
    pbc = draw(st.lists(st.booleans(), min_size=3, max_size=3))
    return Atoms(numbers, np.reshape(positions, (size, 3)), cell=cell, pbc=pbc)


@pytest.fixture(scope="module")
def two_signals():
    limits = [Threshold("probe", 0.999, 0.9999), Threshold("max_force", 1e6, 1e7)]
    return reliable_calculator(signals=[MaxForce()], policy=Policy(limits))


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(structures())
def test_random_structures_with_nan_are_never_reliable_or_raise_uqcalc_errors(
    two_signals, atoms
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflows, within the model
        try:
            assessment = two_signals.assess(atoms)
        except UqcalcError:
            return
    results = [np.ravel(two_signals.results[key]) for key in ("energy", "forces")]
    risks = [[reading.risk for reading in assessment.readings]]
    if not np.all(np.isfinite(np.concatenate(results + risks))):
        assert assessment.level is Level.UNRELIABLE
        assert assessment.verdict.reasons


def test_annotation_of_random_structures_loses_no_frame(tmp_path):
    rng = np.random.default_rng(3)
    frames = [rattled("CH3OH", seed=i) for i in range(6)]
    frames[1].positions[0] = np.nan
    frames[3] = Atoms("Xe")
    frames[4].positions[:] = rng.normal(scale=1e-12, size=(6, 3))
    write(tmp_path / "in.xyz", frames)
    from uqcalc import annotate_file

    summary = annotate_file(
        tmp_path / "in.xyz", tmp_path / "out.xyz", reliable_calculator()
    )
    assert {index for index, _ in summary.failed} >= {1, 3}
    assert len(read(tmp_path / "out.xyz", ":")) == 6
