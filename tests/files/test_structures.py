"""Files with type numbers: elements must be given, or the file is refused."""

from __future__ import annotations

import contextlib
import gzip

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.io import read, write
from ase.io.extxyz import XYZError
from toys import POLICY, OfGeometry, ToyBackbone, copper
from typer.testing import CliRunner

from uqcalc import ReliableCalculator, UqcalcError, annotate_file
from uqcalc.cli import app
from uqcalc.errors import RecordError, RunFileError
from uqcalc.files.structures import _readable, frames_of, read_frames
from uqcalc.runfile.file import read_run_file
from uqcalc.runfile.opening import open_structure


TYPES = {"Na": 1, "Cl": 2}
DATA = """\
rock salt

2 atoms
2 atom types
0 9 xlo xhi
0 9 ylo yhi
0 9 zlo zhi
{masses}
Atoms # atomic

1 1 0 0 0
2 2 0 0 2.8
"""
MASSES = "\nMasses\n\n1 22.99\n2 35.45\n"


def salt():
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.05, seed=1)
    atoms.set_velocities(
        np.random.default_rng(2).normal(0, 0.01, atoms.positions.shape)
    )
    return atoms


def dump(atoms, *, columns="", words=None, head=""):
    """Return a frame as LAMMPS writes it in metal units: Å, Å/ps and eV/Å."""
    x, y, z = atoms.cell.lengths()
    lines = [
        *([head] if head else []),
        "ITEM: TIMESTEP\n0",
        f"ITEM: NUMBER OF ATOMS\n{len(atoms)}",
        f"ITEM: BOX BOUNDS pp pp pp\n0 {x:.12g}\n0 {y:.12g}\n0 {z:.12g}",
        f"ITEM: ATOMS id type x y z vx vy vz fx fy fz {columns}",
    ]
    velocities = atoms.get_velocities() * (1000 * units.fs)  # of Å per ASE's unit
    for i, atom in enumerate(atoms):
        numbers = [*atom.position, *velocities[i], *(0.1 * i, -0.2, 0.3)]
        word = "" if words is None else words(atom)
        text = " ".join(f"{n:.12g}" for n in numbers)
        lines.append(f"{i + 1} {TYPES[atom.symbol]} {text} {word}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def trajectory(tmp_path):
    path = tmp_path / "salt.lammpstrj"
    path.write_text(dump(salt()) * 2)
    return path


@pytest.mark.parametrize(
    "species", ["Na,Cl", " Na , Cl", ["Na", "Cl"], ("Na", "Cl", "K")]
)
def test_types_become_the_elements_that_are_named(trajectory, species):
    frames = read_frames(trajectory, species=species)
    assert len(frames) == 2
    for frame in frames:
        np.testing.assert_array_equal(frame.numbers, salt().numbers)
        np.testing.assert_allclose(frame.positions, salt().positions, atol=1e-9)
        # masses are those of the elements, so velocities, not momenta, are kept
        kinetic = salt().get_kinetic_energy()
        assert frame.get_kinetic_energy() == pytest.approx(kinetic, rel=1e-9)
        forces = [[0.1 * i, -0.2, 0.3] for i in range(len(frame))]
        np.testing.assert_allclose(frame.get_forces(), forces, rtol=1e-9)
        assert "energy" not in frame.calc.results  # a dump has none


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.lammpstrj", dump(salt())),
        ("t.dump", dump(salt(), columns="element", words=lambda _: "C")),
        ("t.lammps-data", DATA.format(masses="")),
        ("t.xyz", "2\nProperties=type:I:1:pos:R:3\n1 0 0 0\n2 0 0 2\n"),
    ],
    ids=["types", "element never set", "data file", "ghosts by type"],
)
def test_types_alone_are_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(
        RecordError, match=r"elements of a LAMMPS file must be known.*--species Na,Cl"
    ):
        read_frames(path)
    found = read_frames(path, species="Na,Cl")[0].symbols
    assert set(found) == {"Na", "Cl"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.dump", dump(salt(), columns="element", words=lambda a: a.symbol)),
        ("t.dump", dump(salt(), columns="mass", words=lambda a: a.mass)),
        ("t.lammps-data", DATA.format(masses=MASSES)),
    ],
    ids=["element column", "mass column", "masses"],
)
def test_a_file_that_says_which_elements_it_holds_needs_no_species(
    tmp_path, name, text
):
    path = tmp_path / name
    path.write_text(text)
    assert set(read_frames(path)[0].symbols) == {"Na", "Cl"}
    other = read_frames(path, species="K,Br")[0].symbols  # given elements have priority
    assert set(other) == {"K", "Br"}


