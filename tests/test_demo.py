"""The bundled potential, its probe, and the demonstration."""

from __future__ import annotations

from importlib.resources import files

import matplotlib as mpl
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read
from builders import import_mace
from typer.testing import CliRunner

from uqcalc import Level, default_calculator, demo, read_assessment
from uqcalc.cli import app
from uqcalc.defaults import shipped_probe
from uqcalc.errors import BackboneError, MissingExtraError


mpl.use("Agg")
import_mace()


@pytest.fixture(scope="module")
def calculator():
    return default_calculator()


def test_shipped_files_are_small_and_hold_no_pickle():
    data = list((files("uqcalc") / "data").iterdir())
    # probes of up to 0.7 MB, and 1.1 MB of labelled crystals
    assert sum(len(path.read_bytes()) for path in data) < 5_000_000
    assert {path.name.rpartition(".")[2] for path in data} <= {
        "json",
        "safetensors",
        "probe",
        "xyz",
    }


def test_bundled_potential_is_conservative():
    calculator = default_calculator(dtype="float64")
    atoms = molecule("CH3CONH2")
    atoms.rattle(0.05, seed=2)
    atoms.calc = calculator
    forces = atoms.get_forces()
    step = 1e-4
    for atom, axis in [(0, 0), (3, 2), (7, 1)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            moved.calc = calculator
            energies.append(moved.get_potential_energy())
        slope = -(energies[0] - energies[1]) / (2 * step)
        assert slope == pytest.approx(forces[atom, axis], abs=1e-6)


def test_minimum_is_reliable_and_a_broken_molecule_is_not(calculator):
    with (files("uqcalc") / "data" / "aspirin.xyz").open() as file:
        atoms = read(file, format="extxyz")
    assert calculator.assess(atoms).level is Level.RELIABLE
    atoms.rattle(0.4, seed=0)
    assert calculator.assess(atoms).level is Level.UNRELIABLE


def test_every_key_that_a_probe_gives_is_in_the_first_results(calculator):
    results = calculator.assess(molecule("CH3CH2OH")).results()
    parts = {f"probe_{path}" for path in ("attention", "linear", "trend", "local")}
    per_atom = {"probe_reliabilities", "probe_importance"}
    whole = {"probe_reliability", "probe_novelty", "reliability_level"}
    assert parts | per_atom | whole <= set(results)
    assert all(np.isfinite(results[key]).all() for key in parts | per_atom | whole)
    assert {np.shape(results[key]) for key in per_atom} == {(9,)}


def test_small_molecules_with_wrong_forces_are_not_reliable(calculator):
    tblite = pytest.importorskip("tblite.ase")
    boundary = shipped_probe("default").card.boundary
    frames = [molecule(name) for name in ("N2", "O2", "CO", "CO2", "H2O", "HCN")]
    frames += [Atoms("H2", [[0, 0, 0], [d, 0, 0]]) for d in (0.5, 0.74, 1.0, 1.5, 2.0)]
    frames += [molecule(name) for name in ("CH4", "NH3", "C2H6", "CH3OH")]
    believed = []
    for atoms in frames:
        level = calculator.assess(atoms).level
        forces = calculator.get_property("forces", atoms)
        atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
        error = np.sqrt(np.mean((atoms.get_forces() - forces) ** 2))
        assert error <= boundary or level is not Level.RELIABLE, atoms
        believed.append(level is Level.RELIABLE)
    assert any(believed)


def test_unknown_element_is_refused_with_the_known_ones(calculator):
    with pytest.raises(
        BackboneError, match=r"elements must be among .*'C'.* got \['S'\]"
    ):
        calculator.assess(molecule("SH2"))


def test_short_demonstration_writes_all_its_files(tmp_path, monkeypatch):
    pytest.importorskip("tblite")
    run = demo.watch_aspirin(tmp_path, seed=1, picoseconds=0.005)
    assert [frame.info["step"] for frame in run.frames] == [0, 10]
    assert np.all(run.errors < 0.3)
    demo.picture(run, "aspirin").savefig(tmp_path / "picture.png")
    assert len(demo.describe_molecule(run, tmp_path)) >= 5
    pytest.importorskip("chemiscope")
    monkeypatch.setitem(__import__("sys").modules, "umap", None)  # slow to import
    assert str(tmp_path / "aspirin.html") in demo.report_line(
        run, tmp_path / "aspirin.html"
    )
    assert "probe&#39;s embeddings" in (tmp_path / "aspirin.html").read_text()
    back = read(tmp_path / "aspirin.xyz", ":")
    assert [read_assessment(frame).level for frame in back] == [
        event.level for event in run.monitor.history if event.step % 10 == 0
    ]
    assert back[-1].info["true_force_error"] == pytest.approx(run.errors[-1])


def test_reference_that_does_not_converge_is_marked_not_dropped(tmp_path):
    pytest.importorskip("tblite")
    from ase.calculators.calculator import CalculationFailed, Calculator

    class Stubborn(Calculator):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012

        def calculate(self, atoms=None, properties=None, system_changes=None):
            raise CalculationFailed("no convergence")

    run = demo.watch_aspirin(tmp_path, seed=1, picoseconds=0.005)
    assert np.all(np.isnan(demo.true_errors(run.frames, Stubborn())))


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tblite.ase", None)
    with pytest.raises(MissingExtraError, match=r'pip install "uqcalc\[xtb\]"'):
        demo.run_demo(tmp_path / "new")


@pytest.mark.parametrize("output", [".", "precious.txt"])
def test_command_refuses_what_is_not_an_empty_folder(tmp_path, output):
    (tmp_path / "precious.txt").write_text("keep")
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / output)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)  # a message, no traceback
    assert (tmp_path / "precious.txt").read_text() == "keep"


@pytest.mark.slow
def test_demonstration_halts_where_true_errors_are_large(tmp_path):
    pytest.importorskip("tblite")
    run = demo.watch_aspirin(tmp_path, seed=1)
    assert run.monitor.halted
    finite = run.errors[np.isfinite(run.errors)]
    assert finite[0] < run.card.boundary < finite[-5:].max()
