"""`label`: reference values under names for training, resumable, failures kept."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write
from builders import run_and_kill
from toys import BAD, copper, watched

from uqcalc import annotate, label, read_assessment
from uqcalc.errors import LabelError, MissingExtraError, RecordError
from uqcalc.references import named
from uqcalc.references.evaluating import attempted


MODULE = '''
import os, signal, time
from ase.calculators.emt import EMT
from ase.calculators.calculator import all_changes

class Moody(EMT):
    """EMT that fails on two atoms, kills its process on three, and may be slow."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if len(atoms) == 2:
            raise ArithmeticError("SCF did not converge")
        if len(atoms) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SLOW", "0")))
        super().calculate(atoms, properties, system_changes)

def calculator():
    return Moody()

def in_folder(directory):
    found = EMT()
    with open(os.path.join(directory, "input"), "w") as file:
        file.write("made")
    return found

nothing = 3
'''


def chain(count):
    return Atoms(f"Cu{count}", [(2.4 * k, 0.1 * k**2, 0) for k in range(count)])


@pytest.fixture
def moody(tmp_path):
    path = tmp_path / "moody.py"
    path.write_text(MODULE, encoding="utf-8")
    return f"{path}:calculator"


class Scaled(Calculator):
    """EMT whose energy, forces or stress are in other units."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, energy=1.0, forces=1.0, stress=1.0):
        super().__init__()
        self.factors = {"energy": energy, "forces": forces, "stress": stress}

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        emt = EMT()
        for name, factor in self.factors.items():
            if name != "stress" or atoms.pbc.all():
                self.results[name] = factor * emt.get_property(name, atoms)


def test_labels_are_those_of_the_reference_and_other_entries_stay(tmp_path):
    [frame] = annotate([copper()], watched(after=BAD).calc)
    frame.set_constraint(FixAtoms([0]))
    frame.info.update(REF_energy=99.0, run="first")
    frame.arrays["REF_forces"] = np.full((4, 3), 99.0)
    target = tmp_path / "out.xyz"
    summary = label([frame, chain(4)], EMT, target, workers=0)
    assert (summary.labelled, summary.failed) == (2, ())
    assert "forces and stress agree" in summary.units
    back, other = read(target, ":")
    expected = copper()
    expected.calc = EMT()
    assert back.info["REF_energy"] == pytest.approx(expected.get_potential_energy())
    np.testing.assert_allclose(
        back.arrays["REF_forces"], expected.get_forces(), atol=1e-8
    )
    np.testing.assert_allclose(
        back.info["REF_stress"], expected.get_stress(), atol=1e-8
    )
    assert "REF_stress" not in other.info  # not periodic
    assert back.info["run"] == "first"
    assert back.info["uqcalc_reference"] == "ase.calculators.emt.EMT"
    assert read_assessment(back).level == read_assessment(frame).level
    # predictions are not under the names of labels
    assert back.calc is None
    assert not {"energy", "forces", "stress"} & {*back.info, *back.arrays}
    assert back.info["predicted_energy"] == frame.info["predicted_energy"]
    assert frame.info["REF_energy"] == 99.0


def test_failures_and_dead_processes_affect_only_their_frame(tmp_path, moody):
    frames = [chain(n) for n in (4, 2, 5, 3, 6, 1)]
    target = tmp_path / "out.xyz"
    summary = label(frames, moody, target, workers=2)
    assert summary.labelled == 4
    reasons = dict(summary.failed)
    assert reasons[1] == "ArithmeticError: SCF did not converge"
    assert "crashed or was killed" in reasons[3]
    assert "1: ArithmeticError" in str(summary)
    rows = [frame.info["uqcalc_label_row"] for frame in read(target, ":")]
    assert rows == [0, 2, 4, 5]  # in any order of finishing
    failed = read(tmp_path / "out_failed.xyz", ":")
    assert [len(frame) for frame in failed] == [2, 3]
    assert not any("REF_energy" in frame.info for frame in failed)
    again = label(frames, moody, target, workers=2)
    assert (again.resumed_from, again.labelled, again.failed) == (6, 4, summary.failed)
    frames[1].info["mended"] = True
    mended = label(frames, f"{moody}", target, workers=1, retry=True)
    assert (mended.resumed_from, len(mended.failed)) == (4, 2)


@pytest.mark.slow
def test_a_killed_call_goes_on_from_what_is_on_disk(tmp_path, moody, monkeypatch):
    frames = [chain(n) for n in range(4, 16)]
    write(tmp_path / "frames.xyz", frames)
    target = tmp_path / "out.xyz"
    words = ["label", str(tmp_path / "frames.xyz"), "-o", str(target)]
    words += ["--reference", moody, "--workers", "1"]
    command = [sys.executable, "-m", "uqcalc", *words]
    monkeypatch.setenv("SLOW", "0.3")

    def begun():
        return target.exists() and target.read_text().count("REF_energy") >= 3

    run_and_kill(command, begun)
    monkeypatch.setenv("SLOW", "0")
    with target.open("a", encoding="utf-8") as file:
        file.write("4\nProperties=spec")  # an incomplete frame
    summary = label(frames, moody, target, workers=1)
    assert summary.resumed_from >= 3
    assert summary.labelled == len(frames)
    label(frames, moody, tmp_path / "whole.xyz", workers=1)
    both = [read(path, ":") for path in (target, tmp_path / "whole.xyz")]
    for ours, theirs in zip(*both, strict=True):
        assert ours.info["uqcalc_label_row"] == theirs.info["uqcalc_label_row"]
        # EMT sums neighbours in an order that depends on the frame before
        energies = (ours.info["REF_energy"], theirs.info["REF_energy"])
        assert energies[0] == pytest.approx(energies[1], rel=1e-9)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"energy": 1 / 27.211386}, r"forces .*ratio 27\.2.* may be in hartree"),
        ({"forces": 23.06}, "forces .* may be in kcal/mol"),
        ({"forces": -1.0}, "forces .* the sign differs"),
        ({"stress": 160.21766}, "stress .* may be in GPa"),
        ({"stress": -1.0}, "stress .* the sign differs"),
    ],
)
def test_foreign_units_are_found_before_anything_is_written(tmp_path, factors, message):
    target = tmp_path / "out.xyz"
    frame = copper()
    frame.set_cell(frame.cell * 0.97, scale_atoms=True)
    with pytest.raises(LabelError, match=message):
        label([frame], lambda: Scaled(**factors), target, workers=0)
    assert not target.exists()
    done = label([frame], lambda: Scaled(**factors), target, workers=0, check=False)
    assert (done.labelled, done.units) == (1, "not asked for")


def test_invalid_results_are_failures(tmp_path):
    class Broken(Scaled):
        def calculate(self, atoms=None, *args, **kwargs):
            super().calculate(atoms, *args, **kwargs)
            self.results["forces"] = self.results["forces"][: len(atoms) // 2]

    done = label([copper()], Broken, tmp_path / "out.xyz", workers=0, check=False)
    assert "shape (4, 3), got shape (2, 3)" in done.failed[0][1]
    nan = label(
        [copper()], lambda: Scaled(np.nan), tmp_path / "b.xyz", workers=0, check=False
    )
    assert "not finite" in nan.failed[0][1]


def test_a_reference_that_writes_files_gets_a_folder_for_each_frame(tmp_path, moody):
    reference = moody.replace(":calculator", ":in_folder")
    label([chain(4), chain(5)], reference, tmp_path / "out.xyz", workers=0)
    for row in (0, 1):
        assert (tmp_path / "out_work" / str(row) / "input").read_text() == "made"


def test_other_files_are_refused_and_stay(tmp_path, moody):
    target = tmp_path / "out.xyz"
    label([chain(4)], EMT, target, workers=0)
    before = target.read_bytes()
    with pytest.raises(RecordError, match=r"labels of one reference, got ase.calc"):
        label([chain(4)], moody, target, workers=0)
    with pytest.raises(RecordError, match="row 0, whose geometry"):
        label([chain(5)], EMT, target, workers=0)
    assert target.read_bytes() == before
    write(tmp_path / "plain.xyz", chain(4))
    with pytest.raises(RecordError, match=r"must carry info\['REF_energy'\]"):
        label([chain(4)], EMT, tmp_path / "plain.xyz", workers=0)
    with pytest.raises(RecordError, match=r"end in .xyz or .extxyz, got out.traj"):
        label([chain(4)], EMT, tmp_path / "out.traj", workers=0)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("dft", "one of gfn2-xtb, file.py:function or module:function, got 'dft'"),
        ("absent.py:make", "file of the reference must exist"),
        ("no_such_module:make", "a module that can be imported, got 'no_such_module'"),
        ("ase.calculators.emt:units", "a function of ase.calculators.emt, got 'units'"),
        ("ase.build:bulk", "must return an ASE calculator, got TypeError"),
    ],
)
def test_failing_references_are_reported_before_the_first_frame(
    tmp_path, reference, message
):
    with pytest.raises(RecordError, match=message):
        label([chain(4)], reference, tmp_path / "out.xyz", workers=0)
    assert not (tmp_path / "out.xyz").exists()
    assert not (tmp_path / "out_failed.xyz").exists()


def test_invalid_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="number of processes from 0, got -1"):
        label([chain(4)], EMT, tmp_path / "out.xyz", workers=-1)
    with pytest.raises(ValueError, match="other processes can import, got <function"):
        label([chain(4)], lambda: EMT(), tmp_path / "out.xyz", workers=1)


def test_gfn2_xtb_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(named.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r'pip install "uqcalc\[xtb\]"'):
        named.gfn2_xtb()


def test_gfn2_xtb_labels_molecules(tmp_path):
    pytest.importorskip("tblite")
    frame = molecule("CH3OH")
    frame.rattle(0.05, seed=1)
    done = label([frame], "gfn2-xtb", tmp_path / "out.xyz", workers=0)
    assert done.units == "forces agree with differences of the energy"
    back = read(tmp_path / "out.xyz")
    assert np.linalg.norm(back.arrays["REF_forces"]) > 1
    assert abs(back.arrays["REF_forces"].sum(axis=0)).max() < 1e-4


@pytest.mark.parametrize(
    ("info", "charge", "multiplicity"),
    [
        ({"charge": 1}, 1, 1),
        ({"total_charge": -1, "charge": -1, "spin": 1}, -1, 1),
        ({"total_spin": 0.37, "charge": 1}, 1, 1),  # a magnetisation
        ({"spin": 2}, 0, 2),  # a multiplicity: the number of electrons is odd
        ({"charge": 1, "spin": 2}, 1, 3),  # two unpaired electrons: it is even
    ],
)
def test_gfn2_xtb_reads_charge_and_spin_of_info(tmp_path, info, charge, multiplicity):
    tblite = pytest.importorskip("tblite.ase")
    frame = molecule("CH3")
    frame.set_initial_magnetic_moments(None)
    frame.rattle(0.05, seed=1)
    frame.info |= info
    label([frame], "gfn2-xtb", tmp_path / "out.xyz", workers=0)
    asked = attempted(named.gfn2_xtb(), frame)  # as a monitor asks
    bare = frame.copy()
    wanted = tblite.TBLite(
        method="GFN2-xTB", charge=charge, multiplicity=multiplicity, verbosity=0
    )
    energy = wanted.get_potential_energy(bare)
    assert read(tmp_path / "out.xyz").info["REF_energy"] == pytest.approx(energy)
    assert asked.energy == pytest.approx(energy)
    assert not frame.has("initial_charges")


def test_a_charge_that_contradicts_itself_is_a_failure(tmp_path):
    frame = copper(1)
    frame.info |= {"charge": 1, "total_charge": 0}
    wrong = frame.copy()
    wrong.info = {"multiplicity": 2}  # the number of electrons is even
    done = label([frame, wrong], EMT, tmp_path / "out.xyz", workers=0)
    (_, twice), (_, spin) = done.failed
    assert "stated once, got charge 1, total_charge 0" in twice
    assert "multiplicity that" in spin


def test_units_are_not_compared_if_forces_vanish(tmp_path):
    lattice = bulk("Cu", cubic=True)
    single = Atoms("Cu", positions=[(0, 0, 0)])
    done = label([single, lattice], EMT, tmp_path / "out.xyz", workers=0)
    assert "close to zero" in done.units
