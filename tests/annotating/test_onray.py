"""Workers of a local Ray cluster give the results of a serial run."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read

import uqcalc
from uqcalc.annotating.onray import annotated_on_ray
from uqcalc.annotating.trajectory import Cells, annotate
from uqcalc.cluster import RayWorkers
from uqcalc.errors import MissingExtraError, RecordError


BOTH = ("energy", "forces")


def frames(count):
    names = ["H2O", "CH3OH", "C6H6", "NH3"]
    for row in range(count):
        atoms = molecule(names[row % 4])
        atoms.rattle(0.05, seed=row)
        yield atoms


def workers_of_ray():
    """Return the processes of the workers of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if text.startswith(b"ray::_Worker"):
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow  # two workers import torch
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_workers_give_the_serial_results_in_order_although_one_is_killed():
    pytest.importorskip("ray")
    killed = []

    def source():
        for row, atoms in enumerate(frames(40)):
            if row == 30:
                victim = workers_of_ray()[0]
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
            yield atoms

    cluster = RayWorkers(uqcalc.default_calculator, workers=2)
    found = list(annotated_on_ray(source(), cluster, 20, Cells(), BOTH))
    assert killed
    expected = list(annotate(frames(40), uqcalc.default_calculator(), batch_atoms=20))
    assert len(found) == 40
    for one, other in zip(found, expected, strict=True):
        assert one.info.keys() == other.info.keys()
        np.testing.assert_array_equal(one.numbers, other.numbers)
        for key in ("probe_reliability", "predicted_energy"):
            np.testing.assert_allclose(one.info[key], other.info[key], rtol=1e-5)
        forces = other.arrays["predicted_forces"]
        np.testing.assert_allclose(one.arrays["predicted_forces"], forces, atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("workers", 0), ("gpus", -1.0)])
def test_impossible_numbers_are_refused(name, value):
    with pytest.raises(RecordError, match="must be at least"):
        RayWorkers(uqcalc.default_calculator, **{name: value})


def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch):
    started = []
    ray = SimpleNamespace(is_initialized=lambda: False, init=started.append)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free as soon as the server is closed
    cluster = RayWorkers(uqcalc.default_calculator, address=f"127.0.0.1:{port}")
    with pytest.raises(RecordError, match="must be that of a running Ray cluster"):
        list(annotated_on_ray(frames(1), cluster, 20, Cells(), BOTH))
    assert not started


def test_a_missing_ray_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    source = tmp_path / "md.xyz"
    molecule("H2O").write(source)
    cluster = RayWorkers(uqcalc.default_calculator)
    with pytest.raises(MissingExtraError, match=r"uqcalc\[ray\]"):
        uqcalc.annotate_file(
            source, tmp_path / "out.xyz", uqcalc.default_calculator(), workers=cluster
        )
    assert not read(source, ":")[0].info
