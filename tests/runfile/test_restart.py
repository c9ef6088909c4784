from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.calculators.emt import EMT
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet
from closeness import FLOAT64, close
from toys import copper

from uqcalc.annotating.copies import INFO_KEY
from uqcalc.annotating.frames import append_frame, cut_frames
from uqcalc.errors import RecordError
from uqcalc.runfile.restart import Restart


DT = 2 * units.fs


def verlet(atoms, rng):
    return VelocityVerlet(atoms, DT)


def langevin(atoms, rng):
    return Langevin(atoms, DT, temperature_K=300, friction=0.05, fixcm=False, rng=rng)


def breathing(atoms, rng, *, hydrostatic=True):
    return LangevinBAOAB(
        atoms,
        DT,
        temperature_K=300,
        externalstress=0.0,
        hydrostatic=hydrostatic,
        T_tau=20 * DT,
        P_tau=50 * DT,
        P_mass=100.0,
        rng=rng,
    )


def shearing(atoms, rng):
    return breathing(atoms, rng, hydrostatic=False)


def moving(make, seed):
    atoms = copper(amount=0.02)
    atoms.calc = EMT()
    return atoms, make(atoms, np.random.default_rng(seed))


@pytest.mark.parametrize("make", [verlet, langevin, breathing, shearing])
def test_dynamics_continues_like_an_uninterrupted_run(tmp_path, make):
    path = tmp_path / "state.npz"
    atoms, dynamics = moving(make, 1)
    dynamics.run(7)
    Restart.of(7, "this one", atoms, dynamics).save(path)
    dynamics.run(9)

    again = copper(amount=0.02)
    again.calc = EMT()
    restart = Restart.load(path)
    assert restart.step == 7
    restart.place(again, moving=True)
    resumed = make(again, np.random.default_rng(2))
    restart.wind(resumed)
    resumed.run(9)
    for get in ("get_positions", "get_momenta"):
        ours, theirs = getattr(again, get)(), getattr(atoms, get)()
        # new neighbour lists have another order of summation
        close(ours, theirs, FLOAT64)
    close(again.cell.array, atoms.cell.array, FLOAT64)
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"{}", None])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "state.npz"
    if content is None:
        np.savez(path, positions=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(RecordError, match="must be one that uqcalc saved"):
        Restart.load(path)


def test_frames_of_a_step_and_later_ones_are_cut(tmp_path):
    path = tmp_path / "frames.xyz"
    for step in (0, 4, 8, 12):
        frame = copper(step)
        frame.info |= {"note": "at step=99 or so", INFO_KEY: "{}", "step": step}
        append_frame(path, frame)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert cut_frames(path, "frames", 13) == 4
    assert path.read_bytes() == whole
    assert cut_frames(path, "frames", 8) == 2
    assert [frame.info["step"] for frame in read(path, ":")] == [0, 4]
    assert cut_frames(path, "frames", 0) == 0
    assert path.read_bytes() == b""
    assert cut_frames(tmp_path / "none.xyz", "frames", 3) == 0


def test_other_frames_do_not_change(tmp_path):
    path = tmp_path / "mine.xyz"
    copper(0).write(path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="trajectory must carry an assessment"):
        cut_frames(path, "trajectory", 0)
    assert path.read_bytes() == before
