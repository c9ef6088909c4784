"""Features and reference labels from a local Ray cluster are those of a serial run."""

from __future__ import annotations

import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.io import read

import uqcalc
from uqcalc.cluster import RayWorkers, running
from uqcalc.errors import RecordError
from uqcalc.labels.features import predict_all, predict_cached


def molecules(count):
    names = ["H2O", "CH3OH", "C6H6", "NH3"]
    frames = [molecule(names[row % 4]) for row in range(count)]
    for row, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=row)
    return frames


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.numbers, other.numbers)
        np.testing.assert_allclose(one.energy, other.energy, rtol=1e-6)
        torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # two workers import torch
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_features_of_two_workers_are_in_order_and_fill_the_same_cache(tmp_path):
    pytest.importorskip("ray")
    backbone = uqcalc.tap(uqcalc.open_model("default"))
    frames = molecules(24)
    frames[5].numbers[0] = 110  # the potential fails
    rows = list(range(1, 24))
    make = partial(uqcalc.open_model, "default")
    here = predict_all(frames, rows, backbone, "here")
    workers = RayWorkers(make, 2)
    there = predict_cached(frames, rows, backbone, tmp_path, "there", workers=workers)
    assert there.failed.keys() == here.failed.keys() == {4}
    same(list(there.predictions), here.predictions)
    # all is stored: no worker is needed, so a wrong address has no effect
    absent = RayWorkers(make, 2, "127.0.0.1:1")
    again = predict_cached(
        [f for i, f in enumerate(frames) if i != 5], range(1, 23), backbone, tmp_path,
        "again", workers=absent,
    )  # fmt: skip
    same(list(again.predictions), here.predictions)


REFERENCE = """
import os
from ase.calculators.emt import EMT

class Deadly(EMT):
    def calculate(self, atoms=None, *args):
        if "Au" in atoms.symbols:
            os.kill(os.getpid(), 9)
        super().calculate(atoms, *args)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_labels_are_those_of_a_serial_run_and_a_deadly_frame_fails_alone(tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "reference.py").write_text(REFERENCE)
    frames = [bulk("Cu", cubic=True) for _ in range(6)]
    for row, frame in enumerate(frames):
        frame.rattle(0.1, seed=row)
    frames[2].numbers[0] = 79
    paths = tmp_path / "serial.xyz", tmp_path / "ray.xyz"
    name = f"{tmp_path / 'reference.py'}:Deadly"
    serial = uqcalc.label(frames, name, paths[0], workers=1, check=False)
    on_ray = uqcalc.label(frames, name, paths[1], workers=2, ray="local", check=False)
    assert [row for row, _ in on_ray.failed] == [2]
    assert on_ray.failed == serial.failed
    for one, other in zip(*(read(path, ":") for path in paths), strict=True):
        assert one.info["REF_energy"] == other.info["REF_energy"]
        np.testing.assert_array_equal(
            one.arrays["REF_forces"], other.arrays["REF_forces"]
        )
    again = uqcalc.label(frames, name, paths[1], workers=2, ray="127.0.0.1:1")
    assert again.resumed_from == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_killed_worker_is_replaced_and_an_error_of_a_job_is_raised(tmp_path):
    pytest.importorskip("ray")

    # inside, so that Ray sends them as code: workers cannot import this module
    def double(made, job):
        if job == "bad":
            msg = f"{made} cannot double {job}"
            raise ValueError(msg)
        if job == 7 and not os.path.exists(made):  # noqa: PTH110  (in a worker)
            open(made, "w").close()  # noqa: PTH123
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * job

    def broken():
        msg = "no such potential"
        raise RuntimeError(msg)

    flag = str(tmp_path / "flag")
    with running(RayWorkers(flag.__str__, 2)) as pool:
        assert list(pool.each(double, range(20))) == [2 * job for job in range(20)]
        assert (tmp_path / "flag").exists()
        with pytest.raises(ValueError, match="cannot double bad"):
            list(pool.each(double, [1, "bad", 2]))
    with (
        running(RayWorkers(broken, 1)) as pool,
        pytest.raises(RecordError, match="no such potential"),
    ):
        list(pool.each(double, [1], lost=str))


def test_workers_for_labels_are_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="at least 1 with ray"):
        uqcalc.label(
            [bulk("Cu")], "ase.calculators.emt:EMT", tmp_path / "a.xyz",
            workers=0, ray="local",
        )  # fmt: skip
