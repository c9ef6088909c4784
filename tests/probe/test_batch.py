"""Numbers of many systems on the device equal those of single systems."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.stress import voigt_6_to_full_3x3_stress
from closeness import FLOAT32, close
from torch.utils._python_dispatch import TorchDispatchMode

from uqcalc import default_calculator
from uqcalc.backbones.prediction import Prediction
from uqcalc.defaults import shipped_probe
from uqcalc.probe.batch import (
    BatchPass,
    distinct_atoms_of_batch,
    numbers_of_batch,
    raw_scalars_of_batch,
)
from uqcalc.probe.inputs import distinct_atoms, raw_scalars
from uqcalc.probe.numbers import from_host


ENERGIES = -np.arange(119.0)
COUNTS = np.arange(119.0) % 7 + 1
# operations whose result the host needs before the next one
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount")


def prediction(numbers, *, seed, periodic=False, dim=8):
    rng = np.random.default_rng(seed)
    numbers = np.array(numbers)
    forces = rng.normal(0, 1, (len(numbers), 3)) ** 3
    return Prediction(
        numbers=numbers,
        positions=rng.normal(0, 3, (len(numbers), 3)),
        cell=np.diag([4.0, 5.0, 6.0]) if periodic else np.zeros((3, 3)),
        pbc=np.full(3, periodic),
        results={"stress": rng.normal(0, 0.01, 6)},
        energy=float(rng.normal(-30, 5)),
        forces=forces,
        features=torch.from_numpy(rng.normal(0, 1, (len(numbers), dim))),
    )


def as_pass(predictions):
    """The predictions as one pass of many systems."""
    sizes = [len(p.numbers) for p in predictions]
    full = [voigt_6_to_full_3x3_stress(p.results["stress"]) for p in predictions]
    return BatchPass(
        torch.from_numpy(np.concatenate([p.numbers for p in predictions])),
        torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        sizes,
        torch.cat([p.features for p in predictions]),
        torch.tensor([p.energy for p in predictions], dtype=torch.float64),
        torch.from_numpy(np.concatenate([p.forces for p in predictions])),
        torch.from_numpy(np.stack(full)),
        torch.tensor([abs(np.linalg.det(p.cell)) for p in predictions]),
        periodic=bool(predictions[0].pbc.any()),
        solid=bool(predictions[0].pbc.all()),
    )


@pytest.mark.parametrize("periodic", [False, True])
def test_plain_numbers_are_those_of_single_structures(periodic):
    kinds = [[6, 1, 1, 8], [1], [29, 29, 8, 8, 8], [6, 7]]
    predictions = [
        prediction(kind, seed=k, periodic=periodic) for k, kind in enumerate(kinds)
    ]
    ours = numbers_of_batch(
        as_pass(predictions),
        torch.from_numpy(ENERGIES),
        torch.from_numpy(COUNTS),
        1.5,
        stress=True,
    )
    device = torch.device("cpu")
    theirs = from_host(predictions, ENERGIES, COUNTS, device, 1.5, stress=True)
    assert list(ours.sizes) == list(theirs.sizes)
    for name in ("numbers", "shares", "log_forces", "of_stress"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert torch.equal(a.isnan(), b.isnan())
        close(a.nan_to_num(), b.nan_to_num(), FLOAT32)
    raw = raw_scalars_of_batch(as_pass(predictions), torch.from_numpy(ENERGIES))
    close(raw, np.stack([raw_scalars(p, ENERGIES) for p in predictions]), FLOAT32)


def test_atoms_of_a_supercell_count_once():
    one = prediction([29, 29, 8], seed=3, periodic=True)
    twice = replace(
        one, numbers=np.tile(one.numbers, 2), forces=np.tile(one.forces, (2, 1)),
        positions=np.tile(one.positions, (2, 1)), features=one.features.repeat(2, 1),
    )  # fmt: skip
    found = distinct_atoms_of_batch(as_pass([twice, one, one]))
    assert found.tolist() == [distinct_atoms(p) for p in (twice, one, one)] == [3] * 3


class Waits(TorchDispatchMode):
    """Collects the operations that wait for the device on CUDA."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1]
        sized = (kwargs or {}).get("output_size") is not None
        if name.startswith(WAITING) or ("repeat_interleave" in name and not sized):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def judged():
    """The bundled probe, and predictions for molecules of several sizes."""
    from ase.build import molecule

    calculator = default_calculator()
    frames = [molecule(name) for name in ("CH3OH", "H2O", "C6H6", "CH4")]
    for k, frame in enumerate(frames):
        frame.rattle(0.02 + 0.05 * k, seed=k)
    predictions = calculator.backbone.predict_many(frames)
    return shipped_probe("default"), [*predictions, predictions[1]]


def sloped(probe):
    """The probe with a limit on the mean distance by number of elements, and on it."""
    scope = replace(
        probe.card.scope, mean_distance=1e-3, mean_slope=-2.0, element_counts=(1, 9)
    )
    return probe.with_card(scope=scope)


@pytest.mark.parametrize("change", [lambda probe: probe, sloped])
def test_a_probe_reads_a_batch_on_the_device_as_it_reads_predictions(judged, change):
    probe, predictions = change(judged[0]), judged[1]
    for p in predictions:
        p.results["stress"] = np.zeros(6)
    given = as_pass(predictions)
    probe.read_batch(probe.batch_of(given))  # stores data that do not change after this
    with Waits() as waits:
        ours = probe.read_batch(probe.batch_of(given))
    assert waits.found == []
    theirs = probe.read(predictions)
    alone = [probe.read([p]) for p in predictions]
    for name, value in ours._asdict().items():
        other = getattr(theirs, name)
        assert (value is None) == (other is None)
        if value is None:
            continue
        close(value, other, 1e-5)
        joined = [getattr(one, name) for one in alone]
        close(value, torch.cat(joined), 1e-5)


def test_nan_stays_in_its_system(judged):
    probe, predictions = judged
    for p in predictions:
        p.results["stress"] = np.zeros(6)
    given = as_pass(predictions)
    forces = given.forces.clone()
    forces[0, 1] = torch.nan
    broken = probe.read_batch(probe.batch_of(replace(given, forces=forces)))
    sound = probe.read_batch(probe.batch_of(given))
    assert broken.reliability.isnan().tolist() == [True, *[False] * 4]
    close(broken.reliability[1:], sound.reliability[1:], 1e-5)


@pytest.mark.gpu
def test_reading_a_batch_does_not_wait_for_the_gpu(judged):
    probe, predictions = judged
    given = as_pass(predictions)
    moved = {
        name: value.cuda()
        for name in ("numbers", "system", "features", "energies", "forces", "volumes")
        if isinstance(value := getattr(given, name), torch.Tensor)
    }
    there = replace(given, stresses=None, **moved)
    for mode in ("default", "error"):  # constants are copied at the first time
        torch.cuda.set_sync_debug_mode(mode)
        try:
            found = probe.read_batch(probe.batch_of(there))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    close(found.reliability, probe.read(predictions).reliability, 1e-4)