def test_compressed_dumps_and_units_are_read_as_they_are(tmp_path):
    path = tmp_path / "t.lammpstrj.gz"
    with gzip.open(path, "wt") as file:
        file.write(dump(salt(), head="ITEM: UNITS\nnano"))
    with pytest.raises(RecordError, match="elements of a LAMMPS file must be known"):
        read_frames(path)
    frame = read_frames(path, species="Na,Cl")[0]
    np.testing.assert_allclose(frame.positions, 10 * salt().positions, atol=1e-8)
    with gzip.open(path, "wt") as file:
        file.write(dump(salt(), head="ITEM: UNITS\nlj"))
    with pytest.raises(RecordError, match=r"units of a LAMMPS dump .* got 'lj'"):
        read_frames(path, species="Na,Cl")


@pytest.mark.parametrize(
    ("species", "words"),
    [
        ("", "must be chemical symbols"),
        ([], "must be chemical symbols"),
        ("Na;Cl", "must be chemical symbols"),
        ("X,Na", "must be chemical symbols"),
        ("Na", r"must name the element of every type .* got Na for types \[1, 2\]"),
    ],
)
def test_species_that_do_not_fit_are_refused(trajectory, species, words):
    with pytest.raises(RecordError, match=f"species {words}"):
        read_frames(trajectory, species=species)


def test_species_for_a_file_without_types_are_refused(tmp_path):
    path = tmp_path / "t.xyz"
    write(path, salt())
    with pytest.raises(RecordError, match=r"species must be left out .* without types"):
        read_frames(path, species="Na,Cl")


def test_other_files_are_read_as_they_were(tmp_path):
    atoms = copper()
    atoms.calc = EMT()
    atoms.get_forces()
    write(tmp_path / "t.traj", [atoms, atoms])
    (frame,) = frames_of(tmp_path / "t.traj", -1)
    assert frame.calc.results["energy"] == atoms.get_potential_energy()


def test_annotation_uses_the_elements_of_the_types(tmp_path):
    path, target = tmp_path / "t.lammpstrj", tmp_path / "out.xyz"
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.8]], cell=[9, 9, 9], pbc=True)
    path.write_text(dump(atoms))
    judge = ReliableCalculator(
        ToyBackbone(EMT()), signals=[OfGeometry(lambda _: 0.1)], policy=POLICY
    )
    with pytest.raises(RecordError, match="elements of a LAMMPS file must be known"):
        annotate_file(path, target, judge)
    assert not target.exists() or target.stat().st_size == 0
    annotate_file(path, target, judge, species="Cu,Au")
    assert str(read(target).symbols) == "CuAu"
    assert "original_energy" not in read(target).info
    again = annotate_file(path, target, judge, species="Cu,Au")
    assert (again.frames, again.resumed_from) == (1, 1)
    with pytest.raises(RecordError, match="first frames of this source"):
        annotate_file(path, target, judge, species="Au,Cu")


def test_other_quantities_of_a_dump_with_elements_are_kept(tmp_path):
    """Velocities, forces, charges and computed quantities of each atom."""
    path, target = tmp_path / "t.lammpstrj", tmp_path / "out.xyz"
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.8]], cell=[9, 9, 9], pbc=True)
    atoms.set_velocities([[0.01, 0, 0], [0, 0.02, 0]])
    columns = "element q c_pe c_stress[1] d_p v_level i_flag"
    words = {"Na": "Cu 1 -0.5 3.5 0.25 2 7", "Cl": "Au -1 -1.5 4.5 0.75 1 8"}
    path.write_text(dump(atoms, columns=columns, words=lambda a: words[a.symbol]))
    judge = ReliableCalculator(
        ToyBackbone(EMT()), signals=[OfGeometry(lambda _: 0.1)], policy=POLICY
    )
    summary = annotate_file(path, target, judge)
    assert not summary.left_out
    frame = read(target)
    assert str(frame.symbols) == "CuAu"
    np.testing.assert_allclose(frame.get_velocities(), atoms.get_velocities(), 1e-7)
    forces = frame.arrays["original_forces"]
    np.testing.assert_allclose(forces, [[0, -0.2, 0.3], [0.1, -0.2, 0.3]])
    np.testing.assert_array_equal(frame.get_initial_charges(), [1, -1])
    for name, value in {
        "c_pe": [-0.5, -1.5],
        "c_stress_1": [3.5, 4.5],
        "d_p": [0.25, 0.75],
        "v_level": [2, 1],
        "i_flag": [7, 8],
        "type": [TYPES["Na"], TYPES["Cl"]],
    }.items():
        np.testing.assert_array_equal(np.ravel(frame.arrays[name]), value, name)


def test_commands_and_run_files_take_species(tmp_path, trajectory):
    result = CliRunner().invoke(
        app, ["annotate", str(trajectory), "-o", str(tmp_path / "out.xyz")]
    )
    assert result.exit_code == 1
    assert "--species Na,Cl" in result.output
    run = tmp_path / "run.yaml"
    text = f"structure: {trajectory.name}\nrelax: {{steps: 1}}\n"
    run.write_text(text)
    with pytest.raises(RunFileError, match=r"structure: elements.*species: \[Na, Cl\]"):
        open_structure(read_run_file(run))
    run.write_text(f"{text}species: [Na, Cl]\n")
    assert set(open_structure(read_run_file(run)).symbols) == {"Na", "Cl"}


# ------------------------------------------------------------------ damaged files


@pytest.mark.parametrize(
    "error", [MemoryError(), NotImplementedError("no Na"), KeyError(3)]
)
def test_frame_that_the_model_cannot_evaluate_fails_alone(tmp_path, error):
    class Limited(EMT):
        def calculate(self, atoms=None, *args):
            if "Au" in atoms.symbols:
                raise error
            super().calculate(atoms, *args)

    good = copper()
    bad = good.copy()
    bad.symbols[0] = "Au"
    write(tmp_path / "t.traj", [good, bad, good])
    judge = ReliableCalculator(
        ToyBackbone(Limited()), signals=[OfGeometry(lambda _: 0.1)], policy=POLICY
    )
    summary = annotate_file(tmp_path / "t.traj", tmp_path / "out.xyz", judge)
    assert summary.frames == 3
    assert [index for index, _ in summary.failed] == [1]
    assert type(error).__name__ in read(tmp_path / "out.xyz", 1).info["uqcalc_error"]


class Flat(Calculator):
    """Accepts every element and structure: only the reading can fail."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, *args):
        super().calculate(atoms, *args)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


@pytest.mark.parametrize("ending", ["traj", "extxyz", "lammpstrj", "cif", "json"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, ending):
    source, rng = tmp_path / f"t.{ending}", np.random.default_rng(0)
    if ending == "lammpstrj":
        source.write_text(dump(salt()) * 2)
    else:
        write(source, salt())
    whole = source.read_bytes()
    judge = ReliableCalculator(
        ToyBackbone(Flat()), signals=[OfGeometry(lambda _: 0.1)], policy=POLICY
    )
    for trial in range(25):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 1 + trial % 4):
            content[place] = rng.integers(256)
        source.write_bytes(
            content[: len(content) if trial % 3 else rng.integers(len(whole))]
        )
        target = tmp_path / f"{trial}.xyz"
        species = "Na,Cl" if ending == "lammpstrj" else None
        try:
            annotate_file(source, target, judge, species=species)
        except UqcalcError as error:
            assert str(source) in str(error)  # noqa: PT017
        for path in (source, target):  # the output is valid
            with contextlib.suppress(RecordError):
                read_frames(path)


@pytest.mark.parametrize("ending", ["xyz", "xyz.gz"])
def test_frames_after_an_empty_line_give_an_error(tmp_path, ending):
    write(tmp_path / "whole.xyz", [copper(seed) for seed in range(3)])
    lines = (tmp_path / "whole.xyz").read_text().splitlines(keepends=True)
    path = tmp_path / f"gap.{ending}"
    opened = gzip.open if ending.endswith("gz") else open
    with opened(path, "wt") as file:
        file.writelines([*lines[:6], "\n", *lines[6:]])
    assert len(list(frames_of(path, slice(0, 1)))) == 1
    with pytest.raises(RecordError, match="empty line between frames, got one after 1"):
        read_frames(path)
    with pytest.raises(XYZError, match="remove this line"):
        next(frames_of(path, -1))
    with opened(path, "wt") as file:
        file.writelines([*lines, "\n", "  \n"])
    assert len(read_frames(path)) == 3


def test_incomplete_number_is_not_read(tmp_path):
    path = tmp_path / "md.xyz"
    write(path, [copper(seed) for seed in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # only the line end is missing
    assert len(read_frames(path)) == 3
    path.write_bytes(whole[:-5])
    frames = frames_of(path)
    assert len([next(frames), next(frames)]) == 2
    with pytest.raises(XYZError, match="last line of an XYZ file must be complete"):
        next(frames)
    target = tmp_path / "out.xyz"
    calculator = ReliableCalculator(
        ToyBackbone(EMT()), signals=[OfGeometry(lambda _: 0.1)], policy=POLICY
    )
    with pytest.raises(RecordError, match="after 2 frames"):
        annotate_file(path, target, calculator)
    path.write_bytes(whole)
    assert annotate_file(path, target, calculator).resumed_from == 2
    path.write_text("3\nwater by hand\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48")
    assert len(read_frames(path)) == 1


@pytest.mark.parametrize("count", ["9" * 12, "9" * 30])
def test_a_damaged_number_of_atoms_ends_with_the_file(tmp_path, count):
    """The check before ASE's reader ends at the end of the file, not at this number."""
    path = tmp_path / "damaged.xyz"
    path.write_text(f"{count}\n\nH 0 0 0\n")
    assert _readable(str(path))[1] == ""
